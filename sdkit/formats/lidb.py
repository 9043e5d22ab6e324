"""LiDB, Lightweight DreamBooth: factors within frozen orthogonal bases, about 100 kB for a base of SD1's size.

There is no common format; this one is sdkit's. ``<hub module>.lidb_up`` [a, rank] and ``….lidb_down`` [rank, b], and a
scalar ``….alpha`` where alpha is not the rank. The metadata ``lidb`` is JSON: the scheme and the seed the bases follow
from, the layers' sizes, and the SHA-256 of the bases. Whoever cannot make the same bases learns so. arXiv:2307.06949.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.lightweight import SCHEME, Basis, Lightweight, bases_digest
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import TensorInfo, Weights

CHANGES = ("lidb",)
FAMILIES = ("sd1", "sd2", "sdxl")  # those that can be trained
DIALECTS = (Dialect((), says="sdkit's own: convert it to a LoRA for other programs"),)
KEY = "lidb"
OWN_METADATA = re.compile(re.escape(KEY))
_NAME = re.compile(r"(?P<module>.+)\.(?P<role>lidb_up|lidb_down|alpha)")
_PAIR = frozenset({"lidb_up", "lidb_down"})
# A file's word for more is not believed: it would make the reader compute for hours.
LARGEST = 1 << 16  # rows or columns of a weight
LARGEST_BASES = 1 << 30  # numbers of all bases


@dataclass(frozen=True, slots=True)
class _Header:
    """What the metadata says of the bases: the seed, each module's rows and columns, and their digest."""

    seed: int
    sizes: Mapping[str, tuple[int, int]]
    digest: str


def detect(weights: Weights) -> Verdict:
    """Recognised by pairs named ``….lidb_up`` and ``….lidb_down``."""
    names = weights.tensors if weights.mentions(".lidb_up") else ()
    count = sum(name.endswith(".lidb_up") for name in names)
    if count:
        return Verdict(True, f"{count} tensors are named like unet.….to_q.lidb_up")
    return Verdict(False, "no tensor is named like unet.….to_q.lidb_up")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`. The bases are made and compared with what the file says of them."""
    header = _header(weights)
    builder = ArtifactBuilder(weights, model, "lidb")
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            builder.leave(name)
        else:
            modules[match["module"]][match["role"]] = info
    deltas = {module: _delta(builder, module, parts, header) for module, parts in modules.items()}
    _check_bases(weights, header, deltas)
    for module, delta in deltas.items():
        builder.add(builder.resolve(module), module, delta)
    return builder.build()


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    deltas = _lightweight(artifact)
    contents: dict[str, Content] = {}
    for delta in deltas:
        module = delta.basis.module
        contents |= {f"{module}.lidb_up": delta.up, f"{module}.lidb_down": delta.down}
        contents |= {f"{module}.alpha": delta.scale * delta.rank} if delta.scale != 1.0 else {}
    bases = [delta.basis for delta in deltas]
    fields = {
        "basis": SCHEME,
        "seed": bases[0].seed,
        "sizes": {basis.module: [basis.rows, basis.columns] for basis in bases},
        "a": max(basis.a for basis in bases),
        "b": max(basis.b for basis in bases),
        "r": max(delta.rank for delta in deltas),
        "sha256": bases_digest(bases),
    }
    stated = {**metadata, KEY: json.dumps(fields, sort_keys=True, separators=(",", ":"))}
    write_adapter_file(path, contents, stated, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Raise SdkitError unless all of it is LiDB's, with bases of one seed."""
    _lightweight(artifact)


def _lightweight(artifact: Artifact) -> list[Lightweight]:
    deltas = [delta for delta in artifact.deltas.values() if isinstance(delta, Lightweight)]
    if not deltas or len(deltas) < len(artifact.deltas) or len({delta.basis.seed for delta in deltas}) > 1:
        raise SdkitError(
            "the format lidb holds changes within frozen bases of one seed, and no others",
            "train one with `sdkit train lora algo=lidb`; kohya and peft hold everything else",
        )
    return deltas


def _header(weights: Weights) -> _Header:
    try:
        fields: Any = json.loads(weights.metadata[KEY])
        if fields["basis"] != SCHEME:
            raise SdkitError(
                f"{weights.path}: its bases follow from {str(fields['basis'])[:80]!r}, which is not known here",
                "a newer sdkit may know it",
            )
        sizes = {str(module): (int(rows), int(columns)) for module, (rows, columns) in fields["sizes"].items()}
        header = _Header(int(fields["seed"]), sizes, str(fields["sha256"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise SdkitError(
            f"{weights.path}: the metadata {KEY!r} that name its frozen bases are missing or damaged",
            "fetch or train it again: without its bases the numbers mean nothing",
        ) from None
    if any(not 0 < size <= LARGEST for pair in sizes.values() for size in pair):
        raise SdkitError(f"{weights.path}: its metadata speak of a weight larger than {LARGEST}")
    return header


def _delta(builder: ArtifactBuilder, module: str, parts: Mapping[str, TensorInfo], header: _Header) -> Lightweight:
    where = f"{builder.weights.path}: {module}"
    if not parts.keys() >= _PAIR:
        raise SdkitError(f"{where}: has only {', '.join(sorted(parts))}, not lidb_up and lidb_down")
    if module not in header.sizes:
        raise SdkitError(f"{where}: the metadata {KEY!r} do not give its size")
    rows, columns = header.sizes[module]
    up, down = builder.read(parts["lidb_up"]), builder.read(parts["lidb_down"])
    a, b = up.shape[0] if up.shape else 0, down.shape[-1] if down.shape else 0
    if not (0 < a <= rows and 0 < b <= columns):
        raise SdkitError(f"{where}: a = {a} and b = {b} do not fit a weight of {rows} x {columns}")
    scale = float(builder.read(parts["alpha"]).load().item()) / up.shape[-1] if "alpha" in parts else 1.0
    return Lightweight(up, down, Basis(header.seed, module, rows, columns, a, b), scale)


def _check_bases(weights: Weights, header: _Header, deltas: Mapping[str, Lightweight]) -> None:
    cost = sum(delta.basis.rows * delta.basis.a + delta.basis.columns * delta.basis.b for delta in deltas.values())
    if cost > LARGEST_BASES:
        raise SdkitError(f"{weights.path}: its bases would have {cost} numbers", "no adapter needs so many")
    digest = bases_digest(delta.basis for delta in deltas.values())
    if digest != header.digest:
        raise SdkitError(
            f"{weights.path}: its frozen bases are not those made here from seed {header.seed} "
            f"(sha256 {digest[:12]}, the file says {header.digest[:12]})",
            "its numbers would mean something else: use the sdkit that trained it to convert it to a LoRA",
        )
