"""From the changes of one component to PEFT's tensors and configuration: LoRA, DoRA, LoHa, LoKr and OFT.

PEFT keeps one kind of change per component, and says the shapes of a LoKr's sides by a rule instead of storing them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from sdkit.adapters.builder import reads
from sdkit.adapters.computed import times
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.input_rotation import InputRotation
from sdkit.adapters.deltas.kronecker import Kronecker, factorization
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.formats import _lycoris_write
from sdkit.formats._write import Content
from sdkit.streaming.expression import Read, reshaped
from sdkit.weights import DTYPES
from sdkit.weights.memory import MemoryWeights

Shape = tuple[int, ...]
_WHOLE = "write it in kohya's, which holds every kind"


def component_files(
    modules: Mapping[str, Delta], weights: Mapping[str, Shape], biases: Mapping[str, Full]
) -> tuple[dict[str, Content], dict[str, object]]:
    """Tensors and ``adapter_config.json`` of one component.

    Args:
        modules: module within the component → its change.
        weights: module → shape of the weight it changes.
        biases: module → the change of its bias, which PEFT keeps beside a LoRA.

    Raises:
        SdkitError: PEFT cannot hold such a change, or not all of them together.
    """
    kinds = {_kind(name, delta) for name, delta in modules.items()}
    if len(kinds) > 1:
        raise SdkitError(f"PEFT's format holds one kind of change, not {' and '.join(sorted(kinds))}", _WHOLE)
    (kind,) = kinds
    contents: dict[str, Content] = {}
    for name, delta in modules.items():
        contents |= {f"base_model.model.{name}.{role}": part for role, part in _parts(name, delta).items()}
    if not biases:
        return contents, _config(kind, modules, weights)
    contents |= {f"base_model.model.{name}.lora_B.bias": read for name, read in _biases(kind, modules, biases)}
    return contents, {**_config(kind, modules, weights), "lora_bias": True}


def _biases(kind: str, modules: Mapping[str, Delta], biases: Mapping[str, Full]) -> Iterator[tuple[str, Read]]:
    """Every module's bias: PEFT has them at all LoRAs of a component or at none, and multiplies them with the scale."""
    lonely = next((name for name in biases if name not in modules), None)
    if kind != "LoRA" or lonely is not None:
        raise SdkitError(
            f"PEFT's format holds changes of biases beside plain LoRAs alone, not {lonely or kind}", _WHOLE
        )
    for name, delta in modules.items():
        bias = biases.get(name)
        if bias is None:
            yield name, _zeros(delta)
        elif bias.scale == delta.scale:
            yield name, bias.diff
        elif delta.scale:
            yield name, times(bias.diff, bias.scale / delta.scale, name, DTYPES["F32"])
        else:
            raise SdkitError(f"{name}: its LoRA has the scale 0, with which PEFT multiplies its bias, too", _WHOLE)


def _zeros(delta: Delta) -> Read:
    """A bias that changes nothing, in the type of the LoRA beside it."""
    dtype, rows = next(reads(delta)).dtype, delta.shape[0]
    weights = MemoryWeights("no change", {"zeros": (dtype, (rows,), bytes(dtype.nbytes(rows)))}, {})
    return Read(weights, weights.tensors["zeros"])


def _kind(name: str, delta: Delta) -> str:
    change = delta.change if isinstance(delta, Dora) and not delta.by_input else delta
    core = change.mid if isinstance(change, LowRank) else change.t1 if isinstance(change, Hadamard) else None
    core = change.w2.core if isinstance(change, Kronecker) else core
    if core is None and isinstance(change, LowRank):
        return "DoRA" if isinstance(delta, Dora) else "LoRA"
    if core is None and change is delta and isinstance(change, (Hadamard, Kronecker)):
        return "LoHa" if isinstance(change, Hadamard) else "LoKr"
    if isinstance(delta, InputRotation) and not delta.damped:
        return "OFT"
    raise SdkitError(f"{name}: a change of the kind {delta.kind} cannot be written in PEFT's format", _WHOLE)


def _parts(name: str, delta: Delta) -> dict[str, Content]:
    if isinstance(delta, Dora):
        # A vector beside a linear layer, one place per output channel beside a convolution.
        shape = (delta.shape[0],) if len(delta.shape) == 2 else (1, delta.shape[0], *[1] * len(delta.shape[2:]))
        return {**_parts(name, delta.change), "lora_magnitude_vector": reshaped(delta.lengths, shape)}
    if isinstance(delta, LowRank):
        return {"lora_A.weight": delta.down, "lora_B.weight": delta.up}
    if isinstance(delta, InputRotation):
        return {"oft_R.weight": delta.triangles}
    return dict(_lycoris_write.parts(delta, "weight", name))


