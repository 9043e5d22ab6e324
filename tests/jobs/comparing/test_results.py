"""The arithmetic of a comparison, on losses written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdkit.jobs.comparing.results import Row, advice, row, table

BASE: dict[str, Any] = {"held_out": [[0.4, 0.2], [0.3, 0.1]], "prior": [[0.2, 0.2]], "nearest": [1, 4]}
FOUND = {
    "held_out": [[0.3, 0.1], [0.2, 0.0]],
    "prior": [[0.25, 0.25]],
    "nearest": [3, 4],
    "steps": 100,
    "seconds": 61.0,
    "memory_mib": 800.0,
    "device_memory_mib": None,
    "parameters": 12,
    "bytes": 2_000_000,
    "files": ["lora.safetensors"],
}


def some(
    label: str,
    fall: float,
    size: int,
    *,
    drift: float = 0.0,
    low: float | None = None,
    similarity: float | None = None,
) -> Row:
    """A method's figures; the base draws what has a similarity of 0.2, if that is known."""
    known = None if similarity is None else 0.2
    found = row(label, label, label, {**BASE, "similarity": known}, {**FOUND, "similarity": similarity})
    interval = (fall / 2 if low is None else low, fall * 2)
    return replace(found, fall=fall, fall_interval=interval, output_bytes=size, drift=drift)


def test_falls_and_drift_are_those_of_the_same_pairs() -> None:
    found = row("lora", "lora", "lora", BASE, FOUND)
    assert (found.loss, found.fall) == pytest.approx((0.15, 0.1))
    assert found.fall_interval == pytest.approx((0.1, 0.1))  # every pair fell alike
    assert found.drift == pytest.approx(0.25) and found.drift_interval == pytest.approx((0.25, 0.25))
    assert found.nearest == 0.75 and found.similarity is None


def test_the_table_leaves_out_what_nobody_measured() -> None:
    heads, base, first = table([row("lora", "lora", "lora", BASE, FOUND)], BASE)
    assert "similarity" not in heads and len(heads) == len(base) == len(first)
    cells = dict(zip(heads, first, strict=True))
    assert cells["fall (95 %)"] == "0.1000 (0.1000 … 0.1000)" and cells["known: loss rises"] == "25 %"
    assert cells["time"] == "61 s" and cells["file"] == "2.0 MB" and cells["nearest"] == "75%"
    assert dict(zip(heads, base, strict=True))["held-out loss"] == "0.2500"
    tower = {**FOUND, "similarity": 0.75, "following": 0.25}
    heads, *_, first = table(
        [row("lora", "lora", "lora", BASE, tower)], {**BASE, "similarity": 0.5, "following": 0.125}
    )
    assert dict(zip(heads, first, strict=True))["similarity"] == "0.750"


def test_advice_names_what_is_smaller_gentler_and_tiny() -> None:
    said = advice(
        [
            some("whole", 0.20, 4_000_000_000, drift=0.5),
            some("lora", 0.19, 20_000_000, drift=0.2),
            some("gentle", 0.12, 70_000_000, drift=0.05),
            some("word", 0.04, 4_000),
            some("nothing", 0.0, 1_000, low=-0.1),
        ]
    )
    assert said.startswith(
        "whole learnt most (4.0 GB, 61 s). lora comes near it, with 95% of its fall (20.0 MB, 61 s)."
    )
    assert (
        "gentle keeps best what the base knew: the loss of that rose by 5%, with whole it rose by 50%; it comes" in said
    )
    assert "Where every byte counts: word, with 20% of its fall (4.0 kB, 61 s)." in said
    assert said.endswith("Nothing that shows was learnt by nothing in this time.")


def test_advice_says_no_more_than_there_is() -> None:
    assert advice([some("lora", 0.1, 1000)]) == "lora learnt most (1.0 kB, 61 s)."
    assert advice([some("lora", 0.1, 1000, low=-0.01)]) == (
        "No method learnt anything that shows. Give them more steps, or a larger learning rate."
    )


def test_a_loss_that_rose_is_said_to_have_risen() -> None:
    worse = [some("lora", -0.1, 1000), some("word", 0.01, 1000, low=-0.01), some("whole", -0.2, 1000)]
    assert advice(worse) == (
        "No method learnt anything that shows; the held-out loss rose with lora and whole. "
        "Give them more steps, or another learning rate (a smaller one where the loss rose)."
    )
    assert advice([replace(entry, steps=2) for entry in worse]) == (
        "No method learnt anything that shows; the held-out loss rose with lora and whole. "
        "The budget (steps=2) is too small to learn from: give them some hundreds."
    )


def test_a_low_loss_is_not_praised_where_the_pictures_are_not_like_it() -> None:
    said = advice(
        [
            some("colours", 0.30, 1_000, similarity=0.2),
            some("worse", 0.25, 500, similarity=-0.1),
            some("lora", 0.20, 20_000_000, drift=0.2, similarity=0.35),
            some("small", 0.19, 4_000, drift=0.3, similarity=0.21),
        ]
    )
    assert said == (
        "lora learnt most (20.0 MB, 61 s). small comes near it, with 95% of its fall (4.0 kB, 61 s). "
        "The loss fell with colours and worse, but what is drawn then resembles the pictures no more than what the "
        "base draws."
    )


def test_nothing_is_praised_where_nothing_resembles() -> None:
    assert advice([some("colours", 0.3, 1_000, similarity=0.1), some("still", 0.0, 1, low=-0.1)]) == (
        "No method can be recommended: give them more steps, or a larger learning rate. The loss fell with "
        "colours, but what is drawn then resembles the pictures no more than what the base draws. "
        "Nothing that shows was learnt by still in this time."
    )


def test_similarity_is_taken_beside_the_bases_own() -> None:
    found = row("lora", "lora", "lora", {**BASE, "similarity": 0.5}, {**FOUND, "similarity": 0.4})
    assert (found.similarity, found.base_similarity, found.resembles) == (0.4, 0.5, False)
    assert row("lora", "lora", "lora", BASE, FOUND).resembles  # no image encoder: the loss is all there is
