"""What long work says while it runs: plain records, one after the other, that become lines of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a step. The step counts finished steps.

    Attributes:
        step: steps finished when it happened.
    """

    step: int

    @property
    def name(self) -> str:
        """``step``, ``saved``, …: the class's name in small letters."""
        return type(self).__name__.lower()

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: those become null."""
        fields = {key: _plain(value) for key, value in asdict(self).items()}
        return {"event": self.name, **fields}


@dataclass(frozen=True, slots=True)
class Begun(Event):
    """A process takes up a run: what a log must say of it so that a report needs nothing else.

    Attributes:
        plan: the run's plan, as the report of a dry run shows it; files by their names alone.
        options: key → value of everything the method takes.
        changed: those keys that are not as the method has them by itself.
        data: the name of the folder of pictures.
        device: what is computed on, and in which type.
        versions: package → version.
    """

    plan: dict[str, Any]
    options: dict[str, Any]
    changed: dict[str, Any]
    data: str
    device: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Encoding(Event):
    """Pictures and captions are encoded before the first step, or found encoded.

    Attributes:
        done: pictures that are.
        total: of this process.
    """

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The loop begins, or goes on.

    Attributes:
        steps: where it ends.
    """

    steps: int


@dataclass(frozen=True, slots=True)
class Drawn(Event):
    """Before the first step, a picture of the class was drawn.

    Attributes:
        pictures: how many are drawn by now.
        of: how many had to be.
        seconds: wall time so far.
    """

    pictures: int
    of: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step(Event):
    """A training step is finished.

    Attributes:
        loss: mean over the batch.
        parts: what the loss is made of, where it has parts.
        lr: learning rate of the first parameter group.
        grad_norm: before clipping.
        seconds: wall time of the step.
        skipped: the gradient was no finite number, so the parameters stayed as they were.
    """

    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Validation(Event):
    """The loss on held-out pictures, at fixed noise and timesteps.

    Attributes:
        loss: mean over all pairs.
        base: the same with the untrained base; None where it was not asked for.
        pairs: number of (picture, noise, timestep) pairs.
        fall: 95 % interval of base minus loss, over the pairs; None at the start.
    """

    loss: float
    base: float | None
    pairs: int
    fall: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Sampled(Event):
    """Pictures were drawn, one a prompt.

    Attributes:
        prompts: what they should show.
        files: their names in the run's folder of samples.
        seeds: what their noise follows from.
    """

    prompts: tuple[str, ...]
    files: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """The state was saved."""

    path: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """A saved state was loaded; at step 0 there was none."""

    path: str | None

    @property
    def text(self) -> str:
        """The same in words."""
        return f"resumed at step {self.step}" if self.path else "nothing is saved yet: starting at step 0"


@dataclass(frozen=True, slots=True)
class Note(Event):
    """Something a person should know."""

    text: str


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """The loss stayed NaN, so an earlier state was taken up again, with a smaller learning rate."""

    to_step: int
    lr_scale: float


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The state could not be saved; the run waits, and tries again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted(Event):
    """The run was asked to stop; its state is saved."""

    path: str


@dataclass(frozen=True, slots=True)
class Drawing(Event):
    """A step of drawing pictures is finished; the steps of all pictures count.

    Attributes:
        steps: where it ends.
    """

    steps: int


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """All steps are done."""


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The process has done what it could: what that took.

    Attributes:
        seconds: wall time of the process's work, loading and saving included.
        memory_mib: largest resident memory; None where the system does not tell.
        device_memory_mib: largest memory on an accelerator; None without one.
        output_bytes: size of the result; None when there is none yet.
    """

    seconds: float
    memory_mib: float | None
    device_memory_mib: float | None
    output_bytes: int | None


def event_of(record: Mapping[str, Any]) -> Event | None:
    """The event that a record was made from by `as_dict`; None where there is no such event (any more)."""
    kinds = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}
    kind = kinds.get(str(record.get("event")))
    try:
        return None if kind is None else kind(**{key: value for key, value in record.items() if key != "event"})
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
