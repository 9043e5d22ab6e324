from __future__ import annotations

import errno
import os

import click
import pytest
from click.testing import CliRunner, Result

from sdkit.cli.main import Shell, main
from sdkit.core.errors import SdkitError, UsageError


def fail_with(error: BaseException) -> Result:
    shell = Shell("sdkit")

    @click.command()
    def failing() -> None:
        raise error

    shell.get_command = lambda ctx, name: failing  # type: ignore[method-assign]
    shell.list_commands = lambda ctx: ["failing"]  # type: ignore[method-assign]
    return CliRunner().invoke(shell, ["failing"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (SdkitError("a is b", "try c"), 1, "error: a is b\n\nhint: try c\n"),
        (SdkitError("a is b"), 1, "error: a is b\n"),
        (UsageError("wrong", "right"), 2, "error: wrong\n\nhint: right\n"),
        (click.BadParameter("No good."), 2, "error: invalid value: No good\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/out"),
            1,
            "error: /x/out: no space left on device\n\nhint: free ",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/out"),
            1,
            "error: /x/out: permission denied\n\nhint: check",
        ),
        (OSError("odd"), 1, "error: odd\n"),
        (MemoryError(), 1, "error: out of memory\n\nhint: "),
        (
            ValueError("bug"),
            1,
            "error: sdkit failed unexpectedly: ValueError: bug\n\nhint: this is a bug; run again with",
        ),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failures_are_told_in_plain_words(error: BaseException, code: int, text: str) -> None:
    result = fail_with(error)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(text)
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDKIT_DEBUG", "1")
    result = fail_with(ValueError("bug"))
    assert "Traceback" in result.stderr
    assert "error: sdkit failed unexpectedly" in result.stderr


def test_text_from_a_file_cannot_pass_for_ours() -> None:
    result = fail_with(SdkitError("key \x1b[31mred\x1b[0m\nhint: run rm -rf /", "real"))
    assert result.stderr == "error: key red\n  hint: run rm -rf /\n\nhint: real\n"


def test_a_program_is_told_of_errors_on_stderr_alone() -> None:
    result = CliRunner().invoke(main, ["inspect", "nothere.safetensors", "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: nothere.safetensors: ")
