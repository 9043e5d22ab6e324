"""Comparing an adapter that was written with the one that was meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.adapters.compare import relative_error
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.key_value import Hypernetwork
from sdkit.adapters.trajectory import Trajectory
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch

# Files keep alpha as a float32, so that a scale of 0.1 comes back changed in its eighth digit. More than this is wrong.
ROUNDING = 1e-6


def verify(meant: Artifact, read: Artifact, path: Path) -> None:
    """Raise SdkitError unless every change and word in `read` is one of `meant`'s and none lacks.

    Args:
        read: what the file at `path` holds; of an adapter in several files, one component.
    """
    verify_rest(meant, read, path)
    for target, delta in read.deltas.items():
        if relative_error(meant.deltas[target], delta) > ROUNDING:
            raise SdkitError(f"{path}: {target.name} does not read back as it was written", "please report this")


def without_idle(meant: Artifact, read: Artifact) -> Artifact:
    """`read` without changes by nothing that were not meant: layers stacked with one that does change."""
    if set(read.deltas) <= set(meant.deltas):
        return read
    kept = {target: delta for target, delta in read.deltas.items() if target in meant.deltas or not _is_idle(delta)}
    return replace(read, deltas=kept)


def _is_idle(delta: Delta) -> bool:
    import torch

    return not is_relative(delta) and delta.prepare(1.0, torch.float64).magnitude() == 0.0


def verify_rest(meant: Artifact, read: Artifact, path: Path) -> None:
    """Raise SdkitError unless the same weights are changed, and words and networks are equal bit by bit."""
    if meant.key_value is not None:
        _verify_networks(meant.key_value, read.key_value, path)
    if meant.trajectory is not None:
        _verify_trajectory(meant.trajectory, read.trajectory, path)
    if meant.tokens:
        _verify_tokens(meant.tokens, read.tokens, path)
    if meant.steering:
        _verify_steering(meant, read, path)
    if not meant.deltas:
        return
    components = {target.component for target in read.deltas}
    wanted = {target for target in meant.deltas if target.component in components}
    if set(read.deltas) != wanted or read.unmatched or not wanted:
        raise SdkitError(
            f"{path}: {len(wanted)} changes were written and {len(read.deltas)} read back", "please report this"
        )


def _verify_tokens(meant: tuple[TokenRows, ...], read: tuple[TokenRows, ...], path: Path) -> None:
    import torch

    found = {(rows.token, rows.component): rows for rows in read}
    for rows in meant:
        # Where a format does not name its word, the file's name is the word.
        other = found.get((rows.token, rows.component)) or found.get((path.stem, rows.component))
        if other is None or len(read) != len(meant) or not torch.equal(_rows(rows), _rows(other)):
            raise SdkitError(f"{path}: the word {rows.token} does not read back as it was written", "is it NaN?")


def _verify_steering(meant: Artifact, read: Artifact, path: Path) -> None:
    """Compare vectors bit by bit, and projections where the file can hold them."""
    import torch

    found = {part.component: part for part in read.steering}
    for part in meant.steering:
        other = found.get(part.component) or (read.steering[0] if len(meant.steering) == 1 else None)
        pairs = [(part.vector, other.vector if other else None)]
        if other and other.projection and part.projection:
            pairs.append((part.projection, other.projection))
        if any(two is None or not torch.equal(one.load().flatten(), two.load().flatten()) for one, two in pairs):
            raise SdkitError(
                f"{path}: the {part.component}'s vector does not read back as it was written", "is it NaN?"
            )


def _rows(rows: TokenRows) -> torch.Tensor:
    return Read(rows.weights, rows.info).load().reshape(-1, rows.info.shape[-1])  # a vector is a matrix of one row


def _verify_networks(meant: Hypernetwork, read: Hypernetwork | None, path: Path) -> None:
    """Compare hypernetworks bit by bit."""
    import torch

    if (
        read is None
        or replace(read, networks={}) != replace(meant, networks={})
        or set(read.networks) != set(meant.networks)
    ):
        raise SdkitError(f"{path}: the settings do not read back as they were written", "please report this")
    for width, pair in meant.networks.items():
        for wanted, found in zip(pair, read.networks[width], strict=True):
            for name, tensor in wanted.items():
                if not torch.equal(tensor.load(), found[name].load()):
                    raise SdkitError(f"{path}: {width} {name} does not read back as it was written", "is it NaN?")


def _verify_trajectory(meant: Trajectory, read: Trajectory | None, path: Path) -> None:
    """Compare inverted pictures bit by bit."""
    import torch

    pairs = [(getattr(meant, name), getattr(read, name, None)) for name in ("uncond", "latents", "pooled")]
    same = [one is other or (one and other and torch.equal(one.load(), other.load())) for one, other in pairs]
    if read is None or read.about != meant.about or not all(same):
        raise SdkitError(f"{path}: the inversion does not read back as it was written", "is it NaN?")
