"""What reads and writes what: the formats of adapters, as their codecs describe themselves."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.core.report import Report
from sdkit.formats import Format, described
from sdkit.formats import formats as known_formats


@dataclass(frozen=True, slots=True)
class FormatsReport(Report):
    """The matrix.

    Attributes:
        formats: one entry for each codec.
    """

    formats: tuple[Format, ...]

    def table(self) -> list[tuple[str, ...]]:
        """The matrix in cells, its heading first: format, holds, kinds of change, words, read, written, programs."""
        rows: list[tuple[str, ...]] = [
            ("format", "holds", "changes", "words", "read", "written as (--to)", "programs that read it")
        ]
        for format in self.formats:
            names = [f"{format.name}:{dialect.name}" if dialect.name else format.name for dialect in format.dialects]
            weights = "lora" in format.holds
            rows.append(
                (
                    format.name,
                    ", ".join("weight changes" if kind == "lora" else kind for kind in format.holds),
                    ("every kind" if format.changes is None else ", ".join(format.changes)) if weights else "",
                    "yes" if format.words or "textual-inversion" in format.holds else "",
                    "yes",
                    ", ".join(names),
                    ", ".join(format.programs),
                )
            )
        return rows


def formats() -> FormatsReport:
    """The formats of adapters: which are read, which are written, and which programs read each."""
    return FormatsReport(tuple(described(plugin) for plugin in known_formats().values()))
