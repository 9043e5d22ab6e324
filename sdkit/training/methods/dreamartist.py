"""Train a pair of embeddings: for the prompt, and for the negative prompt, from as little as one picture.

Both learn from the guided prediction ε⁻ + w (ε⁺ − ε⁻), as they are used (DreamArtist, arXiv:2211.11337). Captions hold
the positive word; the negative prompt is the negative word alone. They are written to NAME and NAME-neg.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.family import Model
from sdkit.formats import NEGATIVE
from sdkit.runtime.guidance import Guidance
from sdkit.runtime.losses import held_out_losses
from sdkit.training.method import HeldOutLosses, Method, Result, Size
from sdkit.training.methods import textual_inversion
from sdkit.training.options import fixed, option

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable

_ONE: Method[Any] = textual_inversion.METHOD  # how one embedding is trained


@dataclass(frozen=True)
class Options(textual_inversion.Options):
    """Of a pair of embeddings."""

    lr: float = 2.5e-3
    steps: int = 2000
    caption_dropout: float = fixed(0.0)
    negative_vectors: int | None = option(
        None, "vectors of the negative embedding [default: 3, or as init's]", minimum=1, maximum=16
    )
    negative_init: str = option("", "the word the negative embedding begins as [default: as the positive]")
    negative_lr: float | None = option(
        None, "learning rate of the negative embedding [default: lr]", minimum=0.0, late=True
    )
    negative_ema: float | None = option(
        None, "decay of the negative embedding's moving average [default: ema]", minimum=0.0, maximum=1.0
    )
    guidance: float = option(5.0, "guidance w of the prediction that is trained; draw with the same", minimum=1.0)
    reconstruction: float = option(0.0, "weight of the decoded picture's error; takes time and memory", minimum=0.0)

    def usual(self) -> Mapping[str, Any]:
        """Three vectors each, but as many as a file to go on from has; samples are drawn as the pair is trained."""
        counts = {} if self.init_file is not None else {"vectors": 3, "negative_vectors": 3}
        return {**counts, "sample_cfg": self.guidance}


def negative_word(word: str) -> str:
    """The word of the negative embedding: ``<dog-neg>`` for ``<dog>``."""
    return f"{word[:-1]}{NEGATIVE}>" if word.endswith(">") else f"{word}{NEGATIVE}"


def _negative_file(path: Path) -> Path:
    return path.with_stem(path.stem + NEGATIVE)


def _settle(options: Options, name: str) -> Options:
    settled = _ONE.settle(options, name)
    assert isinstance(settled, Options)
    return replace(settled, sample_negative=options.sample_negative or negative_word(settled.token))


def _parts(options: Options) -> Iterator[textual_inversion.Options]:
    """The two embeddings, each as the options of one: the positive first."""
    yield options
    file = options.init_file
    yield replace(
        options,
        token=negative_word(options.token),
        vectors=options.negative_vectors,
        init=str(_negative_file(file)) if file is not None else options.negative_init or options.init,
        lr=options.lr if options.negative_lr is None else options.negative_lr,
        ema=options.ema if options.negative_ema is None else options.negative_ema,
    )


def _size(model: Model, options: Options) -> Size:
    if options.guidance == 1.0:
        raise UsageError("guidance=1: nothing would reach the negative embedding", "3 to 5 are usual")
    if options.init_file is not None:
        if options.negative_init:
            raise UsageError("negative_init= does not go with a file to begin with", "leave it out")
        other = _negative_file(options.init_file)
        if not other.is_file():
            raise SdkitError(f"{other}: no such file", "the negative embedding is needed beside the positive")
    sizes = [_ONE.size(model, part) for part in _parts(options)]
    return Size(*(sum(getattr(size, name) for size in sizes) for name in ("parameters", "modules", "output_bytes")))


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    """The rows of both words."""
    return [
        trainable
        for number, part in enumerate(_parts(options))
        for trainable in _ONE.trainables(backbone, part, rng.at(number))
    ]


def _guidance(options: Options) -> Guidance:
    return Guidance(negative_word(options.token), options.guidance)


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.guided import Guided

    return Guided(_guidance(options), options.denoising(), options.reconstruction)


def _held_out(options: Options) -> HeldOutLosses:
    return partial(held_out_losses, guidance=_guidance(options))


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    files = (path, _negative_file(path))
    for file, tokens, part in zip(files, result.trained, _parts(result.options), strict=True):
        _ONE.save(Result([tokens], result.backbone, result.base, part, result.feed), file, metadata)


METHOD = replace(
    _ONE,
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    beside=lambda path, options: [_negative_file(path)],
    settle=_settle,
    held_out=_held_out,
    passes=2,
)
