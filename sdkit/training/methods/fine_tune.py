"""Fine-tune the base's own weights: all of the U-Net, and the text encoder if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.families.family import Model
from sdkit.training.method import Method, Result, Size
from sdkit.training.option_sets import DenoisingOptions, TextEncoderOptions, WholeWeightOptions
from sdkit.training.options import TrainOptions, fixed, option
from sdkit.training.targets import component_parameters
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.trainable import Trainable


@dataclass(frozen=True)
class Options(WholeWeightOptions, TextEncoderOptions, DenoisingOptions):
    """Of fine-tuning."""

    lr: float = 1e-5
    caption_dropout: float = 0.1
    save_dtype: str = "keep"
    init: str = fixed("")  # a base to go on with is the base
    zero_terminal_snr: bool = option(
        False, "rescale the noise schedule so that the last timestep holds no signal; prediction=v_prediction learns it"
    )

    def usual(self) -> Mapping[str, Any]:
        """See `WholeWeightOptions.for_memory`."""
        return self.for_memory()


def _components(options: Options) -> tuple[str, ...]:
    return ("unet", "text_encoder", "text_encoder_2") if options.text_encoder else ("unet",)


def _size(model: Model, options: Options) -> Size:
    return full_size(model, _components(options), options)


def full_size(model: Model, components: tuple[str, ...], options: TrainOptions) -> Size:
    """The size of a run that trains whole components."""
    trained = component_parameters(model, components)
    everything = sum(component_parameters(model, model.components).values())
    modules = {name.rpartition(".")[0] for name in trained}
    item = 4 if options.save_dtype == "keep" else parse_precision(options.save_dtype).itemsize
    return Size(sum(trained.values()), len(modules), everything * item)


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.weights import WeightSubset

    names = list(component_parameters(backbone.model, _components(options)))
    text_lr = options.text_lr(options.lr)
    return [WeightSubset(backbone, names, lr=options.lr, text_lr=text_lr, dtype=options.weights)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.save import save_base

    (weights,) = result.trained
    dtype, schedule = result.options.save_dtype, result.backbone.schedule
    save_base(result.base, weights.parameters, path, metadata, dtype=dtype, schedule=schedule)


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=Options.denoising,
    save=_save,
    suffix=lambda options: None,
    modelspec="",
    trains_base=True,
)
