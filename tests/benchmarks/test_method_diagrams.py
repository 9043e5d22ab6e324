"""docs/methods.md shows what the methods train; `python -m benchmarks.method_diagrams docs` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.method_diagrams import BEGIN, END, PAGE, PICTURES, Updated, denoiser, drawn, flowing, listing
from sdkit.training.method import methods

DOCS = Path(__file__).parents[2] / "docs"
NAMES = sorted(methods())


def test_the_page_says_what_the_methods_say() -> None:
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    assert BEGIN + text.partition(BEGIN)[2].partition(END)[0] + END == listing(NAMES)
    assert {path.stem for path in (DOCS / PICTURES).glob("*.svg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_show_what_the_methods_train(name: str) -> None:
    assert (DOCS / PICTURES / f"{name}.svg").read_text(encoding="utf-8") == drawn([name])[name]


def filled(name: str) -> dict[str, set[str]]:
    """How the boxes look → what they say."""
    root = ElementTree.fromstring((DOCS / PICTURES / f"{name}.svg").read_text(encoding="utf-8"))
    elements = [element for element in root if element.tag.endswith(("rect", "text"))]
    found: dict[str, set[str]] = {}
    for box, text in zip(elements, elements[1:], strict=False):
        if box.tag.endswith("rect") and text.tag.endswith("text"):
            found.setdefault(box.get("class", ""), set()).add(text.text or "")
    return found


FEW = Updated(frozenset(), frozenset(), 1)


def test_what_is_filled_is_what_learns() -> None:
    """By hand, from the papers."""
    assert filled("textual-inversion")["own"] == {"token rows"} and "beside" not in filled("textual-inversion")
    assert filled("custom-diffusion")["own"] == {"token rows", "cross-attention: keys, values"}
    assert filled("lora")["beside"] >= {"cross-attention: keys, values", "other attention"}
    assert "own" not in filled("lora") and "own" not in filled("hypernetwork")
    assert len(filled("fine-tune")["own"]) == 4 and filled("autoencoder")["own"] == {"autoencoder"}
    assert filled("pivotal").keys() >= {"own", "beside"}


def test_the_loss_flows_back_to_what_learns_and_no_further() -> None:
    def flow(*places: str) -> set[str]:
        return {f"{one}>{other}" for one, other in flowing(denoiser(FEW, 1), frozenset(places))}

    assert flow("tokens") == {"tokens>text", "text>unet", "unet>loss"}
    assert flow("kv") == {"unet>loss"}
    assert flow("text", "rest") == {"text>unet", "unet>loss"}


def test_a_word_and_layers_are_told_apart() -> None:
    found = Updated(frozenset({"kv"}), frozenset({"attention"}), 1)
    assert found.places == {"kv", "attention", "tokens"}
    assert Updated(frozenset(), frozenset(), 0, "empty").places == {"empty"}


def test_pages_link_to_pictures_that_are_there() -> None:
    links = re.findall(r"\]\((pictures/[^)]+)\)", (DOCS / PAGE).read_text(encoding="utf-8"))
    assert links and all((DOCS / link).is_file() for link in links)
