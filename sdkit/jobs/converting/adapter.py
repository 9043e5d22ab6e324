"""Converting an adapter into another format, with the proof that it does the same."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.conversion.adapter import Approximation
from sdkit.conversion.adapter_proof import AdapterProof
from sdkit.conversion.rest import Dropped
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.report import Report
from sdkit.formats import NEGATIVE, negative_beside, own_metadata, recognise
from sdkit.jobs.algebra import described, one_thread
from sdkit.jobs.converting.adapter_plan import AdapterPlan, plan_adapter
from sdkit.jobs.converting.adapter_writer import write_and_prove
from sdkit.jobs.converting.options import AdapterOptions, Controls
from sdkit.jobs.converting.recipe import told
from sdkit.jobs.merge_checks import check_is_not_input
from sdkit.jobs.record import recorded
from sdkit.weights import Weights, open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.atomic_folder import check_folder_target
from sdkit.weights.metadata import converted_metadata


@dataclass(frozen=True, slots=True)
class AdapterConversion(Report):
    """What the conversion of an adapter did, or with `dry_run` would do.

    Attributes:
        output: the file or folder.
        source: the name of what was converted.
        family: its family; empty where nothing told.
        was: the format it had.
        to: the format, with the dialect behind a colon, that was written.
        programs: those that apply all of it.
        consumed: tensors of the source that went in.
        renamed: how many tensors written have names the source has not; None in a dry run.
        dropped: what was not written, and why.
        unmatched: what belongs to no module; there is none, as it is an error unless pruned.
        changes: changes of weights and biases written.
        approximations: the changes that became others, with their errors.
        saved: files beside the output: words that its format has no place for.
        left_out: keys of metadata that were not written, as they tell of the training data or name paths.
        proof: what reading back has shown; None where that was not asked for, and in a dry run.
        parents: what went in, by name and quick id.
        notes: facts worth knowing.
        bytes: size of the output on the disk; in a dry run that of its tensors, which is a little less.
        seconds: wall time, the proof included.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    output: str
    source: str
    family: str
    was: str
    to: str
    programs: tuple[str, ...]
    consumed: int
    renamed: int | None
    dropped: tuple[Dropped, ...]
    unmatched: tuple[str, ...]
    changes: int
    approximations: tuple[Approximation, ...]
    saved: tuple[str, ...]
    left_out: tuple[str, ...]
    proof: AdapterProof | None
    parents: tuple[dict[str, object], ...]
    notes: tuple[str, ...]
    bytes: int
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


def convert_adapter(
    path: Path, to: str, output: Path | None, options: AdapterOptions, controls: Controls
) -> AdapterConversion:
    """Write an adapter in another format; see `sdkit.convert`.

    Of a pair of embeddings, NAME and NAME-neg beside it, both are written, or neither where one cannot be.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and the source is never touched.
    """
    with open_weights(path) as weights:
        negative = negative_beside(path)
        if negative is None or recognise(weights)[0] != "textual-inversion":
            return _convert_one(weights, to, output, options, controls)
        with open_weights(negative) as other:
            return _convert_pair(weights, other, to, output, options, controls)


def _convert_pair(
    weights: Weights, negative: Weights, to: str, output: Path | None, options: AdapterOptions, controls: Controls
) -> AdapterConversion:
    """Both files, once it is known that both can be written."""
    dry = replace(controls, dry_run=True)
    first = _convert_one(weights, to, output, options, dry)
    place = Path(first.output)
    beside = place.with_name(f"{place.stem}{NEGATIVE}{place.suffix}")
    second = _convert_one(negative, to, beside, options, dry)
    if not controls.dry_run:
        second = _convert_one(negative, to, beside, options, controls)
        first = _convert_one(weights, to, place, options, controls)
    note = f"{negative.path.name}, the negative half of the pair, is {beside.name}"
    return replace(first, saved=(*first.saved, second.output), notes=(*first.notes, *second.notes, note))


def _convert_one(
    weights: Weights, to: str, output: Path | None, options: AdapterOptions, controls: Controls
) -> AdapterConversion:
    """One file; see `convert_adapter`."""
    began = time.perf_counter()
    with ExitStack() as stack, one_thread():
        plan = plan_adapter(stack, weights, to, output, options, controls.progress)
        _check_output(plan, force=controls.force)
        report = _report(plan, dry_run=controls.dry_run)
        if not controls.dry_run:
            metadata = _metadata(plan, _recipe(plan, options))
            proof, renamed = write_and_prove(plan, metadata, controls, recast=options.dtype is not None)
            report = replace(report, proof=proof, renamed=renamed, bytes=written_bytes(plan.path))
        report = replace(report, seconds=time.perf_counter() - began, peak_memory_mib=peak_memory_mib())
        return recorded(report, [weights.path, options.base])


def _check_output(plan: AdapterPlan, *, force: bool) -> None:
    inputs = [plan.source.source.path, *([plan.base.path] if plan.base else [])]
    check_is_not_input(plan.path, inputs)
    (check_folder_target if plan.folder else check_target)(plan.path, overwrite=force)
    for path, _ in plan.words:
        check_target(path, overwrite=force)


def _report(plan: AdapterPlan, *, dry_run: bool) -> AdapterConversion:
    """What the plan will do; what only doing it shows is added later."""
    return AdapterConversion(
        output=str(plan.path),
        source=plan.source.source.path.name,
        family=plan.family,
        was=plan.source.format,
        to=plan.to,
        programs=plan.programs,
        consumed=plan.consumed,
        renamed=None,
        dropped=plan.dropped,
        unmatched=(),
        changes=len(plan.fitted.artifact.deltas),
        approximations=plan.fitted.approximations,
        saved=tuple(str(path) for path, _ in plan.words),
        left_out=plan.private,
        proof=None,
        parents=plan.parents,
        notes=plan.source.notes,
        bytes=plan.nbytes,
        seconds=0.0,
        peak_memory_mib=None,
        dry_run=dry_run,
    )


def _recipe(plan: AdapterPlan, options: AdapterOptions) -> dict[str, object]:
    lossy = {"lossy": plan.fitted.summary()} if plan.fitted.approximations else {}
    return {"verb": "convert", "to": plan.to, "parents": list(plan.parents), **told(options), **lossy}


def _metadata(plan: AdapterPlan, recipe: dict[str, object]) -> dict[str, str]:
    """What the source says of itself, but for what is private and what only its own format means something by."""
    said, own = plan.source.metadata, own_metadata(plan.source.metadata)
    kept = {key: text for key, text in said.items() if key not in plan.private and key not in own}
    facts = described(plan.model, plan.family) if plan.source.kind == "lora" else {}
    return {**facts, **converted_metadata(kept, recipe)}
