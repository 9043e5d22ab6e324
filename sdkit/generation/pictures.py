"""Drawing pictures with a base as it stands, adapters that are live in it included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.generation.conditioning import Texts, encode_texts
from sdkit.generation.request import Request
from sdkit.generation.samplers import make_scheduler, sampler_name

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from sdkit.runtime.backbone import Backbone

Watch = Callable[[int, int], None]

SIZE_STEP = 8  # diffusers' pipelines take no other sizes
SIDES = range(SIZE_STEP, 16384 + 1)
SEEDS = range(-(1 << 63), 1 << 64)  # what torch's generators take


def draw(backbone: Backbone, requests: Sequence[Request], *, batch: int = 1, watch: Watch | None = None) -> list[Image]:
    """Draw pictures. The backbone is the same afterwards, and torch's own random numbers are not touched.

    The noise of a picture comes from its own seed, drawn on the CPU in float32 by torch's generator, as diffusers and
    A1111 (with the random numbers of the CPU) draw it. One at a time, pictures are the same bits whatever else is
    drawn; several at once are faster, and matrix products then round differently: a pixel may differ by one.

    Args:
        backbone: a base, on any device and in any type; adapters may be live in it, it may be in training.
        requests: what to draw; those that agree in size and settings are drawn together.
        batch: pictures drawn at once, at most.
        watch: called after every step with the number of steps done and of all steps.

    Returns:
        A picture for every request, in their order.

    Raises:
        SdkitError: a request cannot be drawn as it is written; every request is looked at before the first is drawn.
    """
    import torch

    wanted = [checked(request, backbone) for request in requests]
    pictures: list[Image | None] = [None] * len(wanted)
    with torch.no_grad(), _drawing(backbone):
        texts = [encode_texts(backbone, request) for request in wanted]
        steps = _Steps(sum(request.steps for request in wanted), watch)
        for places in _batches(wanted, texts, batch):
            latents = _latents(backbone, [wanted[place] for place in places], [texts[place] for place in places], steps)
            for place, latent in zip(places, latents, strict=True):
                pictures[place] = picture_of(backbone, latent[None])
    return [picture for picture in pictures if picture is not None]


def checked(request: Request, backbone: Backbone) -> Request:
    """The request with everything it leaves open filled in.

    Raises:
        UsageError: something of it is out of bounds.
    """
    check_request(request)
    width, height = default_size(backbone)
    full = replace(
        request,
        width=width if request.width is None else request.width,
        height=height if request.height is None else request.height,
        sampler=sampler_name(request.sampler),
    )
    if full.steps > backbone.schedule.steps:
        raise UsageError(f"steps {full.steps} is out of bounds", f"use 1 to {backbone.schedule.steps}")
    try:
        make_scheduler(full.sampler, backbone.schedule).set_timesteps(full.steps)
    except ValueError as error:
        raise UsageError(f"{full.sampler} does not take {full.steps} steps: {error}") from None
    return full


def check_request(request: Request) -> None:
    """Check what can be without a base.

    Raises:
        UsageError: something of it is out of bounds.
    """
    sampler_name(request.sampler)
    for name, length in (("width", request.width), ("height", request.height)):
        if length is not None and (length not in SIDES or length % SIZE_STEP):
            near = min(max(round(length / SIZE_STEP) * SIZE_STEP, SIDES.start), SIDES.stop - 1)
            raise UsageError(f"{name} {length} is no multiple of {SIZE_STEP} up to {SIDES.stop - 1}", f"use {near}")
    for name, least in (("steps", request.steps), ("clip skip", request.clip_skip)):
        if least < 1:
            raise UsageError(f"{name} {least} is less than 1")
    if not math.isfinite(request.cfg):
        raise UsageError(f"cfg {request.cfg} is no finite number")
    if request.seed not in SEEDS:
        raise UsageError(f"seed {request.seed} is out of bounds", f"use {SEEDS.start} to {SEEDS.stop - 1}")


def default_size(backbone: Backbone) -> tuple[int, int]:
    """Width and height of the pictures a base was made for."""
    size = backbone.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return width * backbone.pixels_per_latent, height * backbone.pixels_per_latent


def _batches(requests: Sequence[Request], texts: Sequence[Texts], batch: int) -> Iterator[list[int]]:
    """Places of the requests that are drawn at once."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (request, text) in enumerate(zip(requests, texts, strict=True)):
        settings = (request.width, request.height, request.steps, request.cfg, request.sampler)
        groups.setdefault((*settings, text.prompt.context.shape[1]), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), batch):
            yield places[start : start + batch]


