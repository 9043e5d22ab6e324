"""Doing the steps of a recipe in order: expressions stay expressions until a step has an output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.inputs import Input, Unwritten, is_adapter, open_input
from sdkit.jobs.recipe.records import (
    Record,
    content_id,
    fingerprint_of,
    finished_record,
    read_record,
    write_record,
)
from sdkit.jobs.recipe.steps import Recipe, Source, Step
from sdkit.jobs.recipe.verbs import bound, load_verb
from sdkit.streaming.lazy import LazyWeights

# Jobs whose dry run would calculate everything: they are only checked, not planned.
_DEAR_PLANS = frozenset({"combine", "extract", "resize", "scale", "subtract"})
_OPTION = re.compile(r"(?:--)?([\w-]+)[=:]")
# What says which adapters are added up.
SUMMANDS = frozenset({"base", "adapters", "alpha", "adapter", "factor", "first", "second"})


@dataclass(frozen=True, slots=True)
class StepReport:
    """What became of one step.

    Attributes:
        name: as the recipe calls it.
        verb: what it does.
        state: ``fused`` (part of later steps), ``up to date``, ``planned``, ``waits`` (for files that are not written
            yet), ``done`` or ``interrupted``.
        needs: the steps whose results it takes.
        output: what it writes; empty where it writes nothing.
        replaces: whether an older result of the step is replaced.
        report: the job's own; None where it did not run.
    """

    name: str
    verb: str
    state: str
    needs: tuple[str, ...] = ()
    output: str = ""
    replaces: bool = False
    report: Any = None


@dataclass(frozen=True, slots=True)
class AdapterSum:
    """Adapters with strengths: what a step that only calculates with them stands for, exactly, in a later one."""

    terms: tuple[tuple[Source, float], ...]

    def times(self, factor: float) -> AdapterSum:
        """Each strength times a number."""
        return AdapterSum(tuple((source, strength * factor) for source, strength in self.terms))


# The result of a step: an expression, adapters, a file or folder, or None while it waits for a job.
Value = LazyWeights | AdapterSum | Path | None


class Executor:
    """One pass over the steps: a dry one that plans, or one that works.

    Args:
        recipe: the steps.
        hooks: what jobs may take besides: ``threads``, ``progress``, ``watch``, ``should_stop``.
        force: make every output anew, and replace what no recipe has made.
        dry_run: write nothing.
    """

    def __init__(self, recipe: Recipe, hooks: Mapping[str, Any], *, force: bool, dry_run: bool) -> None:
        self._recipe, self._hooks, self._force, self._dry_run = recipe, hooks, force, dry_run
        self._values: dict[str, Value] = {}
        self._planned: set[str] = set()  # steps whose files are not there yet
        self._stack = ExitStack()

    def go(self) -> list[StepReport]:
        """Do the steps, and say what became of each."""
        with self._stack:
            return self._steps()

    def plan(self, stack: ExitStack) -> LazyWeights:
        """The last model that is computed, and not read from a file; `stack` closes what it is computed from."""
        stack.enter_context(self._stack)
        self._steps()
        models = [value for value in self._values.values() if isinstance(value, LazyWeights)]
        if not models:
            raise UsageError(
                f"{self._recipe.document.name}: no step computes a model from files that are there",
                "it needs a blend, or a merge into a checkpoint",
            )
        return models[-1]

    def _steps(self) -> list[StepReport]:
        reports: list[StepReport] = []
        for step in self._recipe.steps:
            with self._located(step):
                reports.append(self._step(step))
            if reports[-1].state == "interrupted":
                break
        return reports

    def _step(self, step: Step) -> StepReport:
        needs = self._recipe.needs[step.name]
        if self._must_wait(step):
            self._values[step.name] = None
            self._check_may_write(step)
            return StepReport(step.name, step.verb.name, "waits", needs, _shown(step.output))
        alone = self._adapters_alone(step)
        if alone is None:
            return self._tensors(step) if step.verb.fuses else self._job(step)
        if step.output is not None:
            return self._write_sum(step, alone)
        extra = sorted(step.arguments.keys() - SUMMANDS)
        if extra:
            raise UsageError(f"{extra[0]}: is for what is written, and the step writes nothing", "give it an `output:`")
        self._values[step.name] = alone
        return StepReport(step.name, step.verb.name, "fused", needs)

    def _must_wait(self, step: Step) -> bool:
        """Whether the step reads a file that an earlier one has only planned to write."""
        needs = self._recipe.needs[step.name]
        if any(self._values[name] is None for name in needs):
            return True
        named = {source.step for source in step.sources if step.verb.fuses}
        lazy = {name for name in named if name is not None and isinstance(self._values[name], LazyWeights)}
        return any(name in self._planned and name not in lazy for name in needs)

    # Steps that fuse

    def _tensors(self, step: Step) -> StepReport:
        """A step whose result is an expression: planned for later steps, and written where it has an output."""
        needs, verb = self._recipe.needs[step.name], step.verb
        if "rank" in step.arguments:
            raise UsageError("rank: cuts the sum of adapters, and the base is a checkpoint", "leave it out")
        alpha = step.arguments.get("alpha", 1.0) if verb.name == "merge" else 1.0
        given = {key: self._opened(value, alpha) for key, value in step.arguments.items()}
        target = Unwritten(step.name, self._stack)
        # How a file is rounded is nothing to later steps; without a file it is an error of the job.
        unwritten = {key: value for key, value in given.items() if step.output is None or key != "stochastic"}
        report = verb.function(output=target, **unwritten)
        assert target.model is not None
        self._values[step.name] = target.model
        if step.output is None:
            return StepReport(step.name, verb.name, "fused", needs, report=report)
        facts = {"recipe": target.model.recipe, "stochastic": given.get("stochastic")}
        return self._write(step, fingerprint_of(facts), given, report)

    def _opened(self, value: Any, alpha: float) -> Any:
        """An argument of a step that fuses: models and adapters, each with its strength where it has one."""
        if isinstance(value, list):
            return [entry for given in value for entry in self._several(given, alpha)]
        if not isinstance(value, Source):
            return value
        found = list(self._several(value, alpha))
        if len(found) > 1:
            raise UsageError("adapters stand where one model is needed", "merge them into a checkpoint")
        return found[0]

    def _several(self, value: Any, alpha: float) -> Iterator[Any]:
        """What a source stands for; adapters that a step has added up are several."""
        if not isinstance(value, Source):
            yield value
            return
        result = self._values[value.step] if value.step is not None else None
        if isinstance(result, AdapterSum):
            for source, strength in result.times(alpha if value.strength is None else value.strength).terms:
                yield self._file(source), strength
            return
        model = result if isinstance(result, LazyWeights) else self._file(value)
        yield model if value.strength is None else (model, value.strength)

    def _file(self, source: Source) -> Input:
        """A file; opened here if its sha256 is known, which the output's recipe then tells."""
        path = self._path(source)
        if not source.sha256:
            return path
        weights = open_input(self._stack, path)
        weights.known["sha256"] = source.sha256
        return weights

    # Adapters alone

    def _adapters_alone(self, step: Step) -> AdapterSum | None:
        """A step's adapters with their strengths, if it does nothing but add adapters up."""
        given = step.arguments
        if step.verb.name == "merge" and self._is_adapter(given["base"]):
            entries = [given["base"], *given["adapters"]]
            return AdapterSum(tuple(term for entry in entries for term in self._terms(entry, given.get("alpha", 1.0))))
        if step.verb.name == "scale":
            return AdapterSum(tuple(self._terms(given["adapter"]))).times(float(given["factor"]))
        if step.verb.name == "subtract":
            taken = AdapterSum(tuple(self._terms(given["second"]))).times(-1.0)
            return AdapterSum((*self._terms(given["first"]), *taken.terms))
        return None

    def _terms(self, source: Source, alpha: float = 1.0) -> Iterator[tuple[Source, float]]:
        strength = alpha if source.strength is None else source.strength
        result = self._values[source.step] if source.step is not None else None
        if isinstance(result, AdapterSum):
            yield from result.times(strength).terms
        else:
            yield source, strength

    def _is_adapter(self, source: Source) -> bool:
        result = self._values[source.step] if source.step is not None else None
        if isinstance(result, (LazyWeights, AdapterSum)):
            return isinstance(result, AdapterSum)
        return is_adapter(self._path(source))

    def _write_sum(self, step: Step, adapters: AdapterSum) -> StepReport:
        """Write a sum of adapters as one adapter."""
        pairs = [(self._path(source), strength) for source, strength in adapters.terms]
        options = {key: value for key, value in step.arguments.items() if key not in SUMMANDS}
        contents = [(content_id(path), strength) for path, strength in pairs]
        fingerprint = fingerprint_of({"adapters": contents, "options": options})
        name = "combine" if len(pairs) > 1 else "scale"
        given = {"adapters": pairs} if name == "combine" else dict(zip(("adapter", "factor"), pairs[0], strict=True))
        verb = load_verb(name)
        assert verb is not None
        return self._write(replace(step, verb=verb), fingerprint, {**given, **options})

    # Jobs

    def _job(self, step: Step) -> StepReport:
        """A step that reads and writes files."""
        given = {key: self._on_disk(value) for key, value in step.arguments.items()}
        contents = {key: _contents(value) for key, value in given.items()}
        return self._write(step, fingerprint_of({"verb": step.verb.name, "arguments": contents}), given)

    def _on_disk(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._on_disk(entry) for entry in value]
        if not isinstance(value, Source):
            return value
        return self._path(value) if value.strength is None else (self._path(value), value.strength)

    def _path(self, source: Source) -> Path:
        """The file or folder of a source; of a step, what it has written."""
        if source.path is not None:
            return source.path
        assert source.step is not None
        value = self._values[source.step]
        if isinstance(value, Path):
            return value
        step = next(step for step in self._recipe.steps if step.name == source.step)
        if step.output is None:
            raise UsageError(f"{step.name} is no file: it adds adapters up", "give it an `output:`")
        return step.output

    # Writing

    def _write(self, step: Step, fingerprint: str, given: Mapping[str, Any], planned: Any = None) -> StepReport:
        """Make an output, unless it is there and would come out the same.

        Args:
            planned: the job's report before anything was said of an output.
        """
        assert step.output is not None
        output, record = step.output, read_record(step.output)
        told = partial(StepReport, step.name, step.verb.name, needs=self._recipe.needs[step.name], output=str(output))
        if record is not None and not self._force and record.holds(output, fingerprint):
            self._keep(step, record.path_of(output))
            return told(state="up to date")
        self._check_may_write(step)
        begun = record is not None and record.fingerprint == fingerprint and not record.finished
        resumes = begun and not self._force and "resume" in step.verb.controls
        controls = {"resume": resumes, "force": not resumes and (record is not None or self._force)}
        if self._dry_run:
            self._planned.add(step.name)
            self._keep(step, output)
            report = self._call(step, given, **controls, dry_run=True) if self._plans(step) else planned
            return told(state="planned", replaces=controls["force"] and output.exists(), report=report)
        write_record(output, Record(step.name, fingerprint))
        report = self._call(step, given, **controls)
        if not getattr(report, "finished", True):
            return told(state="interrupted", report=report)
        results = [Path(path) for path in getattr(report, "outputs", (getattr(report, "output", output),))]
        write_record(output, finished_record(step.name, fingerprint, output, results))
        self._keep(step, results[0])
        return told(state="done", replaces=controls["force"], report=report)

    def _call(self, step: Step, given: Mapping[str, Any], **controls: Any) -> Any:
        """Call the step's job with what it takes of the controls."""
        known = {key: value for key, value in {**self._hooks, **controls}.items() if key in step.verb.controls}
        return step.verb.function(output=step.output, **bound(given, step.verb), **known)

    def _plans(self, step: Step) -> bool:
        """Whether a dry run of the job tells something: not where the folder of its output is still to be made."""
        there = step.output is not None and (step.output.parent.is_dir() or not step.verb.fuses)
        return there and "dry_run" in step.verb.controls and step.verb.name not in _DEAR_PLANS

    def _keep(self, step: Step, result: Path | None) -> None:
        """What later steps get: the expression where there is one, so that an output changes nothing for them."""
        if not isinstance(self._values.get(step.name), LazyWeights):
            self._values[step.name] = result

    def _check_may_write(self, step: Step) -> None:
        """Refuse to replace what no recipe has made."""
        output = step.output
        if output is None or self._force or read_record(output) is not None:
            return
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            hint = "name another output, or replace it with --force"
            raise SdkitError(f"{output}: exists and was not made by a recipe", hint)

    @contextmanager
    def _located(self, step: Step) -> Iterator[None]:
        """Say of every error in which step of the recipe it arose."""
        try:
            yield
        except SdkitError as error:
            kind = UsageError if error.exit_code == UsageError.exit_code else SdkitError
            option = _OPTION.match(error.message)  # a job begins what it says of an option with its name
            place = self._recipe.document.place((*step.where, option[1]) if option else step.where)
            raise kind(f"{place}: {step.name}: {error.message}", error.hint) from error


def _contents(value: Any) -> Any:
    """An argument with files and folders replaced by what they hold."""
    if isinstance(value, Path):
        return content_id(value)
    if isinstance(value, (list, tuple)):
        return [_contents(entry) for entry in value]
    return value


def _shown(output: Path | None) -> str:
    return str(output) if output is not None else ""
