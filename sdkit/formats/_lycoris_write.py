"""From a weight change to the tensors of one module, named by kohya's and LyCORIS' roles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sdkit.adapters.artifact import Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.glora import Glora
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.input_rotation import InputRotation
from sdkit.adapters.deltas.kronecker import Kronecker
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.rotation import Rotation
from sdkit.adapters.deltas.scaling import Scaling
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._lycoris import DORA, GLORA, IA3, LOHA, LOKR, LORA, OFT, OFT_V2
from sdkit.formats._write import Content
from sdkit.streaming.expression import Read, reshaped

_SERIES = 5  # the only one that can be told from nothing
_FULL = {("weight", False): "diff", ("bias", False): "diff_b", ("weight", True): "w_norm", ("bias", True): "b_norm"}


def contents(target: Target, delta: Delta, spelled: str, model: Model | None) -> dict[str, Content]:
    """What a file holds of one change.

    Args:
        spelled: the module in the file.
        model: tells which modules are normalisations, whose changes have roles of their own.
    """
    place = model.places.get(f"{target.module}.weight") if model is not None else None  # a stack has none of its own
    norm = place is not None and len(place.shape) == 1
    found: dict[str, Content] = dict(parts(delta, target.parameter, target.module, norm=norm))
    return {f"{spelled}.{role}": content for role, content in (found | numbers(delta)).items()}


def parts(delta: Delta, parameter: str, module: str, *, norm: bool = False) -> Iterator[tuple[str, Read]]:
    """Role → tensor of a change; its alpha is left to `alpha`.

    Args:
        norm: the module is a normalisation, whose changes have roles of their own.

    Raises:
        SdkitError: the format has no roles for such a change.
    """
    if isinstance(delta, Dora):
        yield from parts(delta.change, parameter, module)
        yield DORA, reshaped(delta.lengths, lengths_shape(delta))
        return
    found: tuple[Read | None, ...]
    roles: tuple[str, ...]
    if isinstance(delta, LowRank):
        roles, found = LORA, (delta.up, delta.down, delta.mid)
    elif isinstance(delta, Hadamard):
        roles, found = LOHA, (delta.w1_a, delta.w1_b, delta.w2_a, delta.w2_b, delta.t1, delta.t2)
    elif isinstance(delta, Kronecker):
        one, two = delta.w1, delta.w2
        roles, found = LOKR, (one.whole, one.a, one.b, two.whole, two.a, two.b, two.core)
    elif isinstance(delta, Glora):
        roles, found = GLORA, (delta.a1, delta.a2, delta.change.up, delta.change.down, delta.change.mid)
    elif isinstance(delta, Rotation):
        roles, found = OFT, (delta.blocks, delta.rescale)
    elif isinstance(delta, InputRotation) and delta.terms == _SERIES:
        roles, found = OFT_V2[:1], (delta.triangles,)
    elif isinstance(delta, Scaling):
        roles, found = IA3[:1], (delta.factors,)
    elif isinstance(delta, Full) and delta.scale == 1.0:
        roles, found = (_FULL[parameter, norm],), (delta.diff,)
    else:
        raise SdkitError(f"{module}: a change of the kind {delta.kind} cannot be written in kohya's format")
    yield from ((role, read) for role, read in zip(roles, found, strict=True) if read is not None)


def lengths_shape(delta: Dora) -> tuple[int, ...]:
    """[out, 1, …] or [1, in, 1, …]: the shape says which axis the lengths belong to."""
    axis = 1 if delta.by_input else 0
    return tuple(delta.lengths.info.numel if index == axis else 1 for index in range(len(delta.shape)))


def numbers(delta: Delta) -> dict[str, float]:
    """The numbers that stand beside the tensors of a change, by role."""
    if isinstance(delta, Scaling):
        return {IA3[1]: float(delta.by_input)}
    if isinstance(delta, InputRotation):
        return {OFT_V2[1]: 1.0} if delta.damped else {}
    beside = alpha(delta)
    return {} if beside is None else {"alpha": beside}


def alpha(delta: Delta) -> float | None:
    """The number that stands beside the factors: scale × rank, of a rotation its limit; None for other kinds.

    A LoKr of two whole sides has neither, but LyCORIS does not load it without an alpha, which it then ignores.
    """
    if isinstance(delta, Rotation):
        return delta.limit
    if delta.rank is not None:
        return delta.scale * delta.rank
    return 1.0 if isinstance(delta, Kronecker) else None


# Kind → what LyCORIS calls its algorithm; DoRA is a setting of any of them.
_ALGORITHMS = {
    "dora": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "glora": "glora",
    "ia3": "ia3",
    "oft": "diag-oft",
    "boft": "boft",
}


def network_metadata(deltas: Iterable[Delta]) -> dict[str, str]:
    """What kohya's scripts write about ranks and alphas; ``Dynamic`` where modules differ, as after `resize_lora`."""
    known = list(deltas)
    kinds = {delta.kind for delta in known}
    kernels = [delta for delta in known if any(size != 1 for size in delta.shape[2:]) and delta.rank is not None]
    linear = [delta for delta in known if delta.rank is not None and delta not in kernels]
    dim, network_alpha = _common(linear or kernels)
    metadata = {"ss_network_dim": dim, "ss_network_alpha": network_alpha}
    metadata["ss_network_module"] = "networks.lora" if kinds <= {"lora", "locon"} else "lycoris.kohya"
    arguments: dict[str, str] = {}
    if len(kinds) == 1 and kinds <= _ALGORITHMS.keys():
        (kind,) = kinds
        arguments |= {"algo": _ALGORITHMS[kind], **({"dora_wd": "True"} if kind == "dora" else {})}
    if kernels:
        conv_dim, conv_alpha = _common(kernels)
        arguments |= {"conv_dim": conv_dim, "conv_alpha": conv_alpha}
    if arguments:
        metadata["ss_network_args"] = json.dumps(arguments)
    return metadata


def _common(deltas: Iterable[Delta]) -> tuple[str, str]:
    """The rank and alpha of all `deltas`, if it is one."""
    ranks = {delta.rank for delta in deltas}
    alphas = {f"{alpha(delta):g}" for delta in deltas}
    return str(ranks.pop()) if len(ranks) == 1 else "Dynamic", alphas.pop() if len(alphas) == 1 else "Dynamic"
