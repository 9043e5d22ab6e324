"""Training: from a request to a plan, and from a plan to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sdkit.core.errors import SdkitError
from sdkit.core.events import Event, Interrupted, Note
from sdkit.core.paths import written_bytes
from sdkit.families.bases import TINY
from sdkit.jobs.record import recorded
from sdkit.jobs.report import report
from sdkit.jobs.run_facts import begun, ended
from sdkit.jobs.samples import keep_pictures, sample_prompts
from sdkit.jobs.stop import StopRequest
from sdkit.jobs.train_pictures import RunPictures, check_same_pictures, read_pictures
from sdkit.jobs.train_report import Account, TrainReport
from sdkit.jobs.train_request import PathLike, TrainRequest, read_request
from sdkit.jobs.train_setup import make_trainables, make_trainer
from sdkit.report.tensorboard import Board, check_tensorboard, tensorboard
from sdkit.training.folder import write_event
from sdkit.training.metadata import training_metadata
from sdkit.training.method import Result
from sdkit.training.plan import Base, Plan, look_at_base, make_plan
from sdkit.training.processes import Processes
from sdkit.training.solver import Solver
from sdkit.training.state import complete_states
from sdkit.weights.atomic import check_space

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.training.trainer import Trainer

Watch = Callable[[Event], None]
PROMPT_SUFFIX = ".txt"  # of results that are words alone, which the registry has no place for


def train(
    method: str,
    base: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    resume: bool | Literal["must"] = False,
    force: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
    should_stop: StopRequest | None = None,
    **options: Any,
) -> TrainReport:
    """Train an adapter.

    Args:
        method: its name: ``lora``.
        base: a diffusers folder or a checkpoint, by its path, registered name or a reference to a hub; or ``tiny``.
        data: a folder of pictures with captions.
        output: a folder, or a file beside which the rest goes; default ``runs/DATA-METHOD``.
        resume: continue from the newest saved state; with nothing saved, begin, or with "must", as ``--resume`` has it,
            fail; finished, do nothing.
        force: replace what an earlier run left in `output`.
        dry_run: stop after the plan.
        watch: called with every event.
        should_stop: asked after every step; when it says so, the state is saved and the run ends.
        options: keys of the method, see `sdkit.training.options`.

    Raises:
        SdkitError: whatever is wrong, most of it before the base is loaded.
    """
    request = read_request(method, base, data, output, options, resume=resume)
    run = _Run(request, watch or (lambda event: None), should_stop or StopRequest())
    report = run.go(resume=bool(resume), force=force, dry_run=dry_run)
    is_model = Path(report.output).suffix != PROMPT_SUFFIX
    given = base if base == TINY else request.base
    return recorded(report, [given]) if run.is_main and is_model else report


class _StoppedEarlyError(Exception):
    """The run was asked to stop before its first step."""


class _Run:
    """One run, from the request to the report."""

    def __init__(self, request: TrainRequest, watch: Watch, stop: StopRequest) -> None:
        self._request = request
        self._watch = watch
        self._stop = stop
        self._account = Account(list(request.notes))
        self._processes = Processes()

    @property
    def is_main(self) -> bool:
        """Whether this process, of several, is the one that writes."""
        return self._processes.is_main

    def go(self, *, resume: bool, force: bool, dry_run: bool) -> TrainReport:
        """Plan, and unless that was all, train."""
        request, account = self._request, self._account
        prompts = sample_prompts(request.options.sample)
        if request.options.tensorboard:
            check_tensorboard()
        if not dry_run:
            request.folder.check(resume=resume, force=force, beside=request.beside)
        base = look_at_base(request.base)
        pictures = read_pictures(request, base)
        request = replace(request, options=request.method.look(request.options, pictures.dataset))
        self._request = request
        plan = make_plan(
            request.name,
            request.method,
            base,
            pictures.dataset,
            request.options,
            request.folder.result,
            pictures.class_plan,
            held_out=len(pictures.held_out.samples) if pictures.held_out else 0,
            prompts=len(prompts),
        )
        if dry_run:
            return account.report(request, plan, 0, finished=False, dry_run=True)
        if request.saved is not None and request.saved.step >= plan.steps and request.folder.result.exists():
            account.notes.append(f"the run was finished already, at step {request.saved.step}")
            return account.report(request, plan, request.saved.step, finished=True)
        check_same_pictures(request, pictures)
        check_space(request.folder.folder, plan.disk_bytes)
        self._begin(plan, resume=resume)
        try:
            return self._train(base, pictures, plan, resume=resume)
        except _StoppedEarlyError:
            return account.report(request, plan, 0, finished=False)

    def _begin(self, plan: Plan, *, resume: bool) -> None:
        """Make the run's folder; from here on its length is a number of steps."""
        request = self._request
        self._processes = Processes.current(request.options.device)
        if self.is_main:
            request.folder.begin(resume=resume)
        self._processes.wait()
        self._request = replace(request, options=replace(request.options, steps=plan.steps, epochs=None))

    def _train(self, base: Base, pictures: RunPictures, plan: Plan, *, resume: bool) -> TrainReport:
        from sdkit.runtime.load import load_backbone

        request = self._request
        options = request.options
        backbone = load_backbone(base.path, prediction=options.prediction, zero_terminal_snr=options.zero_terminal_snr)
        trainer = self._prepared(base, backbone, pictures)
        states = complete_states(request.folder.states)
        first = int(states[-1].name.rpartition("-")[2]) if states and resume else 0
        interrupted, size = False, None
        with self._log(first) as log, self._board(first) as board:
            write_event(log, begun(first, plan, request.options, request.data, backbone))
            for note in (*plan.notes, *self._account.notes):
                self._watch(Note(first, note))
                write_event(log, Note(first, note))
            try:
                for event in trainer.run(resume=resume):
                    self._account.take(event)
                    self._watch(event)
                    write_event(log, event)
                    board(event)
                    interrupted = interrupted or isinstance(event, Interrupted)
                if not interrupted and self.is_main:
                    result = self._save(trainer, pictures)
                    size = written_bytes(request.folder.result)
                    for event in self._judged(result, trainer.step):
                        self._watch(event)
                        write_event(log, event)
            except SdkitError as error:
                write_event(log, Note(trainer.step, f"stopped: {error.message}"))
                raise
            finally:
                write_event(log, ended(trainer.step, self._account.seconds, backbone.device, size))
                self._make_page()
        return self._account.report(request, plan, trainer.step, finished=not interrupted)

    def _prepared(self, base: Base, backbone: Backbone, pictures: RunPictures) -> Trainer:
        """The loop, ready to run, with the pictures of the class drawn."""
        trained = make_trainables(self._request, backbone)
        for event in pictures.draw(backbone, self._processes):
            self._watch(event)
            if self._stop():
                raise _StoppedEarlyError
        return make_trainer(
            self._request,
            base,
            backbone,
            trained,
            pictures,
            self._processes,
            watch=self._watch,
            should_stop=self._stop,
        )

    def _save(self, trainer: Trainer, pictures: RunPictures) -> Result[Any]:
        """Write the result, with what it says about itself."""
        request, backbone = self._request, trainer.backbone
        path, kind = request.folder.result, request.method.modelspec
        metadata = training_metadata(request.name, path.stem, backbone, pictures.dataset, request.options, kind)
        with trainer.averaged():
            path.parent.mkdir(parents=True, exist_ok=True)
            solver = trainer.objective if isinstance(trainer.objective, Solver) else None
            result = Result(trainer.trainables, backbone, request.base, request.options, trainer.feed, solver)
            request.method.save(result, path, metadata)
        return result

    def _judged(self, result: Result[Any], step: int) -> Iterator[Event]:
        """What the method has to say of the finished run, and to show."""
        judge = self._request.method.verdict
        if judge is None:
            return
        verdict = judge(result)
        if verdict.pictures:
            yield keep_pictures(self._request.folder.samples, verdict.pictures, step)
        for note in verdict.notes:
            self._account.notes.append(note)
            yield Note(step, note)

    def _make_page(self) -> None:
        """The run's page. A run that has done its work does not fail for want of a page."""
        if not self.is_main:
            return
        try:
            report(self._request.folder.folder)
        except (SdkitError, OSError) as error:
            self._account.notes.append(f"no report: {error}")

    def _log(self, first: int) -> TextIO:
        """The log; of several processes one writes it."""
        return self._request.folder.log(first) if self.is_main else open(os.devnull, "w", encoding="utf-8")

    def _board(self, first: int) -> AbstractContextManager[Board]:
        """TensorBoard, if it is wanted."""
        folder = self._request.folder
        if not self._request.options.tensorboard or not self.is_main:
            return nullcontext(lambda event: None)
        return tensorboard(folder.board, folder.samples, first)
