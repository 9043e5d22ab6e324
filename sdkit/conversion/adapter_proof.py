"""The proof of an adapter's conversion: the written file is read back, and what it does is compared with the source.

Compared are effects, not tensors: the change of every weight as a whole matrix in float64, however its factors are
named, scaled and stored. A change that is relative to the base has no matrix of its own; then its parts are compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.compare import relative_error
from sdkit.adapters.deltas.delta import is_relative
from sdkit.adapters.recast import rounding
from sdkit.core.errors import SdkitError
from sdkit.formats import ROUNDING, verify_rest


@dataclass(frozen=True, slots=True)
class AdapterProof:
    """What reading back has shown.

    Attributes:
        changes: weights and biases whose change was compared with the source's.
        exact: those where every number is the same.
        error: the largest relative error among the others, ‖ΔW − written‖ / ‖ΔW‖ in float64.
        worst: the parameter it belongs to; empty where all are exact.
        words: words whose rows are the same, bit by bit.
        networks: networks of a hypernetwork that are the same, bit by bit.
        seconds: wall time it took.
    """

    changes: int
    exact: int
    error: float
    worst: str
    words: int
    networks: int
    seconds: float


def prove_adapter(
    source: Artifact,
    meant: Artifact,
    written: Artifact,
    path: Path,
    approximated: Mapping[str, float],
    *,
    recast: bool = False,
) -> AdapterProof:
    """Compare what was read back with the source.

    Args:
        source: as it was read.
        meant: as it was to be written.
        written: read back.
        path: the output, for messages.
        approximated: hub parameters that may differ from the source, and by how much; they must be what was meant.
        recast: whether all may differ by a rounding to another type; what was meant has been rounded.

    Raises:
        SdkitError: something differs; it is named.
    """
    began, errors = time.perf_counter(), dict[str, float]()
    verify_rest(meant, written, path)
    for target, delta in written.deltas.items():
        wanted = meant.deltas[target] if recast or target.name in approximated else source.deltas[target]
        error = relative_error(wanted, delta)
        if error > ROUNDING:
            raise SdkitError(f"{path}: the change of {target.name} reads back {error:.2g} off", "please report this")
        errors[target.name] = approximated.get(target.name, error)
        if not is_relative(source.deltas[target]) and (recast or target.name in approximated):
            errors[target.name] = relative_error(source.deltas[target], delta)
        elif recast and target.name not in approximated:
            errors[target.name] = rounding(source.deltas[target], delta)
    worst = max(errors, key=errors.__getitem__, default="")
    networks = 2 * len(written.key_value.networks) if written.key_value else 0
    return AdapterProof(
        changes=len(errors),
        exact=sum(error == 0.0 for error in errors.values()),
        error=errors.get(worst, 0.0),
        worst=worst if errors.get(worst) else "",
        words=len({rows.token for rows in written.tokens}),
        networks=networks,
        seconds=time.perf_counter() - began,
    )
