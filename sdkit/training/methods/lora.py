"""Train a LoRA, DoRA, LoHa, LoKr or LiDB: small matrices beside the layers of the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import reads
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import check_writable, read_adapter, write_adapter
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Algorithm, Shape, Shapes, Site, load_algorithm
from sdkit.training.algorithms.lora import Lora as PlainLora
from sdkit.training.method import Method, Result, Size
from sdkit.training.option_sets import DenoisingOptions, LoraOptions
from sdkit.training.targets import has_kernel, lora_scale, lora_targets
from sdkit.weights import DTYPES, open_weights
from sdkit.weights.dtypes import parse_precision
from sdkit.weights.memory import MemoryWeights

if TYPE_CHECKING:
    from torch import nn

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.trainable import Trainable

_FORMATS = ("kohya", "peft", "lidb")


@dataclass(frozen=True)
class Options(LoraOptions, DenoisingOptions):
    """Of a LoRA."""

    def usual(self) -> Mapping[str, Any]:
        """A LiDB is of rank 1, beside attention alone, in a file of its own, which is small in any type."""
        if self.algo != "lidb":
            return {}
        return {"rank": 1, "targets": "attention", "format": "lidb", "save_dtype": "fp32"}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is trained beside one module: the shapes of its factors, and their scale."""

    shapes: Shapes
    scale: float
    weight: Shape


def _shapes(model: Model, options: Options, algorithm: Algorithm) -> dict[str, _Shape]:
    """Hub module → what is trained beside it."""
    found = {}
    targets = lora_targets(model, options.targets, text=options.text_encoder, conv_rank=options.conv_rank)
    for module, weight in targets.items():
        kernel = has_kernel(weight)
        rank, alpha = (options.conv_rank, options.conv_alpha) if kernel else (options.rank, options.network_alpha)
        shapes = algorithm.shapes(weight, rank)
        scale = lora_scale(rank if alpha is None else alpha, rank, rank_stabilised=options.rslora)
        found[module] = _Shape(shapes, scale if algorithm.has_scale(shapes) else 1.0, weight)
    return found


def _planned(model: Model, options: Options, algorithm: Algorithm) -> Artifact:
    """The adapter a run begins with, without its numbers."""
    if options.init:
        artifact = _continued(model, options, algorithm)[0]
        if not _relaxing(artifact, algorithm):
            return artifact
        found = _relaxed_shapes(artifact, model, options, algorithm)
    else:
        found = _shapes(model, options, algorithm)
    tensors = {f"{name}.{part}": shape for name, own in found.items() for part, shape in own.shapes.items()}
    held = MemoryWeights("the planned LoRA", {name: (DTYPES["F32"], shape, b"") for name, shape in tensors.items()}, {})
    deltas = {
        Target(name): algorithm.delta(
            {part: Read(held, held.tensors[f"{name}.{part}"]) for part in own.shapes},
            own.scale,
            Site(name, own.weight),
        )
        for name, own in found.items()
    }
    return Artifact(held, "planned", deltas=deltas)


def _continued(
    model: Model, options: Options, algorithm: Algorithm
) -> tuple[Artifact, Mapping[str, Mapping[str, nn.Parameter]]]:
    """The adapter of `init`, and its factors by module.

    Raises:
        SdkitError: it does not fit the base or the algorithm.
    """
    from sdkit.training.trainables.lora import factors_of

    with open_weights(options.init) as weights:
        artifact = read_adapter(weights, model)
        return artifact, factors_of(artifact, algorithm, model)


def _relaxing(artifact: Artifact, algorithm: Algorithm) -> bool:
    """Whether a LiDB goes on as a LoRA, with room for more than its few numbers (rank relaxation)."""
    return isinstance(algorithm, PlainLora) and any(
        isinstance(delta, Lightweight) for delta in artifact.deltas.values()
    )


def _relaxed_shapes(artifact: Artifact, model: Model, options: Options, algorithm: Algorithm) -> dict[str, _Shape]:
    """What is trained beside the modules of a LiDB that goes on as a LoRA.

    Raises:
        UsageError: the LoRA's rank is below the LiDB's.
    """
    found = {}
    for target, delta in artifact.deltas.items():
        if delta.rank is not None and options.rank < delta.rank:
            raise UsageError(f"rank={options.rank}: {options.init} has rank {delta.rank}", f"rank={delta.rank} or more")
        weight = model.places[target.name].shape
        found[target.module] = _Shape(algorithm.shapes(weight, options.rank), delta.scale, weight)
    return found


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
    if (options.algo == "lidb") != (options.format == "lidb"):
        raise UsageError(
            f"format={options.format}: no {options.algo} is written in it",
            "leave it out; `sdkit convert --to kohya` makes a LoRA of a LiDB, exactly",
        )
    if options.lora_plus != 1.0 and not algorithm.raised:
        raise UsageError(f"lora_plus= says nothing of algo={options.algo}", "use it with algo=lora or algo=dora")


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.lora import Beside, Lora, new_factors, relaxed

    algorithm = load_algorithm(options)
    if options.init:
        artifact, factors = _continued(backbone.model, options, algorithm)
        if _relaxing(artifact, algorithm):
            shapes = _relaxed_shapes(artifact, backbone.model, options, algorithm)
            factors = {module: relaxed(own, shapes[module].shapes, rng, module) for module, own in factors.items()}
        modules = {
            target.module: Beside(factors[target.module], delta.scale, backbone.model.places[target.name].shape)
            for target, delta in artifact.deltas.items()
        }
    else:
        modules = {
            module: Beside(new_factors(backbone, algorithm, module, found.shapes, rng), found.scale, found.weight)
            for module, found in _shapes(backbone.model, options, algorithm).items()
        }
    return [Lora(algorithm, modules, lr=options.lr, text_lr=options.text_lr(options.lr), up_ratio=options.lora_plus)]


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
    objective=Options.denoising,
    save=_save,
    suffix=lambda options: "" if options.format == "peft" else ".safetensors",
)
