"""Where the words of a command go: stdout is data, stderr is talk.

Commands never print. They hand results and remarks to an `Output`, which knows whether a person (text), a program
(``--json``) or a script (``-q``) reads them, strips what could deceive a terminal from text that came out of files,
and spells signs in ASCII where the stream cannot hold them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from itertools import chain
from textwrap import TextWrapper
from typing import Any, TextIO

import click

from sdkit.core.human import human_bytes
from sdkit.core.progress import NoProgress, Progress

_ESCAPE_SEQUENCES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
_ASCII = str.maketrans(
    {"…": "...", "×": "x", "–": "-", "→": "->", "≤": "<=", "·": "|", "✓": "ok", "\N{NO-BREAK SPACE}": " "}
)


class Mode(Enum):
    """Who reads the output."""

    TEXT = "a person"
    JSON = "a program"
    QUIET = "a script"


@dataclass(frozen=True, slots=True)
class Output:
    """The one way out of a command."""

    mode: Mode = Mode.TEXT

    def result(self, data: Mapping[str, Any], lines: Iterable[str] = (), brief: Sequence[str] = ()) -> None:
        """Give the result to stdout: `data` as one JSON object, `lines` for people, or lines `brief` for scripts."""
        if self.mode is Mode.JSON:
            write_line(sys.stdout, json.dumps(data, indent=2))
            return
        for line in lines if self.mode is Mode.TEXT else brief:
            write_line(sys.stdout, clean(line))

    def say(self, text: str) -> None:
        """Tell a person what happens, on stderr. Programs and scripts are spared."""
        if self.mode is Mode.TEXT:
            write_line(sys.stderr, clean(text))

    def warn(self, text: str) -> None:
        """Tell anybody what is doubtful, on stderr."""
        write_line(sys.stderr, f"warning: {clean(text)}")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show how long work moves on while the context lasts: a bar on a terminal, else now and then a line."""
        if self.mode is not Mode.TEXT:
            yield NoProgress()
            return
        from sdkit.cli.progress import show_progress

        with show_progress(sys.stderr) as progress:
            yield progress


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options ``--json`` and ``-q``, and its function an `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
    @click.option("-q", "--quiet", is_flag=True, help="Write the bare result and nothing else.")
    @wraps(function)
    def with_output(as_json: bool, quiet: bool, **options: object) -> None:
        from sdkit.cli.names import with_paths

        mode = Mode.JSON if as_json else Mode.QUIET if quiet else Mode.TEXT
        click.get_current_context().meta[_KEY] = output = Output(mode)
        function(output=output, **with_paths(options))

    return with_output


_KEY = "sdkit.output"


def current_output() -> Output:
    """The output of the command that runs; outside of one, a person reads."""
    context = click.get_current_context(silent=True)
    found = context.meta.get(_KEY) if context else None
    return found if isinstance(found, Output) else Output()


def clean(text: str) -> str:
    """One line of text that came from anywhere, safe to print: no escape sequences, no control or invisible signs."""
    if text.isprintable():
        return text
    text = _ESCAPE_SEQUENCES.sub("", text)
    return "".join(sign if sign.isprintable() else " " if sign in "\n\r\t\N{NO-BREAK SPACE}" else "?" for sign in text)


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Lines in which the cells of `rows`, all of one length, stand in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return [f"{indent}{'  '.join(cells)}".rstrip() for cells in padded]


def fitted(rows: Sequence[Sequence[str]], *, headed: bool = False) -> list[str]:
    """Rows in columns; where the terminal is narrower, the first cell of each alone and the others wrapped below it.

    A pipe gets columns, unless ``COLUMNS`` gives a width.

    Args:
        headed: whether the first row names the columns.
    """
    lines, width = columns(rows), _width()
    if width is None or all(len(line) <= width for line in lines):
        return lines
    heads, entries = (rows[0], rows[1:]) if headed else ([""] * len(rows[0]), rows)
    wrap = TextWrapper(width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    folded: list[str] = []
    for first, *cells in entries:
        told = [_headed(head, cell) for head, cell in zip(heads[1:], cells, strict=True) if cell]
        folded += [first, *(wrap.wrap("; ".join(told)) if headed else chain.from_iterable(map(wrap.wrap, told)))]
    return folded


def _headed(head: str, cell: str) -> str:
    """A cell outside of its column."""
    return (head or cell) if cell == "✓" or not head else f"{head}: {cell}"


def _width() -> int | None:
    """Signs that fit into a line of stdout; None where nobody said, as in a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


def written_line(report: Any, kind: str = "") -> str:
    """The line that ends what a job tells of its file: what was written, or in a dry run would be.

    Args:
        kind: stands before the size.
    """
    size = human_bytes(report.bytes)
    if report.dry_run:
        return f"would write {report.output} ({kind}about {size}); nothing was written"
    return f"wrote {report.output} ({kind}{size}) in {report.seconds:.1f} s{memory_note(report)}"


def memory_note(report: Any) -> str:
    """The most memory a job has held, behind its time; empty where the system does not tell."""
    return f", {human_bytes(report.peak_memory_mib * 2**20)} of memory" if report.peak_memory_mib else ""


def write_line(stream: TextIO, line: str) -> None:
    """Write a line, in ASCII where the stream's encoding lacks a sign. The line must be clean already."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = line.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    stream.write(line + "\n")
    stream.flush()
