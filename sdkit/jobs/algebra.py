"""What the jobs that calculate with adapters share: opening, naming, the report, and writing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sdkit.adapters.artifact import Artifact, Target
from sdkit.core.errors import SdkitError
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.report import Report
from sdkit.families.family import Model
from sdkit.formats import adapter_family, read_adapter, writing_codec
from sdkit.jobs.fitting import fitting_model
from sdkit.jobs.inputs import parent_of
from sdkit.jobs.merge_checks import check_bakeable, check_is_adapter, known_model
from sdkit.streaming.engine import default_threads
from sdkit.weights import Weights, open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.atomic_folder import check_folder_target

# Facts about the base that stay true of whatever is made of an adapter for it.
BASE_FACTS = (
    "ss_base_model_version",
    "ss_v2",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.prediction_type",
)
_KOHYA_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sdxl-refiner": "sdxl_refiner_v1-0"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """What became of the change of one parameter.

    Attributes:
        name: hub name (or the file's own, where no model gave names).
        kind: as `Delta.kind`.
        rank: of the result; None for a kind without one.
        rank_before: of the inputs together; None where they had none.
        norm: ‖ΔW‖, the Frobenius norm of the whole change; None where nothing was computed (a dry run).
        error: ‖ΔW − result‖ / ‖ΔW‖; 0 for what is exact.
    """

    name: str
    kind: str
    rank: int | None
    rank_before: int | None
    norm: float | None
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class AlgebraReport(Report):
    """What a calculation with adapters did, or with `dry_run` would do.

    Attributes:
        verb: ``combine``, ``subtract``, ``resize``, ``scale`` or ``extract``.
        output: the file or folder.
        format: the output's.
        family: the model family, where it is known; else empty.
        modules: one report for each changed parameter.
        norm: the Frobenius norm of all changes together.
        error: the relative error of all changes together.
        rank_before: sum of the inputs' ranks over all modules.
        rank: sum of the result's.
        bytes: size of the output on the disk; in a dry run that of its tensors, which is a little less.
        parents: inputs by name and quick id.
        notes: facts worth knowing.
        warnings: what a person should see.
        seconds: wall time.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    verb: str
    output: str
    format: str
    family: str
    modules: tuple[ModuleReport, ...]
    norm: float
    error: float
    rank_before: int
    rank: int
    bytes: int
    parents: tuple[dict[str, object], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a calculation, before it is written.

    Attributes:
        verb: as in `AlgebraReport`.
        artifact: what is written.
        format: its codec.
        model: gives the modules their names; None where they keep their own.
        family: as in `AlgebraReport`.
        modules: called after writing, since some norms are only known then.
        parents: as in `AlgebraReport`.
        metadata: of the file.
        notes: as in `AlgebraReport`.
        warnings: as in `AlgebraReport`.
    """

    verb: str
    artifact: Artifact
    format: str
    model: Model | None
    family: str
    modules: Callable[[], Sequence[ModuleReport]]
    parents: tuple[dict[str, object], ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def finish(result: Finished, output: Path, began: float, *, force: bool, dry_run: bool) -> AlgebraReport:
    """Write the result, unless this is a dry run, and report."""
    with one_thread():
        if not dry_run:
            codec = writing_codec(result.format)
            codec.write(result.artifact, result.model, output, result.metadata, overwrite=force)
        modules = tuple(result.modules())
    energy = sum((module.norm or 0.0) ** 2 for module in modules)
    lost = sum((module.error * (module.norm or 0.0)) ** 2 for module in modules)
    return AlgebraReport(
        verb=result.verb,
        output=str(output),
        format=result.format,
        family=result.family,
        modules=modules,
        norm=math.sqrt(energy),
        error=math.sqrt(lost / energy) if energy else 0.0,
        rank_before=sum(module.rank_before or 0 for module in modules),
        rank=sum(module.rank or 0 for module in modules),
        bytes=sum(info.nbytes for info in _tensors(result.artifact)) if dry_run else written_bytes(output),
        parents=result.parents,
        notes=result.notes,
        warnings=result.warnings,
        seconds=time.perf_counter() - began,
        peak_memory_mib=peak_memory_mib(),
        dry_run=dry_run,
    )


def _tensors(artifact: Artifact) -> Iterator[Any]:
    """The stored parts of all deltas."""
    from sdkit.adapters.builder import reads

    for delta in artifact.deltas.values():
        yield from (read.info for read in reads(delta))


@dataclass(frozen=True, slots=True)
class Opened:
    """Adapters read with one set of names.

    Attributes:
        artifacts: in the order given.
        model: the model whose names they have; None where they keep their own.
        family: the family, empty where it is unknown.
    """

    artifacts: tuple[Artifact, ...]
    model: Model | None
    family: str


def open_adapters(
    paths: Sequence[Path],
    stack: ExitStack,
    *,
    base: Path | None = None,
    names: bool = True,
    allow_unmatched: bool = False,
) -> Opened:
    """Open adapters that will be calculated with.

    Modules are named after the base, if one is given, else after the published model of the adapters' family. An
    adapter for a model of unusual shape keeps its own names, which is enough as long as all speak one dialect.

    Args:
        paths: the adapters.
        stack: closes them.
        base: the model they were made for.
        names: whether hub names are wanted at all; without them each keeps its file's own.
        allow_unmatched: whether tensors that belong to no module may be left out.

    Raises:
        SdkitError: one is no adapter of weights, they are of different families, or their names have nothing in common.
    """
    opened = [stack.enter_context(open_weights(path)) for path in paths]
    for weights in opened:
        check_is_adapter(weights)
    family = _common_family(opened)
    found = None
    if names:
        model = known_model(stack.enter_context(open_weights(base))) if base else fitting_model(family, *opened)
        found = _read_all(opened, model, strict=base is not None) if model else None
    if found is None:
        found = Opened(tuple(read_adapter(weights) for weights in opened), None, family)
        _check_one_dialect(found.artifacts)
    for artifact in found.artifacts:
        check_bakeable(artifact)
        if artifact.unmatched and not allow_unmatched:
            raise SdkitError(
                f"{artifact.source.path}: {len(artifact.unmatched)} tensors or modules have no place "
                f"({', '.join(artifact.unmatched[:3])})",
                "--allow-unmatched leaves them out",
            )
    return replace(found, family=found.model.family if found.model else family)


def _read_all(opened: Sequence[Weights], model: Model, *, strict: bool) -> Opened | None:
    """The adapters with the names of `model`; None where they do not fit it and need not (`strict`)."""
    try:
        artifacts = tuple(read_adapter(weights, model) for weights in opened)
    except SdkitError:
        if strict:
            raise
        return None
    if any(artifact.unmatched for artifact in artifacts) and not strict:
        return None
    return Opened(artifacts, model, model.family)


def _common_family(opened: Sequence[Weights]) -> str:
    """The family of all adapters; empty where none tells.

    Raises:
        SdkitError: they are of different families.
    """
    told = {weights: adapter_family(weights) for weights in opened}
    families = {family: (weights, reason) for weights, (family, reason) in told.items() if family is not None}
    if len(families) > 1:
        (one, (first, why)), (other, (second, because)) = list(families.items())[:2]
        raise SdkitError(
            f"{first.path} was made for {one} ({why}), {second.path} for {other} ({because})",
            "only adapters for one family can be combined",
        )
    return next(iter(families), "")


def _check_one_dialect(artifacts: Sequence[Artifact]) -> None:
    formats = {artifact.format for artifact in artifacts}
    if len(formats) > 1:
        raise SdkitError(
            f"these adapters are in the formats {' and '.join(sorted(formats))}, and what they have in common only "
            "their model can tell",
            "name it with --base",
        )


def parents_of(artifacts: Iterable[Artifact], strengths: Iterable[float]) -> tuple[dict[str, object], ...]:
    """The inputs as recipes name them."""
    pairs = zip(artifacts, strengths, strict=True)
    return tuple(parent_of(artifact.source, role="adapter", strength=strength) for artifact, strength in pairs)


def described(model: Model | None, family: str) -> dict[str, str]:
    """What catalogues and web UIs want to know of a new adapter's base."""
    if family not in _ARCHITECTURES:
        return {}
    facts = {
        "ss_base_model_version": _KOHYA_VERSIONS[family],
        "ss_v2": str(family == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{_ARCHITECTURES[family]}/lora",
        "modelspec.implementation": "diffusers",
    }
    if model is not None and model.prediction:
        facts["modelspec.prediction_type"] = "v" if model.prediction == "v_prediction" else "epsilon"
    return facts


def check_result(output: Path, format: str, *, force: bool) -> None:
    """Refuse an output that cannot be written, before any work is done."""
    writing_codec(format)
    if format == "peft":
        check_folder_target(output, overwrite=force)
    else:
        check_target(output, overwrite=force)


def default_name(stem: str, format: str) -> Path:
    """A file in the current directory, or a folder for PEFT."""
    return Path(stem if format == "peft" else f"{stem}.safetensors")


def stem(path: Path) -> str:
    """A file's or folder's name without its suffix."""
    return path.name if path.is_dir() else path.stem


def sorted_changes(targets: Iterable[Target]) -> list[Target]:
    """Targets in the one order reports and files have."""
    return sorted(targets, key=lambda target: target.name)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, so that the machine's number of cores never shows in the numbers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


# For each worker, how many items are begun, waiting or waited for: a small one must not wait for a large one's result.
AHEAD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """The results of `function`, in the order of `items`, computed by a few workers.

    Each worker computes with one torch thread, so the numbers never depend on how many workers there are. No more items
    are computed at once than there are workers, and few results wait behind a slow one, so memory stays bounded.
    """

    def work(item: Item) -> Result:
        with one_thread():  # torch keeps the number for each thread of ours
            return function(item)

    count = threads or default_threads()
    queue = iter(items)
    with ThreadPoolExecutor(count, thread_name_prefix="sdkit") as pool:
        running: list[Future[Result]] = [pool.submit(work, item) for item in islice(queue, AHEAD * count)]
        try:
            while running:
                yield running.pop(0).result()
                running.extend(pool.submit(work, item) for item in islice(queue, 1))
        finally:
            for future in running:
                future.cancel()
