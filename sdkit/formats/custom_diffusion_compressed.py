"""Custom Diffusion compressed: the changes of cross-attention as two thin factors each, and the words, in one pickle.

``unet`` → ``….attn2.to_k.weight`` → ``u`` [out, rank] and ``v`` [rank, in], ΔW = u · v, from the singular values of the
difference from the base (arXiv:2212.04488, section 3.2); words as in a delta. So unlike a delta it goes with any base,
and what it says is what a LoRA says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._concepts import TOKENS, looks_so, read_words, single_file_names, stored, vector, written_words
from sdkit.formats._write import write_pickle
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import TensorInfo, Weights

HOLDS = ("custom-diffusion",)
CHANGES = ("lora",)
WORDS = True
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (Dialect((), suffix=".bin", says="a pickle, as the authors' code reads it"),)


def detect(weights: Weights) -> Verdict:
    """Recognised when it holds factors of attention's changes, and nothing beside but words."""
    if looks_so(weights, factors=True):
        return Verdict(True, "it holds factors like unet.….attn2.to_k.weight.u, and words alone beside")
    return Verdict(False, "it holds more, or something else, than ….attn2.to_k.weight.u and .v and words")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`.

    Raises:
        SdkitError: one of two factors is missing.
    """
    builder, names = ArtifactBuilder(weights, model, "custom-diffusion-compressed"), single_file_names(model)
    factors: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        entry = stored(name)
        if entry is not None:
            factors[name.removesuffix(f".{entry.factor}")][entry.factor] = info
    for spelled, pair in factors.items():
        entry = stored(spelled)
        assert entry is not None
        if set(pair) != {"u", "v"}:
            raise SdkitError(f"{weights.path}: {spelled} has only its {' and '.join(pair)}", "get the file again")
        module = builder.resolve(entry.hub(names), parameter=entry.parameter)
        delta = LowRank(builder.read(pair["u"]), builder.read(pair["v"]), 1.0)
        builder.add(module, spelled, delta, entry.parameter)
    read_words(builder, weights)
    return replace(builder.build(), kind="custom-diffusion")


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    check(artifact, model)
    factors = {}
    for target, delta in artifact.deltas.items():
        assert isinstance(delta, LowRank)
        up, down = delta.up.load().flatten(1), delta.down.load().flatten(1)
        u = up.clone() if delta.scale == 1.0 else (up.double() * delta.scale).float()
        factors[target.name.removeprefix("unet.")] = {"u": u, "v": down.clone()}
    words = {word: [vector(part).load().clone() for part in rows] for word, rows in written_words(artifact).items()}
    tokens = {word: vectors[0] if len(vectors) == 1 else vectors for word, vectors in words.items()}
    contents = {"unet": factors, **({TOKENS: tokens} if tokens else {})}
    nbytes = sum(factor.nbytes for pair in factors.values() for factor in pair.values())
    write_pickle(path, {**metadata, **contents}, nbytes, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Raise SdkitError unless it is nothing but low-rank changes of the U-Net's attention, and words."""
    for target, delta in artifact.deltas.items():
        if not isinstance(delta, LowRank) or delta.kind != "lora" or stored(target.name) is None:
            raise SdkitError(f"{target.name}: a {delta.kind} there has no place in a compressed Custom Diffusion")
    if not artifact.deltas:
        raise SdkitError("a compressed Custom Diffusion needs changes of attention", "write words as embeddings")
