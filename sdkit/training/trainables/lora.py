"""LoRA layers and their kin: small factors beside the model's own layers, of any of `sdkit.training.algorithms`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import beneath, replaced
from sdkit.runtime.layers.layer import carrier
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Algorithm, Draw, Shape, Shapes, Site
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Beside:
    """What trains beside one module.

    Attributes:
        factors: by name, in float32.
        scale: what the change is multiplied with.
        weight: shape of the module's weight, in diffusers' convention.
    """

    factors: Mapping[str, nn.Parameter]
    scale: float
    weight: Shape


class Lora:
    """The factors beside some modules of a base.

    Args:
        algorithm: how they act.
        modules: hub module → what trains beside it.
        lr: learning rate.
        text_lr: learning rate of the text encoders' factors.
        up_ratio: multiplies the learning rate of `up` (LoRA+, arXiv:2402.12354).
    """

    def __init__(
        self,
        algorithm: Algorithm,
        modules: Mapping[str, Beside],
        *,
        lr: float,
        text_lr: float,
        up_ratio: float = 1.0,
    ) -> None:
        self.algorithm = algorithm
        self.modules = dict(modules)
        self._rates = {"unet": lr, "text": text_lr}
        self._up_ratio = up_ratio

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """``<module>.<factor>``."""
        return {
            f"{module}.{name}": factor
            for module, beside in self.modules.items()
            for name, factor in beside.factors.items()
        }

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder has factors."""
        return any(module.startswith("text_encoder") for module in self.modules)

    def groups(self) -> list[Group]:
        """By component, and `up` apart from the others when their rates differ."""
        raised = self.algorithm.raised if self._up_ratio != 1.0 else frozenset()
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for module, beside in self.modules.items():
            kind = "text" if module.startswith("text_encoder") else "unet"
            for name, factor in beside.factors.items():
                groups.setdefault((kind, name in raised), []).append(factor)
        return [
            Group(f"{kind} {'up' if up else 'factors'}", factors, self._rates[kind] * (self._up_ratio if up else 1.0))
            for (kind, up), factors in groups.items()
        ]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Put the layers in the places of the model's own."""
        with ExitStack() as stack:
            for module, beside in self.modules.items():
                place = beneath(backbone, module)
                carrier(backbone.module(place), module)
                site = Site(module, beside.weight)
                layer = self.algorithm.layer(backbone.module(place), beside.factors, beside.scale, site)
                stack.enter_context(replaced(backbone, place, layer))
            yield

    def artifact(self, dtype: torch.dtype, metadata: Mapping[str, str] | None = None) -> Artifact:
        """The adapter as it is now, its factors rounded to `dtype`."""
        rounded = {name: factor.detach().to(dtype) for name, factor in self.parameters.items()}
        held = in_memory("the trained LoRA", rounded, metadata)
        deltas = {}
        for module, beside in self.modules.items():
            reads = {name: Read(held, held.tensors[f"{module}.{name}"]) for name in beside.factors}
            deltas[Target(module)] = self.algorithm.delta(reads, beside.scale, Site(module, beside.weight))
        return Artifact(held, "trained", deltas=deltas, metadata=metadata or {})


def new_factors(
    backbone: Backbone, algorithm: Algorithm, module: str, shapes: Shapes, rng: StepRNG
) -> Mapping[str, nn.Parameter]:
    """Factors beside a module that change nothing yet.

    Raises:
        SdkitError: the module can carry none.
    """
    draw = Draw(
        lambda shape, purpose: rng.uniform(shape, purpose, module),
        lambda shape, purpose: rng.normal(shape, purpose, module),
    )
    return _parameters(algorithm.start(carrier(backbone.module(module), module), shapes, draw))


def factors_of(artifact: Artifact, algorithm: Algorithm, model: Model) -> dict[str, Mapping[str, nn.Parameter]]:
    """The factors of an existing adapter, to go on training. Their scales stay outside, as the file has them.

    Raises:
        SdkitError: it holds changes of another kind, or modules the base does not have.
    """
    path = artifact.source.path
    if artifact.unmatched or not artifact.deltas:
        raise SdkitError(f"{path}: does not fit this base: {', '.join(artifact.unmatched[:3]) or 'no weight changes'}")
    found = {}
    for target, delta in artifact.deltas.items():
        weight = model.places[target.name].shape
        factors = algorithm.factors(delta, weight) if target.parameter == "weight" else None
        if factors is None:
            raise SdkitError(
                f"{path}: {target.name}: a change of the kind {delta.kind} cannot be trained on with this algorithm",
                f"if it is a file of that kind, say algo={delta.kind}; `sdkit inspect` shows what it holds",
            )
        found[target.module] = _parameters(factors)
    return found


def relaxed(
    factors: Mapping[str, nn.Parameter], shapes: Shapes, rng: StepRNG, module: str
) -> Mapping[str, nn.Parameter]:
    """A LoRA's factors with more room, which change what they changed before: `up` gets zeros, `down` fresh rows.

    The whole change is not formed and not decomposed (rank relaxation, arXiv:2307.06949).

    Args:
        shapes: of the wider factors.
    """
    import torch

    rank = factors["down"].shape[0]
    draw = Draw(lambda shape, purpose: rng.uniform(shape, purpose, module), rng.normal)
    down, up = draw.as_linear(tuple(shapes["down"]), "relaxed"), torch.zeros(shapes["up"])
    down[:rank], up[:, :rank] = factors["down"].detach(), factors["up"].detach()
    return _parameters({"down": down, "up": up})


def _parameters(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, nn.Parameter]:
    from torch import nn

    return {name: nn.Parameter(tensor.float().clone()) for name, tensor in tensors.items()}
