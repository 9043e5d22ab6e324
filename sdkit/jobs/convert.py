"""Converting a checkpoint into another layout, with the proof that nothing changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdkit.conversion.changes import one_component, with_ema, with_part, with_vae
from sdkit.conversion.checkpoint import Checkpoint, read_checkpoint
from sdkit.conversion.plan import Plan, PlannedFile, Settings, load_target, target_file
from sdkit.conversion.proof import Proof, prove
from sdkit.conversion.rest import LEFTOVERS, Dropped
from sdkit.conversion.shards import check_variant, parse_size
from sdkit.conversion.targets.diffusers import read_configs
from sdkit.core.errors import UsageError
from sdkit.core.memory import peak_memory_mib
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.families.configs import CONFIG_KEY
from sdkit.families.spell import spellings
from sdkit.jobs.convert_adapter import AdapterConversion, AdapterOptions, convert_adapter
from sdkit.jobs.inputs import is_adapter, parent_of
from sdkit.jobs.merge_checks import check_is_not_input
from sdkit.jobs.pull import local_path, optional_path
from sdkit.jobs.record import recorded
from sdkit.streaming import OutputFile, Stream
from sdkit.weights import Weights, open_weights
from sdkit.weights.atomic import check_space, check_target
from sdkit.weights.atomic_folder import AtomicFolder, check_folder_target
from sdkit.weights.dtypes import parse_dtype
from sdkit.weights.metadata import converted_metadata
from sdkit.weights.reader import Container

PathLike = str | os.PathLike[str]
_ADAPTERS_ONLY = ("base", "network_alpha", "rank", "allow_lossy", "keep_training_metadata")
# What a folder says in its scheduler, and must not say twice: the scheduler may be changed.
SAID_BY_SCHEDULER = ("modelspec.prediction_type", "modelspec.architecture")


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
        dropped: what was not written, and why.
        unmatched: tensors nothing explains; there are none, as they are an error unless pruned.
        prediction: what the model predicts, as the output says it: ``epsilon``, ``v_prediction`` or ``flow``; None
            where it says nothing.
        proof: what reading back has shown; None where that was not asked for.
        parents: what went in, by name and quick id.
        warnings: what a person should see.
        bytes: size of the tensors written.
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


def convert(
    source: PathLike,
    to: str,
    output: PathLike | None = None,
    *,
    only: str | None = None,
    dtype: str | None = None,
    prune: bool = False,
    ema: bool = False,
    bake_vae: PathLike | None = None,
    parts: Sequence[PathLike] = (),
    prediction: str | None = None,
    family: str | None = None,
    configs: PathLike | None = None,
    tokenizer: PathLike | None = None,
    variant: str | None = None,
    shard_size: str | None = None,
    base: PathLike | None = None,
    network_alpha: float | None = None,
    rank: int | None = None,
    allow_lossy: bool = False,
    keep_training_metadata: bool = False,
    verify: bool = True,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertReport | AdapterConversion:
    """Write a checkpoint in another layout, or an adapter in another format, and prove that it is the same.

    Every weight of a checkpoint keeps its bits, unless `dtype` asks for others. An adapter's changes stay what they
    are, unless `allow_lossy` lets those that the format cannot hold become the nearest it can.

    Args:
        source: a safetensors file, a pickled checkpoint, a shard index, a diffusers folder or a component's; an
            adapter in any format. Like `bake_vae`, `parts` and `base` a path, a registered name or a reference.
        to: a layout (``single``, ``diffusers``) or an adapter's format (``kohya``, ``peft``, ``diffusers``, …), or a
            program that reads it (``comfyui``, ``a1111``, ``invokeai``, …).
        output: the file or folder to write; default: the source's name in the current directory.
        only: one component: ``unet`` or ``transformer``, ``vae``, ``text_encoder``, ``text_encoder_2``, ….
        dtype: element type of all weights (``fp16``, ``bf16``, ``fp32``, …), of an adapter's factors and words;
            default: each keeps its own.
        prune: leave out what no pipeline reads: the EMA copy, schedule constants, what a trainer left; of an adapter
            what belongs to no module.
        ema: take the EMA copy of the U-Net in place of its weights.
        bake_vae: a file or folder whose autoencoder takes the place of the checkpoint's.
        parts: files with one component each (an autoencoder, a text encoder) to put into the checkpoint, in place of
            its own where it has one.
        prediction: ``epsilon`` or ``v_prediction``, where the checkpoint does not say so or says it wrongly.
        family: whose autoencoder it is, for one on its own; an adapter's, where its header does not tell.
        configs: a diffusers folder with the right configurations and tokenizers, where the checkpoint has none.
        tokenizer: a folder with T5's tokenizer, for a folder of SD3 or FLUX.1; default: a copy in the cache of Hugging
            Face.
        variant: what the names of a folder's weights say (``fp16``); their type is `dtype`'s to say.
        shard_size: the most a file of a folder holds (``10GB``); larger components are divided, with an index.
        base: for adapters: the model it was made for, if that has unusual sizes, or a change depends on its weights.
        network_alpha: for adapters: alpha, where the file does not state it.
        rank: for adapters: of what stands in for changes the format cannot hold; default: the smallest, up to 128,
            that is at most 0.1 % off.
        allow_lossy: for adapters: whether anything may stand in for such changes.
        keep_training_metadata: for adapters: keep captions, folders and paths among the metadata.
        verify: read the output back and compare every parameter, which reads both sides once more.
        force: replace an existing output.
        dry_run: stop before anything is written; every check has been made then.
        threads: workers; the bytes written never depend on it.
        progress: told about the bytes written.

    Returns:
        A report of what went in, what was dropped and why, and the proof.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and inputs are never touched.
    """
    began = time.perf_counter()
    element, shard_bytes = parse_dtype(dtype), parse_size(shard_size)
    check_variant(variant)
    path = local_path(source, progress)  # all that can be wrong without it is known to be right
    for_adapters = AdapterOptions(
        optional_path(base, progress),
        family,
        network_alpha,
        rank,
        allow_lossy,
        keep_training_metadata,
        prune,
        element,
    )
    folders = {"configs": configs, "tokenizer": tokenizer}
    for_checkpoints = {"only": only, "ema": ema, "bake_vae": bake_vae, "prediction": prediction}
    for_checkpoints |= {"part": bool(parts), "variant": variant, "shard_size": shard_size}
    if is_adapter(path):
        _check_unused({**for_checkpoints, **folders}, "a checkpoint")
        place = Path(output) if output is not None else None
        with open_weights(path) as opened:
            return convert_adapter(
                opened, to, place, for_adapters, verify=verify, force=force, dry_run=dry_run, progress=progress
            )
    _check_unused({name: value for name, value in asdict(for_adapters).items() if name in _ADAPTERS_ONLY}, "an adapter")
    name, target = load_target(to)
    only = only.replace("-", "_") if only else None
    named = {key: Path(folder) for key, folder in folders.items() if folder is not None}
    settings = Settings(only, element, prune, prediction, **named, variant=variant, shard_bytes=shard_bytes)
    with ExitStack() as stack:
        weights = stack.enter_context(open_weights(path))
        given = read_configs(settings.configs) if settings.configs else None
        whole = read_checkpoint(weights, family=family, configs=given, leftovers=_leftovers(stack, weights))
        chosen, others = _put_in(stack, with_ema(whole) if ema else whole, bake_vae, parts)
        parents = [parent_of(weights, role="source"), *(parent_of(part, role=role) for part, role in others)]
        inputs = [path, *(part.path for part, _ in others)]
        if only is not None:
            chosen = one_component(chosen, only)
        plan = target.plan(whole, chosen, settings)
        place = Path(output) if output is not None else _default_output(path, settings, folder=plan.folder)
        _check_output(place, inputs, plan, force=force)
        recipe = {"verb": "convert", "to": name, "parents": parents, **_options(settings, ema=ema)}
        proofs: list[Proof] = []
        proving = _Proving(chosen, plan, proofs, threads, progress or NoProgress()) if verify else _nothing
        if not dry_run:
            writer = _Writer(plan, place, _metadata(weights, recipe), threads, progress or NoProgress())
            writer.write(proving, force=force)
        report = _report(
            chosen,
            plan,
            parents,
            output=str(place),
            to=name,
            proof=proofs[0] if proofs else None,
            seconds=time.perf_counter() - began,
            dry_run=dry_run,
        )
        return recorded(report, inputs)


@dataclass(frozen=True, slots=True)
class _Proving:
    """The check of a finished output."""

    chosen: Checkpoint
    plan: Plan
    proofs: list[Proof]
    threads: int | None
    progress: Progress

    def __call__(self, path: Path) -> None:
        self.progress.start("reading back", self.plan.nbytes)
        self.proofs.append(prove(self.chosen, self.plan, path, self.progress.advance, threads=self.threads))


def _nothing(path: Path) -> None:
    """No check."""


def _check_unused(options: Mapping[str, object], what: str) -> None:
    """Refuse options that would do nothing."""
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        raise UsageError(f"{given[0].replace('_', '-')} concerns {what}, which this is not", "leave it out")


def _put_in(
    stack: ExitStack, chosen: Checkpoint, vae: PathLike | None, parts: Sequence[PathLike]
) -> tuple[Checkpoint, list[tuple[Weights, str]]]:
    """The checkpoint with the parts of other files in it; these files, and what each is for."""
    others: list[tuple[Weights, str]] = []
    if vae is not None:
        other = _other(stack, local_path(vae), chosen)
        chosen = with_vae(chosen, other)
        others.append((other.weights, "vae"))
    for part in parts:
        other = _other(stack, local_path(part), chosen)
        chosen, role = with_part(chosen, other)
        others.append((other.weights, role))
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


def _options(settings: Settings, *, ema: bool) -> dict[str, object]:
    """What was chosen, as recipes say it."""
    options: dict[str, object] = {
        "only": settings.only,
        "dtype": settings.dtype.name if settings.dtype else None,
        "prune": settings.prune or None,
        "prediction": settings.prediction,
        "variant": settings.variant,
        "ema": ema or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _metadata(weights: Weights, recipe: Mapping[str, object]) -> dict[str, str]:
    """What every file of the output says: what the source said, and how it was converted.

    What the source's container says in another way (configurations, what is predicted) is said anew.
    """
    own = {} if weights.container is Container.PICKLE else dict(weights.metadata)
    return {"format": "pt", **converted_metadata({k: text for k, text in own.items() if k != CONFIG_KEY}, recipe)}


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes a plan, and shows it to a check before it gets its name, where that is possible."""

    plan: Plan
    path: Path
    metadata: Mapping[str, str]
    threads: int | None
    progress: Progress

    def write(self, check: Callable[[Path], None], *, force: bool) -> None:
        self.progress.start("converting", self.plan.nbytes)
        if not self.plan.folder:
            with self._stream(self.path, force=force) as stream:
                stream.run()
                stream.commit()
            self._check_named(check)
            return
        with AtomicFolder(self.path, overwrite=force) as folder:
            for name, data in self.plan.side_files.items():
                (folder.work / name).parent.mkdir(parents=True, exist_ok=True)
                (folder.work / name).write_bytes(data)
            with self._stream(folder.work, force=False) as stream:
                stream.run()
                stream.commit()
            check(folder.work)
            folder.commit()

    def _stream(self, root: Path, *, force: bool) -> Stream:
        files = [OutputFile(target_file(root, file), file.tensors, self._said_by(file)) for file in self.plan.files]
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        return Stream(files, overwrite=force, threads=self.threads, advance=self.progress.advance)

    def _said_by(self, file: PlannedFile) -> dict[str, str]:
        told = SAID_BY_SCHEDULER if self.plan.folder else ()
        return {**{key: value for key, value in self.metadata.items() if key not in told}, **file.metadata}

    def _check_named(self, check: Callable[[Path], None]) -> None:
        """A file has its name before anybody can open it; one that fails the check loses it again."""
        try:
            check(self.path)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise


def _report(
    chosen: Checkpoint,
    plan: Plan,
    parents: Sequence[dict[str, object]],
    **facts: Any,
) -> ConvertReport:
    names = {spelling.hub: spelling.key for spelling in spellings(plan.parts)}
    moved = {
        where.place.key for hub, where in chosen.located.items() if where.place.key != names[hub] or where.place.rows
    }
    return ConvertReport(
        source=chosen.weights.path.name,
        family=chosen.model.family,
        components=tuple(plan.parts),
        consumed=len(chosen.used) + len(plan.rest.positions) + len(plan.rest.kept) + len(plan.rest.beside),
        renamed=len(moved),
        tensors=len(plan.tensors),
        kept_beside=len(plan.rest.beside),
        dropped=tuple(plan.rest.dropped),
        unmatched=(),
        prediction=plan.prediction,
        parents=tuple(parents),
        warnings=plan.warnings,
        bytes=plan.nbytes,
        peak_memory_mib=peak_memory_mib(),
        **facts,
    )
