"""Train a LoRA, DoRA, LoHa or LoKr: small matrices beside the layers of the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import reads
from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import check_writable, read_adapter, write_adapter
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Algorithm, Shapes, load_algorithm
from sdkit.training.method import Method, Result, Size
from sdkit.training.option_sets import DenoisingOptions, LoraOptions
from sdkit.training.targets import has_kernel, lora_scale, lora_targets
from sdkit.weights import DTYPES, open_weights
from sdkit.weights.dtypes import parse_precision
from sdkit.weights.memory import MemoryWeights

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable

_FORMATS = ("kohya", "peft")


@dataclass(frozen=True)
class Options(LoraOptions, DenoisingOptions):
    """Of a LoRA."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is trained beside one module: the shapes of its factors, and their scale."""

    shapes: Shapes
    scale: float


def _shapes(model: Model, options: Options, algorithm: Algorithm) -> dict[str, _Shape]:
    """Hub module → what is trained beside it."""
    found = {}
    targets = lora_targets(model, options.targets, text=options.text_encoder, conv_rank=options.conv_rank)
    for module, weight in targets.items():
        kernel = has_kernel(weight)
        rank, alpha = (options.conv_rank, options.conv_alpha) if kernel else (options.rank, options.network_alpha)
        shapes = algorithm.shapes(weight, rank)
        scale = lora_scale(rank if alpha is None else alpha, rank, rank_stabilised=options.rslora)
        found[module] = _Shape(shapes, scale if algorithm.has_scale(shapes) else 1.0)
    return found


def _planned(model: Model, options: Options, algorithm: Algorithm) -> Artifact:
    """The adapter a run begins with, without its numbers."""
    if options.init:
        from sdkit.training.trainables.lora import factors_of

        with open_weights(options.init) as weights:
            artifact = read_adapter(weights, model)
            factors_of(artifact, algorithm, model)  # says what does not fit
        return artifact
    found = _shapes(model, options, algorithm)
    tensors = {f"{name}.{part}": shape for name, own in found.items() for part, shape in own.shapes.items()}
    held = MemoryWeights("the planned LoRA", {name: (DTYPES["F32"], shape, b"") for name, shape in tensors.items()}, {})
    deltas = {
        Target(name): algorithm.delta(
            {part: Read(held, held.tensors[f"{name}.{part}"]) for part in own.shapes}, own.scale
        )
        for name, own in found.items()
    }
    return Artifact(held, "planned", deltas=deltas)


def _size(model: Model, options: Options) -> Size:
    algorithm = load_algorithm(options)
    _check(options, algorithm)
    item = parse_precision(options.save_dtype).itemsize
    artifact = _planned(model, options, algorithm)
    check_writable(artifact, model, options.format)
    count = sum(read.info.numel for delta in artifact.deltas.values() for read in reads(delta))
    return Size(count, len(artifact.deltas), count * item + 500 * len(artifact.deltas))


def _check(options: Options, algorithm: Algorithm) -> None:
    if options.format not in _FORMATS:
        raise UsageError(f"format={options.format}: no LoRA is written in it", nearest_hint(options.format, _FORMATS))
    if options.lora_plus != 1.0 and not algorithm.raised:
        raise UsageError(f"lora_plus= says nothing of algo={options.algo}", "use it with algo=lora or algo=dora")


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.lora import Beside, Lora, factors_of, new_factors

    algorithm = load_algorithm(options)
    if options.init:
        with open_weights(options.init) as weights:
            artifact = read_adapter(weights, backbone.model)
            factors = factors_of(artifact, algorithm, backbone.model)
        scales = {target.module: delta.scale for target, delta in artifact.deltas.items()}
        modules = {module: Beside(parts, scales[module]) for module, parts in factors.items()}
    else:
        modules = {
            module: Beside(new_factors(backbone, algorithm, module, found.shapes, rng), found.scale)
            for module, found in _shapes(backbone.model, options, algorithm).items()
        }
    return [Lora(algorithm, modules, lr=options.lr, text_lr=options.text_lr(options.lr), up_ratio=options.lora_plus)]


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(options.prior_weight, options.snr_gamma, options.noise_offset)


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.lora import Lora

    (lora,), options = result.trained, result.options
    assert isinstance(lora, Lora)
    artifact = lora.artifact(save_type(options.save_dtype))
    write_adapter(artifact, result.backbone.model, path, metadata, format=options.format, overwrite=True)


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    suffix=lambda options: "" if options.format == "peft" else ".safetensors",
)
