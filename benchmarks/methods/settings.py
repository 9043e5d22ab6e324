"""The hyper-parameters: what is tried (grid.yaml), what was chosen (chosen.yaml), and how a run's options follow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.methods.concepts import WORD, Concept

HERE = Path(__file__).parent
CHOSEN = HERE / "chosen.yaml"
METHODS = ("dreambooth", "lora", "textual-inversion", "hypernetwork")
PRIOR = "dreambooth class="  # the same with prior preservation
REFERENCE = "dreambooth"  # whose fall the others' are compared with
CLASS_IMAGES = 24

Options = dict[str, Any]


def conditions(*, style: bool) -> tuple[str, ...]:
    """What is compared; a style has no class."""
    return METHODS if style else (METHODS[0], PRIOR, *METHODS[1:])


def method_of(condition: str) -> str:
    """The training method of a condition."""
    return condition.partition(" ")[0]


def tried() -> dict[str, list[Options]]:
    """Method → every combination of its grid."""
    grids = _read(HERE / "grid.yaml")["methods"]
    return {
        method: [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        for method, grid in grids.items()
    }


def choice() -> dict[str, Any]:
    """chosen.yaml: the ``concept`` it was chosen on, and of its ``methods`` what is ``chosen`` and was ``tried``."""
    return _read(CHOSEN)


def chosen() -> dict[str, Options]:
    """Method → its hyper-parameters."""
    return {method: entry["chosen"] for method, entry in choice()["methods"].items()}


def write_chosen(concept: str, losses: Mapping[str, Sequence[tuple[Options, float]]]) -> None:
    """Keep the best of each method, with everything that was tried.

    Args:
        concept: what it was tried on.
        losses: method → hyper-parameters and the held-out loss they led to.
    """
    methods = {}
    for method, entries in losses.items():
        ranked = sorted(entries, key=lambda entry: entry[1])
        table = [{**options, "held_out_loss": round(loss, 5)} for options, loss in ranked]
        methods[method] = {"chosen": ranked[0][0], "tried": table}
    head = "# Written by `python -m benchmarks.methods DATA --tune`: the lowest held-out loss of one subject.\n"
    text = yaml.safe_dump({"concept": concept, "methods": methods}, sort_keys=False, width=120, default_flow_style=None)
    CHOSEN.write_text(head + text, "utf-8")


def run_options(condition: str, concept: Concept, hyper: Options) -> Options:
    """The keys of ``sdkit train`` for one run, but for the seed."""
    method = method_of(condition)
    options = {**_read(HERE / "grid.yaml")["common"], **hyper}
    options |= {"save_every": 0, "device": "cpu", "precision": "fp32"}
    if method in ("dreambooth", "textual-inversion"):
        options["token"] = WORD
    if method == "textual-inversion":
        options["init"] = concept.like
    if condition == PRIOR:
        options |= {"class": concept.like, "class_images": CLASS_IMAGES}
    return options


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found
