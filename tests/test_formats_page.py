"""docs/formats.md names what the code reads, and nothing the code does not know."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sdkit.families import FAMILIES
from sdkit.formats import Dialect, Format, described, formats
from sdkit.formats._lycoris import LOHA, LOKR, LORA, REFUSED, ROLES
from sdkit.jobs.formats import formats as matrix

FILE = Path(__file__).parent.parent / "docs" / "formats.md"
PAGE = FILE.read_text(encoding="utf-8")
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"


def listing() -> str:
    heading, *rows = ([f" {cell} " for cell in row] for row in matrix().table())
    lines = ["|".join(["", *cells, ""]) for cells in (heading, ["---"] * len(heading), *rows)]
    return BEGIN + "\n".join(lines) + "\n" + END


def grammars() -> str:
    """Every codec's own description, and what it says of itself."""
    parts = [_grammar(name, plugin.load(), described(plugin)) for name, plugin in formats().items()]
    return "<!-- grammars: begin -->\n" + "\n".join(parts) + "<!-- grammars: end -->\n"


def _grammar(name: str, module: ModuleType, format: Format) -> str:
    text = inspect.cleandoc(module.__doc__ or "").replace("``", "`")
    blocks = [
        "```\n" + textwrap.dedent(part) + "\n```" if part.startswith("    ") else part for part in text.split("\n\n")
    ]
    programs = [*format.programs, *(f"{program} (as it says)" for program in format.said)]
    facts = {
        "Read by": ", ".join(programs),
        "Written as": ", ".join(filter(None, map(_dialect, format.dialects))),
        "Families": ", ".join(format.families or ("every",)),
    }
    lines = "  \n".join(f"{title}: {fact}." for title, fact in facts.items() if fact)
    return f"### {name}\n\n" + "\n\n".join([*blocks, lines]) + "\n"


def _dialect(dialect: Dialect) -> str:
    """A dialect's name and what is special about it; nothing for a format's only one without a word to say."""
    return " — ".join(filter(None, (f"`{dialect.name}`" if dialect.name else "", dialect.says)))


@pytest.mark.parametrize("part", [listing, grammars])
def test_the_page_is_what_the_codecs_say(part: Callable[[], str]) -> None:
    """SDKIT_WRITE_DOCS=1 writes it anew."""
    page, wanted = FILE.read_text(encoding="utf-8"), part()
    begin, end = wanted.splitlines(keepends=True)[0], wanted.splitlines(keepends=True)[-1]
    before, after = page.partition(begin)[0], page.partition(end)[2]
    if os.environ.get("SDKIT_WRITE_DOCS"):
        FILE.write_text(before + wanted + after, encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == before + wanted + after


def test_every_role_is_in_the_grammars() -> None:
    missing = [role for role in (*LORA, *LOHA, *LOKR) if role not in grammars()]
    assert missing == []


def test_the_layouts_of_checkpoints_are_those_of_their_page() -> None:
    page = (FILE.parent / "convert.md").read_text(encoding="utf-8")
    for layout in matrix().layouts:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{layout.name}` |")]
        assert re.findall(r"`([^`]+)`", row.split("|")[2]) == sorted(layout.programs)


def first_cells(heading: str) -> list[str]:
    """The first cell of each row of the first table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = section.partition("|---")[2].partition("\n\n")[0].splitlines()[1:]
    return [row.split("|")[1].strip() for row in table]


def test_every_adapter_format_has_its_row() -> None:
    assert sorted(re.findall(r"`([^`]+)`", cell)[0] for cell in first_cells("Adapters")) == sorted(formats())


def test_every_family_has_its_row_with_its_variants() -> None:
    assert len(first_cells("Checkpoints")) == len(FAMILIES)
    for family in FAMILIES:
        row = next(line for line in PAGE.splitlines() if f"| `{family.name}` |" in line)
        assert all(variant in row for variant in family.configs)


def test_every_role_that_can_be_applied_is_explained() -> None:
    missing = [role for role in ROLES - REFUSED.keys() if f"`{role}`" not in PAGE]
    assert missing == []
