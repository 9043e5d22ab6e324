"""Pictures of a subject's class, drawn by the base before it is trained, and kept by what they depend on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.hashing import quick_id
from sdkit.core.paths import cache_folder
from sdkit.generation.prompt import literal
from sdkit.generation.request import Request
from sdkit.training.cache import cache_key
from sdkit.training.data import Sample, prior_sample, read_dataset
from sdkit.training.method import Prior
from sdkit.training.options import TrainOptions
from sdkit.training.plan import Base
from sdkit.weights import open_weights
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone

MOST = 200  # pictures of a class where nobody says how many
STEPS = 25
CFG = 7.0


@dataclass(frozen=True, slots=True)
class ClassPictures:
    """The pictures a run wants.

    Attributes:
        prompt: what they show.
        count: how many.
        side: their width and height in pixels.
        base_id: the base's quick id.
        computer: the device and number format: others draw slightly other pictures.
    """

    prompt: str
    count: int
    side: int
    base_id: str
    computer: str

    @property
    def missing(self) -> list[int]:
        """The numbers of those that are still to be drawn."""
        return [number for number in range(self.count) if not self.path(number).is_file()]

    def request(self, number: int) -> Request:
        """What one of them is drawn from; its seed is its number, so more of them begin with the same."""
        return Request(literal(self.prompt), seed=number, steps=STEPS, cfg=CFG, width=self.side, height=self.side)

    def path(self, number: int) -> Path:
        """Where one of them lies."""
        request = json.dumps(asdict(self.request(number)), sort_keys=True)
        key = cache_key("class picture", self.base_id, self.computer, request)
        return cache_folder() / "class" / key[:2] / f"{key}.png"

    def draw(self, backbone: Backbone, numbers: Sequence[int]) -> Iterator[int]:
        """Draw some of them, one after the other, each kept before the next is begun; yields their numbers."""
        from sdkit.generation.pictures import draw

        for number in numbers:
            (picture,) = draw(backbone, [self.request(number)])
            data = io.BytesIO()
            picture.save(data, "PNG")
            path = self.path(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, data.getvalue(), overwrite=True)
            yield number

    def samples(self) -> list[Sample]:
        """All of them, to train on."""
        return [prior_sample(self.path(number), self.prompt) for number in range(self.count)]


def class_pictures(base: Base, options: TrainOptions, prior: Prior, shown: int) -> ClassPictures:
    """The pictures of the class that a run on `base` wants drawn.

    Args:
        shown: how many of them the run will show: no more are drawn unless the prior says so.
    """
    from sdkit.runtime.precision import compute_type, find_device

    device = find_device(options.device)
    computer = f"{device.type} {compute_type(options.precision, device)}"
    side = (options.resolution or base.resolution) // base.size_step * base.size_step
    with open_weights(base.path) as weights:
        base_id = quick_id(*weights.files)
    count = min(shown, MOST) if prior.count is None else prior.count
    return ClassPictures(prior.prompt, count, side, base_id, computer)


def given_pictures(folder: Path, prompt: str, background: str) -> list[Sample]:
    """Pictures of the class that a person has, with captions of their own or `prompt`.

    Raises:
        SdkitError: as `read_dataset`.
    """
    found = read_dataset(folder, caption=prompt, background=background)
    return [replace(sample, prior=True) for sample in found.samples]
