"""The plan of a run: what is there, what will be done, and what it will cost, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.runtime.load import Configs, backbone_class, base_configs, component_names
from sdkit.runtime.losses import PAIRS
from sdkit.training.audit import audit_captions, audit_pictures
from sdkit.training.buckets import Size, bucket_sizes, nearest_size
from sdkit.training.data import Dataset
from sdkit.training.feed import batches_per_epoch
from sdkit.training.identifier import base_tokenizer
from sdkit.training.method import Method
from sdkit.training.optimizers import find_optimizer, optimizer_bytes
from sdkit.training.options import TrainOptions
from sdkit.weights import open_weights

FIXED_BYTES = 700 << 20  # Python, torch, diffusers and transformers themselves
SHOWN = 3
_WEIGHT_BYTES = {"fp32": 4, "bf16": 2}
GUIDED = 2  # passes of a sampler's step: with and without the prompt


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of a base before it is loaded.

    Attributes:
        path: the file or folder.
        model: what its header says.
        configs: its components' configurations.
        bytes: size of its components in float32.
    """

    path: Path
    model: Model
    configs: Configs
    bytes: int

    @property
    def pixels_per_latent(self) -> int:
        """Width of a latent's pixel in pixels of the picture."""
        return 1 << (len(self.configs["vae"]["block_out_channels"]) - 1)

    @property
    def size_step(self) -> int:
        """What a picture's sides must be multiples of."""
        return self.pixels_per_latent << (len(self.configs["unet"]["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """The side of the squares it was trained on."""
        return int(self.configs["unet"]["sample_size"]) * self.pixels_per_latent


def look_at_base(path: Path) -> Base:
    """Read a base's header.

    Raises:
        SdkitError: it is no base that can be trained on.
    """
    with open_weights(path) as weights:
        model = identify(weights)
        backbone_class(weights.path, model)
        names = component_names(model)
        configs = base_configs(weights, model)
        missing = [name for name in names if name not in configs]
        if missing:
            raise SdkitError(f"{path}: {missing[0]}/config.json is missing", "download the folder again")
        if configs["unet"]["in_channels"] != configs["vae"]["latent_channels"]:
            raise SdkitError(
                f"{path}: {model.variant} models cannot be trained yet", "use a base that is given latents alone"
            )
        count = sum(math.prod(place.shape) for name, place in model.places.items() if name.split(".")[0] in names)
        return Base(path, model, configs, 4 * count)


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """The pictures of the class, for prior preservation.

    Attributes:
        prompt: what they show.
        pictures: how many there will be.
        to_draw: how many of them the base must draw first.
        steps: of the sampler.
        seconds: estimate of the wall time of drawing.
    """

    prompt: str
    pictures: int
    to_draw: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan(Report):
    """What a run will be.

    Attributes:
        method: its name.
        base: the base's name.
        family: the base's family.
        output: the file that will be written.
        pictures: usable pictures.
        caption_sources: how many captions come from where.
        examples: the first pictures' names and captions.
        quarantined: file name → why it is left out.
        buckets: size → pictures.
        parameters: numbers trained.
        modules: modules they belong to.
        steps: optimizer steps.
        epochs: passes over the pictures.
        batch: pictures in a step, over all batches of it.
        output_bytes: of the result.
        disk_bytes: of the result and the states.
        memory_bytes: estimate of the peak.
        seconds: estimate of the wall time.
        class_pictures: the pictures of the class; None without prior preservation.
        notes: facts a person should see.
    """

    method: str
    base: str
    family: str
    output: str
    pictures: int
    caption_sources: dict[str, int]
    examples: dict[str, str]
    quarantined: dict[str, str]
    buckets: dict[str, int]
    parameters: int
    modules: int
    steps: int
    epochs: float
    batch: int
    output_bytes: int
    disk_bytes: int
    memory_bytes: int
    seconds: float
    class_pictures: ClassPlan | None
    notes: tuple[str, ...]


def make_plan(
    name: str,
    method: Method[Any],
    base: Base,
    dataset: Dataset,
    options: TrainOptions,
    output: Path,
    prior: ClassPlan | None = None,
    *,
    held_out: int = 0,
    prompts: int = 0,
) -> Plan:
    """The plan of a run, checked.

    Args:
        prior: the pictures of the class, where there will be any; their time is estimated here.
        held_out: pictures of the held-out loss.
        prompts: samples that are drawn each time.

    Raises:
        SdkitError: an option cannot be met: fewer steps than warm-up, an optimizer that is not there, a resolution
            below what the base can do.
    """
    sizes = buckets(base, options)
    groups = _grouped(dataset, sizes)
    per_epoch = _steps_per_epoch(groups, options)
    steps = steps_of(options, per_epoch)
    find_optimizer(options.optimizer)
    _check_schedule(base, options)
    check_memory_options(options)
    size = method.size(base.model, options)
    state = _state_bytes(options, size.parameters)
    shown = options.batch * (2 if prior else 1)  # as many of the class
    estimate = _estimate(base, method, options, sizes, shown, size.modules)
    if prior is not None:
        prior = replace(prior, seconds=GUIDED * estimate.forward_seconds * prior.steps * prior.to_draw)
    encoded = len(dataset.samples) * (1 + options.flip) + held_out + (prior.pictures if prior else 0)
    looks = estimate.forward_seconds * _looks(method, options, steps, held_out, prompts)
    return Plan(
        method=name,
        base=base.path.name,
        family=base.model.family,
        output=str(output),
        pictures=len(dataset.samples),
        caption_sources=dataset.caption_sources,
        examples={sample.path.name: sample.caption for sample in dataset.samples[:SHOWN]},
        quarantined=dataset.quarantined,
        buckets={f"{width}x{height}": count for (width, height), count in groups.items()},
        parameters=size.parameters,
        modules=size.modules,
        steps=steps,
        epochs=round(steps / per_epoch, 2),
        batch=options.batch * options.accumulate,
        output_bytes=size.output_bytes,
        disk_bytes=size.output_bytes + (options.keep_states + 1) * state,
        memory_bytes=estimate.memory_bytes + state + _gradient_bytes(options, size.parameters),
        seconds=estimate.step_seconds * steps
        + estimate.encode_seconds * encoded
        + looks
        + (prior.seconds if prior else 0.0),
        class_pictures=prior,
        notes=(
            *_notes(dataset),
            *_advice(method, base, dataset, options, sizes),
            *size.notes,
            *method.notes(base, dataset, options),
        ),
    )


def _advice(method: Method[Any], base: Base, dataset: Dataset, options: TrainOptions, sizes: list[Size]) -> list[str]:
    """What is doubtful about the pictures, and about the captions of methods that read them."""
    if method.verdict is not None:  # such a method takes the picture it is given as it is, and judges it by itself
        return []
    notes = audit_pictures(dataset.samples, sizes, options.background)
    if method.component == "unet":
        text = base.configs["text_encoder"]
        tokenizer, length = base_tokenizer(base.path, text), int(text["max_position_embeddings"])
        notes += audit_captions(dataset.samples, getattr(options, "token", ""), tokenizer, length)
    return notes


def buckets(base: Base, options: TrainOptions) -> list[Size]:
    """The sizes pictures are brought to.

    Raises:
        UsageError: the resolution is smaller than the base's smallest picture.
    """
    resolution = options.resolution or base.resolution
    if resolution < base.size_step:
        raise UsageError(f"resolution={resolution}: this base needs at least {base.size_step}")
    return bucket_sizes(resolution, base.size_step)


def steps_of(options: TrainOptions, steps_per_epoch: float) -> int:
    """Optimizer steps, from `steps` or from `epochs`.

    Raises:
        UsageError: there are fewer than the learning rate needs to warm up.
    """
    steps = options.steps
    if options.epochs is not None:
        steps = max(1, math.ceil(options.epochs * steps_per_epoch))
    if options.warmup > steps:
        raise UsageError(f"{steps} steps are fewer than warmup={options.warmup}", "train longer, or warm up for less")
    return steps


def pictures_shown(base: Base, dataset: Dataset, options: TrainOptions) -> int:
    """How often a run shows a picture of its own, and as often one of the class.

    Raises:
        UsageError: as `buckets` and `steps_of`.
    """
    per_epoch = _steps_per_epoch(_grouped(dataset, buckets(base, options)), options)
    return steps_of(options, per_epoch) * options.batch * options.accumulate


def _steps_per_epoch(groups: Mapping[Size, int], options: TrainOptions) -> float:
    return batches_per_epoch(list(groups.values()), options.batch) / options.accumulate


def _check_schedule(base: Base, options: TrainOptions) -> None:
    """Refuse to learn noise where there is nothing but noise: the loss of that timestep would be 0 for a mere copy.

    Raises:
        UsageError: the last timestep is to hold no signal, and the model predicts the noise.
    """
    said = options.prediction or base.model.prediction or base.configs["scheduler"].get("prediction_type", "epsilon")
    if options.zero_terminal_snr and said != "v_prediction":
        raise UsageError(
            f"zero_terminal_snr=yes: nothing is learnt of the last timestep from {said}", "add prediction=v_prediction"
        )


def check_memory_options(options: TrainOptions) -> None:
    """Refuse what cannot go with weights in bfloat16, or with a fused backward pass.

    Raises:
        UsageError: an option needs float32, or all gradients at once.
    """
    if options.weights not in _WEIGHT_BYTES:
        raise UsageError(f"weights={options.weights}: unknown", nearest_hint(options.weights, _WEIGHT_BYTES))
    if options.weights == "bf16" and options.precision != "bf16":
        raise UsageError(f"weights=bf16 does not go with precision={options.precision}", "leave precision= out")
    if not options.fused_backward:
        return
    whole = find_optimizer(options.optimizer).looks_at_all
    reasons = {
        f"accumulate={options.accumulate} adds up the gradients of several batches": options.accumulate > 1,
        f"max_grad_norm={options.max_grad_norm:g} measures all gradients before it shortens one": (
            options.max_grad_norm > 0
        ),
        "precision=fp16 looks at all gradients before a step": options.precision == "fp16",
        f"the step of optimizer={options.optimizer} is one for all weights": whole,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UsageError(f"fused_backward=yes frees each gradient at once, but {reason}", "leave out one of the two")


def _state_bytes(options: TrainOptions, parameters: int) -> int:
    """What a saved state holds: the weights, and what the optimizer keeps of them."""
    return parameters * _WEIGHT_BYTES[options.weights] + optimizer_bytes(options.optimizer, parameters)


def _gradient_bytes(options: TrainOptions, parameters: int) -> int:
    return 0 if options.fused_backward else parameters * _WEIGHT_BYTES[options.weights]


def _looks(method: Method[Any], options: TrainOptions, steps: int, held_out: int, prompts: int) -> int:
    """Forward passes of one picture that samples and validations take, which come before, after and on the way."""
    validated = 2 + (steps // options.validate_every if options.validate_every else 0)
    sampled = 2 + (steps // options.sample_every if options.sample_every else 0)
    pairs = PAIRS if method.component == "unet" else 1
    return held_out * pairs * method.passes * validated + prompts * GUIDED * options.sample_steps * sampled


def _grouped(dataset: Dataset, sizes: list[Size]) -> dict[Size, int]:
    counts: dict[Size, int] = {}
    for sample in dataset.samples:
        if not sample.prior:
            size = nearest_size(sample.size, sizes)
            counts[size] = counts.get(size, 0) + sample.repeats
    return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What a run will take.

    Attributes:
        memory_bytes: at its peak, without the optimizer.
        step_seconds: of a step.
        forward_seconds: of one picture through what is run, for drawing and validation.
        encode_seconds: of one picture into its latents, which are kept; none where pixels are trained on.
    """

    memory_bytes: int
    step_seconds: float
    forward_seconds: float
    encode_seconds: float


def _estimate(
    base: Base, method: Method[Any], options: TrainOptions, sizes: list[Size], shown: int, layers: int
) -> _Estimate:
    """What a step takes.

    Args:
        shown: pictures in a batch.
        layers: modules that something trains beside.
    """
    from sdkit.runtime.cost import autoencoder_cost, encoder_cost, measured_machine, step_cost
    from sdkit.runtime.precision import compute_type, find_device

    device = find_device(options.device)
    dtype = compute_type(options.precision, device)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    channels = int(base.configs["unet"]["in_channels"])
    shape = (channels, height // base.pixels_per_latent, width // base.pixels_per_latent)
    if method.cost is not None:
        cost, encoding = method.cost(base, options, (width, height)), None
    elif method.component == "vae":
        cost, encoding = autoencoder_cost(base.configs["vae"], (width, height)), None
    else:
        cost = step_cost(base.configs["unet"], shape, _tokens(base.configs))
        encoding = encoder_cost(base.configs["vae"], (width, height))
    item = dtype.itemsize / 4
    activations = cost.activation_bytes * item * shown * method.passes * (0.15 if options.checkpointing else 1.0)
    machine = measured_machine(device, dtype)
    batch = cost.seconds(
        machine,
        batch=shown * method.passes,
        frozen=not method.trains_base,
        checkpointing=options.checkpointing,
        layers=0 if method.trains_base else layers,
    )
    memory = FIXED_BYTES + int(base.bytes * item + activations)
    encode_seconds = encoding.forward_seconds(machine) if encoding else 0.0
    return _Estimate(
        memory, batch * options.accumulate * method.rounds(options), cost.forward_seconds(machine), encode_seconds
    )


def _tokens(configs: Mapping[str, Mapping[str, Any]]) -> int:
    return int(configs["text_encoder"]["max_position_embeddings"])


def _notes(dataset: Dataset) -> list[str]:
    notes = [f"{name} is left out: {reason}" for name, reason in dataset.quarantined.items()]
    return [*notes, *dataset.notes]