class _Steps:
    """Counts the steps of all pictures."""

    def __init__(self, total: int, watch: Watch | None) -> None:
        self._total = total
        self._watch = watch
        self._finished = 0

    def of_batch(self, count: int, steps: int) -> Callable[..., dict[str, Any]]:
        """What a pipeline calls after every timestep of `count` pictures."""

        def step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            order = pipeline.scheduler.order  # samplers of second order take two timesteps a step
            done = min((index + order) // order, steps)
            if self._watch is not None:
                self._watch(self._finished + count * done, self._total)
            if index + 1 == pipeline.num_timesteps:
                self._finished += count * steps
            return {}

        return step


def _latents(backbone: Backbone, requests: Sequence[Request], texts: Sequence[Texts], steps: _Steps) -> torch.Tensor:
    """The drawn latents [b, c, h, w] of requests that agree in size and settings."""
    import torch

    first = requests[0]
    assert first.width is not None and first.height is not None, "requests are checked"
    scale = backbone.pixels_per_latent
    shape = (1, backbone.latent_channels, first.height // scale, first.width // scale)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    pipeline = _pipeline(backbone, first)
    drawn: torch.Tensor = pipeline(
        latents=noise.to(backbone.device),
        generator=generators,
        width=first.width,
        height=first.height,
        num_inference_steps=first.steps,
        guidance_scale=first.cfg,
        output_type="latent",
        callback_on_step_end=steps.of_batch(len(requests), first.steps),
        **Texts.join(texts).pipeline_arguments(),
    ).images
    if not bool(drawn.isfinite().all()):
        raise SdkitError("the drawn picture is no number", "draw it with --precision fp32")
    return drawn


def _pipeline(backbone: Backbone, request: Request) -> Any:
    """A pipeline of diffusers out of the base's components."""
    plain, xl = _pipelines()
    parts = {
        **backbone.components,
        **{name.replace("text_encoder", "tokenizer"): value for name, value in backbone.tokenizers.items()},
        "scheduler": make_scheduler(request.sampler, backbone.schedule),
    }
    if "text_encoder_2" in backbone.components:
        pipeline = xl(**parts, add_watermarker=False)
    else:
        pipeline = plain(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pipelines() -> tuple[Any, Any]:
    """The classes for one text encoder and for two, without transformers' remarks on image processors nobody uses."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    finally:
        logging.set_verbosity(level)
    return StableDiffusionPipeline, StableDiffusionXLPipeline


def picture_of(backbone: Backbone, latent: torch.Tensor) -> Image:
    """The picture of one latent [1, c, h, w]: one at a time, because decoding takes more memory than drawing."""
    import torch
    from diffusers.image_processor import VaeImageProcessor

    with torch.autocast(backbone.device.type, enabled=False):
        pixels = backbone.decode(latent)
    picture: Image = VaeImageProcessor().postprocess(pixels, output_type="pil")[0]
    return picture


@contextmanager
def _drawing(backbone: Backbone) -> Iterator[None]:
    """Have the components neither drop out nor train, and the latents stay in float32, while the context lasts."""
    with ExitStack() as stack:
        stack.enter_context(backbone.evaluating())
        for hook in (
            backbone.unet.register_forward_pre_hook(_to_own_type(backbone.dtype), with_kwargs=True),
            backbone.unet.register_forward_hook(_to_float32),
        ):
            stack.callback(hook.remove)
        yield


def _to_own_type(dtype: torch.dtype) -> Callable[..., Any]:
    """Give the denoiser its latents in its own type; samplers round badly in anything less than float32."""

    def convert(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        latents, *rest = arguments
        return (latents.to(dtype), *rest), options

    return convert


def _to_float32(module: Any, arguments: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(part.float() for part in output)
