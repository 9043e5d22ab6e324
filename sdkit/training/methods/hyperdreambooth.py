"""Train HyperDreamBooth: a network that predicts a tiny adapter of anybody from one picture, and use it.

``as=hypernetwork`` (the usual) reads a folder with a folder of pictures for each identity. In the first steps all learn
what they have in common, and each how its LiDB differs; in the rest a network learns to predict that from one picture.
``as=identity`` predicts from one picture of somebody new, and goes on from there for a few steps as a LoRA of a higher
rank. Ruiz et al. 2023, arXiv:2307.06949.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.deltas.lightweight import Basis
from sdkit.adapters.lightweight_vector import Layout
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.hashing import quick_id
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import write_adapter
from sdkit.formats.hyperdreambooth import NETWORK, START, Description, describe
from sdkit.training.algorithms.lora import Lora as LoraAlgorithm
from sdkit.training.buckets import bucket_sizes, nearest_size
from sdkit.training.data import Dataset, Sample, read_dataset
from sdkit.training.identities import FEW, read_identities
from sdkit.training.image_features import (
    ENCODERS,
    ClipFeatures,
    clip_config,
    clip_tokens,
    latent_patches,
    latent_tokens,
)
from sdkit.training.metadata import of_kind
from sdkit.training.method import HeldOutLosses, Method, Result, Size
from sdkit.training.methods import lora
from sdkit.training.option_sets import DenoisingOptions, is_one_file
from sdkit.training.options import always, fixed, option
from sdkit.training.plan import Base
from sdkit.training.targets import lora_targets
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.layers.predictor import PredictorShape
    from sdkit.runtime.losses import HeldOut
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.trainable import Trainable

IDENTITIES = "identities"
FORMATS = ("kohya", "peft")
# What both forms say of a key that both have.
_AS = "what is made: hypernetwork [default], or identity (of somebody new, by a hypernetwork)"
_STEPS = "optimizer steps in all [default: 12000]; of an identity those behind the prediction, 0 for none [default: 40]"
_CAPTION = "caption of every picture [default: a TOKEN CLASS; of an identity the hypernetwork's]"
_RANK = "rank of a LiDB [default: 1]; of an identity that of the LoRA which goes on from it [default: 4]"
_CLIP = "where encoder=clip: folder of a CLIP with an image tower, or a base that has one, such as tiny"


@dataclass(frozen=True)
class HypernetworkOptions(DenoisingOptions):
    """Of ``as=hypernetwork``."""

    as_: str = option("hypernetwork", _AS)
    token: str = option("sks", "the word every identity is called by: a rare one")
    class_: str = option("face", "what all identities are")
    caption: str = option("", _CAPTION)
    steps: int = option(12_000, _STEPS, minimum=2, late=True)
    identity_steps: int = option(4_000, "of these, how many are for the identities' own LiDBs, at first", minimum=1)
    batch: int = 8
    lr: float = option(1e-4, "learning rate of the hypernetwork", minimum=0.0, late=True)
    identity_lr: float = option(1e-3, "learning rate of the identities' own LiDBs", minimum=0.0, late=True)
    rank: int = option(1, _RANK, minimum=1)
    basis_up: int = option(100, "columns of LiDB's frozen basis at a layer's output", minimum=1)
    basis_down: int = option(50, "rows of LiDB's frozen basis at a layer's input", minimum=1)
    text_encoder: bool = option(True, "LiDBs change the text encoder too")
    beta: float = option(0.05, "weight of the distance to an identity's own LiDB", minimum=0.0)
    iterations: int = option(4, "how often the hypernetwork refines a prediction", minimum=1)
    width: int = option(256, "of the hypernetwork, a multiple of 32", minimum=32, maximum=4096)
    blocks: int = option(4, "of the hypernetwork", minimum=1, maximum=64)
    encoder: str = option("vae", "what looks at a picture: vae (the base's own) or clip")
    clip: str = option("", _CLIP, names_file=is_one_file, names_model=True)
    identities: bool = option(False, "write each identity's own LiDB too, to identities/ beside the result")
    caption_dropout: float = fixed(0.0)
    epochs: float | None = fixed(None)
    mask: str = fixed("")
    init: str = fixed("")
    sample: str = fixed("")
    names: tuple[str, ...] = fixed(())
    pictures: int = fixed(0)

    @property
    def prompt(self) -> str:
        """The caption of every picture."""
        return self.caption or " ".join(filter(None, ("a", self.token, self.class_)))


@dataclass(frozen=True)
class IdentityOptions(DenoisingOptions):
    """Of ``as=identity``."""

    as_: str = option("identity", _AS)
    init: str = option(
        "", "the hypernetwork's file: what it predicts is the beginning", names_file=always, names_model=True
    )
    caption: str = option("", _CAPTION)
    steps: int = option(40, _STEPS, minimum=0, late=True)
    lr: float = 1e-4
    rank: int = option(4, _RANK, minimum=1)
    format: str = option("kohya", "file format of the result: kohya or peft (with steps=0 it is lidb)")
    clip: str = option("", _CLIP, names_file=is_one_file, names_model=True)
    epochs: float | None = fixed(None)
    reference: Sample | None = fixed(None)


# The hypernetwork


def _read(folder: Path, options: HypernetworkOptions) -> Dataset:
    return read_identities(folder, options.prompt, background=options.background, strict=options.strict)


def _named(options: HypernetworkOptions, dataset: Dataset) -> HypernetworkOptions:
    names = tuple(sorted({sample.subject for sample in dataset.samples}))
    return replace(options, names=names, pictures=len(dataset.samples))


def _layout(model: Model, options: HypernetworkOptions) -> Layout:
    targets = lora_targets(model, "attention", text=options.text_encoder, conv_rank=0)
    bases = []
    for module, weight in targets.items():
        rows, columns = weight[0], math.prod(weight[1:])
        a, b = min(options.basis_up, rows), min(options.basis_down, columns)
        bases.append(Basis(options.seed, module, rows, columns, a, b))
    return Layout(tuple(bases), options.rank)


def _tokens(options: HypernetworkOptions, channels: int, latent_side: int) -> tuple[int, int]:
    """How many tokens a picture has for the hypernetwork, and how wide they are."""
    if options.encoder == "clip":
        return clip_tokens(clip_config(options.clip))
    return latent_tokens(channels, latent_side)


def _predictor_shape(
    layout: Layout, tokens: tuple[int, int], found: HypernetworkOptions | Description
) -> PredictorShape:
    from sdkit.runtime.layers.predictor import PredictorShape

    return PredictorShape(layout.lengths, *tokens, found.width, found.blocks, found.iterations)


def _hypernetwork_size(model: Model, options: HypernetworkOptions) -> Size:
    import torch

    from sdkit.runtime.layers.predictor import Predictor

    _check(options)
    layout = _layout(model, options)
    channels = model.places["vae.decoder.conv_in.weight"].shape[1] if options.encoder == "vae" else 0
    with torch.device("meta"):  # patches as of 512 pixels: how large pictures are, no header says
        network = Predictor(_predictor_shape(layout, _tokens(options, channels, 64), options))
    count = sum(parameter.numel() for parameter in network.parameters())
    updates = options.identity_steps * options.batch * options.accumulate
    notes = [f"a LiDB is {layout.size} numbers in {len(layout.bases)} layers"]
    if options.names:
        each = updates / len(options.names)
        notes.append(f"{len(options.names)} identities learn for {each:.0f} pictures each; 1,000 to 3,000 are usual")
        if len(options.names) < FEW:
            notes.append(f"{len(options.names)} identities are few to predict others from: some hundreds are better")
    item = parse_precision(options.save_dtype).itemsize
    own = (1 + len(options.names)) * layout.size  # and what they have in common
    return Size(count + own, len(layout.bases), (count + layout.size) * item + 20_000, tuple(notes))


def _check(options: HypernetworkOptions) -> None:
    if options.encoder not in ENCODERS:
        raise UsageError(f"encoder={options.encoder}: unknown", nearest_hint(options.encoder, ENCODERS))
    if options.width % 32:
        raise UsageError(f"width={options.width}: must be a multiple of 32", f"width={options.width // 32 * 32 or 32}")
    if options.steps <= options.identity_steps:
        raise UsageError(
            f"steps={options.steps}: all of them are for the identities (identity_steps={options.identity_steps}), "
            "and none for the hypernetwork",
            f"steps={3 * options.identity_steps}",
        )
    shown = options.identity_steps * options.batch * options.accumulate
    if shown < options.pictures:
        raise UsageError(
            f"identity_steps={options.identity_steps}: shows {shown} of {options.pictures} pictures, so that some "
            "identities would not learn at all",
            f"identity_steps={math.ceil(options.pictures / options.batch / options.accumulate)} or many times that",
        )


def _population(backbone: Backbone, options: HypernetworkOptions, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.layers.predictor import Predictor
    from sdkit.training.trainables.population import Population, first_vector

    layout = _layout(backbone.model, options)
    side = _side(int(backbone.unet.config.sample_size) * backbone.pixels_per_latent, backbone.size_step, options)
    tokens = _tokens(options, backbone.latent_channels, side // backbone.pixels_per_latent)
    predictor = Predictor.new(_predictor_shape(layout, tokens, options), rng)
    return [
        Population(
            layout,
            first_vector(layout, rng),
            options.names,
            predictor,
            latent_patches if options.encoder == "vae" else ClipFeatures(options.clip),
            lr=options.lr,
            identity_lr=options.identity_lr,
        )
    ]


def _side(usual: int, step: int, options: DenoisingOptions) -> int:
    """The side of the square that references are brought to."""
    return nearest_size((1, 1), bucket_sizes(options.resolution or usual, step))[0]


def _objective(options: HypernetworkOptions) -> Objective:
    from sdkit.training.objectives.identities import OfIdentities

    first = options.identity_steps * options.accumulate
    return OfIdentities(options.denoising(), first, options.beta, "latents" if options.encoder == "vae" else "pixels")


def _held_out(options: HypernetworkOptions) -> HeldOutLosses:
    """The losses of identities never trained on, with what is predicted from another of their pictures."""

    def losses(backbone: Backbone, pictures: Sequence[HeldOut]) -> torch.Tensor:
        import torch

        from sdkit.runtime.losses import held_out_losses
        from sdkit.training.trainables.population import population_in

        population = population_in(backbone)
        rows = []
        for picture in pictures:
            assert picture.reference is not None, "the feed gives what `inputs` asks for"
            with torch.no_grad():
                predicted = population.predict(picture.reference.to(backbone.device))
            with population.chosen.only(predicted):
                rows.append(held_out_losses(backbone, [picture]))
        return torch.cat(rows)

    return losses


def _save_hypernetwork(result: Result[HypernetworkOptions], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.runtime.tensors import read_tensors, write_tensors
    from sdkit.training.trainables.population import Population, artifact_of

    (population,), options, backbone = result.trained, result.options, result.backbone
    assert isinstance(population, Population)
    layout, dtype = population.layout, save_type(options.save_dtype)
    described = Description(
        base_id=backbone.base_id,
        base_name=backbone.base_name,
        prompt=options.prompt,
        encoder=options.encoder,
        encoder_id=getattr(population.look, "id", ""),
        side=result.feed.square[0],
        width=options.width,
        blocks=options.blocks,
        iterations=options.iterations,
        rank=options.rank,
        layers=tuple((basis.module, basis.rows, basis.columns, basis.a, basis.b) for basis in layout.bases),
        seed=options.seed,
    )
    tensors = {f"{NETWORK}{name}": value.detach().to(dtype) for name, value in population.predictor.named_parameters()}
    tensors[START] = population.common.detach().float()
    write_tensors(path, tensors, {**metadata, **described.metadata()}, overwrite=True)
    found = read_tensors(path)
    if any((found[name].cpu() != value.cpu()).any() for name, value in tensors.items()):
        raise SdkitError(f"{path}: does not read back as it was written", "is it NaN?")
    for name in population.own if options.identities else ():
        place = path.parent / IDENTITIES / f"{name}.safetensors"
        place.parent.mkdir(exist_ok=True)
        artifact = artifact_of(layout, population.vectors([name])[0].detach().cpu(), dtype)
        write_adapter(artifact, backbone.model, place, of_kind(metadata, "lora"), format="lidb", overwrite=True)


# An identity


def _read_identity(place: Path, options: IdentityOptions) -> Dataset:
    """The pictures of a folder, or one picture."""
    prompt = options.caption or _described(options).prompt
    if not place.is_file():
        return read_dataset(
            place, caption=prompt, background=options.background, strict=options.strict, mask=options.mask
        )
    folder = read_dataset(place.parent, caption=prompt, background=options.background)
    own = [sample for sample in folder.samples if sample.path.name == place.name]
    if not own:
        raise SdkitError(f"{place}: {folder.quarantined.get(place.name, 'is no picture')}", "--data names a picture")
    return Dataset(tuple(own), {})


def _described(options: IdentityOptions) -> Description:
    """What the hypernetwork's file says of itself.

    Raises:
        UsageError: there is none.
    """
    if not options.init:
        raise UsageError(
            "as=identity needs init=, a hypernetwork's file",
            "`sdkit train hyperdreambooth --data FOLDER_OF_IDENTITIES` makes it",
        )
    with open_weights(options.init) as weights:
        return describe(weights)


def _seen(options: IdentityOptions, dataset: Dataset) -> IdentityOptions:
    return replace(options, reference=dataset.samples[0])


def _identity_size(model: Model, options: IdentityOptions) -> Size:
    described = _described(options)
    layout = described.layout
    _check_fits(model, layout, options)
    if described.encoder == "clip":
        clip_config(options.clip)
    if options.format not in FORMATS:
        raise UsageError(f"format={options.format}: no LoRA is written in it", nearest_hint(options.format, FORMATS))
    if options.steps == 0:
        count = layout.size
    else:
        if options.rank < described.rank:
            raise UsageError(f"rank={options.rank}: predictions have rank {described.rank}", f"rank={described.rank}")
        count = sum(options.rank * (basis.rows + basis.columns) for basis in layout.bases)
    item = parse_precision(options.save_dtype).itemsize
    shown = f"predicted from {options.reference.path.name}" if options.reference else "predicted"
    return Size(count, len(layout.bases), count * item + 500 * len(layout.bases), (shown,))


def _check_fits(model: Model, layout: Layout, options: IdentityOptions) -> None:
    for basis in layout.bases:
        place = model.places.get(f"{basis.module}.weight")
        shape = None if place is None else (place.shape[0], math.prod(place.shape[1:]))
        if shape != (basis.rows, basis.columns):
            raise SdkitError(
                f"{options.init}: changes {basis.module}, {basis.rows} x {basis.columns}, which is "
                f"{'missing' if shape is None else f'{shape[0]} x {shape[1]}'} in this base",
                "name the base the hypernetwork was trained on",
            )


def _base_notes(base: Base, dataset: Dataset, options: IdentityOptions) -> list[str]:
    described = _described(options)
    with open_weights(base.path) as weights:
        own = quick_id(*weights.files)
    if own == described.base_id:
        return []
    return [
        f"the hypernetwork was trained on {described.base_name} ({described.base_id[:12]}), and this base is "
        f"{base.path.name} ({own[:12]}): what it predicts may not suit it"
    ]


def predicted(backbone: Backbone, options: IdentityOptions) -> tuple[Layout, torch.Tensor]:
    """What the hypernetwork makes of the reference: the vector of a LiDB, [size], with its layout.

    Raises:
        SdkitError: the file is damaged, or was trained with another CLIP.
    """
    import torch

    from sdkit.runtime.layers.predictor import Predictor
    from sdkit.runtime.tensors import read_tensors
    from sdkit.training.images import fit, open_picture, pixels

    described, tensors = _described(options), read_tensors(Path(options.init))
    layout, side = described.layout, described.side
    assert options.reference is not None, "the method looks at its pictures first"
    picture = pixels(fit(open_picture(options.reference.path, options.background), (side, side)))[None]
    if described.encoder == "clip":
        clip = ClipFeatures(options.clip)
        if clip.id != described.encoder_id:
            raise SdkitError(f"clip={options.clip}: the hypernetwork was trained with another CLIP")
        seen = clip(picture)
    else:
        seen = latent_patches(backbone.encode_image(picture).mean)
    network = {name.removeprefix(NETWORK): value.float() for name, value in tensors.items() if name.startswith(NETWORK)}
    try:
        with torch.device("meta"):
            predictor = Predictor(_predictor_shape(layout, (seen.shape[1], seen.shape[2]), described))
        predictor.load_state_dict(network, assign=True)
    except RuntimeError as error:
        raise SdkitError(f"{options.init}: its tensors do not fit what it says of itself: {error}") from None
    with torch.no_grad():
        vector: torch.Tensor = predictor(seen.float(), tensors[START].float())[0]
    return layout, vector


def _identity(backbone: Backbone, options: IdentityOptions, rng: StepRNG) -> list[Trainable]:
    """The predicted LiDB; as a LoRA with room for more where it is to be trained on."""
    import torch

    from sdkit.training.algorithms.lidb import Lidb
    from sdkit.training.trainables.lora import Beside, Lora, factors_of, relaxed
    from sdkit.training.trainables.population import artifact_of

    layout, vector = predicted(backbone, options)
    artifact = artifact_of(layout, vector, torch.float32)
    algorithm = LoraAlgorithm() if options.steps else Lidb(layout.bases[0].seed)
    factors = factors_of(artifact, algorithm, backbone.model)
    modules = {}
    for module, own in factors.items():
        weight = backbone.model.places[f"{module}.weight"].shape
        wider = relaxed(own, algorithm.shapes(weight, options.rank), rng, module) if options.steps else own
        modules[module] = Beside(wider, 1.0, weight)
    return [Lora(algorithm, modules, lr=options.lr, text_lr=options.lr)]


def _save_identity(result: Result[IdentityOptions], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.lora import Lora

    (trained,), options = result.trained, result.options
    assert isinstance(trained, Lora)
    artifact: Artifact = trained.artifact(save_type(options.save_dtype))
    format = options.format if options.steps else "lidb"
    write_adapter(artifact, result.backbone.model, path, metadata, format=format, overwrite=True)


_HYPERNETWORK = Method(
    options=HypernetworkOptions,
    size=_hypernetwork_size,
    trainables=_population,
    objective=_objective,
    save=_save_hypernetwork,
    modelspec="hyperdreambooth",
    held_out=_held_out,
    look=_named,
    dataset=_read,
)
_LORA: Method[Any] = lora.METHOD
_IDENTITY = replace(
    _LORA,
    options=IdentityOptions,
    size=_identity_size,
    trainables=_identity,
    save=_save_identity,
    suffix=lambda options: "" if options.steps and options.format == "peft" else ".safetensors",
    look=_seen,
    dataset=_read_identity,
    notes=_base_notes,
)
METHOD: Method[Any] = replace(_HYPERNETWORK, forms={"hypernetwork": _HYPERNETWORK, "identity": _IDENTITY})
