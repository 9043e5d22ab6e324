"""From the tensors of one module, named by their roles, to the weight changes they describe.

The roles are LyCORIS' and kohya's suffixes. A kind this version cannot apply is refused by name: a module that is left
out silently is a picture that is silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.kronecker import Kronecker, Side
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights

Parts = Mapping[str, TensorInfo]
# From a rank (None where both sides of a LoKr are whole) to what the factors are multiplied with.
Scale = Callable[[int | None], float]

LORA = ("lora_up.weight", "lora_down.weight", "lora_mid.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
FULL = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}

# Role → the kind of adapter it belongs to, for the kinds that cannot be applied yet.
REFUSED = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "oft_blocks": "OFT or BOFT",
    "oft_diag": "OFT or BOFT",
    "oft_R.weight": "OFT",
    "rescale": "OFT or BOFT",
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "bm.weight": "GLoRA",
    "weight": "IA³",
    "on_input": "IA³",
    "scalar": "a LyCORIS scalar",
    "bias_indices": "a sparse bias",
    "bias_values": "a sparse bias",
    "bias_size": "a sparse bias",
    "set_weight": "a control LoRA that replaces weights",
    "reshape_weight": "a control LoRA that reshapes weights",
}
DORA = "dora_scale"
ROLES = frozenset([*LORA, *LOHA, *LOKR, *FULL, *REFUSED, DORA, "alpha"])


def refuse(weights: Weights, name: str, kind: str) -> SdkitError:
    """The error for a tensor of a kind that cannot be applied."""
    return SdkitError(
        f"{weights.path}: {name}: {kind} is not supported, and leaving it out would change the result",
        "bake or extract it to a plain LoRA with the program that made it",
    )


def changes(
    builder: ArtifactBuilder, module: str, parts: Parts, scale: Scale | None = None
) -> Iterator[tuple[str, Delta]]:
    """The changes of one module as (``weight`` or ``bias``, change).

    Args:
        scale: of the factors, where the file has no alpha beside them and says it otherwise.

    Raises:
        SdkitError: a part is missing or superfluous, the parts do not fit together, or their kind is refused.
    """
    for role, info in parts.items():
        if role in REFUSED:
            raise refuse(builder.weights, info.name, REFUSED[role])
    found = [reader for roles, reader in _READERS if any(role in parts for role in roles)]
    if len(found) > 1:
        raise SdkitError(f"{builder.weights.path}: {module} mixes the parts of several kinds of adapter")
    for reader in found:
        change = reader(builder, module, parts, scale or _stored_scale(builder, parts))
        yield "weight", _dora(builder, change, parts[DORA]) if DORA in parts else change
    if DORA in parts and not found:
        raise _incomplete(builder, module, f"{DORA} has no change of direction beside it")
    full = {role: parameter for role, parameter in FULL.items() if role in parts}
    for role, parameter in full.items():
        yield parameter, Full(builder.read(parts[role]))
    if not found and not full:
        raise SdkitError(f"{builder.weights.path}: {module} has an alpha and nothing that it scales")


def _lora(builder: ArtifactBuilder, module: str, parts: Parts, scale: Scale) -> LowRank:
    up, down = _needed(builder, module, parts, LORA[:2])
    mid = _optional(builder, parts, LORA[2])
    return LowRank(up, down, scale(_rank(down)), mid)


def _loha(builder: ArtifactBuilder, module: str, parts: Parts, scale: Scale) -> Hadamard:
    w1_a, w1_b, w2_a, w2_b = _needed(builder, module, parts, LOHA[:4])
    cores = [_optional(builder, parts, role) for role in LOHA[4:]]
    return Hadamard(w1_a, w1_b, w2_a, w2_b, scale(_rank(w1_b)), *cores)


def _lokr(builder: ArtifactBuilder, module: str, parts: Parts, scale: Scale) -> Kronecker:
    sides = []
    for roles in (LOKR[0:3], LOKR[3:7]):
        if not any(role in parts for role in roles):
            raise _incomplete(builder, module, f"{roles[0]} is missing")
        sides.append(Side(*(_optional(builder, parts, role) for role in roles)))
    return Kronecker(sides[0], sides[1], scale(sides[1].rank or sides[0].rank))


_READERS = ((LORA, _lora), (LOHA, _loha), (LOKR, _lokr))


def _dora(builder: ArtifactBuilder, change: Delta, info: TensorInfo) -> Dora:
    """The lengths' shape says which axis they belong to: [out, 1, …] or [1, in, …]."""
    lengths = builder.read(info)
    by_input = len(info.shape) > 1 and info.shape[0] == 1 and (info.shape[1] > 1 or change.shape[0] > 1)
    return Dora(change, lengths, by_input)


def _rank(factor: Read) -> int:
    """Rows of a factor; 1 for a scalar or an empty tensor, which the delta itself refuses with a better message."""
    return max(factor.shape[0], 1) if factor.shape else 1


def _stored_scale(builder: ArtifactBuilder, parts: Parts) -> Scale:
    """alpha / rank, from the alpha beside the factors."""

    def scale(rank: int | None) -> float:
        if rank is None:  # two whole sides have no rank, and the alpha beside them (often 1e10) is no scale
            return 1.0
        if "alpha" not in parts:
            builder.note("a module has no alpha: alpha = rank is assumed, as every reader does")
            return 1.0
        return builder.weights.scalar(parts["alpha"].name) / rank

    return scale


def _needed(builder: ArtifactBuilder, module: str, parts: Parts, roles: tuple[str, ...]) -> list[Read]:
    missing = [role for role in roles if role not in parts]
    if missing:
        raise _incomplete(builder, module, f"{' and '.join(missing)} missing")
    return [builder.read(parts[role]) for role in roles]


def _optional(builder: ArtifactBuilder, parts: Parts, role: str) -> Read | None:
    return builder.read(parts[role]) if role in parts else None


def _incomplete(builder: ArtifactBuilder, module: str, reason: str) -> SdkitError:
    return SdkitError(f"{builder.weights.path}: {module} is incomplete: {reason}", "download or save the file again")
