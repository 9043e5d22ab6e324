"""From a weight change to the tensors of one module, named by kohya's and LyCORIS' roles."""

from __future__ import annotations

from collections.abc import Iterator

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.kronecker import Kronecker
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.formats._lycoris import LOHA, LOKR, LORA
from sdkit.streaming.expression import Read


def parts(delta: Delta, parameter: str, module: str) -> Iterator[tuple[str, Read]]:
    """Role → tensor of a change; its alpha is left to `alpha`.

    Raises:
        SdkitError: the format has no roles for such a change.
    """
    roles: tuple[str, ...]
    found: tuple[Read | None, ...]
    if isinstance(delta, LowRank):
        roles, found = LORA, (delta.up, delta.down, delta.mid)
    elif isinstance(delta, Hadamard):
        roles, found = LOHA, (delta.w1_a, delta.w1_b, delta.w2_a, delta.w2_b, delta.t1, delta.t2)
    elif isinstance(delta, Kronecker):
        one, two = delta.w1, delta.w2
        roles, found = LOKR, (one.whole, one.a, one.b, two.whole, two.a, two.b, two.core)
    elif isinstance(delta, Full) and delta.scale == 1.0:
        roles, found = ("diff" if parameter == "weight" else "diff_b",), (delta.diff,)
    else:
        raise SdkitError(f"{module}: a change of the kind {delta.kind} cannot be written in kohya's format")
    yield from ((role, read) for role, read in zip(roles, found, strict=True) if read is not None)


def alpha(delta: Delta) -> float | None:
    """The number that stands beside the factors: scale × rank; None for a change without a rank."""
    return delta.scale * delta.rank if delta.rank is not None else None
