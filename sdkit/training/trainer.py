"""The one loop. It yields events; what trains, on what, and towards what is given to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.core.events import (
    Event,
    Finished,
    Interrupted,
    Paused,
    Resumed,
    RolledBack,
    Saved,
    Started,
    Step,
    Validation,
)
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.losses import fall_interval
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Loss, Objective
from sdkit.training.feed import Feed
from sdkit.training.processes import Processes
from sdkit.training.solver import Solved, Solver
from sdkit.training.space import is_full
from sdkit.training.state import RunState, load_newest
from sdkit.training.trainable import Trainable
from sdkit.training.updates import Update, Updater

if TYPE_CHECKING:
    import torch

MAX_SKIPS = 5  # steps in a row without a finite gradient, before an earlier state is taken up
MAX_ROLLBACKS = 3
LOG_EVERY = 10  # steps between looks at an accelerator's results, because each look waits for it
PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long the loop runs, and what it does now and then.

    Attributes:
        steps: optimizer steps in all.
        seed: all randomness follows from it.
        accumulate: batches in a step.
        save_every: steps between saved states; 0 saves only first and last.
        keep_states: how many saved states stay.
        validate_every: steps between validations; 0 validates only before and after.
        sample_every: steps between samples; 0 draws only before and after.
        saved: what is written into states, so that a resume can be checked against it.
    """

    steps: int
    seed: int
    accumulate: int
    save_every: int
    keep_states: int
    validate_every: int
    sample_every: int
    saved: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Pending:
    """Results of a step that may still be on the device."""

    step: int
    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    update: Update
    seconds: float


