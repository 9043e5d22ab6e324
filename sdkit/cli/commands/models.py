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


class Models(click.Group):
    """A group that lists models where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before what is no command of this group."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group("models", cls=Models, subcommand_metavar="[COMMAND | WORD...] [OPTIONS]")
def command() -> None:
    """List, find and keep models, and see what was made from what.

    Without a command the models are listed whose names, trigger words, tags, notes or files have words that begin with
    every WORD. Files stay where they are. Everywhere else, the name of a model stands for its path.
    """


for _command in (list_, show, add, scan, rename, tag, note, remove, verify, export, import_, lineage, place):
    command.add_command(_command)
