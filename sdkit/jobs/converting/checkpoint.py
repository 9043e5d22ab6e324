"""Converting a checkpoint into another layout, with the proof that nothing changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.conversion.changes import one_component, with_ema, with_part, with_vae
from sdkit.conversion.checkpoint import Checkpoint, read_checkpoint
from sdkit.conversion.left_out import left_out
from sdkit.conversion.plan import Plan, Settings, load_target
from sdkit.conversion.proof import Proof
from sdkit.conversion.rest import LEFTOVERS, Dropped
from sdkit.conversion.targets.diffusers import read_configs
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.families.configs import CONFIG_KEY
from sdkit.families.spell import spellings
from sdkit.jobs.converting.checkpoint_writer import CheckpointWriter
from sdkit.jobs.converting.options import CheckpointOptions, Controls
from sdkit.jobs.converting.recipe import told
from sdkit.jobs.inputs import parent_of
from sdkit.jobs.merge_checks import check_is_not_input
from sdkit.jobs.record import recorded
from sdkit.weights import Weights, open_weights
from sdkit.weights.atomic import check_space, check_target
from sdkit.weights.atomic_folder import check_folder_target
from sdkit.weights.metadata import converted_metadata
from sdkit.weights.reader import Container


@dataclass(frozen=True, slots=True)
class ConvertReport(Report):
    """What a conversion did, or with `dry_run` would do.

    Attributes:
        output: the file or folder.
        source: the name of what was converted.
        family: its family; ``unknown`` for an autoencoder on its own.
        to: the layout that was written.
        components: what was written.
        consumed: tensors of the source that went in.
        renamed: how many of them have another name now, were divided, or put together.
        tensors: tensors written.
        kept_beside: tensors laid beside the components of a folder, for the way back.
        dropped: tensors of all inputs and files of folders that were not written, and why.
        unmatched: tensors nothing explains; there are none, as they are an error unless pruned.
        prediction: what the model predicts, as the output says it: ``epsilon``, ``v_prediction`` or ``flow``; None
            where it says nothing.
        proof: what reading back has shown; None where that was not asked for.
        parents: what went in, by name and quick id.
        warnings: what a person should see.
        bytes: size of the output on the disk; in a dry run that of its tensors, which is a little less.
        seconds: wall time, the proof included.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    output: str
    source: str
    family: str
    to: str
    components: tuple[str, ...]
    consumed: int
    renamed: int
    tensors: int
    kept_beside: int
    dropped: tuple[Dropped, ...]
    unmatched: tuple[str, ...]
    prediction: str | None
    proof: Proof | None
    parents: tuple[dict[str, object], ...]
    warnings: tuple[str, ...]
    bytes: int
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


