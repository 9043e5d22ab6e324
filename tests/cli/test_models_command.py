"""`sdkit models` as people meet it first: its help, and words that are no command."""

from __future__ import annotations

from click.testing import CliRunner

from sdkit.cli.main import main


def test_words_that_match_no_model_may_have_been_meant_as_a_command() -> None:
    said = CliRunner().invoke(main, ["models", "shwo", "fox"])
    assert said.stderr == "no model matches; did you mean `sdkit models show`?\n"
    assert CliRunner().invoke(main, ["models", "fox"]).stderr == "no model matches\n"


def test_help_cuts_no_sentence() -> None:
    shown = CliRunner().invoke(main, ["models", "--help"]).stdout.partition("Commands:")[2]
    said = " ".join(shown.split())
    assert "Put the model NAME where a program looks for it, without a second copy where that is possible" in said
    assert "..." not in said
