"""From a weight change to the tensors of one module, named by kohya's and LyCORIS' roles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.kronecker import Kronecker
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.formats._lycoris import LOHA, LOKR, LORA
from sdkit.streaming.expression import Read

_FULL = {("weight", False): "diff", ("bias", False): "diff_b", ("weight", True): "w_norm", ("bias", True): "b_norm"}


def parts(delta: Delta, parameter: str, module: str, *, norm: bool = False) -> Iterator[tuple[str, Read]]:
    """Role → tensor of a change; its alpha is left to `alpha`.

    Args:
        norm: the module is a normalisation, whose changes have roles of their own.

    Raises:
        SdkitError: the format has no roles for such a change.
    """
    found: tuple[Read | None, ...]
    roles: tuple[str, ...]
    if isinstance(delta, LowRank):
        roles, found = LORA, (delta.up, delta.down, delta.mid)
    elif isinstance(delta, Hadamard):
        roles, found = LOHA, (delta.w1_a, delta.w1_b, delta.w2_a, delta.w2_b, delta.t1, delta.t2)
    elif isinstance(delta, Kronecker):
        one, two = delta.w1, delta.w2
        roles, found = LOKR, (one.whole, one.a, one.b, two.whole, two.a, two.b, two.core)
    elif isinstance(delta, Full) and delta.scale == 1.0:
        roles, found = (_FULL[parameter, norm],), (delta.diff,)
    else:
        raise SdkitError(f"{module}: a change of the kind {delta.kind} cannot be written in kohya's format")
    yield from ((role, read) for role, read in zip(roles, found, strict=True) if read is not None)


def alpha(delta: Delta) -> float | None:
    """The number that stands beside the factors: scale × rank; None for a change without a rank."""
    return delta.scale * delta.rank if delta.rank is not None else None


def network_metadata(deltas: Iterable[Delta]) -> dict[str, str]:
    """What kohya's scripts write about ranks and alphas; ``Dynamic`` where modules differ, as after `resize_lora`."""
    known = list(deltas)
    kinds = {delta.kind for delta in known}
    kernels = [delta for delta in known if delta.kind in ("locon", "tucker")]
    linear = [delta for delta in known if delta.rank is not None and delta not in kernels]
    dim, network_alpha = _common(linear or kernels)
    metadata = {"ss_network_dim": dim, "ss_network_alpha": network_alpha}
    metadata["ss_network_module"] = "networks.lora" if kinds <= {"lora", "locon"} else "lycoris.kohya"
    if kernels:
        conv_dim, conv_alpha = _common(kernels)
        arguments = {"conv_dim": conv_dim, "conv_alpha": conv_alpha}
        metadata["ss_network_args"] = json.dumps(arguments)
    return metadata


def _common(deltas: Iterable[Delta]) -> tuple[str, str]:
    """The rank and alpha of all `deltas`, if it is one."""
    ranks = {delta.rank for delta in deltas}
    alphas = {f"{alpha(delta):g}" for delta in deltas}
    return str(ranks.pop()) if len(ranks) == 1 else "Dynamic", alphas.pop() if len(alphas) == 1 else "Dynamic"