def convert_checkpoint(
    path: Path, to: str, output: Path | None, options: CheckpointOptions, controls: Controls
) -> ConvertReport:
    """Write a checkpoint in another layout; see `sdkit.convert`.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and inputs are never touched.
    """
    began = time.perf_counter()
    layout, target = load_target(to)
    with ExitStack() as stack:
        inputs = _read(stack, path, options)
        plan = target.plan(inputs.whole, inputs.chosen, options)
        place = output if output is not None else _default_output(path, options, folder=plan.folder)
        _check_output(place, inputs.paths, plan, force=controls.force)
        report = _report(inputs, plan, place, layout, dry_run=controls.dry_run)
        if not controls.dry_run:
            recipe = {"verb": "convert", "to": layout, "parents": inputs.parents, **told(options)}
            writer = CheckpointWriter(inputs.chosen, plan, place, _metadata(inputs.whole.weights, recipe), controls)
            report = replace(report, proof=writer.write(), bytes=written_bytes(place))
        report = replace(report, seconds=time.perf_counter() - began, peak_memory_mib=peak_memory_mib())
        return recorded(report, inputs.paths)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What is opened.

    Attributes:
        whole: the checkpoint as it is.
        chosen: what of it is converted, with the parts of other files in it.
        others: these files, and which component each is for.
    """

    whole: Checkpoint
    chosen: Checkpoint
    others: tuple[tuple[Checkpoint, str], ...]

    @property
    def paths(self) -> list[Path]:
        return [self.whole.weights.path, *(other.weights.path for other, _ in self.others)]

    @property
    def parents(self) -> list[dict[str, object]]:
        put_in = [parent_of(other.weights, role=role) for other, role in self.others]
        return [parent_of(self.whole.weights, role="source"), *put_in]


def _read(stack: ExitStack, path: Path, options: CheckpointOptions) -> _Inputs:
    """The checkpoint, recognised, and what is to be written of it."""
    weights = stack.enter_context(open_weights(path))
    configs = read_configs(options.configs) if options.configs else None
    whole = read_checkpoint(weights, family=options.family, configs=configs, leftovers=_leftovers(stack, weights))
    chosen, others = _put_in(stack, with_ema(whole) if options.ema else whole, options)
    if options.only is not None:
        chosen = one_component(chosen, options.only)
    return _Inputs(whole, chosen, tuple(others))


def _put_in(
    stack: ExitStack, chosen: Checkpoint, options: CheckpointOptions
) -> tuple[Checkpoint, list[tuple[Checkpoint, str]]]:
    """The checkpoint with the parts of other files in it; these files, and what each is for."""
    others: list[tuple[Checkpoint, str]] = []
    if options.bake_vae is not None:
        other = _other(stack, options.bake_vae, chosen)
        chosen = with_vae(chosen, other)
        others.append((other, "vae"))
    for part in options.parts:
        other = _other(stack, part, chosen)
        chosen, role = with_part(chosen, other)
        others.append((other, role))
    return chosen, others


def _other(stack: ExitStack, path: Path, chosen: Checkpoint) -> Checkpoint:
    """The file of a part, read as one of the same family."""
    weights = stack.enter_context(open_weights(path))
    name = chosen.family.name if chosen.family and identify(weights).family == "unknown" else None
    return read_checkpoint(weights, family=name)


def _leftovers(stack: ExitStack, weights: Weights) -> Weights | None:
    """What an earlier conversion laid beside the components of a folder."""
    file = weights.path / LEFTOVERS
    if weights.container is not Container.FOLDER or not file.is_file():
        return None
    return stack.enter_context(open_weights(file))


def _default_output(source: Path, settings: Settings, *, folder: bool) -> Path:
    """The source's name in the current directory, with what is special about the result."""
    stem = source.absolute().name if source.is_dir() else source.stem
    special = [settings.only, settings.dtype.name.lower() if settings.dtype else None, settings.prune and "pruned"]
    name = "-".join([stem, *(text for text in special if text)])
    return Path(f"{name}-diffusers") if folder else Path(f"{name}.safetensors")


def _check_output(path: Path, inputs: Sequence[Path], plan: Plan, *, force: bool) -> None:
    check_is_not_input(path, inputs)
    if plan.folder:
        check_folder_target(path, overwrite=force)
    else:
        check_target(path, overwrite=force)
    check_space(path, plan.nbytes)


def _metadata(weights: Weights, recipe: Mapping[str, object]) -> dict[str, str]:
    """What every file of the output says: what the source said, and how it was converted.

    What the source's container says in another way (configurations, what is predicted) is said anew.
    """
    own = {} if weights.container is Container.PICKLE else dict(weights.metadata)
    return {"format": "pt", **converted_metadata({k: text for k, text in own.items() if k != CONFIG_KEY}, recipe)}


def _report(inputs: _Inputs, plan: Plan, place: Path, layout: str, *, dry_run: bool) -> ConvertReport:
    """What the plan will do; what only doing it shows is added later."""
    chosen = inputs.chosen
    names = {spelling.hub: spelling.key for spelling in spellings(plan.parts)}
    moved = {
        where.place.key for hub, where in chosen.located.items() if where.place.key != names[hub] or where.place.rows
    }
    return ConvertReport(
        output=str(place),
        source=chosen.weights.path.name,
        family=chosen.model.family,
        to=layout,
        components=tuple(plan.parts),
        consumed=len(chosen.used) + len(plan.rest.positions) + len(plan.rest.kept) + len(plan.rest.beside),
        renamed=len(moved),
        tensors=len(plan.tensors),
        kept_beside=len(plan.rest.beside),
        dropped=left_out(inputs.whole, chosen, plan, inputs.others),
        unmatched=(),
        prediction=plan.prediction,
        proof=None,
        parents=tuple(inputs.parents),
        warnings=plan.warnings,
        bytes=plan.nbytes,
        seconds=0.0,
        peak_memory_mib=None,
        dry_run=dry_run,
    )
