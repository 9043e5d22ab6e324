"""A training method: which trainables, which objective, which defaults, and what is saved. Methods are data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import Plugin, choose, find_plugins, nearest_hint
from sdkit.families.family import Model
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.training.data import Dataset, read_dataset
from sdkit.training.options import Key, Options, TrainOptions, keys, parse_options, spelled, unknown_option

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.cost import StepCost
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.batch import Objective
    from sdkit.training.feed import Feed
    from sdkit.training.plan import Base
    from sdkit.training.solver import Solver
    from sdkit.training.trainable import Trainable

HeldOutLosses = Callable[["Backbone", Sequence[HeldOut]], "torch.Tensor"]


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
class Prior:
    """Pictures of the subject's class, shown beside those of the subject.

    Attributes:
        prompt: what they show.
        count: how many the base draws; None for as many as the run shows, within reason.
        folder: where they lie, instead of drawn ones; None to draw them.
    """

    prompt: str
    count: int | None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Result(Generic[Options]):
    """A finished run, ready to be written.

    Attributes:
        trained: what trained, with its moving averages where there are any.
        backbone: the base, as it was.
        base: its path.
        options: the run's.
        feed: the run's pictures.
        solver: what made the steps, where the method brings its own.
    """

    trained: Sequence[Trainable]
    backbone: Backbone
    base: Path
    options: Options
    feed: Feed
    solver: Solver | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well a run has gone, where a loss does not tell.

    Attributes:
        notes: sentences for people.
        pictures: what each shows → [3, h, w] in −1 … 1, to be seen beside one another.
    """

    notes: tuple[str, ...] = ()
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)


def read_captioned(folder: Path, options: TrainOptions) -> Dataset:
    """The pictures of a folder with their captions, as most methods take them."""
    return read_dataset(
        folder, caption=options.caption, background=options.background, strict=options.strict, mask=options.mask
    )


@dataclass(frozen=True, slots=True)
class Method(Generic[Options]):
    """A method as data. A module of `sdkit.training.methods` holds one under the name ``METHOD``.

    Attributes:
        options: the keys it takes, with their defaults.
        size: what a run will train, from the header alone.
        trainables: makes what trains, at its start.
        objective: makes what is minimised, or what makes each step itself.
        save: writes the result to a path with this metadata, whole or not at all, and checks what was written.
        suffix: of the file it writes; empty for a folder; None where it is as the base is.
        beside: the further files it writes beside the result's, given the result's path.
        modelspec: what ModelSpec calls such a file, behind its architecture; empty for a base.
        trains_base: whether the base's own weights are trained, and not something small beside them.
        component: the component that is run: ``unet``, ``vae`` or ``image_encoder``.
        cost: what a picture of a width and height costs in a step where that is neither the U-Net's nor the
            autoencoder's cost.
        held_out: gives the losses of held-out pictures, [pictures, pairs].
        passes: how often a step runs the denoiser on each picture.
        rounds: how many times a step does all that, one after the other.
        settle: fills in options that depend on the result's name.
        look: fills in fields of the options that are no keys, and depend on the pictures.
        dataset: reads a folder of pictures and gives them the captions they are shown with.
        notes: what a person should know of these options with this base and these pictures.
        prior: the pictures of the class, or of each concept's; none for no prior preservation.
        verdict: looks at the finished run; None where its losses say all.
        forms: what ``as=`` may say, and the method it makes, the usual one first; empty where there is one form.
    """

    options: type[Options]
    size: Callable[[Model, Options], Size]
    trainables: Callable[[Backbone, Options, StepRNG], list[Trainable]]
    objective: Callable[[Options], Objective | Solver]
    save: Callable[[Result[Options], Path, Mapping[str, str]], None]
    suffix: Callable[[Options], str | None] = lambda options: ".safetensors"
    beside: Callable[[Path, Options], Sequence[Path]] = lambda path, options: ()
    modelspec: str = "lora"
    trains_base: bool = False
    component: str = "unet"
    cost: Callable[[Base, Any, tuple[int, int]], StepCost] | None = None
    held_out: Callable[[Options], HeldOutLosses] = lambda options: held_out_losses
    passes: int = 1
    rounds: Callable[[Options], int] = lambda options: 1
    settle: Callable[[Options, str], Options] = lambda options, name: options
    look: Callable[[Options, Dataset], Options] = lambda options, dataset: options
    dataset: Callable[[Path, Options], Dataset] = read_captioned
    notes: Callable[[Base, Dataset, Options], Sequence[str]] = lambda base, dataset, options: ()
    prior: Callable[[Options], Sequence[Prior]] = lambda options: ()
    verdict: Callable[[Result[Options]], Verdict] | None = None
    forms: Mapping[str, Method[Any]] = field(default_factory=dict)

    @property
    def keys(self) -> dict[str, Key]:
        """The keys it takes, as they are written; those of all its forms."""
        return {word: key for kind in (self, *self.forms.values()) for word, key in keys(kind.options).items()}

    @property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """For what ``as=`` may say, the usual one first: key → what it is when nobody says."""
        forms = self.forms or {"": self}
        return {form: method.options().defaults() for form, method in forms.items()}

    def resolve(
        self, name: str, given: Mapping[str, Any], saved: Mapping[str, Any] | None = None
    ) -> tuple[Method[Any], Any]:
        """The method as the keys make it, and its options.

        Args:
            name: of the method.
            given: keys and values of a person.
            saved: those of a run that is resumed; what is given goes before.

        Raises:
            UsageError: a key or value is wrong.
        """
        saved = saved or {}
        asked = {spelled(word): value for word, value in given.items()}
        chosen = self._form(str(asked.get("as") or saved.get("as") or ""))
        strange = next((word for word in asked if word not in chosen.keys), None)
        if strange in self.keys:
            as_ = next(form for form, method in self.forms.items() if method is chosen)
            raise UsageError(f"{strange}= does not go with as={as_}", "leave it out, or choose another as=")
        if strange is not None:
            raise unknown_option(strange, self.keys, name)
        kept = {word: value for word, value in saved.items() if word in chosen.keys}
        return chosen, parse_options(chosen.options, {**kept, **asked}, name)

    def _form(self, as_: str) -> Method[Any]:
        if not self.forms:
            return self
        if as_ and as_ not in self.forms:
            raise UsageError(f"as={as_}: unknown", nearest_hint(as_, self.forms))
        return self.forms[as_ or next(iter(self.forms))]


def methods() -> dict[str, Plugin]:
    """The known methods by name: this package's, and those of the entry points ``sdkit.training_methods``."""
    return find_plugins("sdkit.training.methods", "sdkit.training_methods")


def load_method(name: str) -> tuple[str, Method[Any]]:
    """A method by its name, with hyphens or underscores, and its name as it is written.

    Raises:
        UsageError: there is none of that name.
    """
    plugin = choose(name, methods(), "training method")
    method = getattr(plugin.load(), "METHOD", None)
    if not isinstance(method, Method):
        raise SdkitError(f"the training method {plugin.name} ({plugin.module}) lacks METHOD", "uninstall or repair it")
    return plugin.name, method
