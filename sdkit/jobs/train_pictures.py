"""The pictures of a run: those it trains on, those it holds out, and those of the subject's class."""

from __future__ import annotations

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
from sdkit.training.plan import Base, ClassPlan
from sdkit.training.processes import Processes

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone


@dataclass(frozen=True, slots=True)
class RunPictures:
    """What a run looks at.

    Attributes:
        dataset: what is trained on.
        held_out: what is never trained on; None without validation.
        class_plan: the pictures of the class; None without prior preservation.
        given: those of them that a person has.
        drawn: those of them that the base draws; None where it draws none.
    """

    dataset: Dataset
    held_out: Dataset | None
    class_plan: ClassPlan | None = None
    given: Sequence[Sample] = ()
    drawn: ClassPictures | None = None

    @property
    def id(self) -> str:
        """Names everything that is read; what the base draws follows from the options."""
        return replace(self.dataset, samples=(*self.dataset.samples, *self.given)).id

    @property
    def shown(self) -> tuple[Sample, ...]:
        """Everything that is trained on, once the base has drawn."""
        return (*self.dataset.samples, *self.given, *(self.drawn.samples() if self.drawn else ()))

    def draw(self, backbone: Backbone, processes: Processes) -> Iterator[Drawn]:
        """Have the base draw what is missing of its class; several processes share the work."""
        if self.drawn is None:
            return
        began = time.perf_counter()
        mine = [number for number in self.drawn.missing if number % processes.count == processes.rank]
        for done, _ in enumerate(self.drawn.draw(backbone, mine), 1):
            yield Drawn(0, done, len(mine), time.perf_counter() - began)
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
    """With the pictures of the class: a person's own are read, the base's are looked for."""
    prior = request.method.prior(request.options)
    if prior is None:
        return pictures
    if prior.folder is not None:
        given = given_pictures(prior.folder, prior.prompt, request.options.background)
        return replace(pictures, class_plan=ClassPlan(prior.prompt, len(given)), given=given)
    drawn = class_pictures(base, request.options, prior)
    plan = ClassPlan(prior.prompt, drawn.count, len(drawn.missing), STEPS)
    return replace(pictures, class_plan=plan, drawn=drawn)
