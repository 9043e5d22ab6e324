"""Pictures drawn while a run goes on: the same prompts from the same noise each time, so only the training differs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event, Note, Sampled
from sdkit.generation.request import Request
from sdkit.report.sheet import contact_sheet
from sdkit.report.thumbnails import spread, step_name
from sdkit.training.options import TrainOptions
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sdkit.runtime.backbone import Backbone

MAX_BYTES = 100_000
MAX_PROMPTS = 64
COLUMNS = 12
SHEET = "sheet.png"
_NAME = re.compile(r"step-(\d{8,})-(\d+)\.png")


def sample_prompts(text: str) -> tuple[str, ...]:
    """The prompts of ``sample=``: separated by ``|``, or the lines of a text file.

    Raises:
        SdkitError: the file cannot be read.
        UsageError: there are too many.
    """
    lines = text.split("|")
    if text.endswith(".txt"):
        path = Path(text)
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise SdkitError(f"sample={text}: no such text file", "it holds a prompt a line")
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    prompts = tuple(line.strip() for line in lines if line.strip())
    if len(prompts) > MAX_PROMPTS:
        raise UsageError(f"sample={text[:60]}: {len(prompts)} prompts are too many", f"at most {MAX_PROMPTS} are drawn")
    return prompts


def sample_requests(prompts: Sequence[str], options: TrainOptions, backbone: Backbone) -> list[Request]:
    """What is drawn each time; the noise of each prompt follows from a seed of its own.

    Raises:
        UsageError: something cannot be drawn as the options have it.
    """
    import torch

    from sdkit.generation.conditioning import encode_texts
    from sdkit.generation.pictures import checked

    step = backbone.size_step
    side = options.resolution // step * step if options.resolution else None
    settings: dict[str, Any] = {"steps": options.sample_steps, "cfg": options.sample_cfg, "width": side, "height": side}
    requests = [
        checked(Request(prompt, options.sample_negative, seed=options.sample_seed + number, **settings), backbone)
        for number, prompt in enumerate(prompts)
    ]
    with torch.no_grad():
        for request in requests:
            encode_texts(backbone, request)  # whether its prompt can be read
    return requests


@dataclass(frozen=True, slots=True)
class Samples:
    """Draws the samples of a run and keeps its contact sheet.

    Attributes:
        backbone: the run's, with what trains in it.
        requests: what is drawn.
        folder: where the pictures go.
    """

    backbone: Backbone
    requests: Sequence[Request]
    folder: Path

    def __call__(self, step: int) -> Event:
        """Draw what the model draws after `step` steps. What goes wrong becomes a note: no run ends for its samples."""
        import torch

        from sdkit.generation.pictures import draw

        try:
            pictures = draw(self.backbone, self.requests)
            return self._keep(step, pictures)
        except torch.OutOfMemoryError:
            if self.backbone.device.type == "cuda":
                torch.cuda.empty_cache()
            return Note(step, "no samples: the memory does not suffice")
        except Exception as error:
            return Note(step, f"no samples: {error}")

    def _keep(self, step: int, pictures: Sequence[Image]) -> Sampled:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = tuple(f"step-{step:08d}-{number}.png" for number in range(1, len(pictures) + 1))
        for name, picture in zip(names, pictures, strict=True):
            write_file(self.folder / name, _png(picture), overwrite=True)
        write_file(self.folder / SHEET, _png(self._sheet()), overwrite=True)
        prompts = tuple(request.prompt for request in self.requests)
        return Sampled(step, prompts, names, tuple(request.seed for request in self.requests))

    def _sheet(self) -> Image:
        """All samples so far: prompts below one another, steps side by side, the base first."""
        files = {(int(match[1]), int(match[2])): path for path in self.folder.iterdir() if (match := _name(path))}
        steps = spread(sorted({step for step, _ in files}), COLUMNS)
        rows = [
            (request.prompt, [_open(files.get((step, number))) for step in steps])
            for number, request in enumerate(self.requests, 1)
        ]
        return contact_sheet([step_name(step) for step in steps], rows)


def keep_pictures(folder: Path, pictures: Mapping[str, Tensor], step: int) -> Sampled:
    """Keep labelled pictures [3, h, w] in −1 … 1, each in a file and all of them beside one another in a sheet."""
    from diffusers.image_processor import VaeImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    images = [VaeImageProcessor().postprocess(pixels[None], output_type="pil")[0] for pixels in pictures.values()]
    names = tuple(f"step-{step:08d}-{number}.png" for number in range(1, len(images) + 1))
    for name, image in zip(names, images, strict=True):
        write_file(folder / name, _png(image), overwrite=True)
    rows = [(label, [image]) for label, image in zip(pictures, images, strict=True)]
    write_file(folder / SHEET, _png(contact_sheet([""], rows)), overwrite=True)
    return Sampled(step, tuple(pictures), names, (0,) * len(names))


def _name(path: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(path.name)


def _open(path: Path | None) -> Image | None:
    import PIL.Image

    if path is None:
        return None
    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def _png(picture: Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
