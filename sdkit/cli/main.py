"""The command ``sdkit``: finds its commands by file name, and imports only the one that runs."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

import click

import sdkit
from sdkit.cli import errors
from sdkit.core.errors import UsageError

COMMANDS = Path(__file__).parent / "commands"


class Shell(click.Group):
    """A group whose commands are the modules of `sdkit.cli.commands`, each with a `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands; nothing is imported."""
        return sorted(path.stem.replace("_", "-") for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"sdkit.cli.commands.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command the arguments name, or suggest the nearest one."""
        names = self.list_commands(ctx)
        if args[0] not in names and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f"did you mean `sdkit {near[0]}`?" if near else "`sdkit --help` lists the commands"
            raise UsageError(f"there is no command `{args[0]}`", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the first line of each module's docstring."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(ctx)])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line and exit with its code; whatever fails is reported in a person's words."""
        try:
            code = super().main(*args, **{"prog_name": "sdkit", **extra, "standalone_mode": False})
        except Exception as error:
            code = errors.report(error)
        sys.exit(code)


def _summary(name: str) -> str:
    """The first docstring line of a command's module, read from the source."""
    source = (COMMANDS / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")


@click.group("sdkit", cls=Shell, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(sdkit.__version__, prog_name="sdkit", message="%(prog)s %(version)s")
def main() -> None:
    """Train, merge, blend and convert Stable Diffusion adapters and models."""
