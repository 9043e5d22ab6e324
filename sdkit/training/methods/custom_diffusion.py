"""Train Custom Diffusion: what cross-attention makes of the text, and a new word.

Of the base only the keys and values of cross-attention learn, 2 % of SD1's U-Net, together with the word's vector
(Kumari et al. 2023, arXiv:2212.04488). With ``class=`` pictures of the class are shown beside those of the subject, as
in DreamBooth. The weights are written as diffusers has them, with the word as an embedding beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import read_adapter, word_of, write_adapter
from sdkit.formats.textual_inversion import file_beside
from sdkit.runtime.tokens import check_fits, token_widths
from sdkit.training.captions import PLACE, naming, templates_of
from sdkit.training.data import Dataset
from sdkit.training.identifier import base_tokenizer, known_words, word_for
from sdkit.training.metadata import of_kind
from sdkit.training.method import Method, Result, Size, read_captioned
from sdkit.training.methods import dreambooth
from sdkit.training.option_sets import DenoisingOptions, PriorOptions
from sdkit.training.options import is_init_file, option
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

# What ``layers=`` may say: parameters of each cross-attention.
LAYERS = {
    "kv": ("to_k.weight", "to_v.weight"),
    "all": ("to_k.weight", "to_v.weight", "to_q.weight", "to_out.0.weight", "to_out.0.bias"),
}


@dataclass(frozen=True)
class Options(PriorOptions, DenoisingOptions):
    """Of Custom Diffusion. The defaults are those of the authors' and diffusers' own recipes on one GPU."""

    steps: int = 500
    batch: int = 2
    lr: float = 2e-5
    token: str = option("", "the subject's word [default: <NAME>]")
    init: str = option("ktn", "continue from this file, or the rare word the word begins as", names_file=is_init_file)
    token_lr: float | None = option(None, "learning rate of the word [default: lr]", minimum=0.0, late=True)
    layers: str = option("kv", "of cross-attention: kv (keys and values), or all (queries and outputs too)")


def _settle(options: Options, name: str) -> Options:
    return options if options.token else replace(options, token=word_for(name))


def _dataset(folder: Path, options: Options) -> Dataset:
    caption = options.caption or " ".join(filter(None, ("photo of a", PLACE, options.class_)))
    return naming(read_captioned(folder, replace(options, caption=caption)), options.token, templates_of("object"))


def _targets(model: Model, options: Options) -> list[Target]:
    """The parameters that learn.

    Raises:
        UsageError: `layers` is unknown.
    """
    if options.layers not in LAYERS:
        raise UsageError(f"layers={options.layers}: unknown", nearest_hint(options.layers, LAYERS))
    names = LAYERS[options.layers]
    found = (name.rpartition(".") for name in model.places if name.partition(".attn2.")[2] in names)
    return [Target(module, parameter) for module, _, parameter in found if module.startswith("unet.")]


def _size(model: Model, options: Options) -> Size:
    if options.init_file is not None:
        with _continued(options.init_file, model) as (artifact, word):
            _check_continues(artifact, word, model, options)
    targets, widths = _targets(model, options), token_widths(model)
    item = parse_precision(options.save_dtype).itemsize
    weights = sum(math.prod(model.places[target.name].shape) for target in targets)
    words = sum(widths.values())
    return Size(weights + words, len(targets) + len(widths), weights * item + 400 * len(targets))


@contextmanager
def _continued(path: Path, model: Model) -> Iterator[tuple[Artifact, Artifact]]:
    """A Custom Diffusion and its word's embedding, which may lie in the same file.

    Raises:
        SdkitError: it is none, or its word is not there.
    """
    with open_weights(path) as weights:
        artifact = read_adapter(weights, model)
        if artifact.kind != "custom-diffusion" or artifact.unmatched:
            reason = ", ".join(artifact.unmatched[:3]) or f"a {artifact.kind}"
            raise SdkitError(f"{path}: is no Custom Diffusion for this base: {reason}")
        with word_of(artifact, model) as word:
            yield replace(artifact, tokens=()), word


def _check_continues(artifact: Artifact, word: Artifact, model: Model, options: Options) -> None:
    check_fits(word, token_widths(model), f"this {model.family} base")
    wanted = _targets(model, options)
    if set(artifact.deltas) != set(wanted):
        raise UsageError(
            f"{options.init}: it changes {len(artifact.deltas)} parameters, layers={options.layers} are {len(wanted)}",
            f"try another layers=: {' or '.join(LAYERS)}",
        )


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.install import install
    from sdkit.training.trainables.tokens import Tokens, rows_of_file, rows_of_text
    from sdkit.training.trainables.weights import WeightSubset

    names = [target.name for target in _targets(backbone.model, options)]
    rates = {"lr": options.lr, "text_lr": options.lr}
    if options.init_file is None:
        weights, rows = WeightSubset(backbone, names, **rates), rows_of_text(backbone, options.init, 1)
    else:
        with _continued(options.init_file, backbone.model) as (artifact, word), install(artifact, backbone):
            weights, rows = WeightSubset(backbone, names, **rates), rows_of_file(word, backbone, 1)
    token_lr = options.lr if options.token_lr is None else options.token_lr
    return [weights, Tokens(options.token, rows, lr=token_lr)]


def _objective(options: Options) -> Objective:
    from sdkit.training.objectives.denoising import Denoising

    return Denoising(options.prior_weight, options.snr_gamma, options.noise_offset)


def _beside(path: Path, options: Options) -> list[Path]:
    return [file_beside(path, options.token)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.tokens import Tokens
    from sdkit.training.trainables.weights import WeightSubset

    (weights, word), options, model = result.trained, result.options, result.backbone.model
    assert isinstance(weights, WeightSubset) and isinstance(word, Tokens)
    (file,) = _beside(path, options)
    own = word.artifact(save_type("fp32"))  # a few kilobytes
    write_adapter(own, model, file, of_kind(metadata, "textual-inversion"), format="textual-inversion", overwrite=True)
    trained = weights.artifact(save_type(options.save_dtype))
    write_adapter(trained, model, path, metadata, format="custom-diffusion", overwrite=True)


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    """What is doubtful about the word."""
    tokenizer = base_tokenizer(base.path, base.configs["text_encoder"])
    notes = [
        f"token={options.token}: the base knows the word {word} already; it will mean the subject in prompts"
        for word in known_words(tokenizer, options.token)
    ]
    count = 1 if options.init_file else len(tokenizer(options.init, add_special_tokens=False).input_ids)
    if count > 1:
        notes.append(f"init={options.init} has {count} tokens, of which the first is used")
    return notes


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    beside=_beside,
    modelspec="custom-diffusion",
    settle=_settle,
    dataset=_dataset,
    notes=_notes,
    prior=dreambooth.prior,
)
