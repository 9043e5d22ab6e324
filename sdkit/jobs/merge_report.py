"""What a merge says about itself afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.core.report import Report
from sdkit.merging.bake import Dose


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What became of one adapter.

    Attributes:
        name: file or folder name.
        strength: as asked for, before the factors of components and blocks.
        format: the codec that read it.
        matched: modules that went into the base.
        unmatched: the adapter's own names of modules the base does not have.
        tokens: tokens it brings along.
        notes: facts worth knowing.
    """

    name: str
    strength: float
    format: str
    matched: int
    unmatched: tuple[str, ...]
    tokens: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergeReport(Report):
    """What a merge did, or with `dry_run` would do.

    Attributes:
        output: the file or folder.
        base: name of the base.
        family: its family.
        adapters: one report each.
        matched: modules that went in, over all adapters.
        unmatched: modules the base does not have (only with `allow_unmatched`).
        changed: tensors of the base that change.
        tensors: tensors in all.
        overflowed: tensors whose values did not fit; a merge that would write infinities is an error, so this is empty.
        bytes: size of the output on the disk; in a dry run that of its tensors, which is a little less.
        saved: token files written beside the output.
        undo: the file that restores the base, if one was asked for.
        parents: base and adapters, by name and quick id.
        warnings: what a person should see.
        seconds: wall time.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    output: str
    base: str
    family: str
    adapters: tuple[AdapterReport, ...]
    matched: int
    unmatched: tuple[str, ...]
    changed: int
    tensors: int
    overflowed: tuple[str, ...]
    bytes: int
    saved: tuple[str, ...]
    undo: str | None
    parents: tuple[dict[str, object], ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


def adapter_report(dose: Dose) -> AdapterReport:
    """What the report says about one adapter."""
    artifact = dose.artifact
    return AdapterReport(
        artifact.source.path.name,
        dose.strength,
        artifact.format,
        len(artifact.deltas),
        tuple(artifact.unmatched),
        tuple(dict.fromkeys(rows.token for rows in artifact.tokens)),
        tuple(artifact.notes),
    )
