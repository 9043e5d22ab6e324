"""Textual inversion embeddings: one or more rows of a text encoder's token table.

    a1111      a pickle: ``string_to_param`` → ``*`` → [n, d], with the word in ``name``
    diffusers  the word → [d] or [n, d]; its loader calls the rows ``<word>``, ``<word>_1``, ``<word>_2``, …
    kohya      ``emb_params`` → [n, d] (OneTrainer also writes ``emp_params``)
    SDXL       in all of them ``clip_l`` and ``clip_g``, one for each text encoder

Where the file does not name its word, its own name is the word; the web UIs go by the file's name always. One file
holds one word, because A1111 and diffusers read no file with two. OneTrainer's ``…_out`` are no rows of a token table:
they are put behind the text encoder, so they are left. arXiv:2208.01618.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import write_adapter_file, write_pickle
from sdkit.formats.aesthetic import BARE
from sdkit.formats.codec import Dialect, Verdict
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.metadata import read_recipe

HOLDS = ("textual-inversion",)
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux")
_UNETS = ("sd1", "sd2", "sdxl")
# Of SDXL's diffusers takes each text encoder's rows on their own.
_FEWER = {"diffusers": ("sd1", "sd2"), "forge": _UNETS, "sd-scripts": _UNETS}
DIALECTS = (
    Dialect(
        ("a1111", "comfyui", "diffusers", "forge"),
        name="diffusers",
        says="the word itself; SDXL: clip_l and clip_g",
        said=("invokeai", "sd-next"),
        families=_FEWER,
    ),
    Dialect(
        ("a1111", "comfyui", "forge", "sd-scripts"),
        name="kohya",
        says="emb_params; SDXL: clip_l and clip_g",
        families=_FEWER,
    ),
    Dialect(
        ("a1111", "comfyui", "diffusers", "forge"),
        name="a1111",
        suffix=".pt",
        says="a pickle",
        said=("invokeai",),
        families=_FEWER,
    ),
)
SUFFIXES = {"diffusers": ".safetensors", "kohya": ".safetensors", "a1111": ".pt"}  # dialect → of its files
_BY_KEY = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3", "t5xxl": "text_encoder_3"}
_BY_COMPONENT = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
_BY_WIDTH = {768: "text_encoder", 1024: "text_encoder", 1280: "text_encoder_2", 4096: "text_encoder_3"}
_KOHYA = "emb_params"
_NAMELESS = {_KOHYA, "emp_params", "*", *_BY_KEY}
_OUTPUT = "_out"
_MAX_TOKENS = 64  # a file with more tensors is something else
_MAX_ROWS = 1024
BUNDLE = "bundle_emb."
_A1111 = "string_to_param"
_A1111_ID = 265  # what A1111 says the word's place-holder "*" is in CLIP's vocabulary


def plain_name(token: str) -> str:
    """A token as part of a file name: only letters, digits and ``-_.``, never a path."""
    return re.sub(r"[^\w.-]+", "", token)[:80].strip(".") or "token"


def file_beside(path: Path, token: str) -> Path:
    """Where the rows of a token lie that belongs to the adapter or model at `path`: ``NAME.TOKEN.safetensors``."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.{plain_name(token)}.safetensors")


def encoder_of(key: str, info: TensorInfo) -> str:
    """The text encoder whose token table `info` extends: named by the key, else told by the width."""
    return _BY_KEY.get(key) or _BY_WIDTH.get(info.shape[-1] if info.shape else 0, "text_encoder")


def add_bundled(builder: ArtifactBuilder, name: str, info: TensorInfo) -> None:
    """Take rows that lie in another adapter's file, as ``bundle_emb.<word>.<key>``."""
    if name.count(".") < 2:
        builder.leave(name)
        return
    _, token, key = name.split(".", 2)
    builder.add_tokens(token, encoder_of(key, info), info)


