"""Training: from a request to a plan, and from a plan to a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Drawn, Encoding, Event, Interrupted, Note, Resumed, Step, Validation
from sdkit.core.hashing import quick_id
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import cache_folder
from sdkit.core.report import Report
from sdkit.families.bases import resolve_base
from sdkit.jobs.class_pictures import STEPS, ClassPictures, class_pictures, given_pictures
from sdkit.jobs.record import recorded
from sdkit.jobs.report import report
from sdkit.jobs.run_facts import begun, ended, written_bytes
from sdkit.jobs.samples import Samples, sample_prompts, sample_requests
from sdkit.jobs.stop import StopRequest
from sdkit.report.tensorboard import Board, check_tensorboard, tensorboard
from sdkit.training.data import Dataset, Sample, split_dataset
from sdkit.training.folder import RunFolder, write_event
from sdkit.training.metadata import training_metadata
from sdkit.training.method import Method, Result, load_method
from sdkit.training.options import TrainOptions, keys, spelled
from sdkit.training.plan import Base, ClassPlan, Plan, buckets, look_at_base, make_plan
from sdkit.training.processes import Processes
from sdkit.training.state import RunState, complete_states, load_newest
from sdkit.weights.atomic import check_space

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.training.feed import Feed
    from sdkit.training.trainable import Trainable
    from sdkit.training.trainer import Trainer
    from sdkit.training.updates import Updater

PathLike = str | os.PathLike[str]
Watch = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class TrainReport(Report):
    """What a run did, or with `dry_run` would do.

    Attributes:
        output: the file.
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


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of `train`, checked as far as it can be without looking at files."""

    name: str
    method: Method[Any]
    base: Path
    data: Path
    folder: RunFolder
    options: TrainOptions
    given: Mapping[str, Any]
    output: Path


def train(
    method: str,
    base: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
    should_stop: StopRequest | None = None,
    **options: Any,
) -> TrainReport:
    """Train an adapter.

    Args:
        method: its name: ``lora``.
        base: a diffusers folder or a checkpoint, or ``tiny``.
        data: a folder of pictures with captions.
        output: a folder, or a file beside which the rest goes; default ``runs/DATA-METHOD``.
        resume: continue from the newest saved state; with nothing saved, begin; finished, do nothing.
        force: replace what an earlier run left in `output`.
        dry_run: stop after the plan.
        watch: called with every event.
        should_stop: asked after every step; when it says so, the state is saved and the run ends.
        options: keys of the method, see `sdkit.training.options`.

    Raises:
        SdkitError: whatever is wrong, most of it before the base is loaded.
    """
    name, kind = load_method(method)
    found = resolve_base(base)
    target = Path(output) if output is not None else Path("runs") / f"{Path(data).absolute().name}-{name}"
    saved = RunFolder.saved(target) if resume else None
    same = saved is not None and saved.settings["method"] == name
    kind, parsed = kind.resolve(name, options, saved.settings["options"] if saved and same else None)
    suffix = kind.suffix(parsed)
    if suffix is None:
        suffix = "" if found.is_dir() else ".safetensors"
    folder = RunFolder.of(target, suffix)
    settled = kind.settle(parsed, folder.result.stem)
    request = _Request(name, kind, found, Path(data), folder, settled, dict(options), target)
    run = _Run(request, watch or (lambda event: None), should_stop or StopRequest())
    report = run.go(resume=resume, force=force, dry_run=dry_run)
    return recorded(report, [base]) if run.is_main else report


class _StoppedEarlyError(Exception):
    """The run was asked to stop before its first step."""


class _Run:
    """One run, from the request to the report."""

    def __init__(self, request: _Request, watch: Watch, stop: StopRequest) -> None:
        self._began = time.perf_counter()
        self._request = request
        self._watch = watch
        self._stop = stop
        self._losses: list[float] = []
        self._validations: list[Validation] = []
        self._notes: list[str] = []
        self._held_out: Dataset | None = None
        self._class_pictures: ClassPictures | None = None
        self._priors: list[Sample] = []
        self._processes = Processes()

    @property
    def is_main(self) -> bool:
        """Whether this process, of several, is the one that writes."""
        return self._processes.is_main

    def go(self, *, resume: bool, force: bool, dry_run: bool) -> TrainReport:
        request = self._request
        sample_prompts(request.options.sample)
        if request.options.tensorboard:
            check_tensorboard()
        if not dry_run:
            request.folder.check(resume=resume, force=force)
        base = look_at_base(request.base)
        options, done = self._resumed_options() if resume else (request.options, None)
        dataset, self._held_out = self._read_data(options)
        prior = self._plan_class(base, options)
        plan = make_plan(request.name, request.method, base, dataset, options, request.folder.result, prior)
        if dry_run:
            return self._report(plan, 0, finished=False, dry_run=True)
        if done is not None and done.step >= plan.steps and request.folder.result.exists():
            self._notes.append(f"the run was finished already, at step {done.step}")
            return self._report(plan, done.step, finished=True)
        self._check_same_data(done, dataset)
        check_space(request.folder.folder, plan.disk_bytes)
        self._processes = Processes.current(request.options.device)
        if self._processes.is_main:
            request.folder.begin(resume=resume)
        self._processes.wait()
        options = replace(options, steps=plan.steps, epochs=None)
        try:
            return self._train(base, dataset, options, plan, resume=resume)
        except _StoppedEarlyError:
            return self._report(plan, 0, finished=False)

    def _resumed_options(self) -> tuple[TrainOptions, RunState | None]:
        """The saved run's options, with those given now that a resume may change."""
        request = self._request
        found = load_newest(request.folder.states)
        if found is None:
            return request.options, None
        state = found[1]
        if state.settings["method"] != request.name:
            raise UsageError(f"the saved run is {state.settings['method']}, not {request.name}")
        if state.settings["base"] != quick_id(*_files(request.base)):
            raise SdkitError("the saved run was begun on another base", f"it was {state.settings['base_name']}")
        saved = dict(state.settings["options"])
        asked = {spelled(word) for word in request.given}
        if "epochs" not in asked and "steps" in asked:
            saved.pop("epochs", None)
        _, merged = request.method.resolve(request.name, request.given, saved)
        self._note_changes(saved, merged)
        return merged, state

    def _note_changes(self, saved: Mapping[str, Any], options: TrainOptions) -> None:
        """Say what a resume changes.

        Raises:
            UsageError: it would make another run of it.
        """
        known, now = keys(type(options)), options.as_dict()
        for word, old in saved.items():
            if word in known and now[word] != old:
                if not known[word].declaration.late:
                    raise UsageError(
                        f"{word}={now[word]}: the saved run has {word}={old}",
                        "leave it out to go on, or begin a new run with --force",
                    )
                self._notes.append(f"{word} changes from {old} to {now[word]}")
        strange = [word for word in saved if word not in known]
        if strange:
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            listed = ", ".join(strange[:3])
            self._notes.append(
                f"the saved run's {listed}{more} are no options of {self._request.name}, and are left out"
            )

    def _check_same_data(self, state: RunState | None, dataset: Dataset) -> None:
        if state is not None and state.settings["data"] != self._data_id(dataset):
            raise SdkitError(
                f"{self._request.data}: pictures or captions have changed since the run was begun",
                "restore them, or begin a new run with --force",
            )

    def _data_id(self, dataset: Dataset) -> str:
        """Names everything that is read; what the base draws follows from the options."""
        given = [] if self._class_pictures else self._priors
        return replace(dataset, samples=(*dataset.samples, *given)).id

    def _train(self, base: Base, dataset: Dataset, options: TrainOptions, plan: Plan, *, resume: bool) -> TrainReport:
        from sdkit.runtime.load import load_backbone

        backbone = load_backbone(base.path, prediction=options.prediction)
        trainer, trained = self._trainer(backbone, base, dataset, options)
        states = complete_states(self._request.folder.states)
        first = int(states[-1].name.rpartition("-")[2]) if states and resume else 0
        interrupted, size = False, None
        with self._log(first) as log, self._board(first, options) as board:
            write_event(log, begun(first, plan, options, self._request.data, backbone))
            for note in (*plan.notes, *self._notes):
                write_event(log, Note(first, note))
            try:
                for event in trainer.run(resume=resume):
                    self._take(event)
                    write_event(log, event)
                    board(event)
                    interrupted = interrupted or isinstance(event, Interrupted)
                if not interrupted and self._processes.is_main:
                    self._save(Result(trained, backbone, base.path, options, trainer.feed), trainer, dataset)
                    size = written_bytes(self._request.folder.result)
            except SdkitError as error:
                write_event(log, Note(trainer.step, f"stopped: {error.message}"))
                raise
            finally:
                write_event(log, ended(trainer.step, time.perf_counter() - self._began, backbone.device, size))
                self._make_page()
        return self._report(plan, trainer.step, finished=not interrupted)

    def _save(self, result: Result[Any], trainer: Trainer, dataset: Dataset) -> None:
        metadata = self._metadata(result.backbone, result.options, dataset)
        with trainer.averaged():
            self._request.folder.result.parent.mkdir(parents=True, exist_ok=True)
            self._request.method.save(result, self._request.folder.result, metadata)

    def _make_page(self) -> None:
        """The run's page. A run that has done its work does not fail for want of a page."""
        if not self._processes.is_main:
            return
        try:
            report(self._request.folder.folder)
        except (SdkitError, OSError) as error:
            self._notes.append(f"no report: {error}")

    def _log(self, first: int) -> TextIO:
        """The log; of several processes one writes it."""
        return self._request.folder.log(first) if self._processes.is_main else open(os.devnull, "w", encoding="utf-8")

    def _board(self, first: int, options: TrainOptions) -> AbstractContextManager[Board]:
        """TensorBoard, if it is wanted."""
        folder = self._request.folder
        if not options.tensorboard or not self._processes.is_main:
            return nullcontext(lambda event: None)
        return tensorboard(folder.board, folder.samples, first)

    def _trainer(
        self, backbone: Backbone, base: Base, dataset: Dataset, options: TrainOptions
    ) -> tuple[Trainer, list[Trainable]]:
        from sdkit.runtime.precision import compute_type, find_device
        from sdkit.runtime.rng import StepRNG
        from sdkit.training.trainer import LoopSettings, Trainer

        device = find_device(options.device)
        method = self._request.method
        trained = method.trainables(backbone, options, StepRNG(options.seed))
        backbone.to(device, compute_type(options.precision, device))
        self._draw_class(backbone)
        for trainable in trained:
            for parameter in trainable.parameters.values():
                parameter.data = parameter.data.to(device)
        objective = method.objective(options)
        shown = (*dataset.samples, *self._priors)
        feed = self._feed(backbone, base, shown, options, objective.inputs, trained)
        if options.checkpointing:
            backbone.unet.enable_gradient_checkpointing()
            backbone.unet.train()
        if options.compile:
            backbone.compile(method.component)
        loop = LoopSettings(
            options.steps,
            options.seed,
            options.accumulate,
            options.save_every,
            options.keep_states,
            options.validate_every,
            options.sample_every,
            self._settings(backbone, options, dataset),
        )
        trainer = Trainer(
            backbone,
            trained,
            objective,
            feed,
            self._updater(backbone, trained, options),
            loop,
            self._request.folder.states,
            validate=self._validation(backbone, feed, base, options),
            sample=self._samples(backbone, options),
            should_stop=self._stop,
            processes=self._processes,
        )
        return trainer, trained

    def _feed(
        self,
        backbone: Backbone,
        base: Base,
        samples: Sequence[Sample],
        options: TrainOptions,
        inputs: frozenset[str],
        trained: list[Trainable],
    ) -> Feed:
        """The run's batches, with everything encoded that can be kept."""
        from sdkit.training.cache import TensorCache
        from sdkit.training.feed import Feed, FeedSettings

        settings = FeedSettings(
            options.batch,
            buckets(base, options),
            options.flip,
            options.caption_dropout,
            options.background,
            options.unmasked_weight,
        )
        keep_text = not any(trainable.trains_text for trainable in trained)
        cache = TensorCache(cache_folder() / "training")
        feed = Feed(samples, backbone, cache, settings, inputs, keep_text=keep_text)
        feed.prepare(
            lambda done, total: self._watch(Encoding(0, done, total)),
            rank=self._processes.rank,
            world=self._processes.count,
        )
        self._processes.wait()
        return feed

    def _updater(self, backbone: Backbone, trained: list[Trainable], options: TrainOptions) -> Updater:
        from sdkit.training.optimizers import lr_factor, make_optimizer
        from sdkit.training.updates import Updater

        groups = [group for trainable in trained for group in trainable.groups()]
        return Updater(
            trained,
            make_optimizer(options.optimizer, groups, options.weight_decay),
            lr_factor(options.schedule, options.warmup, options.steps),
            backbone.device,
            backbone.dtype,
            max_grad_norm=options.max_grad_norm,
            ema=options.ema,
            processes=self._processes,
        )

    def _plan_class(self, base: Base, options: TrainOptions) -> ClassPlan | None:
        """The pictures of the class: a person's own are read, the base's are looked for."""
        prior = self._request.method.prior(options)
        if prior is None:
            return None
        if prior.folder is not None:
            self._priors = given_pictures(prior, options.background)
            return ClassPlan(prior.prompt, len(self._priors))
        self._class_pictures = wanted = class_pictures(base, options, prior)
        return ClassPlan(prior.prompt, wanted.count, len(wanted.missing), STEPS)

    def _draw_class(self, backbone: Backbone) -> None:
        """Have the base draw what is missing of its class; several processes share the work."""
        wanted = self._class_pictures
        if wanted is None:
            return
        began = time.perf_counter()
        mine = [number for number in wanted.missing if number % self._processes.count == self._processes.rank]
        for done, _ in enumerate(wanted.draw(backbone, mine), 1):
            self._watch(Drawn(0, done, len(mine), time.perf_counter() - began))
            if self._stop():
                raise _StoppedEarlyError
        self._processes.wait()
        self._priors = wanted.samples()

    def _read_data(self, options: TrainOptions) -> tuple[Dataset, Dataset | None]:
        """What is trained on, and what is held out."""
        share = options.held_out_share
        read = self._request.method.dataset
        dataset = read(self._request.data, options)
        if options.mask and all(sample.mask is None for sample in dataset.samples):
            raise SdkitError(f"{self._request.data}: mask={options.mask}: no picture has a mask", "leave mask= out")
        if share is not None:
            return split_dataset(dataset, share)
        if not options.validation:
            return dataset, None
        beside = options.mask if options.mask in ("alpha", "files") else ""  # a folder is of the run's own pictures
        return dataset, read(Path(options.validation), replace(options, strict=False, mask=beside))

    def _settings(self, backbone: Backbone, options: TrainOptions, dataset: Dataset) -> dict[str, Any]:
        """What a state says about its run."""
        return {
            "method": self._request.name,
            "base": backbone.base_id,
            "base_name": backbone.base_name,
            "data": self._data_id(dataset),
            "options": options.as_dict(),
        }

    def _validation(
        self, backbone: Backbone, feed: Feed, base: Base, options: TrainOptions
    ) -> Callable[[], Any] | None:
        if self._held_out is None:
            return None
        from sdkit.training.buckets import nearest_size

        sizes = buckets(base, options)
        pictures = []
        for sample in self._held_out.samples:
            size = nearest_size(sample.size, sizes)
            pictures.append(feed.held_out(sample, size))
        return lambda: self._request.method.held_out(backbone, pictures)

    def _samples(self, backbone: Backbone, options: TrainOptions) -> Samples | None:
        prompts = sample_prompts(options.sample)
        if not prompts:
            return None
        return Samples(backbone, sample_requests(prompts, options, backbone), self._request.folder.samples)

    def _metadata(self, backbone: Backbone, options: TrainOptions, dataset: Dataset) -> dict[str, str]:
        request = self._request
        name = request.folder.result.stem
        return training_metadata(request.name, name, backbone, dataset, options, request.method.modelspec)

    def _take(self, event: Event) -> None:
        if isinstance(event, Step):
            self._losses.append(event.loss)
        elif isinstance(event, Validation):
            self._validations.append(event)
        elif isinstance(event, Resumed):
            where = f"resumed at step {event.step}" if event.path else "nothing is saved yet: starting at step 0"
            self._notes.append(where)
        self._watch(event)

    def _report(self, plan: Plan, step: int, *, finished: bool, dry_run: bool = False) -> TrainReport:
        request = self._request
        last = self._losses[-100:]
        result = request.folder.result
        return TrainReport(
            output=str(result),
            plan=plan,
            step=step,
            finished=finished,
            loss=sum(last) / len(last) if last else None,
            validation=self._validations[-1].loss if self._validations else None,
            validation_before=self._validations[-1].base if self._validations else None,
            validation_fall=self._validations[-1].fall if self._validations else None,
            parameters=plan.parameters,
            output_bytes=written_bytes(result) if finished and result.exists() else plan.output_bytes,
            seconds=time.perf_counter() - self._began,
            peak_memory_mib=peak_memory_mib(),
            resume="" if finished or dry_run else self._resume_line(),
            notes=(*plan.notes, *self._notes),
            dry_run=dry_run,
        )

    def _resume_line(self) -> str:
        import shlex

        request = self._request
        words = ["sdkit", "train", request.name, "--base", str(request.base), "--data", str(request.data)]
        words += ["-o", str(request.output), "--resume"]
        if not complete_states(request.folder.states):  # nothing is saved that would know the options
            words += [f"{spelled(key)}={value}" for key, value in request.given.items()]
        return shlex.join(words)


def _files(base: Path) -> tuple[Path, ...]:
    from sdkit.weights import open_weights

    with open_weights(base) as weights:
        return weights.files
