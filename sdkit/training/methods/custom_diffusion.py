"""Train Custom Diffusion: what cross-attention makes of the text, and a new word.

Of the base only the keys and values of cross-attention learn, 2 % of SD1's U-Net, together with the word's vector
(Kumari et al. 2023, arXiv:2212.04488). With ``class=`` pictures of the class are shown beside those of the subject, as
in DreamBooth. With ``concepts=`` several subjects learn together, each with a word of its own. The weights are written
as diffusers has them, with the words as embeddings beside.
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
from sdkit.training.data import Dataset, joined_datasets
from sdkit.training.identifier import base_tokenizer, known_words, word_for
from sdkit.training.metadata import of_kind
from sdkit.training.method import Method, Prior, Result, Size, read_captioned
from sdkit.training.methods import dreambooth
from sdkit.training.option_sets import DenoisingOptions, PriorOptions
from sdkit.training.options import SEVERAL, is_init_file, option
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

# What ``layers=`` may say: parameters of each cross-attention.
LAYERS = {
    "kv": ("to_k.weight", "to_v.weight"),
    "all": ("to_k.weight", "to_v.weight", "to_q.weight", "to_out.0.weight", "to_out.0.bias"),
}


RARE = ("ktn", "pll", "ucd")  # what words begin as, one after the other


@dataclass(frozen=True)
class Options(PriorOptions, DenoisingOptions):
    """Of Custom Diffusion. The defaults are those of the authors' and diffusers' own recipes on one GPU."""

    steps: int = 500
    batch: int = 2
    lr: float = 2e-5
    concepts: str = option("", "several concepts, with | between: a folder in --data each; class= and token= alike")
    token: str = option("", "the subject's word [default: <NAME>, of several concepts <FOLDER>]")
    init: str = option(
        "", "continue from this file, or the rare word the word begins as [default: ktn]", names_file=is_init_file
    )
    token_lr: float | None = option(None, "learning rate of the word [default: lr]", minimum=0.0, late=True)
    layers: str = option("kv", "of cross-attention: kv (keys and values), or all (queries and outputs too)")


@dataclass(frozen=True, slots=True)
class Concept:
    """One subject.

    Attributes:
        folder: of its pictures, within the run's; empty for that itself.
        token: its word.
        class_: what it is one of; empty where nobody says.
        init: the rare word its word begins as.
    """

    folder: str
    token: str
    class_: str
    init: str

    @property
    def caption(self) -> str:
        """Of pictures that have none."""
        return " ".join(filter(None, ("photo of a", PLACE, self.class_)))


def concepts_of(options: Options) -> list[Concept]:
    """The subjects of a run whose words are settled.

    Raises:
        UsageError: there are more or fewer words or classes than concepts, or a concept is named twice.
    """
    folders = options.concepts.split(SEVERAL)
    count = len(folders)
    if len(set(folders)) < count or not all(map(_is_folder_name, folders if options.concepts else ())):
        raise UsageError(f"concepts={options.concepts}: is no list of different folders", "concepts='cat|dog'")
    if count > 1 and options.init_file is not None:
        raise UsageError("init= names a file, which is of one concept", "leave concepts= or init= out")
    classes = _each("class", options.class_ or "", count)
    rare = [RARE[number % len(RARE)] for number in range(count)]
    inits = _each("init", options.init, count) if options.init_file is None and options.init else rare
    tokens = _each("token", options.token, count)
    if len(set(tokens)) < count:
        raise UsageError(f"token={options.token}: two concepts have one word")
    return list(map(Concept, folders, tokens, classes, inits))


def _is_folder_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and name != ".."


def _each(key: str, value: str, count: int) -> list[str]:
    """A value for each concept; none, where there are none at all."""
    values = value.split(SEVERAL) if value else [""] * count
    if len(values) != count:
        raise UsageError(f"{key}={value}: {len(values)} for {count} concepts", f"one for each, with {SEVERAL} between")
    return values


def _settle(options: Options, name: str) -> Options:
    if options.token:
        return options
    words = options.concepts.split(SEVERAL) if options.concepts else [name]
    return replace(options, token=SEVERAL.join(map(word_for, words)))


def _dataset(folder: Path, options: Options) -> Dataset:
    def read(concept: Concept) -> Dataset:
        given = replace(options, caption=options.caption or concept.caption)
        return naming(read_captioned(folder / concept.folder, given), concept.token, templates_of("object"))

    parts = [read(concept) for concept in concepts_of(options)]
    return parts[0] if len(parts) == 1 else joined_datasets(parts)


def _prior(options: Options) -> tuple[Prior, ...]:
    """As DreamBooth's, for each concept; ``class_data`` then holds a folder for each."""
    concepts = concepts_of(options)
    if len(concepts) == 1 or not options.class_:
        return dreambooth.prior(options)
    data = Path(options.class_data) if options.class_data else None
    return tuple(
        Prior(dreambooth.with_article(one.class_), options.class_images, data / one.folder if data else None)
        for one in concepts
    )


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
    count = len(concepts_of(options))
    words = count * sum(widths.values())
    return Size(weights + words, len(targets) + count * len(widths), weights * item + 400 * len(targets))


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
    lr, concepts = options.lr, concepts_of(options)
    if options.init_file is None:
        weights = WeightSubset(backbone, names, lr=lr, text_lr=lr)
        rows = [rows_of_text(backbone, concept.init, 1) for concept in concepts]
    else:
        with _continued(options.init_file, backbone.model) as (artifact, word), install(artifact, backbone):
            weights, rows = WeightSubset(backbone, names, lr=lr, text_lr=lr), [rows_of_file(word, backbone, 1)]
    token_lr = lr if options.token_lr is None else options.token_lr
    words = [Tokens(concept.token, own, lr=token_lr) for concept, own in zip(concepts, rows, strict=True)]
    return [weights, *words]


def _beside(path: Path, options: Options) -> list[Path]:
    return [file_beside(path, concept.token) for concept in concepts_of(options)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.tokens import Tokens
    from sdkit.training.trainables.weights import WeightSubset

    (weights, *words), options, model = result.trained, result.options, result.backbone.model
    assert isinstance(weights, WeightSubset)
    said = of_kind(metadata, "textual-inversion")
    for word, file in zip(words, _beside(path, options), strict=True):
        assert isinstance(word, Tokens)
        own = word.artifact(save_type("fp32"))  # a few kilobytes
        write_adapter(own, model, file, said, format="textual-inversion", overwrite=True)
    trained = weights.artifact(save_type(options.save_dtype))
    write_adapter(trained, model, path, metadata, format="custom-diffusion", overwrite=True)


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    """What is doubtful about the words."""
    tokenizer, notes = base_tokenizer(base.path, base.configs["text_encoder"]), []
    for concept in concepts_of(options):
        notes += [
            f"token={concept.token}: the base knows the word {word} already; it will mean the subject in prompts"
            for word in known_words(tokenizer, concept.token)
        ]
        count = 1 if options.init_file else len(tokenizer(concept.init, add_special_tokens=False).input_ids)
        if count > 1:
            notes.append(f"init={concept.init} has {count} tokens, of which the first is used")
    return notes


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=Options.denoising,
    save=_save,
    beside=_beside,
    modelspec="custom-diffusion",
    settle=_settle,
    dataset=_dataset,
    notes=_notes,
    prior=_prior,
)
