"""Train an embedding: a new word for what the pictures show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import read_adapter, write_adapter
from sdkit.formats.textual_inversion import SUFFIXES
from sdkit.runtime.tokens import check_fits, token_widths
from sdkit.training.captions import PLACE, cut_off, naming, templates_of
from sdkit.training.data import Dataset
from sdkit.training.identifier import base_tokenizer, known_words, word_for
from sdkit.training.method import Method, Result, Size, read_captioned
from sdkit.training.option_sets import DenoisingOptions
from sdkit.training.options import is_init_file, option
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable


@dataclass(frozen=True)
class Options(DenoisingOptions):
    """Of an embedding."""

    lr: float = 5e-3
    # AdamW's decay keeps the vectors as short as the vocabulary's, but Adam and SGD add theirs to the gradient, and
    # beside a word's gradient that is large: so nobody gets a decay who does not ask for one.
    weight_decay: float = 0.0
    save_dtype: str = "fp32"
    token: str = option("", "the word, noted in the file [default: <NAME>]")
    init: str = option("", "continue from this file, or the word it begins as", names_file=is_init_file)
    vectors: int | None = option(
        None, "vectors of the embedding [default: 1, or as init's file]", minimum=1, maximum=16
    )
    property_: str = option("object", "what the embedding names, object or style: which templates replace captions")
    scale_lr: bool = option(False, "multiply the learning rate by the pictures in a step")
    format: str = option("diffusers", "file format of the result: diffusers, kohya or a1111")


def _settle(options: Options, name: str) -> Options:
    return options if options.token else replace(options, token=word_for(name))


def _dataset(folder: Path, options: Options) -> Dataset:
    dataset = read_captioned(folder, replace(options, caption=options.caption or PLACE))
    return naming(dataset, options.token, templates_of(options.property_))


def vectors_of(options: Options, artifact: Artifact | None) -> int:
    """How many rows are trained: as many as asked for, else as a file to begin with has, else one."""
    if options.vectors is not None or artifact is None:
        return options.vectors or 1
    shape = artifact.tokens[0].info.shape
    return shape[0] if len(shape) == 2 else 1


def _size(model: Model, options: Options) -> Size:
    if options.format not in SUFFIXES:
        raise UsageError(
            f"format={options.format}: no embedding is written in it", nearest_hint(options.format, SUFFIXES)
        )
    item = parse_precision(options.save_dtype).itemsize
    widths = token_widths(model)
    artifact = None
    if options.init_file is not None:
        with open_weights(options.init_file) as weights:
            artifact = read_adapter(weights, model)
        check_fits(artifact, widths, f"this {model.family} base")
    count = vectors_of(options, artifact) * sum(widths.values())
    return Size(count, len(widths), count * item + 2500)


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    tokenizer = base_tokenizer(base.path, base.configs["text_encoder"])
    length = int(base.configs["text_encoder"]["max_position_embeddings"])
    cut = cut_off(dataset, tokenizer, options.token, options.vectors or 1, length)
    notes = [f"in {cut} captions {options.token} comes after the {length} tokens that are read"] if cut else []
    known = known_words(tokenizer, options.token)
    if known:
        notes.append(
            f"token={options.token}: the base knows {' and '.join(known)}; where this embedding is in use, the text "
            f"means the new thing instead (token=<{known[0]}> would leave the word alone)"
        )
    if not options.init:
        notes.append("the word begins as noise; init=WORD with a word that says what it is learns faster")
    elif options.init_file is None:
        count = len(tokenizer(options.init, add_special_tokens=False).input_ids)
        if count > (options.vectors or 1):
            notes.append(f"init={options.init} has {count} tokens, of which vectors={options.vectors or 1} are used")
    return notes


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.tokens import Tokens, rows_of_file, rows_of_noise, rows_of_text

    if options.init_file is not None:
        with open_weights(options.init_file) as weights:
            artifact = read_adapter(weights, backbone.model)
            rows = rows_of_file(artifact, backbone, vectors_of(options, artifact))
    elif options.init:
        rows = rows_of_text(backbone, options.init, options.vectors or 1)
    else:
        rows = rows_of_noise(backbone, options.vectors or 1, rng)
    scale = options.batch * options.accumulate if options.scale_lr else 1
    return [Tokens(options.token, rows, lr=options.lr * scale, ema=options.ema)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.tokens import Tokens

    (tokens,), options = result.trained, result.options
    assert isinstance(tokens, Tokens)
    artifact = tokens.artifact(save_type(options.save_dtype))
    write_adapter(
        artifact,
        result.backbone.model,
        path,
        metadata,
        format="textual-inversion",
        dialect=options.format,
        overwrite=True,
    )


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=Options.denoising,
    save=_save,
    suffix=lambda options: SUFFIXES.get(options.format, ".safetensors"),
    modelspec="textual-inversion",
    settle=_settle,
    dataset=_dataset,
    notes=_notes,
)
