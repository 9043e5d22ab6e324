"""A folder of folders with pictures, one subject each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.training.data import Dataset, distinct, read_dataset
from sdkit.training.images import SUFFIXES

LEAST = 4
FEW = 100


def read_identities(folder: Path, prompt: str, *, background: str, strict: bool) -> Dataset:
    """The pictures of every identity, all with one caption: what differs is for the weights to say.

    Args:
        folder: holds one folder for each identity, called as it is.
        prompt: the caption.
        background: what transparent pixels show.
        strict: whether a damaged picture is an error.

    Raises:
        SdkitError: there are too few identities, or one has no picture.
    """
    if not folder.is_dir():
        raise SdkitError(
            f"{folder}: no such folder", "--data names a folder with a folder of pictures for each identity"
        )
    places = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    loose = sum(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir() if entry.is_file())
    if len(places) < LEAST:
        raise SdkitError(
            f"{folder}: {len(places)} identities (folders) and {loose} loose pictures, and at least {LEAST} identities "
            "are needed",
            "one folder of pictures for each person: more than a hundred are usual",
        )
    found = [(place, read_dataset(place, caption=prompt, background=background, strict=strict)) for place in places]
    samples = [
        replace(sample, id=sample.id.partition("+")[0], caption=prompt, source="the prompt", subject=place.name)
        for place, dataset in found
        for sample in dataset.samples
    ]
    captioned = sum(sample.source != "caption=" for _, dataset in found for sample in dataset.samples)
    notes = [f"{place.name}: {note}" for place, dataset in found for note in dataset.notes]
    notes += [f"{loose} pictures beside the identities' folders are not used"] if loose else []
    notes += [f"the captions of {captioned} pictures are not used: all share {prompt!r}"] if captioned else []
    quarantined = {f"{place.name}/{name}": why for place, dataset in found for name, why in dataset.quarantined.items()}
    return Dataset(tuple(distinct(samples)), quarantined, tuple(notes))
