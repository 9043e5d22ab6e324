"""What a person sees when something fails: the reason and the next step, and never a traceback unasked.

    0    done
    1    failed: ``error: …`` and ``hint: …`` on stderr
    2    the command line or a recipe is wrong
    4    a hub wants credentials
    130  interrupted

``SDKIT_DEBUG=1`` shows the traceback as well.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from sdkit.cli.output import clean, write_line
from sdkit.core.errors import SdkitError, UsageError

INTERRUPTED = 130

_OS_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk with `-o`",
    errno.EDQUOT: "free some of your quota, or write to another disk with `-o`",
    errno.EACCES: "check who may read and write there, or choose another place with `-o`",
    errno.EPERM: "check who may read and write there, or choose another place with `-o`",
    errno.EROFS: "choose another place with `-o`",
    errno.ENOENT: "check the spelling; `ls` shows what is there",
    errno.EMFILE: "close some programs, or raise the limit with `ulimit -n`",
}


def report(error: BaseException) -> int:
    """Print what failed on stderr, and return the exit code."""
    if os.environ.get("SDKIT_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        write_line(sys.stderr, error.format_message())
        return UsageError.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        write_line(sys.stderr, "error: interrupted")
        return INTERRUPTED
    plain = explain(error)
    write_line(sys.stderr, f"error: {_lines(plain.message)}")
    if plain.hint:
        write_line(sys.stderr, f"\nhint: {_lines(plain.hint)}")
    return plain.exit_code


def explain(error: BaseException) -> SdkitError:
    """The error in a person's words."""
    if isinstance(error, SdkitError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, MemoryError):
        return SdkitError("out of memory", "close other programs and try again")
    return SdkitError(
        f"sdkit failed unexpectedly: {type(error).__name__}: {error}",
        "this is a bug; run again with SDKIT_DEBUG=1 and report what it shows",
    )


def _usage(error: click.ClickException) -> SdkitError:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} --help` shows what it takes" if context else ""
    kind = UsageError if error.exit_code == UsageError.exit_code else SdkitError
    return kind(message[:1].lower() + message[1:], hint)


def _system(error: OSError) -> SdkitError:
    reason = error.strerror or str(error)
    reason = reason[:1].lower() + reason[1:]
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return SdkitError(f"{where}{reason}", _OS_HINTS.get(error.errno or 0, ""))


def _lines(text: str) -> str:
    """Further lines are indented, so that no text from a file can pass for a line of ours."""
    return "\n  ".join(clean(line) for line in text.split("\n"))
