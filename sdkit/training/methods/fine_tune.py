"""Fine-tune the base's own weights: all of the U-Net, and the text encoder if asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.families.family import Model
from sdkit.training.method import COMMON, DENOISING, Method, Result, Size
from sdkit.training.options import TrainOptions
from sdkit.training.targets import component_parameters
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable


def _components(options: TrainOptions) -> tuple[str, ...]:
    return ("unet", "text_encoder", "text_encoder_2") if options.text_encoder else ("unet",)


def _size(model: Model, options: TrainOptions) -> Size:
    return full_size(model, _components(options), options)


def full_size(model: Model, components: tuple[str, ...], options: TrainOptions) -> Size:
    """The size of a run that trains whole components."""
    trained = component_parameters(model, components)
    everything = sum(component_parameters(model, model.components).values())
    modules = {name.rpartition(".")[0] for name in trained}
    item = 4 if options.save_dtype == "keep" else parse_precision(options.save_dtype).itemsize
    return Size(sum(trained.values()), len(modules), everything * item)


def _trainables(backbone: Backbone, options: TrainOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.weights import WeightSubset

    names = list(component_parameters(backbone.model, _components(options)))
    text_lr = options.lr if options.te_lr is None else options.te_lr
    return [WeightSubset(backbone, names, lr=options.lr, text_lr=text_lr)]


def _objective(options: TrainOptions) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(options.prior_weight, options.snr_gamma, options.noise_offset)


def _save(result: Result, path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.save import save_base

    (weights,) = result.trained
    save_base(result.base, weights.parameters, path, metadata, dtype=result.options.save_dtype)


METHOD = Method(
    accepts=(COMMON | DENOISING | frozenset({"text_encoder", "te_lr", "save_dtype"})) - {"init"},
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    defaults={"lr": 1e-5, "save_dtype": "keep", "caption_dropout": 0.1},
    suffix=lambda options: None,
    modelspec="",
    trains_base=True,
)
