"""docs/formats.md names what the code reads, and nothing the code does not know."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdkit.families import FAMILIES
from sdkit.formats import formats
from sdkit.formats._lycoris import REFUSED, ROLES
from sdkit.jobs.formats import formats as matrix

FILE = Path(__file__).parent.parent / "docs" / "formats.md"
PAGE = FILE.read_text(encoding="utf-8")
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"


def listing() -> str:
    heading, *rows = ([f" {cell} " for cell in row] for row in matrix().table())
    lines = ["|".join(["", *cells, ""]) for cells in (heading, ["---"] * len(heading), *rows)]
    return BEGIN + "\n".join(lines) + "\n" + END


def test_the_matrix_is_what_the_codecs_say() -> None:
    """SDKIT_WRITE_DOCS=1 writes it anew."""
    before, _, rest = PAGE.partition(BEGIN)
    _, _, after = rest.partition(END)
    if os.environ.get("SDKIT_WRITE_DOCS"):
        FILE.write_text(before + listing() + after, encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == before + listing() + after


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
