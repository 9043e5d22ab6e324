"""docs/merging.md lists every method with the words of its own docstring. SDKIT_WRITE_DOCS=1 writes the list anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sdkit.merging.method import Method, load_method, methods

PAGE = Path(__file__).parents[2] / "docs" / "merging.md"
PICTURES = "pictures/blend"
BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"


def docstring(method: Method) -> str:
    import sys

    return (sys.modules[method.function.__module__].__doc__ or "").strip()


def options(method: Method) -> str:
    rows = []
    for entry in method.parameters.values():
        default = entry.default if entry.default != () else "equal"
        rows.append(f"`{entry.name}` = {default:g}" if isinstance(default, float) else f"`{entry.name}` = {default}")
        rows[-1] += f" ({entry.describe()})"
    return "; ".join(rows) or "none"


def section(name: str, method: Method) -> str:
    base = ", and a base" if method.needs_base else ", and a base if you like" if method.space.value == "either" else ""
    sight = {
        "linear": "A sum of the models",
        "tile": "Works number by number",
        "row": "Works row by row",
        "tensor": "Works on whole tensors",
    }
    passes = "; reads the models beforehand" if method.measure else ""
    facts = (
        f"Takes {method.describe_models()}{base}. {sight[method.granularity]}{passes}.  \nOptions: {options(method)}."
    )
    text = re.sub(r"(?<!\n)\nSource:", "\n\nSource:", docstring(method))
    drawn = PAGE.parent / PICTURES / f"{name}.png"  # made by recipes/tiny-blends.py
    picture = f"\n![A, the result and B]({PICTURES}/{name}.png)\n" if drawn.exists() else ""
    return f"### {name}\n\n{text}\n\n{facts}\n{picture}"


def listing() -> str:
    return BEGIN + "\n" + "\n".join(section(name, load_method(name)) for name in methods()) + "\n" + END


def test_the_page_says_what_the_methods_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if os.environ.get("SDKIT_WRITE_DOCS"):
        PAGE.write_text(before + listing() + after, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == before + listing() + after


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_gives_its_formula_and_source(name: str) -> None:
    text = docstring(load_method(name))
    assert re.search(r"^    \S", text, re.MULTILINE), "no formula"
    assert re.search(r"^Source: \S", text, re.MULTILINE), "no source"
    assert len(text.splitlines()[0]) <= 117 and text.splitlines()[0].endswith(".")
