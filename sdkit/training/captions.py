"""Captions that name a new word: the pictures' own, or templates where they have none.

Textual inversion needs only the word to be learnt, so pictures without captions are shown with many short ones, another
at each showing: then no other word can stand for what the pictures have in common (arXiv:2208.01618, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.runtime.tokens import mentions, token_ids
from sdkit.training.data import Dataset, Sample

PLACE = "{}"  # where a caption has the word
TEMPLATES = {
    "object": (
        "a photo of {}",
        "{}",
        "{} seen from nearby",
        "{} seen from a distance",
        "{} in daylight",
        "{} indoors",
        "here is {}",
        "a snapshot showing {}",
        "{} in the middle of the picture",
        "an image with {} in it",
        "a view of {}",
        "this is what {} looks like",
    ),
    "style": (
        "a picture in the style of {}",
        "{} style",
        "drawn in {} style",
        "a scene as {} would show it",
        "art in the manner of {}",
        "a work made in {} style",
        "an artwork, {}",
        "an image that looks like {}",
        "the look of {}",
        "something painted the way of {}",
        "a composition with the colours of {}",
        "{} artwork",
    ),
}


def templates_of(kind: str) -> tuple[str, ...]:
    """The templates for a new word that names an ``object`` or a ``style``.

    Raises:
        UsageError: there are none for such words.
    """
    if kind not in TEMPLATES:
        raise UsageError(f"property={kind}: unknown", nearest_hint(kind, TEMPLATES) or f"use {' or '.join(TEMPLATES)}")
    return TEMPLATES[kind]


def naming(dataset: Dataset, word: str, templates: Sequence[str]) -> Dataset:
    """The dataset with `word` in every caption.

    In a caption of its own it stands where the caption has ``{}`` or the word itself, else in front. Where the whole
    caption is ``{}``, each showing takes one of the templates.
    """
    samples = tuple(_naming(sample, word, templates) for sample in dataset.samples)
    added = sum(_lacks(sample, word) for sample in dataset.samples)
    notes = dataset.notes + ((f"{added} captions do not name {word}: it is put in front of them",) if added else ())
    return replace(dataset, samples=samples, notes=notes)


def cut_off(dataset: Dataset, tokenizer: Any, word: str, vectors: int, length: int) -> int:
    """In how many of the captions a word comes too late, wholly or in part, for a text encoder to read it.

    Args:
        vectors: rows of the word.
        length: tokens the text encoder reads, with the marks of start and end.

    Raises:
        SdkitError: in all of them.
    """
    rows = [-1 - row for row in range(vectors)]
    captions = {caption for sample in dataset.samples for caption in sample.captions}
    read = (token_ids(tokenizer, {word: rows}, caption)[: length - 2] for caption in captions)
    count = sum(1 for ids in read if rows[-1] not in ids)
    if count == len(captions):
        raise SdkitError(
            f"in all captions {word} comes after the {length} tokens that are read", "put {} nearer to their beginning"
        )
    return count


def _naming(sample: Sample, word: str, templates: Sequence[str]) -> Sample:
    if sample.caption == PLACE:
        captions = tuple(template.replace(PLACE, word) for template in templates)
        return replace(sample, caption=captions[0], templates=captions, source="templates")
    if _lacks(sample, word):
        return replace(sample, caption=f"{word}, {sample.caption}")
    return replace(sample, caption=sample.caption.replace(PLACE, word))


def _lacks(sample: Sample, word: str) -> bool:
    return PLACE not in sample.caption and not mentions(sample.caption, word)
