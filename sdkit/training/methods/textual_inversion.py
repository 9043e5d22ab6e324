"""Train an embedding: a new word for what the pictures show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
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
from sdkit.training.identifier import base_tokenizer, known_words
from sdkit.training.method import COMMON, DENOISING, Method, Result, Size, read_captioned
from sdkit.training.options import TrainOptions
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable


def _settle(options: TrainOptions, name: str) -> TrainOptions:
    """The word is called like the result, in brackets, so that it is none that anybody writes by chance."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return options if options.token else replace(options, token=f"<{plain}>")


def _dataset(folder: Path, options: TrainOptions) -> Dataset:
    dataset = read_captioned(folder, replace(options, caption=options.caption or PLACE))
    return naming(dataset, options.token, templates_of(options.property_))


def _vectors(options: TrainOptions, artifact: Artifact | None) -> int:
    """How many rows are trained: as many as asked for, else as a file to begin with has, else one."""
    if options.vectors is not None or artifact is None:
        return options.vectors or 1
    shape = artifact.tokens[0].info.shape
    return shape[0] if len(shape) == 2 else 1


def _size(model: Model, options: TrainOptions) -> Size:
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
    count = _vectors(options, artifact) * sum(widths.values())
    return Size(count, len(widths), count * item + 2500)


def _notes(base: Base, dataset: Dataset, options: TrainOptions) -> list[str]:
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


def _trainables(backbone: Backbone, options: TrainOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.tokens import Tokens, rows_of_file, rows_of_noise, rows_of_text

    if options.init_file is not None:
        with open_weights(options.init_file) as weights:
            artifact = read_adapter(weights, backbone.model)
            rows = rows_of_file(artifact, backbone, _vectors(options, artifact))
    elif options.init:
        rows = rows_of_text(backbone, options.init, options.vectors or 1)
    else:
        rows = rows_of_noise(backbone, options.vectors or 1, rng)
    scale = options.batch * options.accumulate if options.scale_lr else 1
    return [Tokens(options.token, rows, lr=options.lr * scale)]


def _objective(options: TrainOptions) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(snr_gamma=options.snr_gamma, noise_offset=options.noise_offset)


def _save(result: Result, path: Path, metadata: Mapping[str, str]) -> None:
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
    accepts=COMMON | DENOISING | frozenset("vectors property scale_lr format save_dtype".split()),
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    # AdamW's decay keeps the vectors as short as the vocabulary's, but Adam and SGD add theirs to the gradient, and
    # beside a word's gradient that is large: so nobody gets a decay who does not ask for one.
    defaults={"lr": 5e-3, "weight_decay": 0.0, "format": "diffusers", "save_dtype": "fp32"},
    suffix=lambda options: SUFFIXES.get(options.format, ".safetensors"),
    modelspec="textual-inversion",
    settle=_settle,
    dataset=_dataset,
    notes=_notes,
)
