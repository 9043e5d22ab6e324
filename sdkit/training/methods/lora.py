"""Train a LoRA: thin matrices beside the layers of the base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import read_adapter, write_adapter
from sdkit.training.method import COMMON, DENOISING, Method, Result, Size
from sdkit.training.options import TrainOptions
from sdkit.training.targets import has_kernel, lora_scale, lora_targets
from sdkit.weights import open_weights

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable

_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}
_FORMATS = ("kohya", "peft")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is trained beside one module."""

    weight: tuple[int, ...]
    rank: int
    scale: float

    @property
    def parameters(self) -> int:
        """Numbers in both factors."""
        return self.rank * (self.weight[0] + math.prod(self.weight[1:]))


def _shapes(model: Model, options: TrainOptions) -> dict[str, _Shape]:
    """Hub module → what is trained beside it, as the options or the file to continue say."""
    if options.init:
        with open_weights(options.init) as weights:
            artifact = read_adapter(weights, model)
        return {
            target.module: _Shape(delta.shape, delta.rank or 0, delta.scale)
            for target, delta in artifact.deltas.items()
        }
    found = {}
    targets = lora_targets(model, options.targets, text=options.text_encoder, conv_rank=options.conv_rank)
    for module, weight in targets.items():
        kernel = has_kernel(weight)
        rank, alpha = (options.conv_rank, options.conv_alpha) if kernel else (options.rank, options.network_alpha)
        scale = lora_scale(rank if alpha is None else alpha, rank, rank_stabilised=options.rslora)
        found[module] = _Shape(weight, rank, scale)
    return found


def _size(model: Model, options: TrainOptions) -> Size:
    if options.format not in _FORMATS:
        raise UsageError(f"format={options.format}: no LoRA is written in it", nearest_hint(options.format, _FORMATS))
    if options.save_dtype not in _ITEM:
        raise UsageError(f"save_dtype={options.save_dtype}: unknown", nearest_hint(options.save_dtype, _ITEM))
    shapes = _shapes(model, options)
    count = sum(shape.parameters for shape in shapes.values())
    return Size(count, len(shapes), count * _ITEM[options.save_dtype] + 500 * len(shapes))


def _trainables(backbone: Backbone, options: TrainOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.lora import Lora, factors_of, new_factors

    shapes = _shapes(backbone.model, options)
    if options.init:
        with open_weights(options.init) as weights:
            factors = factors_of(read_adapter(weights, backbone.model), backbone)
    else:
        factors = new_factors(backbone, {module: shape.rank for module, shape in shapes.items()}, rng)
    scales = {module: shape.scale for module, shape in shapes.items()}
    text_lr = options.lr if options.te_lr is None else options.te_lr
    return [Lora(factors, scales, lr=options.lr, text_lr=text_lr, up_ratio=options.lora_plus)]


def _objective(options: TrainOptions) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(options.prior_weight, options.snr_gamma, options.noise_offset)


def _save(result: Result, path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.lora import Lora

    (lora,), options = result.trained, result.options
    assert isinstance(lora, Lora)
    artifact = lora.artifact(save_type(options.save_dtype))
    write_adapter(artifact, result.backbone.model, path, metadata, format=options.format, overwrite=True)


METHOD = Method(
    accepts=COMMON
    | DENOISING
    | frozenset(
        "rank network_alpha targets conv_rank conv_alpha text_encoder te_lr rslora lora_plus format save_dtype".split()
    ),
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    suffix=lambda options: "" if options.format == "peft" else ".safetensors",
)
