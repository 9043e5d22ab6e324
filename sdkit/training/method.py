"""A training method: which trainables, which objective, which defaults, and what is saved. Methods are data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import Plugin, choose, find_plugins
from sdkit.families.family import Model
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.training.data import Dataset, read_dataset
from sdkit.training.options import UNSEEN, TrainOptions, parse_options, spelled

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.feed import Feed
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

# Keys every method takes.
COMMON = UNSEEN | frozenset(
    "steps epochs seed lr batch accumulate resolution optimizer weight_decay schedule warmup precision device "
    "max_grad_norm ema checkpointing compile flip background strict init save_every keep_states validation".split()
)
# Keys of methods that learn from captioned pictures by denoising.
DENOISING = frozenset("caption caption_dropout token snr_gamma noise_offset prediction mask unmasked_weight".split())


@dataclass(frozen=True, slots=True)
class Size:
    """What a method will train and write, told from the base's header.

    Attributes:
        parameters: numbers trained.
        modules: modules they belong to.
        output_bytes: of the file.
        notes: what a person should know about it.
    """

    parameters: int
    modules: int
    output_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run, ready to be written.

    Attributes:
        trained: what trained, with its moving averages where there are any.
        backbone: the base, as it was.
        base: its path.
        options: the run's.
        feed: the run's pictures.
    """

    trained: Sequence[Trainable]
    backbone: Backbone
    base: Path
    options: TrainOptions
    feed: Feed


class Save(Protocol):
    """Writes what was trained."""

    def __call__(self, result: Result, path: Path, metadata: Mapping[str, str]) -> None:
        """Write `path`, whole or not at all, and check what was written."""
        ...


def read_captioned(folder: Path, options: TrainOptions) -> Dataset:
    """The pictures of a folder with their captions, as most methods take them."""
    return read_dataset(
        folder, caption=options.caption, background=options.background, strict=options.strict, mask=options.mask
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A method as data. A module of `sdkit.training.methods` holds one under the name ``METHOD``.

    Attributes:
        accepts: the keys it takes.
        size: what a run will train, from the header alone.
        trainables: makes what trains, at its start.
        objective: makes what is minimised.
        save: writes the result.
        defaults: where it differs from `TrainOptions`.
        suffix: of the file it writes; empty for a folder; None where it is as the base is.
        modelspec: what ModelSpec calls such a file, behind its architecture; empty for a base.
        trains_base: whether the base's own weights are trained, and not something small beside them.
        component: the component that is run: ``unet`` or ``vae``.
        held_out: the losses of held-out pictures, [pictures, pairs].
        settle: fills in options that depend on the result's name.
        dataset: reads a folder of pictures and gives them the captions they are shown with.
        notes: what a person should know of these options with this base and these pictures.
        class_prompt: what pictures of the class are drawn from; empty for no prior preservation.
        variant: the method as options make it, where some decide what trains or change the defaults of others.
    """

    accepts: frozenset[str]
    size: Callable[[Model, TrainOptions], Size]
    trainables: Callable[[Backbone, TrainOptions, StepRNG], list[Trainable]]
    objective: Callable[[TrainOptions], Objective]
    save: Save
    defaults: Mapping[str, Any] = field(default_factory=dict)
    suffix: Callable[[TrainOptions], str | None] = lambda options: ".safetensors"
    modelspec: str = "lora"
    trains_base: bool = False
    component: str = "unet"
    held_out: Callable[[Backbone, Sequence[HeldOut]], torch.Tensor] = held_out_losses
    settle: Callable[[TrainOptions, str], TrainOptions] = lambda options, name: options
    dataset: Callable[[Path, TrainOptions], Dataset] = read_captioned
    notes: Callable[[Base, Dataset, TrainOptions], Sequence[str]] = lambda base, dataset, options: ()
    class_prompt: Callable[[TrainOptions], str] = lambda options: ""
    variant: Callable[[TrainOptions], Method] | None = None

    def resolve(
        self, name: str, given: Mapping[str, Any], saved: Mapping[str, Any] | None = None
    ) -> tuple[Method, TrainOptions]:
        """The method as the keys make it, and its options.

        Args:
            name: of the method.
            given: keys and values of a person.
            saved: those of a run that is resumed; what is given goes before.

        Raises:
            UsageError: a key or value is wrong.
        """
        kept = {key: value for key, value in (saved or {}).items() if key in self.accepts}
        options = parse_options({**kept, **given}, self.accepts, self.defaults, name)
        if self.variant is None:
            return self, options
        chosen = self.variant(options)
        strange = [word for word in given if spelled(word.replace("-", "_")) in self.accepts - chosen.accepts]
        if strange:
            raise UsageError(f"{strange[0]}= does not go with as={options.as_}", "leave it out, or choose another as=")
        return chosen.resolve(name, given, saved)


def methods() -> dict[str, Plugin]:
    """The known methods by name: this package's, and those of the entry points ``sdkit.training_methods``."""
    return find_plugins("sdkit.training.methods", "sdkit.training_methods")


def load_method(name: str) -> tuple[str, Method]:
    """A method by its name, with hyphens or underscores, and its name as it is written.

    Raises:
        UsageError: there is none of that name.
    """
    plugin = choose(name, methods(), "training method")
    method = getattr(plugin.load(), "METHOD", None)
    if not isinstance(method, Method):
        raise SdkitError(f"the training method {plugin.name} ({plugin.module}) lacks METHOD", "uninstall or repair it")
    return plugin.name, method
