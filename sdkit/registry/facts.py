"""What a file is, for the registry: from its header, a few scalars and a few kilobytes of its tensors."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.core.hashing import quick_id
from sdkit.registry.recipes import Made, made_by
from sdkit.weights import Weights, open_weights
from sdkit.weights.content import sample_id
from sdkit.weights.dtypes import DTYPES
from sdkit.weights.metadata import trigger_words

_UNDO_KEY = "sdkit.undo"
_OWN_KIND = frozenset({"textual-inversion", "hypernetwork", "aesthetic", "custom-diffusion", "inversion"})
_DOWN = (
    "lora_down.weight",
    "lora_A.weight",
    "lora.down.weight",
    ":down",
    "_lora.down.weight",
    "hada_w1_b",
    "lokr_w1_b",
)
_LONGEST = 500  # characters of a text out of a file


@dataclass(frozen=True, slots=True)
class Facts:
    """One file or folder, looked at.

    Attributes:
        path: absolute.
        stamp: changes when the file does, see `stamp_of`.
        size: bytes of all its files.
        quick_id: names the file's content.
        sample_id: evidence for the tensors' content, whatever the header says.
        kind: as `sdkit inspect` says: ``checkpoint``, ``component``, ``lora``, ``textual-inversion``, …
        family: ``sd1``, …, or ``unknown``.
        format: an adapter's codec; a checkpoint's naming (``ldm``, ``diffusers``).
        triggers: words that call it up.
        licence: as the file states it.
        made: how it was made.
        details: what else people want to see: title, variant, element type, rank, parameters, …
    """

    path: Path
    stamp: str
    size: int
    quick_id: str
    sample_id: str
    kind: str
    family: str
    format: str
    triggers: tuple[str, ...]
    licence: str
    made: Made | None
    details: Mapping[str, object]


def look_at(path: Path) -> Facts:
    """Look at a file or folder.

    Raises:
        SdkitError: it is no weight file, or a damaged one.
        OSError: it cannot be read.
    """
    path = Path(os.path.abspath(path))
    stamp = stamp_of(path)
    with open_weights(path) as weights:
        kind, family, format, details = _what(weights)
        details |= _details(weights)
        return Facts(
            path=path,
            stamp=stamp,
            size=sum(file.stat().st_size for file in weights.files),
            quick_id=quick_id(*weights.files),
            sample_id=sample_id(weights),
            kind=kind,
            family=family,
            format=format,
            triggers=unique((*_triggers(weights.metadata), *_tokens(weights))),
            licence=weights.metadata.get("modelspec.license", "")[:_LONGEST],
            made=made_by(weights.metadata),
            details=details,
        )


def stamp_of(path: Path) -> str:
    """``device:inode:size:mtime_ns``: the same as long as nobody has written the file, even where it was moved.

    Of a folder: its own device and inode, the size of its files together, and the time of the newest.
    """
    own = path.stat()
    if not path.is_dir():
        return f"{own.st_dev}:{own.st_ino}:{own.st_size}:{own.st_mtime_ns}"
    files = [entry.stat() for entry in sorted(path.rglob("*")) if entry.is_file()]
    newest = max((file.st_mtime_ns for file in files), default=own.st_mtime_ns)
    return f"{own.st_dev}:{own.st_ino}:{sum(file.st_size for file in files)}:{newest}"


def _what(weights: Weights) -> tuple[str, str, str, dict[str, Any]]:
    """Kind, family, format and details."""
    # Imported where they are used: a folder that is scanned again mostly holds no new file, and this is half the time.
    from sdkit.families import identify
    from sdkit.formats import adapter_family, recognise

    if _UNDO_KEY in weights.metadata:
        return "undo", "unknown", "", {}
    model = identify(weights)
    if model.places:
        whole = "unet" in model.components and len(model.components) > 1
        components = list(model.components)
        details = {"variant": model.variant, "prediction": model.prediction or "", "components": components}
        return ("checkpoint" if whole else "component"), model.family, model.naming, details
    format, _ = recognise(weights)
    if format is None:
        return ("unknown" if model.family == "unknown" else "component"), model.family, "", {}
    kind = format if format in _OWN_KIND else "lora"
    return kind, adapter_family(weights)[0] or "unknown", format, {"rank": _rank(weights)}


def _details(weights: Weights) -> dict[str, object]:
    elements = Counter[str]()
    forms = Counter((info.dtype.name, info.shape) for info in weights.tensors.values())  # hundreds of tensors have few
    for (dtype, shape), count in forms.items():
        elements[dtype] += math.prod(shape) * count
    dtypes = sorted(elements, key=lambda name: DTYPES[name].bits * elements[name])
    title = weights.metadata.get("modelspec.title") or weights.metadata.get("ss_output_name") or ""
    return {
        "container": str(weights.container),
        "dtype": dtypes[-1] if dtypes else "",
        "tensors": len(weights.tensors),
        "parameters": elements.total(),
        "title": title[:_LONGEST],
        "author": weights.metadata.get("modelspec.author", "")[:_LONGEST],
    }


def _rank(weights: Weights) -> int | None:
    """The rank most modules of a LoRA have; None where names do not tell."""
    ranks = Counter(info.shape[0] for name, info in weights.tensors.items() if info.shape and name.endswith(_DOWN))
    return ranks.most_common(1)[0][0] if ranks else None


def _triggers(metadata: Mapping[str, str]) -> Sequence[str]:
    """The words sdkit has written, else ModelSpec's."""
    return trigger_words(metadata) or metadata.get("modelspec.trigger_phrase", "").split(",")


def _tokens(weights: Weights) -> list[str]:
    """The tokens an embedding of diffusers, or a file of cloneofsimo's scripts, names its tensors by."""
    marked = [name for name, text in weights.metadata.items() if text == "<embed>"]
    return [*(name for name in weights.tensors if name.startswith("<") and name.endswith(">")), *marked]


def unique(words: Iterable[str]) -> tuple[str, ...]:
    """Words without empty ones and repetitions, none too long."""
    return tuple(dict.fromkeys(word.strip()[:_LONGEST] for word in words if word.strip()))
