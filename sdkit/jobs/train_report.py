"""What a training did: the report, and what is remembered of the events for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sdkit.core.events import Event, Resumed, Step, Validation
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.report import Report
from sdkit.jobs.report import PAGE
from sdkit.jobs.train_request import TrainRequest
from sdkit.training.plan import Plan

LAST = 100  # steps whose mean loss is reported


@dataclass(frozen=True, slots=True)
class TrainReport(Report):
    """What a run did, or with `dry_run` would do.

    Attributes:
        output: the file.
        saved: further files beside it.
        page: with its losses and samples; empty where there is none.
        plan: what was planned.
        step: steps finished.
        finished: whether all steps are done and the file is written.
        loss: mean of the last steps' losses.
        validation: held-out loss at the end; None without held-out pictures.
        validation_before: the same at the start.
        validation_fall: 95 % interval of what lies between them.
        parameters: numbers trained.
        output_bytes: size of the file.
        seconds: wall time of this call.
        peak_memory_mib: largest resident memory; None where the system does not tell.
        resume: the command that continues an interrupted run; empty when finished.
        notes: facts a person should see.
        dry_run: whether nothing was done.
    """

    output: str
    saved: tuple[str, ...]
    page: str
    plan: Plan
    step: int
    finished: bool
    loss: float | None
    validation: float | None
    validation_before: float | None
    validation_fall: tuple[float, float] | None
    parameters: int
    output_bytes: int
    seconds: float
    peak_memory_mib: float | None
    resume: str
    notes: tuple[str, ...]
    dry_run: bool


@dataclass(slots=True)
class Account:
    """What is remembered of a run while it goes on.

    Attributes:
        notes: what the plan does not say.
        losses: of the steps.
        validation: the last.
        began: when, in seconds of the clock that measures.
    """

    notes: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    validation: Validation | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.began

    def take(self, event: Event) -> None:
        """Remember an event."""
        if isinstance(event, Step):
            self.losses.append(event.loss)
        elif isinstance(event, Validation):
            self.validation = event
        elif isinstance(event, Resumed):
            self.notes.append(event.text)

    def report(
        self, request: TrainRequest, plan: Plan, step: int, *, finished: bool, dry_run: bool = False
    ) -> TrainReport:
        """What a person is told at the end."""
        last, validation, result = self.losses[-LAST:], self.validation, request.folder.result
        page = request.folder.folder / PAGE
        return TrainReport(
            output=str(result),
            saved=tuple(map(str, request.beside)),
            page=str(page) if page.is_file() and not dry_run else "",
            plan=plan,
            step=step,
            finished=finished,
            loss=sum(last) / len(last) if last else None,
            validation=validation.loss if validation else None,
            validation_before=validation.base if validation else None,
            validation_fall=validation.fall if validation else None,
            parameters=plan.parameters,
            output_bytes=written_bytes(result) if finished and result.exists() else plan.output_bytes,
            seconds=self.seconds,
            peak_memory_mib=peak_memory_mib(),
            resume="" if finished or dry_run else request.resume_line,
            notes=(*plan.notes, *self.notes),
            dry_run=dry_run,
        )
