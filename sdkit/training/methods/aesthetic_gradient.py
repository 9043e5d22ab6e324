"""Make an aesthetic embedding: what pictures one likes have in common, to steer prompts by.

Nothing is trained: the embedding is the mean of CLIP's image features. It acts when a picture is drawn, see
`sdkit.runtime.steering` (Gallego 2022, arXiv:2209.12330).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import write_adapter
from sdkit.formats.aesthetic import SUFFIXES
from sdkit.runtime.tokens import token_widths
from sdkit.training.data import Dataset
from sdkit.training.method import Method, Result, Size
from sdkit.training.option_sets import ImageEncoderOptions
from sdkit.training.options import TrainOptions, fixed, option
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.cost import StepCost
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

_FEW = 5


@dataclass(frozen=True)
class Options(ImageEncoderOptions, TrainOptions):
    """Of an aesthetic embedding. There are no steps, and so nothing that would shape them."""

    caption: str = fixed("-")
    steps: int = fixed(0)
    epochs: float | None = fixed(None)
    seed: int = fixed(0)
    lr: float = fixed(0.0)
    batch: int = fixed(1)
    accumulate: int = fixed(1)
    optimizer: str = fixed("sgd")
    weight_decay: float = fixed(0.0)
    schedule: str = fixed("constant")
    warmup: int = fixed(0)
    precision: str = fixed("fp32")
    max_grad_norm: float = fixed(0.0)
    ema: float | None = fixed(None)
    checkpointing: bool = fixed(False)
    compile: bool = fixed(False)
    flip: bool = fixed(False)
    init: str = fixed("")
    save_every: int = fixed(0)
    keep_states: int = fixed(1)
    validation: str = fixed("")
    validate_every: int = fixed(0)
    sample: str = fixed("")
    sample_negative: str = fixed("")
    sample_every: int = fixed(0)
    sample_steps: int = fixed(20)
    sample_cfg: float = fixed(7.0)
    sample_seed: int = fixed(0)
    tensorboard: bool = fixed(False)
    format: str = option("projected", "file format of the result: projected (safetensors) or a1111 (.pt)")


def _size(model: Model, options: Options) -> Size:
    if options.format not in SUFFIXES:
        raise UsageError(
            f"format={options.format}: no aesthetic embedding is written in it", nearest_hint(options.format, SUFFIXES)
        )
    widths = token_widths(model)
    if options.format == "a1111" and len(widths) > 1:
        raise UsageError(
            f"format=a1111: the web UI's file holds one vector, a {model.family} base has {len(widths)} text encoders",
            "leave format= out",
        )
    # How wide the common space is the image encoder knows; CLIP's is about as wide as its text.
    count = sum(width + width * width * (options.format == "projected") for width in widths.values())
    return Size(sum(widths.values()), len(widths), count * parse_precision(options.save_dtype).itemsize + 1500)


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    options.check_towers(base)
    few = f"{len(dataset.samples)} pictures: with fewer than {_FEW}, what they show counts as much as how they look"
    return [few] if len(dataset.samples) < _FEW else []


def _cost(base: Base, options: Options, size: tuple[int, int]) -> StepCost:
    return options.tower_cost(base)


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.image_tower import give_towers
    from sdkit.training.trainables.mean import MeanFeatures

    give_towers(backbone, options.image_encoder)
    return [MeanFeatures(backbone)]


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.contrastive import Contrastive

    return Contrastive()  # never asked: there are no steps


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.mean import MeanFeatures

    (mean,), options = result.trained, result.options
    assert isinstance(mean, MeanFeatures)
    artifact = mean.artifact(result.backbone, result.feed, save_type(options.save_dtype))
    model = result.backbone.model
    write_adapter(artifact, model, path, metadata, format="aesthetic", dialect=options.format, overwrite=True)


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    suffix=lambda options: SUFFIXES.get(options.format, ".safetensors"),
    modelspec="aesthetic-embedding",
    component="image_encoder",
    cost=_cost,
    notes=_notes,
)
