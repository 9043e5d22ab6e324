"""Train the autoencoder: reconstruct pictures from latents, and scale those to a variance of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.families.family import Model
from sdkit.runtime.losses import reconstruction_losses
from sdkit.training.method import Method, Result, Size
from sdkit.training.methods.fine_tune import full_size
from sdkit.training.option_sets import WholeWeightOptions
from sdkit.training.options import TrainOptions, fixed, option
from sdkit.training.targets import component_parameters

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable


@dataclass(frozen=True)
class Options(WholeWeightOptions, TrainOptions):
    """The autoencoder's."""

    lr: float = 1e-3
    caption: str = "-"
    save_dtype: str = "keep"
    init: str = fixed("")
    compile: bool = fixed(False)
    weights: str = fixed("fp32")  # as the autoencoder is computed in float32
    kl_weight: float = option(1e-6, "pull of the latents towards a normal distribution", minimum=0.0)

    def usual(self) -> Mapping[str, Any]:
        """See `WholeWeightOptions.for_memory`."""
        return self.for_memory()


def _size(model: Model, options: Options) -> Size:
    if model.naming != "diffusers":
        raise UsageError("an autoencoder is trained in a diffusers folder", "its scale is written into a configuration")
    return full_size(model, ("vae",), options)


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.weights import WeightSubset

    names = list(component_parameters(backbone.model, ("vae",)))
    return [WeightSubset(backbone, names, lr=options.lr, text_lr=options.lr)]


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.reconstruction import Reconstruction

    return Reconstruction(options.kl_weight)


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.save import save_base

    (weights,) = result.trained
    configs = {"vae": {"scaling_factor": _scale(result)}}
    save_base(result.base, weights.parameters, path, metadata, dtype=result.options.save_dtype, configs=configs)


def _scale(result: Result[Options]) -> float:
    """What latents must be multiplied with for a standard deviation of one over all pictures."""
    import torch

    backbone, (weights,) = result.backbone, result.trained
    scale = float(backbone.vae.config.scaling_factor)
    with weights.install(backbone):
        means = [backbone.encode_image(pixels).mean.flatten() / scale for pixels in result.feed.all_pixels()]
    return 1.0 / max(float(torch.cat(means).std()), 1e-6)


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    suffix=lambda options: None,
    modelspec="",
    trains_base=True,
    component="vae",
    held_out=lambda options: reconstruction_losses,
)
