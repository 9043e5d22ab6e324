"""Train a LoRA: thin matrices beside the layers of the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.families.family import Model
from sdkit.training.method import COMMON, DENOISING, Method, Result, Size
from sdkit.training.options import TrainOptions
from sdkit.training.targets import lora_size, lora_targets, rank_of

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable

_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}


def _size(model: Model, options: TrainOptions) -> Size:
    shapes = lora_targets(model, options.targets, text=options.text_encoder, conv_rank=options.conv_rank)
    count = lora_size(shapes, options.rank, options.conv_rank)
    return Size(count, len(shapes), count * _ITEM.get(options.save_dtype, 4) + 500 * len(shapes))


def _trainables(backbone: Backbone, options: TrainOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.lora import Lora, factors_of, lora_scale, new_factors

    rates = {"lr": options.lr, "text_lr": options.lr if options.te_lr is None else options.te_lr}
    if options.init:
        from sdkit.formats import read_adapter
        from sdkit.weights import open_weights

        with open_weights(options.init) as weights:
            artifact = read_adapter(weights, backbone.model)
            scales = {target.module: delta.scale for target, delta in artifact.deltas.items()}
            return [Lora(factors_of(artifact, backbone), scales, up_ratio=options.lora_plus, **rates)]
    shapes = lora_targets(backbone.model, options.targets, text=options.text_encoder, conv_rank=options.conv_rank)
    ranks = {module: rank_of(module, shape, options.rank, options.conv_rank) for module, shape in shapes.items()}
    alphas = {options.rank: options.network_alpha}
    if options.conv_rank:
        alphas[options.conv_rank] = options.conv_alpha if options.conv_rank != options.rank else options.network_alpha
    scales = {
        module: lora_scale(_or(alphas[rank], rank), rank, rank_stabilised=options.rslora)
        for module, rank in ranks.items()
    }
    return [Lora(new_factors(backbone, ranks, rng), scales, up_ratio=options.lora_plus, **rates)]


def _or(alpha: float | None, rank: int) -> float:
    return float(rank) if alpha is None else alpha


def _objective(options: TrainOptions) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(options.prior_weight, options.snr_gamma, options.noise_offset)


def _save(result: Result, path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.formats import write_adapter
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.lora import Lora

    (lora,), options = result.trained, result.options
    assert isinstance(lora, Lora)
    artifact = lora.artifact(save_type(options.save_dtype))
    write_adapter(artifact, result.backbone.model, path, metadata, format=options.format, overwrite=True)


def _metadata(model: Model, options: TrainOptions) -> Mapping[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(options.rank),
        "ss_network_alpha": str(_or(options.network_alpha, options.rank)),
        **({"ss_network_args": f'{{"conv_dim": {options.conv_rank}}}'} if options.conv_rank else {}),
    }


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
    metadata=_metadata,
)
