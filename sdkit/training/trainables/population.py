"""Many identities and the hypernetwork that predicts them: each identity is one vector, the factors of its LiDB.

A vector is what all identities have in common and what is an identity's own. Both learn from the same gradient, but the
common part from every picture, so that it is there soon, and what is left for each identity is how it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.adapters.lightweight_vector import Layout
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import beneath, replaced
from sdkit.runtime.layers.per_sample import Chosen, PerSampleLayer
from sdkit.runtime.layers.predictor import Predictor
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw
from sdkit.training.processes import Processes
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

Look = Callable[["torch.Tensor"], "torch.Tensor"]  # references → a predictor's tokens


class Population:
    """The trainable.

    Args:
        layout: of the vectors.
        start: the vector that the common part begins as, [size]: it changes nothing.
        names: of the identities.
        predictor: the hypernetwork.
        look: makes a batch of references into what the predictor reads.
        lr: learning rate of the predictor.
        identity_lr: learning rate of the identities, and of what they have in common.
    """

    def __init__(
        self,
        layout: Layout,
        start: torch.Tensor,
        names: Sequence[str],
        predictor: Predictor,
        look: Look,
        *,
        lr: float,
        identity_lr: float,
    ) -> None:
        import torch
        from torch import nn

        self.layout, self.predictor = layout, predictor
        self.common = nn.Parameter(start.clone())
        self.own = {name: nn.Parameter(torch.zeros_like(start)) for name in names}
        self.chosen = Chosen(layout)
        self.look, self._rates = look, (lr, identity_lr)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """``predictor.<name>``, ``common`` and ``identity.<name>``."""
        network = {f"predictor.{name}": parameter for name, parameter in self.predictor.named_parameters()}
        own = {f"identity.{name}": vector for name, vector in self.own.items()}
        return {**network, "common": self.common, **own}

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder's layers are among those that change."""
        return any(basis.module.startswith("text_encoder") for basis in self.layout.bases)

    def groups(self) -> list[Group]:
        """The hypernetwork, and the identities. What a step does not touch has no gradient, and stays as it is."""
        network = list(self.predictor.parameters())
        return [
            Group("hypernetwork", network, self._rates[0]),
            Group("identities", [self.common, *self.own.values()], self._rates[1]),
        ]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Put the layers in the places of the model's own; they change nothing until something is chosen.

        Raises:
            SdkitError: several processes train.
        """
        if Processes.current(str(backbone.device)).count > 1:
            raise SdkitError("hyperdreambooth trains in one process", "start it without torchrun or accelerate")
        with ExitStack() as stack:
            for number, basis in enumerate(self.layout.bases):
                place = beneath(backbone, basis.module)
                layer = InPopulation(backbone.module(place), self, number)
                stack.enter_context(replaced(backbone, place, layer))
            yield

    def differences(self, names: Sequence[str]) -> torch.Tensor:
        """How some identities' vectors differ from what all have in common, [n, size]."""
        import torch

        return torch.stack([self.own[name] for name in names])

    def vectors(self, names: Sequence[str]) -> torch.Tensor:
        """The vectors of some identities, [n, size]."""
        return self.common + self.differences(names)

    def predict(self, references: torch.Tensor) -> torch.Tensor:
        """The vectors [n, size] that the hypernetwork predicts for references [n, c, h, w]."""
        found: torch.Tensor = self.predictor(self.look(references), self.common.detach())
        return found


class InPopulation(PerSampleLayer):
    """A layer that knows its population, so that an objective finds it in the model."""

    def __init__(self, base: nn.Module, population: Population, number: int) -> None:
        super().__init__(base, population.chosen, number)
        self.population = population


def population_in(backbone: Backbone) -> Population:
    """The population installed in a model."""
    return next(module.population for _, module in backbone.modules() if isinstance(module, InPopulation))


def first_vector(layout: Layout, rng: StepRNG) -> torch.Tensor:
    """The vector that changes nothing: `up` zero, `down` as LiDB's begin, so that a gradient reaches `up`."""
    import torch

    factors = []
    for basis in layout.bases:
        draw = Draw(lambda shape, purpose, module=basis.module: rng.uniform(shape, purpose, module), rng.normal)  # type: ignore[misc]
        down = draw.as_linear((layout.rank, basis.b), "lidb")
        factors.append((torch.zeros(basis.a, layout.rank), down))
    return layout.vector(factors)


def artifact_of(layout: Layout, vector: torch.Tensor, dtype: torch.dtype) -> Artifact:
    """The LiDB a vector [size] stands for, its factors rounded to `dtype`."""
    factors = {
        f"{module}.{side}": part[0].detach().to(dtype)
        for module, pair in layout.factors(vector[None]).items()
        for side, part in zip(("up", "down"), pair, strict=True)
    }
    held = in_memory("a LiDB", factors)

    def read(name: str) -> Read:
        return Read(held, held.tensors[name])

    deltas: Mapping[Target, Lightweight] = {
        Target(basis.module): Lightweight(read(f"{basis.module}.up"), read(f"{basis.module}.down"), basis)
        for basis in layout.bases
    }
    return Artifact(held, "lidb", deltas=deltas)
