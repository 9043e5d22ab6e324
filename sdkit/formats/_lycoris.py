"""From the tensors of one module, named by their roles, to the weight changes they describe.

The roles are LyCORIS' and kohya's suffixes. A kind this version cannot apply is refused by name: a module that is left
out silently is a picture that is silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.glora import Glora
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.input_rotation import InputRotation
from sdkit.adapters.deltas.kronecker import Kronecker, Side
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.rotation import Rotation
from sdkit.adapters.deltas.scaling import Scaling
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights

Parts = Mapping[str, TensorInfo]
# From a rank (None where both sides of a LoKr are whole) to what the factors are multiplied with.
Scale = Callable[[int | None], float]

LORA = ("lora_up.weight", "lora_down.weight", "lora_mid.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
# Kinds of change (`Delta.kind`; a DoRA of the input features apart) that there are roles for.
KINDS = ("lora", "locon", "tucker", "loha", "lokr", "dora", "dora-in", "glora", "ia3", "oft", "boft", "oftv2", "full")
FULL = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}

# Role → the kind of adapter it belongs to, for the kinds that cannot be applied yet.
REFUSED = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "oft_diag": "an OFT of whole rotations",
    "scalar": "a LyCORIS scalar",
    "bias_indices": "a sparse bias",
    "bias_values": "a sparse bias",
    "bias_size": "a sparse bias",
    "set_weight": "a control LoRA that replaces weights",
    "reshape_weight": "a control LoRA that reshapes weights",
}
DORA = "dora_scale"
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")
IA3 = ("weight", "on_input")
OFT = ("oft_blocks", "rescale")
SCRIPTS_OFT = "oft_unet_"  # the prefix of sd-scripts' own OFT
OFT_V2 = ("oft_R.weight", "oft_R.scaled_oft")
ROLES = frozenset([*LORA, *LOHA, *LOKR, *GLORA, *IA3, *OFT, *OFT_V2, *FULL, *REFUSED, DORA, "alpha"])


def refuse(weights: Weights, name: str, kind: str) -> SdkitError:
    """The error for a tensor of a kind that cannot be applied."""
    return SdkitError(
        f"{weights.path}: {name}: {kind} is not supported, and leaving it out would change the result",
        "bake or extract it to a plain LoRA with the program that made it",
    )


def changes(
    builder: ArtifactBuilder, module: str, parts: Parts, scale: Scale | None = None, hub: str | None = None
) -> Iterator[tuple[str, Delta]]:
    """The changes of one module as (``weight`` or ``bias``, change).

    Args:
        hub: the module in the model, where it has one; some kinds do not tell the shape of the weight they change.
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
        shape = builder.shape_of(hub)
        change = reader(_Source(builder, module, parts, scale or _stored_scale(builder, parts), shape))
        yield "weight", _dora(builder, change, parts[DORA]) if DORA in parts else change
    if DORA in parts and not found:
        raise _incomplete(builder, module, f"{DORA} has no change of direction beside it")
    full = {role: parameter for role, parameter in FULL.items() if role in parts}
    for role, parameter in full.items():
        yield parameter, Full(builder.read(parts[role]))
    if not found and not full:
        raise SdkitError(f"{builder.weights.path}: {module} has an alpha and nothing that it scales")


@dataclass(frozen=True, slots=True)
class _Source:
    """One module's tensors, and what is known about them.

    Attributes:
        builder: reads them.
        module: as the file spells it.
        parts: role → tensor.
        scale: as `changes` takes it.
        shape: of the weight; None without a model.
    """

    builder: ArtifactBuilder
    module: str
    parts: Parts
    scale: Scale
    shape: tuple[int, ...] | None

    def needed(self, *roles: str) -> list[Read]:
        """The tensors of these roles.

        Raises:
            SdkitError: one is missing.
        """
        missing = [role for role in roles if role not in self.parts]
        if missing:
            raise _incomplete(self.builder, self.module, f"{' and '.join(missing)} missing")
        return [self.builder.read(self.parts[role]) for role in roles]

    def optional(self, role: str) -> Read | None:
        """The tensor of this role, if there is one."""
        return self.builder.read(self.parts[role]) if role in self.parts else None

    def number(self, role: str, default: float) -> float:
        """A number that stands beside the factors."""
        return self.builder.weights.scalar(self.parts[role].name) if role in self.parts else default


