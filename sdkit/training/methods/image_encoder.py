"""Train a CLIP image encoder beside a base's text encoder, for a base whose text no published CLIP reads.

SD1, SD2 and SDXL have theirs already (see `sdkit.runtime.image_tower`). Trained is the image encoder from nothing, with
the projection of the text encoder's vectors into the common space; the text encoder stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.families.family import Model
from sdkit.training.data import Dataset
from sdkit.training.method import Method, Result, Size
from sdkit.training.options import TrainOptions, fixed, option
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.cost import StepCost
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.method import HeldOutLosses
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

TEXT = "text_encoder"
_TABLE = f"{TEXT}.text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Options(TrainOptions):
    """Of an image encoder."""

    lr: float = 1e-3
    batch: int = 64
    weight_decay: float = 0.1
    init: str = fixed("")
    compile: bool = fixed(False)
    checkpointing: bool = fixed(False)
    image_size: int = option(64, "side of the square it sees", minimum=8)
    patch: int = option(8, "side of the patches it cuts the square into", minimum=1)
    width: int = option(64, "of its layers", minimum=8)
    layers: int = option(3, "how many", minimum=1)
    heads: int = option(4, "of its attention", minimum=1)
    projection: int = option(64, "numbers of a picture's and of a text's vector", minimum=1)


def config_of(options: Options) -> dict[str, Any]:
    """The configuration of the image encoder, as transformers keeps it.

    Raises:
        UsageError: the numbers do not go together.
    """
    if options.image_size % options.patch:
        raise UsageError(f"patch={options.patch}: {options.image_size} pixels cannot be cut into such patches")
    if options.width % options.heads:
        raise UsageError(f"heads={options.heads}: a width of {options.width} cannot be divided among so many")
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "projection_dim": options.projection,
        "image_size": options.image_size,
        "patch_size": options.patch,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _size(model: Model, options: Options) -> Size:
    text = [place.shape[1] for name, place in model.places.items() if name == _TABLE]
    if not text or any(name.startswith("text_encoder_") for name in model.components):
        raise UsageError(f"an image encoder is trained beside one CLIP text encoder, and {model.family} has others")
    config_of(options)
    width, patches = options.width, (options.image_size // options.patch) ** 2
    layers = options.layers * (12 * width + 13) * width
    ends = (3 * options.patch**2 + patches + 6 + options.projection) * width
    count = layers + ends + text[0] * options.projection + 1
    return Size(count, 6 * options.layers + 4, count * parse_precision(options.save_dtype).itemsize + 12_000)


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    captions = {sample.caption for sample in dataset.samples}
    few = len(captions) < max(2, math.isqrt(len(dataset.samples)))
    return [f"{len(captions)} captions for {len(dataset.samples)} pictures tell little apart"] if few else []


def _cost(base: Base, options: Options, size: tuple[int, int]) -> StepCost:
    from sdkit.runtime.cost import image_encoder_cost

    return image_encoder_cost(config_of(options))


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.image_tower import new_tower
    from sdkit.training.trainables.tower import Tower

    tower = new_tower(backbone, config_of(options), rng.integer(1 << 62, "image encoder"))
    return [Tower(tower, TEXT, lr=options.lr)]


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.contrastive import Contrastive

    return Contrastive()


def _held_out(options: Options) -> HeldOutLosses:
    from sdkit.training.objectives.contrastive import contrastive_losses

    return contrastive_losses


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.image_tower import save_tower
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.tower import Tower

    (trained,) = result.trained
    assert isinstance(trained, Tower)
    options = result.options
    save_tower(trained.tower, config_of(options), path, metadata, save_type(options.save_dtype))


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    suffix=lambda options: "",
    modelspec="",
    component="image_encoder",
    cost=_cost,
    held_out=_held_out,
    notes=_notes,
)
