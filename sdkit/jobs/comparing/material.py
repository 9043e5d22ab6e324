"""What a comparison is made on: the pictures trained on, those held out, and the prompts; the same for all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.core.errors import SdkitError, UsageError
from sdkit.training.captions import PLACE
from sdkit.training.data import METADATA, Dataset, Sample, read_dataset, split_dataset
from sdkit.training.masks import find_mask

DRAWN = 8  # prompts that are taken from captions, and pictures of the prior


@dataclass(frozen=True, slots=True)
class Material:
    """The same for all.

    Attributes:
        data: the folder of pictures.
        trained: what is trained on; captions have ``{}`` where the new thing is named.
        held_out: what is never trained on.
        prompts: what is drawn, with ``{}`` as well.
        prior: what the base draws of what it knows already; the new thing is not named there.
    """

    data: Path
    trained: Dataset
    held_out: Dataset
    prompts: tuple[str, ...]
    prior: tuple[str, ...]


def read_material(
    data: Path, held_out: str, subject: str, prompts: Sequence[str], prior: Sequence[str], caption: str
) -> Material:
    """Look at the pictures.

    Args:
        held_out: the share that is held out, or a folder of pictures.
        subject: what the new thing is, in words the base knows; where captions say it, they name the new thing.
        prompts: what is drawn; none for the captions of the held-out pictures.
        prior: what the base draws of what it knows; none for the subject's class, or else the captions.
        caption: of pictures that have none.

    Raises:
        SdkitError: the pictures cannot be read, or captions name the new thing and nothing says what it is.
    """
    caption = caption or (f"a photo of {PLACE}" if subject else "")
    dataset = read_dataset(data, caption=caption)
    share = _share(held_out)
    if share is not None:
        trained, other = split_dataset(dataset, share)
    else:
        trained, other = dataset, read_dataset(Path(held_out), caption=caption)
    trained, other = _with_places(trained, subject), _with_places(other, subject)
    texts = [sample.caption for sample in (*trained.samples, *other.samples)]
    if not subject and any(PLACE in text for text in (*texts, *prompts)):
        raise UsageError(f"{PLACE} stands for the subject, and nothing says what it is", "--subject dog, for example")
    known = [f"{'an' if subject[0].lower() in 'aeiou' else 'a'} {subject}"] if subject else _distinct(texts)
    drawn = tuple(prompts) or _distinct([sample.caption for sample in other.samples])
    return Material(data, trained, other, drawn, tuple(prior) or tuple(known))


def _share(text: str) -> float | None:
    """A share; None where the text names a folder.

    Raises:
        UsageError: a number is no share.
    """
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UsageError(f"--held-out {text}: a share lies between 0 and 1", "0.2 is a fifth; a folder will do, too")
    return share


def _with_places(dataset: Dataset, subject: str) -> Dataset:
    """With ``{}`` for the subject in captions that say it."""
    if not subject:
        return dataset
    said = re.compile(rf"\b{re.escape(subject)}\b", re.IGNORECASE)
    samples = [
        sample if PLACE in sample.caption else replace(sample, caption=said.sub(PLACE, sample.caption, count=1))
        for sample in dataset.samples
    ]
    silent = sum(PLACE not in sample.caption for sample in samples)
    note = (f"{silent} captions of {len(samples)} do not name {subject}",) if silent else ()
    return replace(dataset, samples=tuple(samples), notes=dataset.notes + note)


def _distinct(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))[:DRAWN]


def write_pictures(material: Material, folder: Path, naming: Callable[[str], str]) -> None:
    """The pictures to train on with the captions of one method, as `sdkit train` reads them.

    The files are further names of the same ones where the disk can do that, else copies.

    Raises:
        SdkitError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    lines = []
    try:
        for sample in material.trained.samples:
            name = sample.path.relative_to(material.data)
            _place(sample.path, folder / name)
            lines.append(json.dumps({"file_name": name.as_posix(), "text": naming(sample.caption)}, ensure_ascii=False))
        for mask in _masks(material.trained.samples):
            _place(mask, folder / mask.relative_to(material.data))
        (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise SdkitError(f"{folder}: cannot be written: {error}") from None


def _masks(samples: Sequence[Sample]) -> list[Path]:
    """Files beside the pictures that say which parts of them count."""
    found = (find_mask(sample.path, "files", None) for sample in samples)
    return list(dict.fromkeys(mask for mask in found if mask is not None))


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