def _lora(source: _Source) -> LowRank:
    up, down = source.needed(*LORA[:2])
    return LowRank(up, down, source.scale(_rank(down)), source.optional(LORA[2]))


def _loha(source: _Source) -> Hadamard:
    w1_a, w1_b, w2_a, w2_b = source.needed(*LOHA[:4])
    cores = [source.optional(role) for role in LOHA[4:]]
    return Hadamard(w1_a, w1_b, w2_a, w2_b, source.scale(_rank(w1_b)), *cores)


def _lokr(source: _Source) -> Kronecker:
    sides = []
    for roles in (LOKR[0:3], LOKR[3:7]):
        if not any(role in source.parts for role in roles):
            raise _incomplete(source.builder, source.module, f"{roles[0]} is missing")
        sides.append(Side(*(source.optional(role) for role in roles)))
    return Kronecker(sides[0], sides[1], source.scale(sides[1].rank or sides[0].rank))


def _glora(source: _Source) -> Glora:
    """LyCORIS swapped the factors of each product in its second year; their shapes tell, but of square ones."""
    a1, a2, b1, b2 = source.needed(*GLORA[:4])
    today, before = _chains(a1, a2) and _chains(b1, b2), _chains(a2, a1) and _chains(b2, b1)
    if today and before:
        raise SdkitError(
            f"{source.builder.weights.path}: {source.module}: its factors are square, so they do not tell whether they "
            "are LyCORIS' of today or of before",
            "save it again with the LyCORIS that trained it",
        )
    if before and not today:
        source.builder.note("a GLoRA has the order of factors that LyCORIS had first")
        a1, a2, b1, b2 = a2, a1, b2, b1
    return Glora(a1, a2, LowRank(b1, b2, source.scale(_rank(b2)), source.optional(GLORA[4])))


def _chains(up: Read, down: Read) -> bool:
    """Whether two factors can be multiplied to the larger matrix."""
    fit = len(up.shape) > 1 and len(down.shape) > 1 and up.shape[1] == down.shape[0]
    return fit and up.shape[1] <= min(up.shape[0], down.shape[1])


def _ia3(source: _Source) -> Scaling:
    (factors, _) = source.needed(*IA3)
    by_input = bool(source.number("on_input", 0.0))
    count = factors.info.numel
    return Scaling(factors, by_input, source.shape or ((1, count) if by_input else (count, 1)))


def _oft(source: _Source) -> Rotation:
    (blocks,) = source.needed(OFT[0])
    count = blocks.shape[-3] * blocks.shape[-1] if len(blocks.shape) > 2 else 0
    limit = source.number("alpha", 0.0)
    if source.module.startswith(SCRIPTS_OFT):
        # sd-scripts' limit holds at 0 too, where LyCORIS has none: the adapter does as good as nothing then.
        limit = max(limit, 1e-8 / max(count, 1))
    return Rotation(blocks, source.optional(OFT[1]), limit, source.shape or (count, 1))


def _oft_v2(source: _Source) -> InputRotation:
    """OneTrainer's. Whether blocks were held near the identity in training is not in the file, nor does it matter."""
    (triangles,) = source.needed(OFT_V2[0])
    source.builder.note("an OFT of the input features does not say its series: the usual one of 5 terms is taken")
    shape = source.shape or (1, triangles.shape[0] * block_size(triangles))
    return InputRotation(triangles, shape, damped=OFT_V2[1] in source.parts)


def block_size(triangles: Read) -> int:
    """b of upper triangles stored as [n, b (b − 1) / 2]; 0 for anything else."""
    return (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2 if len(triangles.shape) == 2 else 0


_READERS = (
    (LORA, _lora),
    (LOHA, _loha),
    (LOKR, _lokr),
    (GLORA, _glora),
    (IA3, _ia3),
    (OFT, _oft),
    (OFT_V2, _oft_v2),
)


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


def _incomplete(builder: ArtifactBuilder, module: str, reason: str) -> SdkitError:
    return SdkitError(f"{builder.weights.path}: {module} is incomplete: {reason}", "download or save the file again")
