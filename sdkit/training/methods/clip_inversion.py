"""Invert pictures through CLIP, without the U-Net: into a new word, a prompt, or conditioning.

- ``as=soft``: an embedding whose text is near the pictures; also a beginning for textual inversion (``init=FILE``).
- ``as=hard``: a prompt of the vocabulary's own words (PEZ; Wen et al. 2023, arXiv:2302.03668).
- ``as=closed``: nothing is trained; the pictures' mean vector is taken back through the text's projection when a
  picture is drawn (SD-IPC; Ding et al. 2023, arXiv:2305.12716).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.families.family import Model
from sdkit.runtime.tokens import token_widths
from sdkit.training.data import Dataset
from sdkit.training.method import HeldOutLosses, Method, Result, Size, read_captioned
from sdkit.training.methods import aesthetic_gradient, textual_inversion
from sdkit.training.option_sets import ImageEncoderOptions
from sdkit.training.options import TrainOptions, fixed, option
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.cost import StepCost
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable


@dataclass(frozen=True)
class InversionOptions(ImageEncoderOptions):
    """Of every form."""

    as_: str = option("soft", "what pictures become: soft (an embedding), hard (a prompt) or closed (conditioning)")


@dataclass(frozen=True)
class SoftOptions(InversionOptions, textual_inversion.Options):
    """Of ``as=soft``."""

    steps: int = 200
    lr: float = 2e-3
    batch: int = 4
    flip: bool = fixed(False)  # what is seen in a picture is kept
    caption_dropout: float = fixed(0.0)
    mask: str = fixed("")
    unmasked_weight: float = fixed(0.0)
    snr_gamma: float | None = fixed(None)
    noise_offset: float = fixed(0.0)
    checkpointing: bool = fixed(False)
    compile: bool = fixed(False)


@dataclass(frozen=True)
class HardOptions(InversionOptions, TrainOptions):
    """Of ``as=hard``."""

    as_: str = "hard"
    steps: int = 1000
    lr: float = 0.1
    weight_decay: float = 0.1
    batch: int = 4
    flip: bool = fixed(False)
    caption: str = fixed("<prompt>")
    init: str = fixed("")
    ema: float | None = fixed(None)
    checkpointing: bool = fixed(False)
    compile: bool = fixed(False)
    save_dtype: str = fixed("fp32")
    tokens: int = option(8, "words of the prompt", minimum=1)


@dataclass(frozen=True)
class ClosedOptions(InversionOptions, aesthetic_gradient.Options):
    """Of ``as=closed``."""

    as_: str = "closed"


def _cost(base: Base, options: ImageEncoderOptions, size: tuple[int, int]) -> StepCost:
    return options.tower_cost(base)


def _soft_notes(base: Base, dataset: Dataset, options: SoftOptions) -> list[str]:
    options.check_towers(base)
    _check_length(base, options.vectors or 1, "vectors")
    return list(textual_inversion.METHOD.notes(base, dataset, options))


def _check_length(base: Base, count: int, key: str) -> None:
    longest = int(base.configs["text_encoder"]["max_position_embeddings"]) - 2
    if count > longest:
        raise UsageError(
            f"{key}={count}: the text encoder of {base.path.name} reads {longest} at once", "ask for fewer"
        )


def _soft_trainables(backbone: Backbone, options: SoftOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.image_tower import give_towers

    give_towers(backbone, options.image_encoder)
    return textual_inversion.METHOD.trainables(backbone, options, rng)


def _soft_objective(options: TrainOptions) -> Objective:
    from sdkit.training.objectives.similarity import Similarity

    return Similarity()


def _held_out(options: TrainOptions) -> HeldOutLosses:
    from sdkit.training.objectives.similarity import similarity_losses

    return similarity_losses


def _hard_size(model: Model, options: HardOptions) -> Size:
    width = token_widths(model)["text_encoder"]
    return Size(options.tokens * width, 1, 20 * options.tokens)


def _hard_dataset(folder: Path, options: HardOptions) -> Dataset:
    dataset = read_captioned(folder, options)
    source = "the prompt that is sought"
    return replace(
        dataset,
        samples=tuple(replace(sample, caption=options.caption, source=source) for sample in dataset.samples),
    )


def _hard_notes(base: Base, dataset: Dataset, options: HardOptions) -> list[str]:
    options.check_towers(base)
    _check_length(base, options.tokens, "tokens")
    return []


def _hard_trainables(backbone: Backbone, options: HardOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.image_tower import give_towers
    from sdkit.training.trainables.prompt import Prompt

    give_towers(backbone, options.image_encoder)
    return [Prompt(backbone, options.tokens, lr=options.lr, rng=rng)]


def _hard_objective(options: HardOptions) -> Objective:
    from sdkit.training.objectives.similarity import PromptSimilarity

    return PromptSimilarity()


def _hard_save(result: Result[HardOptions], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.image_tower import unit
    from sdkit.training.trainables.mean import mean_features
    from sdkit.training.trainables.prompt import Prompt

    (prompt,), backbone = result.trained, result.backbone
    assert isinstance(prompt, Prompt)
    tower = next(iter(backbone.towers.values()))
    mean = mean_features(lambda pixels: unit(tower.image_features(pixels)), result.feed)
    text, _ = prompt.best(backbone, mean)
    write_file(path, f"{text}\n".encode(), overwrite=True)


def _closed_notes(base: Base, dataset: Dataset, options: aesthetic_gradient.Options) -> list[str]:
    if len(token_widths(base.model)) > 1:
        raise UsageError(
            f"as=closed: the denoiser of {base.model.family} does not read what CLIP projects",
            "use as=soft, or as=hard",
        )
    return list(aesthetic_gradient.METHOD.notes(base, dataset, options))


_TEXTUAL_INVERSION: Method[Any] = textual_inversion.METHOD
_SOFT = Method(
    options=SoftOptions,
    size=_TEXTUAL_INVERSION.size,
    trainables=_soft_trainables,
    objective=_soft_objective,
    save=_TEXTUAL_INVERSION.save,
    suffix=_TEXTUAL_INVERSION.suffix,
    modelspec=_TEXTUAL_INVERSION.modelspec,
    component="image_encoder",
    cost=_cost,
    held_out=_held_out,
    settle=_TEXTUAL_INVERSION.settle,
    dataset=_TEXTUAL_INVERSION.dataset,
    notes=_soft_notes,
)
_HARD = Method(
    options=HardOptions,
    size=_hard_size,
    trainables=_hard_trainables,
    objective=_hard_objective,
    save=_hard_save,
    suffix=lambda options: ".txt",
    modelspec="",
    component="image_encoder",
    cost=_cost,
    held_out=_held_out,
    dataset=_hard_dataset,
    notes=_hard_notes,
)
_CLOSED = replace(aesthetic_gradient.METHOD, options=ClosedOptions, notes=_closed_notes)
_FORMS: dict[str, Method[Any]] = {"soft": _SOFT, "hard": _HARD, "closed": _CLOSED}
METHOD = replace(_SOFT, forms=_FORMS)
