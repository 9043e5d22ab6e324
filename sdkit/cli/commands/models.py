"""List, find and keep models, and see what was made from what.

sdkit models
sdkit models scan ~/ComfyUI
sdkit models dog --kind lora
"""

from __future__ import annotations

import click

from sdkit.cli.models.edit import note, remove, rename, tag
from sdkit.cli.models.exchange import export, import_
from sdkit.cli.models.files import add, place, scan, verify
from sdkit.cli.models.listing import list_
from sdkit.cli.models.show import lineage, show

_DEFAULT = "list"
_LONGEST_SENTENCE = 200


class Models(click.Group):
    """A group that lists models where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before what is no command of this group."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their first sentences whole."""
        with formatter.section("Commands"):
            commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
            formatter.write_dl([(name, one.get_short_help_str(_LONGEST_SENTENCE)) for name, one in commands])


@click.group("models", cls=Models, subcommand_metavar="[COMMAND | WORD...] [OPTIONS]")
def command() -> None:
    """List, find and keep models, and see what was made from what.

    Without a command the models are listed whose names, trigger words, tags, notes or files have words that begin with
    every WORD. Files stay where they are. Everywhere else, the name of a model stands for its path.
    """


for _command in (list_, show, add, scan, rename, tag, note, remove, verify, export, import_, lineage, place):
    command.add_command(_command)