class Trainer:
    """One run.

    Args:
        backbone: on its device, in its type.
        trainables: what trains.
        objective: what is minimised, or what makes each step itself.
        feed: gives batches.
        updater: turns gradients into steps.
        settings: see `LoopSettings`.
        folder: where states are saved.
        validate: gives the held-out losses of the model as it is, [pictures, pairs]; None without held-out pictures.
        sample: draws what the model draws after so many steps, and says so; None without samples.
        should_stop: asked after every step.
        processes: this process among several.
    """

    def __init__(
        self,
        backbone: Backbone,
        trainables: Sequence[Trainable],
        objective: Objective | Solver,
        feed: Feed,
        updater: Updater,
        settings: LoopSettings,
        folder: Path,
        *,
        validate: Callable[[], torch.Tensor] | None = None,
        sample: Callable[[int], Event] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
    ) -> None:
        self.backbone = backbone
        self.trainables = trainables
        self.updater = updater
        self.settings = settings
        self.folder = folder
        self.step = 0
        self.objective = objective
        self.feed = feed
        self._validate = validate
        self._sample = sample
        self._should_stop = should_stop
        self._processes = processes or Processes()
        self._attempt = 0
        self._skips = 0
        self._first_validation: torch.Tensor | None = None
        self._pending: list[_Pending] = []

    def run(self, *, resume: bool = False) -> Iterator[Event]:
        """Train until the last step, or until asked to stop; the state is saved either way.

        Raises:
            SdkitError: the loss stayed NaN in spite of everything; the newest sound state is saved.
        """
        with self._live():
            if resume:
                yield self._resume()
            yield Started(self.step, self.settings.steps)
            if self.step == 0:
                yield from self._validation()
                yield from self._save()
                yield from self._samples()
            while self.step < self.settings.steps:
                self._one_step()
                yield from self._after_step()
                if self.step < self.settings.steps and self._asked_to_stop():
                    yield from self._look()
                    yield from self._save()
                    yield Interrupted(self.step, str(self.folder))
                    return
            yield Finished(self.step)

    def _asked_to_stop(self) -> bool:
        """Whether to stop here. Several processes stop at one step; they agree seldom, because it makes them wait."""
        if self._processes.count > 1 and self.step % LOG_EVERY:
            return False
        return self._processes.any(self._should_stop(), self.backbone.device)

    @contextmanager
    def _live(self) -> Iterator[None]:
        with ExitStack() as stack:
            for trainable in self.trainables:
                stack.enter_context(trainable.install(self.backbone))
            yield

    def averaged(self) -> AbstractContextManager[None]:
        """Put the moving averages in the places of the parameters, where there are any, to save the result."""
        return self.updater.averaged()

    def _one_step(self) -> None:
        import torch

        began = time.perf_counter()
        rng = StepRNG(self.settings.seed, self.step, self._attempt)
        torch.manual_seed(rng.integer(1 << 62, "torch"))  # for dropout, the only draw that is not ours
        done = self._solved(self.objective) if isinstance(self.objective, Solver) else self._descended(self.objective)
        self.step += 1
        seconds = time.perf_counter() - began
        self._pending.append(_Pending(self.step, done.loss.value, done.loss.parts, done.update, seconds))

    def _solved(self, solver: Solver) -> Solved:
        """A step that a method makes itself."""
        rng = StepRNG(self.settings.seed, self.step, self._attempt)
        batch = self.feed.batch(self.step, rng)
        return solver.solve(self.backbone, self.trainables, batch, self.step)

    def _descended(self, objective: Objective) -> Solved:
        """A step of the optimizer along the gradients of the step's batches."""
        import torch

        self.updater.begin(StepRNG(self.settings.seed, self.step, self._attempt))
        losses = [self._backward(objective, index) for index in self._batches()]
        total = torch.stack([loss.value.detach() for loss in losses]).mean()
        return Solved(Loss(total, losses[-1].parts), self.updater.apply())

    def _batches(self) -> range:
        first = self.step * self.settings.accumulate
        return range(first, first + self.settings.accumulate)

    def _backward(self, objective: Objective, index: int) -> Loss:
        """Add the gradients of one batch."""
        rng = StepRNG(self.settings.seed, index, self._attempt)
        with self.updater.autocast():
            batch = self.feed.batch(index, rng, self._processes.rank, self._processes.count)
            loss = objective(self.backbone, batch, rng)
        self.updater.backward(loss.value * (batch.share / self.settings.accumulate))
        return loss

    def _after_step(self) -> Iterator[Event]:
        """Report, validate, save and sample when due."""
        last = self.step == self.settings.steps
        sample = self._sample is not None and (last or _due(self.step, self.settings.sample_every))
        save = last or sample or _due(self.step, self.settings.save_every)  # drawing takes memory: save before it
        validate = last or _due(self.step, self.settings.validate_every)
        if save or validate or self.backbone.device.type == "cpu" or len(self._pending) >= LOG_EVERY:
            before = self.step
            yield from self._look()
            if self.step != before:  # rolled back
                return
        if validate:
            yield from self._validation()
        if save:
            yield from self._save()
        if sample:
            yield from self._samples()

    def _look(self) -> Iterator[Event]:
        """Fetch the results of the steps since the last look, in one transfer, and see whether all is well."""
        import torch

        pending, self._pending = self._pending, []
        if not pending:
            return
        numbers = torch.stack([torch.stack([entry.loss.float(), entry.update.grad_norm.float()]) for entry in pending])
        for entry, (loss, norm) in zip(pending, numbers.tolist(), strict=True):
            skipped = norm - norm != 0  # NaN or infinite
            self._skips = self._skips + 1 if skipped else 0
            parts = {name: float(value) for name, value in entry.parts.items()}
            yield Step(entry.step, loss, parts, entry.update.lr, norm, entry.seconds, skipped)
        if self._skips >= MAX_SKIPS * (4 if self.updater.scaled else 1):  # fp16 skips while it looks for its scale
            yield self._roll_back()

    def _roll_back(self) -> Event:
        """Take up the newest saved state with half the learning rate and other randomness."""
        found = load_newest(self.folder)
        if found is None or self._attempt >= MAX_ROLLBACKS:
            where = f"; the state of step {found[1].step} is saved in {found[0]}" if found else ""
            raise SdkitError(
                f"the loss is no number any more, at step {self.step}, after {self._attempt} roll-backs{where}",
                "resume with a smaller lr=, or with precision=fp32",
            )
        attempt = self._attempt + 1
        scale = 0.5**attempt
        failed_at = self.step
        self._restore(found[1])
        self._attempt, self.updater.lr_scale = attempt, scale
        self._skips = 0
        return RolledBack(failed_at, found[1].step, scale)

    def _validation(self) -> Iterator[Event]:
        if self._validate is None or not self._processes.is_main:
            return
        with self.updater.settled(), self.updater.autocast():
            losses = self._validate()
        if self._first_validation is None:
            self._first_validation = losses
        first = self._first_validation
        fall = fall_interval(first, losses) if self.step else None
        yield Validation(self.step, _mean(losses), _mean(first), losses.numel(), fall)

    def _samples(self) -> Iterator[Event]:
        """Draw with what would be saved as the result now."""
        if self._sample is None or not self._processes.is_main:
            return
        with self.updater.averaged(), self.updater.autocast():
            event = self._sample(self.step)
        yield event

    def _save(self) -> Iterator[Event]:
        """Save the state; while the disk is full, wait with everything kept in memory."""
        if not self._processes.is_main:
            return
        while True:
            try:
                path = self._state().save(self.folder, self.settings.keep_states)
            except (SdkitError, OSError) as error:
                if not is_full(error, self.folder, self.updater.state_bytes) or self._should_stop():
                    raise
                yield Paused(self.step, f"{error}; free some space, or stop with Ctrl-C")
                time.sleep(PAUSE_SECONDS)
            else:
                yield Saved(self.step, str(path))
                return

    def _state(self) -> RunState:
        contents: dict[str, Any] = {"updater": self.updater.state(), "skips": self._skips}
        contents["first_validation"] = self._first_validation
        if isinstance(self.objective, Solver):
            contents["solver"] = self.objective.state()
        return RunState(self.step, self._attempt, self.updater.lr_scale, self.settings.saved, contents)

    def _resume(self) -> Event:
        found = load_newest(self.folder)
        if found is None:
            return Resumed(0, None)
        self._restore(found[1])
        return Resumed(self.step, str(found[0]))

    def _restore(self, state: RunState) -> None:
        self.step, self._attempt, self.updater.lr_scale = state.step, state.attempt, state.lr_scale
        self._first_validation, self._skips = state.contents["first_validation"], state.contents["skips"]
        self.updater.load(state.contents["updater"])
        if isinstance(self.objective, Solver):
            self.objective.load(state.contents["solver"], self.backbone)


def _mean(losses: torch.Tensor) -> float:
    return float(losses.double().mean())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
