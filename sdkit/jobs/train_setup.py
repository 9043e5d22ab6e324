"""Putting a run together: from options, pictures and a loaded base to the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdkit.core.events import Encoding, Event
from sdkit.core.paths import cache_folder
from sdkit.jobs.samples import Samples, sample_prompts, sample_requests
from sdkit.jobs.train_pictures import RunPictures
from sdkit.jobs.train_request import TrainRequest
from sdkit.training.plan import Base, buckets
from sdkit.training.processes import Processes

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.training.batch import Objective
    from sdkit.training.feed import Feed
    from sdkit.training.solver import Solver
    from sdkit.training.trainable import Trainable
    from sdkit.training.trainer import LoopSettings, Trainer
    from sdkit.training.updates import Updater


def make_trainables(request: TrainRequest, backbone: Backbone) -> list[Trainable]:
    """What trains, made while the base is as it was loaded; then both go to the run's device, the base in its type."""
    from sdkit.runtime.precision import compute_type, find_device
    from sdkit.runtime.rng import StepRNG

    options = request.options
    device = find_device(options.device)
    trained = request.method.trainables(backbone, options, StepRNG(options.seed))
    backbone.to(device, compute_type(options.precision, device))
    for trainable in trained:
        for parameter in trainable.parameters.values():
            parameter.data = parameter.data.to(device)
    return trained


def make_trainer(
    request: TrainRequest,
    base: Base,
    backbone: Backbone,
    trained: list[Trainable],
    pictures: RunPictures,
    processes: Processes,
    *,
    watch: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> Trainer:
    """The loop of a run, with everything encoded that can be kept."""
    from sdkit.training.trainer import Trainer

    options, method = request.options, request.method
    objective: Objective | Solver = method.objective(options)
    feed = _feed(request, base, backbone, trained, pictures, processes, objective, watch)
    if options.checkpointing:
        backbone.unet.enable_gradient_checkpointing()
        backbone.unet.train()
    if options.compile:
        backbone.compile(method.component)
    return Trainer(
        backbone,
        trained,
        objective,
        feed,
        _updater(request, backbone, trained, processes),
        _loop(request, backbone, pictures),
        request.folder.states,
        validate=_validation(request, base, backbone, feed, pictures),
        sample=_samples(request, backbone),
        should_stop=should_stop,
        processes=processes,
    )


def _feed(
    request: TrainRequest,
    base: Base,
    backbone: Backbone,
    trained: list[Trainable],
    pictures: RunPictures,
    processes: Processes,
    objective: Objective | Solver,
    watch: Callable[[Event], None],
) -> Feed:
    """The run's batches; several processes share the encoding."""
    from sdkit.training.cache import TensorCache
    from sdkit.training.feed import Feed, FeedSettings

    options = request.options
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
    feed = Feed(pictures.shown, backbone, cache, settings, objective.inputs, keep_text=keep_text)
    feed.prepare(
        lambda done, total: watch(Encoding(0, done, total)),
        rank=processes.rank,
        world=processes.count,
    )
    processes.wait()
    return feed


def _updater(request: TrainRequest, backbone: Backbone, trained: list[Trainable], processes: Processes) -> Updater:
    from sdkit.training.optimizers import lr_factor
    from sdkit.training.piecewise import make_updater

    options = request.options
    return make_updater(
        trained,
        options,
        lr_factor(options.schedule, options.warmup, options.steps),
        backbone.device,
        backbone.dtype,
        processes,
    )


def _loop(request: TrainRequest, backbone: Backbone, pictures: RunPictures) -> LoopSettings:
    """How long the loop runs, and what its states say of the run."""
    from sdkit.training.trainer import LoopSettings

    options = request.options
    return LoopSettings(
        options.steps,
        options.seed,
        options.accumulate,
        options.save_every,
        options.keep_states,
        options.validate_every,
        options.sample_every,
        saved={
            "method": request.name,
            "base": backbone.base_id,
            "base_name": backbone.base_name,
            "data": pictures.id,
            "options": options.as_dict(),
        },
    )


def _validation(
    request: TrainRequest, base: Base, backbone: Backbone, feed: Feed, pictures: RunPictures
) -> Callable[[], Any] | None:
    """Gives the losses of the held-out pictures."""
    from sdkit.training.buckets import nearest_size

    if pictures.held_out is None:
        return None
    sizes = buckets(base, request.options)
    among = pictures.held_out.samples
    held_out = [feed.held_out(sample, nearest_size(sample.size, sizes), among) for sample in among]
    losses = request.method.held_out(request.options)
    return lambda: losses(backbone, held_out)


def _samples(request: TrainRequest, backbone: Backbone) -> Samples | None:
    prompts = sample_prompts(request.options.sample)
    if not prompts:
        return None
    return Samples(backbone, sample_requests(prompts, request.options, backbone), request.folder.samples)
