"""Running a recipe: steps that fuse into one expression, and jobs in their order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event
from sdkit.core.hashing import Span, digest_spans
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.jobs.pull import local_path
from sdkit.jobs.recipe.document import Document, read_document, read_value
from sdkit.jobs.recipe.executor import Executor, StepReport
from sdkit.jobs.recipe.steps import Recipe, Source, pull_sources, read_recipe
from sdkit.jobs.stop import StopRequest
from sdkit.streaming.lazy import LazyWeights

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class RunReport(Report):
    """What a recipe did, or with `dry_run` would do.

    Attributes:
        recipe: its file.
        steps: in the order in which they are done.
        finished: whether all of it is done; a training run may have been interrupted.
        seconds: wall time.
        dry_run: whether nothing was written.
    """

    recipe: str
    steps: tuple[StepReport, ...]
    finished: bool
    seconds: float
    dry_run: bool


def run(
    recipe: PathLike | Mapping[str, Any],
    output: PathLike | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    watch: Callable[[Event], None] | None = None,
    should_stop: StopRequest | None = None,
) -> RunReport:
    """Run a recipe: everything is checked first, and only what has changed since the last time is made.

    Args:
        recipe: a YAML file, or the same as a table, whose paths are relative to the current folder.
        output: the folder outputs go to; default: the recipe's own.
        settings: changed options: ``{"mix.alpha": 0.5}``; with a single step the option's name will do.
        force: make every output anew, and replace what no recipe has made.
        dry_run: check and plan, but write nothing.
        threads: workers of steps that stream; never changes a result.
        progress: told about the bytes written.
        watch: called with the events of training runs.
        should_stop: asked by training runs; when it says so they save their state, and running again goes on.

    Raises:
        SdkitError: whatever is wrong, with file and line, before the first byte is written as far as it can be known.
    """
    began = time.perf_counter()
    folder = Path(output) if output is not None else None
    document = _document(recipe, settings or {}, folder)
    steps = _arrived(read_recipe(document, folder), progress or NoProgress())
    hooks = {
        "threads": threads,
        "progress": progress or NoProgress(),
        "watch": watch or (lambda event: None),
        "should_stop": should_stop or StopRequest(),
    }
    _check_pins(steps, progress or NoProgress())
    reports = Executor(steps, hooks, force=force, dry_run=True).go()
    if not dry_run:
        reports = Executor(steps, hooks, force=force, dry_run=False).go()
    finished = not any(report.state in ("interrupted", "waits") for report in reports)
    seconds = time.perf_counter() - began
    return RunReport(document.name, tuple(reports), finished and not dry_run, seconds, dry_run)


def plan_model(recipe: PathLike | Mapping[str, Any], stack: ExitStack, settings: Mapping[str, Any]) -> LazyWeights:
    """The model that a recipe's last blend or merge computes, as an expression. Nothing is written.

    Args:
        recipe: as `run` takes it.
        stack: keeps the files open that it is computed from.
        settings: changed options, as `run` takes them.

    Raises:
        SdkitError: whatever is wrong; or no step computes a model from files that are there.
    """
    steps = _arrived(read_recipe(_document(recipe, settings), None), NoProgress())
    hooks = {"threads": None, "progress": NoProgress(), "watch": lambda event: None, "should_stop": StopRequest()}
    _check_pins(steps, NoProgress())
    return Executor(steps, hooks, force=True, dry_run=True).plan(stack)


def _document(
    recipe: PathLike | Mapping[str, Any], settings: Mapping[str, Any], folder: Path | None = None
) -> Document:
    """The recipe with its changed options; a training run as a recipe of one step."""
    document = Document("recipe", Path(), dict(recipe)) if isinstance(recipe, Mapping) else read_document(Path(recipe))
    if "method" in document.value:
        document = _training_run(document, Path("runs").absolute() if folder is None else Path())
    value = document.value
    for key, setting in settings.items():
        value = _changed(document, value, key, setting)
    return replace(document, value=value)


def _training_run(document: Document, runs: Path) -> Document:
    """``method: lora`` and what follows it as the one step of a recipe."""
    given = dict(document.value)
    method, name = given.pop("method"), Path(document.name).stem
    if "output" not in given and given.get("data"):
        data = (document.folder / str(given["data"])).absolute().name
        given["output"] = str(runs / f"{data}-{method}")
    step = "train" if not name.isidentifier() else name
    lines = {("steps", step, *where): line for where, line in document.lines.items()}
    return replace(document, value={"steps": {step: {"train": method, **given}}}, lines=lines)


def _changed(document: Document, value: dict[str, Any], key: str, setting: Any) -> dict[str, Any]:
    steps = value.get("steps")
    if not isinstance(steps, dict):
        return value
    name, dot, option = key.partition(".")
    if not dot:
        name, option = (next(iter(steps)) if len(steps) == 1 else ""), key
    if name not in steps or not isinstance(steps[name], dict):
        raise UsageError(f"{key}: names no option of a step", f"write STEP.OPTION=VALUE; steps are {', '.join(steps)}")
    spelled = next((word for word in steps[name] if word.replace("-", "_") == option.replace("-", "_")), option)
    setting = read_value(setting) if isinstance(setting, str) else setting
    return {**value, "steps": {**steps, name: {**steps[name], spelled: setting}}}


def _arrived(recipe: Recipe, progress: Progress) -> Recipe:
    """The recipe with what it refers to pulled; its steps are known to be written well by then."""

    def pull(source: Source) -> Path:
        try:
            return local_path(source.reference, progress)
        except SdkitError as error:
            error.message = f"{recipe.document.place(source.where)}: {error.message}"
            raise

    return pull_sources(recipe, pull)


def _check_pins(recipe: Recipe, progress: Progress) -> None:
    """Hash the files whose sha256 the recipe states; each once."""
    pinned = [source for step in recipe.steps for source in step.sources if source.sha256 and source.path is not None]
    known: dict[Path, str] = {}
    for source in pinned:
        assert source.path is not None
        if not source.path.is_file():
            raise recipe.document.error(source.where, f"{source.path}: only single files have a sha256")
        if source.path not in known:
            progress.start(f"hashing {source.path.name}", source.path.stat().st_size)
            known[source.path] = digest_spans(source.path, [Span()], progress).sha256[0]
        if known[source.path] != source.sha256:
            raise recipe.document.error(
                source.where,
                f"{source.path} has the sha256 {known[source.path]}, not {source.sha256}",
                "it is another file than the recipe was made with; find that one, or change the pin",
            )