def detect(weights: Weights) -> Verdict:
    """Recognised when every tensor is a vector, or a few rows, as wide as a text encoder's tokens."""
    tensors = weights.tensors
    if weights.mentions(_A1111) and any(name.startswith(_A1111) for name in tensors):
        return Verdict(True, "it holds string_to_param, as A1111's embeddings do")
    if not tensors or len(tensors) > _MAX_TOKENS:
        return Verdict(False, f"{len(tensors)} tensors are too many, or too few, for an embedding")
    declared = weights.metadata.get("modelspec.architecture", "").endswith("/textual-inversion")
    strange = next((name for name, info in tensors.items() if not _is_embedding(name, info, declared)), None)
    if strange is not None:
        return Verdict(False, f"{strange} is no row of a token table")
    return Verdict(True, f"its {len(tensors)} tensors are rows of a token table")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact of tokens. `model` is not needed: nothing refers to a module.

    Raises:
        SdkitError: what should be rows is something else, or a text encoder has two sets of rows for one word.
    """
    builder = ArtifactBuilder(weights, model, "textual-inversion")
    for name, info in weights.tensors.items():
        if name.endswith(_OUTPUT) and name.removesuffix(_OUTPUT) in _NAMELESS:
            builder.leave(name)
            builder.note(f"{name} would be put behind the text encoder, where only OneTrainer puts it")
        elif name.startswith(_A1111) and not _are_rows(info):
            raise SdkitError(f"{weights.path}: {name} is {info.dtype.name} {list(info.shape)}, and no row of tokens")
        elif name == f"{_A1111}.*" or (_A1111 not in name and _are_rows(info)):
            builder.add_tokens(_token(weights, name), encoder_of(name, info), info)
        else:
            builder.leave(name)
    artifact = replace(builder.build(), kind="textual-inversion")
    _check_one_each(artifact)
    return artifact


def write(
    artifact: Artifact,
    model: Model | None,
    path: Path,
    metadata: Mapping[str, str],
    *,
    dialect: str = "",
    overwrite: bool = False,
) -> None:
    """See `formats.write_adapter`.

    Args:
        dialect: ``a1111``, ``diffusers`` or ``kohya``; by default what the file's suffix calls for.

    Raises:
        SdkitError: the adapter is no embedding, or holds several words.
    """
    rows = _one_word(artifact, path)
    dialect = dialect or ("a1111" if path.suffix == SUFFIXES["a1111"] else "diffusers")
    if dialect == "a1111":
        write_pickle(path, _a1111(rows, metadata), sum(part.info.nbytes for part in rows), overwrite=overwrite)
        return
    names = {"diffusers": rows[0].token, "kohya": _KOHYA}
    contents = {
        names[dialect] if len(rows) == 1 else _BY_COMPONENT[part.component]: Read(part.weights, part.info)
        for part in rows
    }
    write_adapter_file(path, contents, metadata, overwrite=overwrite)


def _check_one_each(artifact: Artifact) -> None:
    for (word, component), count in Counter((rows.token, rows.component) for rows in artifact.tokens).items():
        if count > 1:
            path = artifact.source.path
            raise SdkitError(f"{path}: holds {word} {count} times for the {component}", "ask its author which is meant")


def _one_word(artifact: Artifact, path: Path) -> tuple[TokenRows, ...]:
    """The rows, one for each text encoder."""
    if not artifact.tokens or artifact.deltas:
        raise SdkitError(f"{path}: this {artifact.kind} is no embedding, so it cannot be written as one")
    words = dict.fromkeys(rows.token for rows in artifact.tokens)
    if len(words) > 1:
        raise SdkitError(
            f"{path}: an embedding's file holds one word, here are {', '.join(words)}",
            "write each to a file of its own",
        )
    return artifact.tokens


def _a1111(rows: tuple[TokenRows, ...], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Every key A1111 writes; further ones it leaves alone."""
    vectors = {part.component: Read(part.weights, part.info).load().clone() for part in rows}
    plain: dict[str, Any] = {"string_to_token": {"*": _A1111_ID}, _A1111: {"*": next(iter(vectors.values()))}}
    several = {_BY_COMPONENT[component]: part for component, part in vectors.items()}
    steps = metadata.get("ss_steps") or metadata.get("step") or "0"
    facts = {
        "name": rows[0].token,
        "step": int(steps) if steps.isdigit() else 0,
        "sd_checkpoint": None,  # A1111's own hash of the base, by which it only warns
        "sd_checkpoint_name": _base_name(metadata),
    }
    return {**metadata, **(plain if len(rows) == 1 else several), **facts}


def _base_name(metadata: Mapping[str, str]) -> str | None:
    """What the embedding was trained on, from the recipe among the metadata."""
    parents = (read_recipe(metadata) or {}).get("parents")
    entries = [entry for entry in parents if isinstance(entry, dict)] if isinstance(parents, list) else []
    name = next((entry.get("name") for entry in entries if entry.get("role") == "base"), None)
    return str(name).removesuffix(".safetensors") if name is not None else None


def _is_embedding(name: str, info: TensorInfo, declared: bool) -> bool:
    """Whether a tensor may be an embedding.

    Args:
        declared: whether the file says that it is an embedding; else only what is called like one may have any width.
    """
    known = name.removesuffix(_OUTPUT) in _NAMELESS or (name.startswith("<") and name.endswith(">"))
    named = known or declared or ("." not in name and bool(info.shape) and info.shape[-1] in _BY_WIDTH)
    return name not in BARE and not name.isdigit() and named and _are_rows(info)


def _are_rows(info: TensorInfo) -> bool:
    few = len(info.shape) == 1 or (len(info.shape) == 2 and 1 <= info.shape[0] <= _MAX_ROWS)
    return few and info.shape[-1] > 0 and info.dtype.is_float


def _token(weights: Weights, name: str) -> str:
    if name in _NAMELESS or name.startswith(_A1111):
        return str(weights.extra.get("name") or weights.metadata.get("name") or weights.path.stem)
    return name