def _config(kind: str, modules: Mapping[str, Delta], weights: Mapping[str, Shape]) -> dict[str, object]:
    if kind == "OFT":
        return {**_about(modules), **_rotations(modules)}
    ranks = {name: delta.rank or _rank_of_whole(delta) for name, delta in modules.items()}
    alphas = {name: delta.scale * ranks[name] for name, delta in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config: dict[str, object] = {
        "r": rank,
        "rank_pattern": {_pattern(name, modules): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_pattern(name, modules): value for name, value in alphas.items() if value != alpha},
        **_about(modules),
    }
    if kind in ("LoRA", "DoRA"):
        dora = {"use_dora": True} if kind == "DoRA" else {}
        return {**config, **dora, "peft_type": "LORA", "lora_alpha": alpha, "bias": "none"}
    return {**config, **_sides(modules, ranks, weights), "peft_type": kind.upper(), "alpha": alpha}


def _about(modules: Iterable[str]) -> dict[str, object]:
    about = {"base_model_name_or_path": None, "inference_mode": True, "task_type": None}
    return {"target_modules": sorted(modules), **about}


def _rotations(modules: Mapping[str, Delta]) -> dict[str, object]:
    """PEFT's settings of these rotations.

    Raises:
        SdkitError: PEFT has no settings for all of them together.
    """
    deltas = [delta for delta in modules.values() if isinstance(delta, InputRotation)]
    kinds = {(delta.block_size, delta.terms) for delta in deltas}
    shared = {delta.shared for delta in deltas if delta.triangles.shape[0] == 1}
    if len(kinds) > 1 or len(shared) > 1 or (shared == {True} and any(d.triangles.shape[0] > 1 for d in deltas)):
        raise SdkitError("PEFT has one size of blocks for all OFTs of a component, and these have several", _WHOLE)
    ((size, terms),) = kinds
    series = {"use_cayley_neumann": terms > 0, "num_cayley_neumann_terms": terms or 5}
    return {"peft_type": "OFT", "r": 0, "oft_block_size": size, "block_share": shared == {True}, **series}


def _pattern(name: str, modules: Iterable[str]) -> str:
    """Matches a module's whole name; PEFT looks at ends, and FLUX.1's ``proj_out`` ends other modules' names too."""
    ends_others = any(other.endswith(f".{name}") for other in modules)
    return f"^{re.escape(name)}" if ends_others else re.escape(name)


def _rank_of_whole(delta: Delta) -> int:
    """A rank large enough for PEFT to keep both sides of a LoKr whole."""
    return max(delta.w2.shape[:2]) if isinstance(delta, Kronecker) else 1


def _sides(modules: Mapping[str, Delta], ranks: Mapping[str, int], weights: Mapping[str, Shape]) -> dict[str, object]:
    """PEFT's settings from which it tells the shapes of these LoKrs' sides.

    Raises:
        SdkitError: there are none.
    """
    lokrs = {name: delta for name, delta in modules.items() if isinstance(delta, Kronecker)}
    if not lokrs:
        return {}
    both = any(delta.w1.whole is None for delta in lokrs.values())
    for factor in (-1, *sorted({side for delta in lokrs.values() for side in delta.w1.shape[:2]}, reverse=True)):
        if all(_told(delta, weights[name], ranks[name], factor, both) for name, delta in lokrs.items()):
            return {"decompose_factor": factor, "decompose_both": both}
    raise SdkitError("PEFT has no rule that divides this LoKr's weights as it does", _WHOLE)


def _told(delta: Kronecker, weight: Shape, rank: int, factor: int, both: bool) -> bool:
    """Whether PEFT would give a LoKr of this rank the sides that `delta` has."""
    (rows, inner_rows), (columns, inner_columns) = (_divided(size, factor) for size in weight[:2])
    whole = (not (both and rank < max(rows, columns) / 2), rank >= max(inner_rows, inner_columns) / 2)
    stored = (delta.w1.whole is not None, delta.w2.whole is not None)
    inner = (inner_rows, inner_columns * math.prod(weight[2:]))
    found = (delta.w2.shape[0], math.prod(delta.w2.shape[1:]))
    return whole == stored and delta.w1.shape[:2] == (rows, columns) and inner == found


def _divided(size: int, factor: int) -> tuple[int, int]:
    """PEFT's rule: as LyCORIS', but a factor that divides the size is always the outer side."""
    return (factor, size // factor) if factor > 0 and size % factor == 0 else factorization(size, factor)
