"""Print the completion script of a shell."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  echo 'eval "$(sdkit completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(sdkit completion zsh)"' >> ~/.zshrc
    fish:  sdkit completion fish > ~/.config/fish/completions/sdkit.fish
    """
    from click.shell_completion import get_completion_class

    from sdkit.cli.main import main

    completion = get_completion_class(shell)
    assert completion is not None, "click completes every shell in SHELLS"
    click.echo(completion(main, {}, "sdkit", "_SDKIT_COMPLETE").source())
