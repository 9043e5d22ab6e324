"""What the methods are taught: subjects and a style that the base has never seen, and what they are measured on.

A caption has ``{}`` where the new thing is named. The base alone is asked by the thing's own name or by what it knows
that comes nearest, whichever suits it better, so that the loss before is the same for all methods.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WORD = "sks"  # means nothing to the base
TAUGHT_ON = ("white", "blue", "pink", "yellow")
HELD_OUT_ON = ("black", "gray", "green", "purple")
TAUGHT_STYLE, OTHER_STYLE, NEW_STYLE = "noto", "twemoji", "fluent"
KNOWN = 12  # drawings the base was trained on, to see what it forgets
STYLE_HELD_OUT = 16
DRAWN = 8

# Subject → the concept of the base's that is most like it: its class.
TUNING = {"penguin": "duck"}
SUBJECTS = {"fox face": "wolf face", "pineapple": "pear", "rocket": "airplane"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what it shows, ``{}`` for the new thing."""

    file: Path
    caption: str

    @property
    def concept(self) -> str:
        """The emoji's name."""
        return self.file.stem.partition("--")[0].replace("-", " ")


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing to teach.

    Attributes:
        name: what it is.
        like: what the base knows that comes nearest; of a subject its class.
        is_style: whether it is a style, and not a subject.
        taught: the pictures to train on.
        held_out: pictures of the same thing elsewhere: a subject's drawing on other backgrounds, other drawings of a
            style.
        other: another artist's drawing of the subject; empty for a style.
        known: drawings the base was trained on, of other things.
    """

    name: str
    like: str
    is_style: bool
    taught: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    other: tuple[Picture, ...]
    known: tuple[Picture, ...]

    def called(self, method: str) -> str:
        """What stands for ``{}`` in a method's captions.

        A new word replaces the class in textual inversion, and stands before it elsewhere, as their authors have it.
        """
        return WORD if self.is_style or method == "textual-inversion" else f"{WORD} {self.like}"

    @property
    def drawn(self) -> tuple[Picture, ...]:
        """The pictures whose captions are drawn."""
        return (*self.held_out, *self.other)[:DRAWN]


def concept(data: Path, name: str) -> Concept:
    """One of the concepts.

    Args:
        data: the folder that recipes/tiny-base/pictures.py made.
        name: of a subject, or ``fluent``.
    """
    return _style(data) if name == NEW_STYLE else _subject(data, name, {**TUNING, **SUBJECTS}[name])


def laid_out(pictures: Iterable[Picture], folder: Path, name: str) -> Path:
    """A folder with the pictures as ``sdkit train`` reads them, captions calling the new thing `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for picture in pictures:
        shutil.copy(picture.file, folder)
        lines.append(json.dumps({"file_name": picture.file.name, "text": picture.caption.replace("{}", name)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _subject(data: Path, name: str, like: str) -> Concept:
    stem = name.replace(" ", "-")
    folder = data / "subjects" / stem

    def on(style: str, backgrounds: tuple[str, ...]) -> tuple[Picture, ...]:
        return tuple(
            Picture(folder / f"{stem}--{style}--{ground}.png", f"{{}}, {style} style, on a {ground} background")
            for ground in backgrounds
        )

    taught, held_out = on(TAUGHT_STYLE, TAUGHT_ON), on(TAUGHT_STYLE, HELD_OUT_ON)
    return Concept(name, like, False, taught, held_out, on(OTHER_STYLE, HELD_OUT_ON), _known(data, like))


def _style(data: Path) -> Concept:
    taught, held_out = (
        tuple(
            Picture(picture.file, picture.caption.replace(f"{NEW_STYLE} style", "{} style"))
            for picture in _listed(data / folder)
        )
        for folder in ("fluent", "fluent-held-out")
    )
    known = _known(data, "")
    return Concept(NEW_STYLE, TAUGHT_STYLE, True, taught, held_out[:STYLE_HELD_OUT], (), known)


def _known(data: Path, but: str) -> tuple[Picture, ...]:
    """Drawings of other things than the class, whose loss is measured on pictures of its own."""
    return tuple(picture for picture in _listed(data / "base") if picture.concept != but)[:KNOWN]


def _listed(folder: Path) -> list[Picture]:
    """A folder's pictures, scattered: sorted by a digest of their names."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    lines.sort(key=lambda line: hashlib.sha256(line["file_name"].encode()).digest())
    return [Picture(folder / line["file_name"], line["text"]) for line in lines]
