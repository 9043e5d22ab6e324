"""A component's weights in one file or several (shards) and their index, named as diffusers and transformers do.

diffusion_pytorch_model.fp16.safetensors
diffusion_pytorch_model.fp16-00001-of-00003.safetensors   with   diffusion_pytorch_model.safetensors.index.fp16.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from sdkit.conversion.plan import PlannedFile
from sdkit.core.errors import UsageError
from sdkit.streaming import Output
from sdkit.weights.folder import VARIANTS

_STEMS = dict.fromkeys(("unet", "transformer", "vae"), "diffusion_pytorch_model")
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def component_files(
    component: str, prefix: str, tensors: Sequence[Output], *, variant: str | None, shard_bytes: int | None
) -> tuple[list[PlannedFile], dict[str, bytes]]:
    """The files of the tensors whose names begin with `prefix`, and the index beside them where there are several.

    Args:
        component: whose stem the names have.
        prefix: the component's folder (``unet/``), or empty where it is the output itself.
        tensors: of all components.
        variant: as in ``from_pretrained(variant="fp16")``; None for the plain names.
        shard_bytes: at most so many bytes of tensors in a file; None for one file.
    """
    own = [Output(t.name.removeprefix(prefix), t.dtype, t.expression) for t in tensors if t.name.startswith(prefix)]
    shards = _divided(own, shard_bytes)
    stem, infix = f"{prefix}{_STEMS.get(component, 'model')}", f".{variant}" if variant else ""
    if len(shards) == 1:
        return [PlannedFile(f"{stem}{infix}.safetensors", tuple(own), prefix=prefix)], {}
    names = [f"{stem}{infix}-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    files = [PlannedFile(name, tuple(shard), prefix=prefix) for name, shard in zip(names, shards, strict=True)]
    where = {output.name: file.name.removeprefix(prefix) for file in files for output in file.tensors}
    index = {"metadata": {"total_size": sum(output.nbytes for output in own)}, "weight_map": where}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return files, {f"{stem}.safetensors.index{infix}.json": text.encode()}


def _divided(tensors: Sequence[Output], most: int | None) -> list[list[Output]]:
    """The tensors in order, a new shard begun where the last would become too large."""
    shards: list[list[Output]] = [[]]
    filled = 0
    for output in tensors:
        if most is not None and shards[-1] and filled + output.nbytes > most:
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += output.nbytes
    return shards


def parse_size(text: str | None) -> int | None:
    """Bytes by a number and a unit: ``10GB``, ``512MiB``.

    Raises:
        UsageError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in _UNITS or not (size := int(float(found[1]) * _UNITS[found[2]])):
        raise UsageError(f"{text!r} is no size of a file", "write 10GB or 500MB")
    return size


def check_variant(name: str | None) -> None:
    """Refuse a variant that nothing reads.

    Raises:
        UsageError: it is none of those that are published.
    """
    known = [variant.lstrip(".") for variant in VARIANTS if variant]
    if name is not None and name not in known:
        raise UsageError(f"there is no variant {name!r}", f"it is one of {', '.join(known)}")
