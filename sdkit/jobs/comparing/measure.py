"""What a model can do, measured: held-out losses, what became of what it knew, and the pictures it draws."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdkit.core.events import Drawing, Event
from sdkit.generation.prompt import Tag, literal
from sdkit.generation.request import Request
from sdkit.jobs.comparing.order import Order, Picture
from sdkit.jobs.find_adapter import Shelf
from sdkit.jobs.live_adapters import Library, live
from sdkit.report.nearest import by_distance
from sdkit.training.buckets import bucket_sizes, nearest_size
from sdkit.training.images import fit, frame_of, open_picture, pixels
from sdkit.training.method import Method
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.losses import HeldOut

Watch = Callable[[Event], None]


class Tower(Protocol):
    """What sees pictures and reads texts as vectors of one space."""

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors [n, d] of pictures [n, 3, h, w] in −1 … 1."""
        ...

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Vectors [n, d] of texts."""
        ...


PRIOR_PICTURES = 8


def _ignore(event: Event) -> None:
    """Watch nothing."""


@contextmanager
def trained_model(order: Order, method: Method[Any], result: Path, beside: Sequence[Path]) -> Iterator[Backbone]:
    """The base with what was trained: itself changed, or adapters live in it.

    Raises:
        SdkitError: the result is nothing that can be put live.
    """
    if method.trains_base:
        yield _loaded(order, result)
        return
    backbone = _loaded(order, Path(order.base))
    with ExitStack() as stack:
        library = Library(stack, Shelf(()), backbone.model)
        doses = [library.dose(Tag("lora", str(result), 1.0, 1.0))]
        if doses[0].artifact.kind == "textual-inversion":  # what lies beside any other file comes along with it
            doses += [library.dose(Tag("lora", str(path), 1.0, 1.0)) for path in beside]
        stack.enter_context(live(backbone, doses))
        yield backbone


def untrained_model(order: Order) -> Backbone:
    """The base as it is."""
    return _loaded(order, Path(order.base))


def _loaded(order: Order, path: Path) -> Backbone:
    from sdkit.runtime.load import load_backbone
    from sdkit.runtime.precision import compute_type, find_device

    device = find_device(order.device)
    return load_backbone(path).to(device, compute_type(order.precision, device))


def losses(order: Order, backbone: Backbone, pictures: Sequence[Picture]) -> list[list[float]]:
    """The denoising loss of every picture at eight fixed pairs of noise and timestep, [pictures, pairs]."""
    from sdkit.runtime.losses import held_out_losses

    found = held_out_losses(backbone, [_encoded(order, backbone, picture) for picture in pictures])
    return [[round(loss, 7) for loss in row] for row in found.tolist()]


def _encoded(order: Order, backbone: Backbone, picture: Picture) -> HeldOut:
    from sdkit.generation.pictures import default_size
    from sdkit.runtime.losses import HeldOut

    image = open_picture(Path(picture.path))
    resolution = order.resolution or max(default_size(backbone))
    size = nearest_size(image.size, bucket_sizes(resolution, backbone.size_step))
    latents = backbone.encode_image(pixels(fit(image, size))[None])
    return HeldOut(picture.id, picture.caption, size, latents, frame=frame_of(image.size, size))


def prior_pictures(order: Order) -> list[Picture]:
    """What the base drew of what it knows."""
    return [
        Picture(f"prior {number}", str(Path(order.prior_folder) / f"{number}.png"), _prior_prompt(order, number))
        for number in range(PRIOR_PICTURES)
    ]


def _prior_prompt(order: Order, number: int) -> str:
    return order.prior[number % len(order.prior)]


def draw_prior(order: Order, backbone: Backbone) -> None:
    """Have the base draw what it knows, each picture from a seed of its own."""
    requests = [
        Request(literal(_prior_prompt(order, number)), seed=number, steps=order.steps, cfg=order.cfg)
        for number in range(PRIOR_PICTURES)
    ]
    _keep(Path(order.prior_folder), _draw(order, backbone, requests))


def draw_prompts(order: Order, backbone: Backbone, negative: str = "", watch: Watch = _ignore) -> list[Image]:
    """Draw the prompts, and keep the pictures; the n-th prompt has the seed n with every method."""
    requests = [
        Request(literal(prompt), literal(negative), seed=number, steps=order.steps, cfg=order.cfg)
        for number, prompt in enumerate(order.prompts)
    ]
    pictures = _draw(order, backbone, requests, watch)
    _keep(order.drawn, pictures)
    return pictures


def _draw(
    order: Order,
    backbone: Backbone,
    requests: Sequence[Request],
    watch: Watch = _ignore,
) -> list[Image]:
    from sdkit.generation.pictures import draw

    side = order.resolution // backbone.size_step * backbone.size_step if order.resolution else None
    sized = [replace(request, width=side, height=side) for request in requests]
    return draw(backbone, sized, watch=lambda done, total: watch(Drawing(done, total)))


def _keep(folder: Path, pictures: Sequence[Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        data = io.BytesIO()
        picture.save(data, "PNG")
        write_file(folder / f"{number}.png", data.getvalue(), overwrite=True)


def likeness(order: Order, drawn: Sequence[Image], tower: Tower | None = None) -> dict[str, Any]:
    """How far the drawn pictures show what was trained on, and what was asked for.

    With a tower of images and texts: the mean cosine between drawn pictures and those trained on (``similarity``,
    CLIP-I of arXiv:2208.12242) and between drawn pictures and their prompts (``following``, CLIP-T there). Without one,
    something rougher: of how many the nearest picture, of those trained on and of what the base draws of what it knows,
    is one trained on (``nearest``: hits and pictures, see `sdkit.report.nearest`).
    """
    shown = [fit(open_picture(Path(picture.path)), drawn[0].size) for picture in order.shown]
    if tower is not None:
        return _cosines(order, drawn, shown, tower)
    known = [fit(open_picture(Path(picture.path)), drawn[0].size) for picture in prior_pictures(order)]
    hits = sum(by_distance(picture, [*shown, *known])[0] < len(shown) for picture in drawn)
    return {"nearest": [hits, len(drawn)]}


def _cosines(order: Order, drawn: Sequence[Image], shown: Sequence[Image], tower: Tower) -> dict[str, float]:
    import torch
    from torch.nn.functional import normalize

    made, real = (
        normalize(tower.images(torch.stack([*map(pixels, images)])).float(), dim=1) for images in (drawn, shown)
    )
    asked = normalize(tower.texts(order.texts).float(), dim=1)
    return {"similarity": float((made @ real.T).mean()), "following": float((made * asked).sum(1).mean())}
