"""What an experienced trainer would say of a folder of pictures: too few, too small, blurred, alike, badly captioned.

Everything here is advice: a note in the plan, never an error. The limits were set on the photographs of the DreamBooth
dataset: sharp ones against copies that were blurred, enlarged, saved as JPEG again or cropped a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.runtime.tokens import mentions
from sdkit.training.buckets import Size, nearest_size
from sdkit.training.data import CAPTION_SUFFIXES, METADATA, Sample
from sdkit.training.images import fit, open_picture

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

FEW = 5  # pictures: DreamBooth's and textual inversion's authors use 3 to 6, LoRAs are taught from 10 to 50
LOOKED_AT = 500  # pictures at most that are decoded for this, spread over the folder
ENLARGED = 1.2  # times a picture is enlarged before it is worth a word
CUT = 0.3  # share of a picture that is cut off
BLURRED = 0.12  # of sharp photographs the sharpness is 0.26 and more, blurred by two pixels 0.09 and less
FLAT = 2.0  # of 255: the standard deviation of a picture without contrast
ALIKE = 0.1  # of a fingerprint; copies in JPEG or reduced differ in 0.05 and less, other views in 0.2 and more
FINGERPRINT = 16
NAMED = 3
_WRITTEN = (METADATA, *(f"{suffix} files" for suffix in CAPTION_SUFFIXES))  # captions somebody took pains over


@dataclass(frozen=True, slots=True)
class Look:
    """What is remembered of a picture.

    Attributes:
        sharpness: see `sharpness`, at the size it is trained at.
        fingerprint: see `fingerprint`.
    """

    sharpness: float
    fingerprint: numpy.ndarray


def audit_pictures(samples: Sequence[Sample], sizes: Sequence[Size], background: str) -> list[str]:
    """Advice on pictures.

    Args:
        samples: to be trained on.
        sizes: what they are brought to.
        background: what transparent pixels show.
    """
    notes = [*_count(samples), *_sizes(samples, sizes)]
    chosen = _spread(samples)
    with ThreadPoolExecutor(4) as pool:
        looks = pool.map(lambda sample: look(sample.path, nearest_size(sample.size, sizes), background), chosen)
        seen = [(sample, what) for sample, what in zip(chosen, looks, strict=True) if what is not None]
    blurred = [sample for sample, what in seen if what.sharpness < BLURRED]
    if blurred:
        notes.append(f"{_of(blurred, chosen)} blurred or enlarged from something small: {_names(blurred)}")
    groups = _alike([what.fingerprint for _, what in seen])
    if groups:
        count = sum(len(group) - 1 for group in groups)
        pair = " and ".join(seen[place][0].path.name for place in groups[0][:2])
        verb = "is a near-copy" if count == 1 else "are near-copies"
        notes.append(f"{count} of {len(chosen)} pictures {verb} of others, and count more by that: {pair}")
    return notes


def audit_captions(samples: Sequence[Sample], token: str, tokenizer: Any, length: int) -> list[str]:
    """Advice on captions.

    Args:
        samples: to be trained on.
        token: the trigger word; empty where there is none.
        tokenizer: the base's.
        length: tokens its text encoder reads, with the marks of start and end.
    """
    notes = []
    captions = {sample.caption for sample in samples if not sample.templates}
    if len(samples) >= FEW and len(captions) == 1 and all(sample.source in _WRITTEN for sample in samples):
        notes.append(
            "all captions are the same: what differs between the pictures has no words, so it is learnt with the rest"
        )
    silent = [sample for sample in samples if token and not any(mentions(text, token) for text in sample.captions)]
    if silent and len(silent) < len(samples):
        notes.append(f"{_of(silent, samples, verb='not captioned')} with {token}: {_names(silent)}")
    elif silent:
        notes.append(f"no caption names {token}: write it where the subject is, or leave token= out")
    ids = {text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in captions}
    long = [sample for sample in samples if ids.get(sample.caption, 0) > length - 2]
    if long:
        most = max(ids[sample.caption] for sample in long)
        many = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
        notes.append(
            f"{many} longer than the {length - 2} tokens that are read (the longest has {most}), "
            f"and what comes behind is not seen: {_names(long)}"
        )
    return notes


def _count(samples: Sequence[Sample]) -> Iterator[str]:
    count = len({sample.id.partition("+")[0] for sample in samples})
    if count < FEW:
        many = "1 picture is" if count == 1 else f"{count} pictures are"
        yield f"{many} few: {FEW} to 30, with other backgrounds, light and angles, teach what stays the same"


def _sizes(samples: Sequence[Sample], sizes: Sequence[Size]) -> Iterator[str]:
    small = [sample for sample in samples if _scale(sample.size, nearest_size(sample.size, sizes)) > ENLARGED]
    if small:
        width, height = nearest_size(small[0].size, sizes)
        yield f"{_of(small, samples)} smaller than {width}x{height}, and enlarged: {_names(small)}"
    cut = [sample for sample in samples if _cut(sample.size, nearest_size(sample.size, sizes)) > CUT]
    if cut:
        verb = "loses" if len(cut) == 1 else "lose"
        yield f"{len(cut)} of {len(samples)} pictures {verb} more than {CUT:.0%} to the nearest size: {_names(cut)}"


def _scale(size: Size, target: Size) -> float:
    return max(target[0] / size[0], target[1] / size[1])


def _cut(size: Size, target: Size) -> float:
    return 1 - target[0] * target[1] / (size[0] * size[1] * _scale(size, target) ** 2)


def look(path: Path, size: Size, background: str) -> Look | None:
    """What there is to remember of a picture at the size it is trained at; None where it has no contrast."""
    import numpy as np

    grey = fit(open_picture(path, background), size).convert("L")
    if np.asarray(grey, dtype=np.float32).std() < FLAT:
        return None
    return Look(sharpness(grey), fingerprint(grey))


def sharpness(grey: Image) -> float:
    """How much of the contrast lies in the finest detail.

    The 99th percentile of what is lost by halving the picture and enlarging it again, over the standard deviation: a
    sharp edge somewhere makes a sharp picture, however much of it is out of focus on purpose.
    """
    import numpy as np
    import PIL.Image

    pixels = np.asarray(grey, dtype=np.float32)
    half = (max(1, grey.width // 2), max(1, grey.height // 2))
    again = grey.resize(half, PIL.Image.Resampling.BOX).resize(grey.size, PIL.Image.Resampling.BICUBIC)
    return float(np.quantile(np.abs(pixels - np.asarray(again, dtype=np.float32)), 0.99)) / float(pixels.std())


def fingerprint(grey: Image) -> numpy.ndarray:
    """Where it grows darker and lighter from left to right in 16 lines of 16 steps, [256] of −1, 0, 1.

    A difference hash; steps too small to be more than noise count as none.
    """
    import numpy as np
    import PIL.Image

    small = np.asarray(grey.resize((FINGERPRINT + 1, FINGERPRINT), PIL.Image.Resampling.BOX), dtype=np.int16)
    steps = small[:, 1:] - small[:, :-1]
    signs: numpy.ndarray = np.where(np.abs(steps) < 4, 0, np.sign(steps)).astype(np.int8).ravel()
    return signs


def _alike(fingerprints: Sequence[numpy.ndarray]) -> list[list[int]]:
    """Groups of places whose fingerprints are nearly the same as that of the group's first."""
    import numpy as np

    left, groups = list(range(len(fingerprints))), []
    table = np.stack(fingerprints) if fingerprints else np.zeros((0, 1), np.int8)
    while left:
        first = left[0]
        near = (table[left] != table[first]).mean(1) <= ALIKE
        group = [place for place, is_near in zip(left, near, strict=True) if is_near]
        left = [place for place, is_near in zip(left, near, strict=True) if not is_near]
        if len(group) > 1:
            groups.append(group)
    return groups


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """At most `LOOKED_AT` of them, evenly spread."""
    step = max(1, -(-len(samples) // LOOKED_AT))
    return list(samples[::step])


def _of(some: Sequence[Sample], samples: Sequence[Sample], verb: str = "") -> str:
    return f"{len(some)} of {len(samples)} pictures {'is' if len(some) == 1 else 'are'}{f' {verb}' if verb else ''}"


def _names(samples: Sequence[Sample]) -> str:
    more = ", …" if len(samples) > NAMED else ""
    return ", ".join(sample.path.name for sample in samples[:NAMED]) + more
