"""LoRA layers: low-rank factors beside the model's own layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import beneath, replaced
from sdkit.runtime.layers.low_rank import LowRankLayer, factor_shapes
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn


class Lora:
    """The factors beside some modules of a base, in float32.

    Args:
        factors: hub module → `down` and `up`.
        scales: hub module → what the product is multiplied with.
        lr: learning rate.
        text_lr: learning rate of the text encoders' factors.
        up_ratio: multiplies the learning rate of `up` (LoRA+, arXiv:2402.12354).
    """

    def __init__(
        self,
        factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]],
        scales: Mapping[str, float],
        *,
        lr: float,
        text_lr: float,
        up_ratio: float = 1.0,
    ) -> None:
        self.factors = dict(factors)
        self.scales = dict(scales)
        self._rates = {"unet": lr, "text": text_lr}
        self._up_ratio = up_ratio

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """``<module>.down`` and ``<module>.up``."""
        pairs = ((f"{module}.{side}", factor) for module, both in self.factors.items() for side, factor in _sides(both))
        return dict(pairs)

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder has factors."""
        return any(module.startswith("text_encoder") for module in self.factors)

    def groups(self) -> list[Group]:
        """By component, and `up` apart from `down` when their rates differ."""
        groups: dict[tuple[str, str], list[nn.Parameter]] = {}
        for module, both in self.factors.items():
            kind = "text" if module.startswith("text_encoder") else "unet"
            for side, factor in _sides(both):
                groups.setdefault((kind, side if self._up_ratio != 1.0 else "factors"), []).append(factor)
        return [
            Group(f"{kind} {side}", factors, self._rates[kind] * (self._up_ratio if side == "up" else 1.0))
            for (kind, side), factors in groups.items()
        ]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Put the layers in the places of the model's own."""
        with ExitStack() as stack:
            for module, (down, up) in self.factors.items():
                place = beneath(backbone, module)
                layer = LowRankLayer(backbone.module(place), down, up, self.scales[module])
                stack.enter_context(replaced(backbone, place, layer))
            yield

    def artifact(self, dtype: torch.dtype, metadata: Mapping[str, str] | None = None) -> Artifact:
        """The adapter as it is now, its factors rounded to `dtype`."""
        named = self.parameters
        held = in_memory(
            "the trained LoRA", {name: factor.detach().to(dtype) for name, factor in named.items()}, metadata
        )
        deltas = {
            Target(module): LowRank(
                Read(held, held.tensors[f"{module}.up"]),
                Read(held, held.tensors[f"{module}.down"]),
                scale,
            )
            for module, scale in self.scales.items()
        }
        return Artifact(held, "trained", deltas=deltas, metadata=metadata or {})


def new_factors(
    backbone: Backbone, ranks: Mapping[str, int], rng: StepRNG
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Factors whose product is zero: `down` as a linear layer begins, `up` zero (arXiv:2106.09685)."""
    import torch
    from torch import nn

    factors = {}
    for module, rank in ranks.items():
        down, up = factor_shapes(backbone.module(module), rank, module)
        bound = 1 / math.sqrt(math.prod(down[1:]))
        start = rng.uniform(down, "lora", module).mul_(2).sub_(1).mul_(bound)
        factors[module] = (nn.Parameter(start), nn.Parameter(torch.zeros(up)))
    return factors


def factors_of(artifact: Artifact, backbone: Backbone) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """The factors of an existing LoRA, to go on training. Their scales stay outside, as the file has them.

    Raises:
        SdkitError: it holds other changes than plain LoRAs, or modules the base does not have.
    """
    import torch
    from torch import nn

    path = artifact.source.path
    if artifact.unmatched or not artifact.deltas:
        raise SdkitError(f"{path}: does not fit this base: {', '.join(artifact.unmatched[:3]) or 'no weight changes'}")
    factors = {}
    for target, delta in artifact.deltas.items():
        if not isinstance(delta, LowRank) or delta.mid is not None or target.parameter != "weight":
            raise SdkitError(f"{path}: {target.name}: a change of the kind {delta.kind} cannot be trained on as a LoRA")
        down, up = factor_shapes(backbone.module(target.module), delta.rank, target.module)
        shaped = (delta.down.load().float().reshape(down), delta.up.load().float().reshape(up))
        factors[target.module] = (nn.Parameter(shaped[0].clone()), nn.Parameter(torch.clone(shaped[1])))
    return factors


def _sides(both: tuple[nn.Parameter, nn.Parameter]) -> tuple[tuple[str, nn.Parameter], tuple[str, nn.Parameter]]:
    return ("down", both[0]), ("up", both[1])
