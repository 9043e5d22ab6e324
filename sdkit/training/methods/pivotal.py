"""Train a LoRA and a new word together (pivotal tuning): the word says what, the LoRA how it looks.

The word's rows learn as in textual inversion, the LoRA as in ``lora``, in the same steps (after Roich et al. 2021,
arXiv:2106.05744). The word lies in the LoRA's file, as web UIs bundle them, or with ``bundle=no`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.families.family import Model
from sdkit.formats import read_adapter, word_of, write_adapter
from sdkit.formats.textual_inversion import file_beside
from sdkit.runtime.tokens import check_fits, token_widths
from sdkit.training.data import Dataset
from sdkit.training.identifier import word_for
from sdkit.training.metadata import of_kind
from sdkit.training.method import Method, Result, Size
from sdkit.training.methods import lora, textual_inversion
from sdkit.training.options import is_init_file, option
from sdkit.weights import open_weights

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

_LORA: Method[Any] = lora.METHOD
_WORD: Method[Any] = textual_inversion.METHOD


@dataclass(frozen=True)
class Options(lora.Options):
    """Of a LoRA and its word."""

    token: str = option("", "the word [default: <NAME>]")
    init: str = option("", "continue from this file, or the word it begins as", names_file=is_init_file)
    vectors: int | None = option(None, "vectors of the word [default: 2, or as init's file]", minimum=1, maximum=16)
    token_lr: float = option(1e-3, "learning rate of the word", minimum=0.0, late=True)
    property_: str = option("object", "what the word names, object or style: which templates replace captions")
    bundle: bool = option(True, "the word lies in the LoRA's own file; no writes it beside, as ComfyUI wants it")

    def usual(self) -> Mapping[str, Any]:
        """Two vectors, but as many as a file to go on from has."""
        return {**super().usual(), **({} if self.init_file is not None else {"vectors": 2})}


def _lora(options: Options) -> Options:
    """The options of the LoRA, which begins as a file or as nothing."""
    return options if options.init_file is not None else replace(options, init="")


def _word(options: Options) -> textual_inversion.Options:
    """The options of the word."""
    names = [one.name for one in fields(textual_inversion.Options) if hasattr(options, one.name)]
    own = {"lr": options.token_lr, "save_dtype": "fp32", "format": "diffusers"}
    return textual_inversion.Options(**{**{name: getattr(options, name) for name in names}, **own})


def _is_bundle(options: Options) -> bool:
    return options.bundle and options.format == "kohya"


def _settle(options: Options, name: str) -> Options:
    return options if options.token else replace(options, token=word_for(name.replace(".", "-")))


def _dataset(folder: Path, options: Options) -> Dataset:
    return _WORD.dataset(folder, _word(options))


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    return list(_WORD.notes(base, dataset, _word(options)))


def _size(model: Model, options: Options) -> Size:
    if _is_bundle(options) and "." in options.token:
        raise UsageError(f"token={options.token}: no word with a dot can be bundled", "use another, or bundle=no")
    plain = replace(_word(options), init="")  # the word of a file is looked for here, as it may lie in it
    if options.init_file is not None:
        with open_weights(options.init_file) as weights, word_of(read_adapter(weights, model), model) as word:
            check_fits(word, token_widths(model), f"this {model.family} base")
            plain = replace(plain, vectors=textual_inversion.vectors_of(plain, word))
    sizes = (_LORA.size(model, _lora(options)), _WORD.size(model, plain))
    return Size(*(sum(getattr(size, name) for size in sizes) for name in ("parameters", "modules", "output_bytes")))


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.tokens import Tokens, rows_of_file

    found: list[Trainable] = _LORA.trainables(backbone, _lora(options), rng)
    if options.init_file is None:
        return [*found, *_WORD.trainables(backbone, _word(options), rng)]
    model = backbone.model
    with open_weights(options.init_file) as weights, word_of(read_adapter(weights, model), model) as word:
        rows = rows_of_file(word, backbone, textual_inversion.vectors_of(_word(options), word))
    return [*found, Tokens(options.token, rows, lr=options.token_lr)]


def _beside(path: Path, options: Options) -> list[Path]:
    return [] if _is_bundle(options) else [file_beside(path, options.token)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.lora import Lora
    from sdkit.training.trainables.tokens import Tokens

    (trained, word), options, model = result.trained, result.options, result.backbone.model
    assert isinstance(trained, Lora) and isinstance(word, Tokens)
    artifact, own = trained.artifact(save_type(options.save_dtype)), word.artifact(save_type("fp32"))
    for file in _beside(path, options):
        about = of_kind(metadata, "textual-inversion")
        write_adapter(own, model, file, about, format="textual-inversion", overwrite=True)
    if _is_bundle(options):
        artifact = replace(artifact, tokens=own.tokens)
    write_adapter(artifact, model, path, metadata, format=options.format, overwrite=True)


METHOD = replace(
    _LORA,
    options=Options,
    size=_size,
    trainables=_trainables,
    save=_save,
    beside=_beside,
    settle=_settle,
    dataset=_dataset,
    notes=_notes,
)
