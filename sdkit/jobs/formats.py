"""What reads and writes what: formats of adapters and layouts of checkpoints, as their modules describe themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdkit.core.plugins import find_plugins
from sdkit.core.report import Report
from sdkit.formats import Dialect, Format, described
from sdkit.formats import formats as known_formats


@dataclass(frozen=True, slots=True)
class Layout:
    """What checkpoints are read from and written as.

    Attributes:
        name: as `sdkit convert --to` takes it.
        summary: what it is.
        programs: programs that read it; each is another name of it.
    """

    name: str
    summary: str
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FormatsReport(Report):
    """The matrix.

    Attributes:
        formats: one entry for each codec.
        layouts: one entry for each layout of checkpoints.
    """

    formats: tuple[Format, ...]
    layouts: tuple[Layout, ...]

    def table(self) -> list[tuple[str, ...]]:
        """The matrix in cells, its heading first; a row for each way a format is written.

        ``✓`` and a program's bare name are claims that the tests exercise (tests/formats/test_matrix.py); ``*`` behind
        a name means that the program's documentation says so.
        """
        heading = ("format (--to)", "holds", "changes", "families", "words", "read", "written", "programs that read it")
        return [heading, *(row for format in self.formats for row in _rows(format))]

    def layout_table(self) -> list[tuple[str, ...]]:
        """The layouts of checkpoints in cells, the heading first; all are read and written."""
        rows = [(layout.name, layout.summary, ", ".join(layout.programs)) for layout in self.layouts]
        return [("checkpoints (--to)", "what is written", "also called"), *rows]


NOTE = "* on the word of its documentation; everything else is tried by the tests"


def _rows(format: Format) -> Iterator[tuple[str, ...]]:
    weights = "lora" in format.holds
    for dialect in format.dialects or (None,):
        yield (
            f"{format.name}:{dialect.name}" if dialect and dialect.name else format.name,
            ", ".join("weight changes" if kind == "lora" else kind for kind in format.holds),
            ", ".join(format.changes or ("every kind",)) if weights else "",
            ", ".join(format.families or ("every",)),
            "✓" if format.words or "textual-inversion" in format.holds else "",
            "✓",
            "✓" if dialect else "",
            ", ".join(_programs(format, dialect)),
        )


def _programs(format: Format, dialect: Dialect | None) -> Iterator[str]:
    """Program by program, with its families where those are fewer than the program has elsewhere."""
    families = dialect.families if dialect else {}
    for program in dialect.programs if dialect else format.programs:
        yield f"{program} ({' '.join(families[program])})" if program in families else program
    yield from (f"{program}*" for program in (dialect.said if dialect else format.said))


def formats() -> FormatsReport:
    """Formats of adapters and layouts of checkpoints: what is read and written, and which programs read each."""
    targets = find_plugins("sdkit.conversion.targets").values()
    layouts = tuple(Layout(plugin.name, plugin.summary, plugin.load().PROGRAMS) for plugin in targets)
    return FormatsReport(tuple(described(plugin) for plugin in known_formats().values()), layouts)
