"""The pictures of a run: those it trains on, those it holds out, and those of the subject's class."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.core.events import Drawn
from sdkit.jobs.class_pictures import STEPS, ClassPictures, class_pictures, given_pictures
from sdkit.jobs.train_request import TrainRequest
from sdkit.training.data import Dataset, Sample, split_dataset
from sdkit.training.method import Prior
from sdkit.training.plan import Base, ClassPlan, pictures_shown
from sdkit.training.processes import Processes

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone


@dataclass(frozen=True, slots=True)
class RunPictures:
    """What a run looks at.

    Attributes:
        dataset: what is trained on.
        held_out: what is never trained on; None without validation.
        class_plan: the pictures of the classes; None without prior preservation.
        given: those of them that a person has.
        drawn: those of them that the base draws, by class.
    """

    dataset: Dataset
    held_out: Dataset | None
    class_plan: ClassPlan | None = None
    given: Sequence[Sample] = ()
    drawn: Sequence[ClassPictures] = ()

    @property
    def id(self) -> str:
        """Names everything that is read; what the base draws follows from the options."""
        return replace(self.dataset, samples=(*self.dataset.samples, *self.given)).id

    @property
    def shown(self) -> tuple[Sample, ...]:
        """Everything that is trained on, once the base has drawn."""
        return (*self.dataset.samples, *self.given, *(sample for one in self.drawn for sample in one.samples()))

    def draw(self, backbone: Backbone, processes: Processes) -> Iterator[Drawn]:
        """Have the base draw what is missing of its class; several processes share the work."""
        if not self.drawn:
            return
        began, done = time.perf_counter(), 0
        missing = [(one, [number for number in one.missing if processes.has(number)]) for one in self.drawn]
        for one, mine in missing:
            for _ in one.draw(backbone, mine):
                done += 1
                yield Drawn(0, done, sum(len(numbers) for _, numbers in missing), time.perf_counter() - began)
        processes.wait()


def read_pictures(request: TrainRequest, base: Base) -> RunPictures:
    """Look at the pictures of a request.

    Raises:
        SdkitError: they cannot be read.
    """
    dataset, held_out = _read_data(request)
    return _with_class(RunPictures(dataset, held_out), request, base)


def check_same_pictures(request: TrainRequest, pictures: RunPictures) -> None:
    """Refuse to go on with other pictures than a run was begun with.

    Raises:
        SdkitError: they have changed.
    """
    if request.saved is not None and request.saved.settings["data"] != pictures.id:
        raise SdkitError(
            f"{request.data}: pictures or captions have changed since the run was begun",
            "restore them, or begin a new run with --force",
        )


def _read_data(request: TrainRequest) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is held out."""
    options = request.options
    share = options.held_out_share
    read: Callable[..., Dataset] = request.method.dataset
    dataset = read(request.data, options)
    if options.mask and all(sample.mask is None for sample in dataset.samples):
        raise SdkitError(f"{request.data}: mask={options.mask}: no picture has a mask", "leave mask= out")
    if share is not None:
        return split_dataset(dataset, share)
    if not options.validation:
        return dataset, None
    beside = options.mask if options.mask in ("alpha", "files") else ""  # a folder is of the run's own pictures
    return dataset, read(Path(options.validation), replace(options, strict=False, mask=beside))


def _with_class(pictures: RunPictures, request: TrainRequest, base: Base) -> RunPictures:
    """With the pictures of the classes: a person's own are read, the base's are looked for."""
    priors: Sequence[Prior] = request.method.prior(request.options)
    if not priors:
        return pictures
    shown = math.ceil(pictures_shown(base, pictures.dataset, request.options) / len(priors))
    given: list[Sample] = []
    drawn: list[ClassPictures] = []
    for prior in priors:
        if prior.folder is not None:
            given += given_pictures(prior.folder, prior.prompt, request.options.background)
        else:
            drawn.append(class_pictures(base, request.options, prior, shown))
    plan = ClassPlan(
        " | ".join(prior.prompt for prior in priors),
        len(given) + sum(one.count for one in drawn),
        sum(len(one.missing) for one in drawn),
        STEPS if drawn else 0,
    )
    return replace(pictures, class_plan=plan, given=given, drawn=drawn)
