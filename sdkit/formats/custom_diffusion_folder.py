"""Custom Diffusion as diffusers' script leaves it: a folder with the weights and a file for each word.

``pytorch_custom_diffusion_weights.safetensors`` (or ``.bin``) holds what `custom_diffusion` says, and
``<new1>.safetensors`` (or ``.bin``) the word. Windows allows no such names; there the file with its words beside,
`custom_diffusion`, is for the same programs. arXiv:2212.04488.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import custom_diffusion, textual_inversion
from sdkit.formats.codec import Dialect, Verdict
from sdkit.formats.textual_inversion import encoder_of, plain_name
from sdkit.weights import Weights
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.folder import CONCEPT_STEM
from sdkit.weights.reader import Container

HOLDS = ("custom-diffusion",)
CHANGES = ("replacement",)
WORDS = True
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (Dialect((), said=("diffusers",), suffix="", says="weights and words in a folder"),)


def detect(weights: Weights) -> Verdict:
    """Recognised by ``_custom_diffusion`` in a name of a folder's tensors."""
    if weights.container is Container.FOLDER and custom_diffusion.names_weights(weights):
        return Verdict(True, f"it is a folder with {CONCEPT_STEM}")
    return Verdict(False, f"it is no folder with {CONCEPT_STEM}")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`. The tensors of a word's file have its name and a slash in front."""
    artifact = custom_diffusion.read(weights, model)
    words = {name: name.partition("/")[2] for name in artifact.unmatched if name.startswith("<") and "/" in name}
    tokens = tuple(
        TokenRows(word, encoder_of("", weights.tensors[name]), weights, weights.tensors[name])
        for name, word in words.items()
    )
    left = tuple(name for name in artifact.unmatched if name not in words)
    return replace(artifact, format="custom-diffusion-folder", tokens=tokens, unmatched=left)


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    check(artifact, model)
    with AtomicFolder(path, overwrite=overwrite) as folder:
        weights = folder.work / f"{CONCEPT_STEM}.safetensors"
        custom_diffusion.write(replace(artifact, tokens=()), model, weights, metadata)
        for word in dict.fromkeys(rows.token for rows in artifact.tokens):
            own = tuple(rows for rows in artifact.tokens if rows.token == word)
            alone = replace(artifact, deltas={}, tokens=own, kind="textual-inversion")
            textual_inversion.write(alone, None, folder.work / f"<{plain_name(word)}>.safetensors", {})
        folder.commit()


def check(artifact: Artifact, model: Model | None) -> None:
    """Raise SdkitError unless it is nothing but absolute weights of the U-Net's attention, and words of one encoder."""
    custom_diffusion.check(replace(artifact, tokens=()), model)
    if any(rows.component != "text_encoder" for rows in artifact.tokens):
        raise SdkitError("diffusers' folder is for models of one text encoder", "--to custom-diffusion, or delta")
