"""Updating one parameter at a time, to train a whole base in little memory.

Each parameter has an optimizer of its own. With a *fused* backward pass it makes its step as soon as backpropagation
has come to its gradient, which is freed at once, so that the gradients of all never lie in memory together. Parameters
in bfloat16 are stepped in float32, one after the other, and rounded at random, so that no float32 copy of all of them
is kept either; what the optimizer remembers stays in float32.

What needs all gradients at once cannot go with a fused pass: the clipping of their common length, their sum over
several batches, and optimizers whose step is one number for all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdkit.runtime.rng import StepRNG
from sdkit.runtime.rounding import round_at_random
from sdkit.training.optimizers import make_optimizer
from sdkit.training.options import TrainOptions
from sdkit.training.processes import Processes
from sdkit.training.trainable import Group, Trainable
from sdkit.training.updates import Update, Updater, guarded_step, load_optimizer, named_parameters, optimizer_state

if TYPE_CHECKING:
    import torch
    from torch import nn

MakeOptimizer = Callable[[Sequence[Group]], "torch.optim.Optimizer"]


class _Piece:
    """One parameter and its optimizer, which sees it in float32.

    Args:
        name: of the parameter, for its draws.
        parameter: in float32 or bfloat16.
        group: whose learning rate it has.
        make: makes an optimizer over groups.
    """

    def __init__(self, name: str, parameter: nn.Parameter, group: Group, make: MakeOptimizer) -> None:
        import torch
        from torch import nn

        self.parameter = parameter
        self._name = name
        self._is_short = parameter.dtype != torch.float32
        self._seen = nn.Parameter(torch.empty(0, device=parameter.device)) if self._is_short else parameter
        self.optimizer = make([Group(group.name, [self._seen], group.lr)])

    def step(self, rng: StepRNG, norm: torch.Tensor) -> None:
        """Use the parameter's gradient, unless `norm` is no finite number, and free it."""
        import torch

        if self._is_short:
            assert self.parameter.grad is not None
            self._seen.data = self.parameter.detach().float()
            self._seen.grad, self.parameter.grad = self.parameter.grad.float(), None
        guarded_step(self.optimizer, norm)
        self._seen.grad = None
        if self._is_short:
            key = rng.integer(1 << 62, "rounding", self._name)
            with torch.no_grad():
                round_at_random(self._seen.data, self.parameter.data, key)
            self._seen.data = torch.empty(0, device=self.parameter.device)


class PiecewiseUpdater(Updater):
    """As `Updater`, one parameter at a time.

    Args:
        trainables: whose parameters are updated, in float32 or bfloat16.
        make: makes an optimizer over groups.
        fused: make each parameter's step within the backward pass; nothing is clipped then.
        lr_factor, device, dtype, max_grad_norm, ema, processes: see `Updater`.
    """

    def __init__(
        self,
        trainables: Sequence[Trainable],
        make: MakeOptimizer,
        lr_factor: Callable[[int], float],
        device: torch.device,
        dtype: torch.dtype,
        *,
        fused: bool,
        max_grad_norm: float,
        ema: float | None = None,
        processes: Processes | None = None,
    ) -> None:
        groups = {one: group for part in trainables for group in part.groups() for one in group.parameters}
        self._pieces = {
            name: _Piece(name, parameter, groups[parameter], make)
            for name, parameter in named_parameters(trainables).items()
        }
        first = next(iter(self._pieces.values())).optimizer
        super().__init__(
            trainables, first, lr_factor, device, dtype, max_grad_norm=max_grad_norm, ema=ema, processes=processes
        )
        self._fused = fused
        self._rng = StepRNG(0)
        self._norms: list[torch.Tensor] = []
        for piece in self._pieces.values() if fused else ():
            piece.parameter.register_post_accumulate_grad_hook(self._hook(piece))  # type: ignore[no-untyped-call]

    def begin(self, rng: StepRNG) -> None:
        """See `Updater.begin`."""
        super().begin(rng)
        self._rng = rng

    def apply(self) -> Update:
        """Make the steps that the backward pass has not made; the norm is that of all gradients either way."""
        import torch

        pieces = [] if self._fused else [piece for piece in self._pieces.values() if piece.parameter.grad is not None]
        for piece in pieces:
            self._take(piece)
        norms, self._norms = self._norms, []
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if self._max_grad_norm and pieces:
            torch.nn.utils.clip_grads_with_norm_([piece.parameter for piece in pieces], self._max_grad_norm, norm)
        for piece in pieces:
            piece.step(self._rng, norm)
        return self._applied(norm)

    def _hook(self, piece: _Piece) -> Callable[[torch.Tensor], None]:
        return lambda parameter: piece.step(self._rng, self._take(piece))

    def _take(self, piece: _Piece) -> torch.Tensor:
        """The length of a parameter's gradient, summed over all processes."""
        import torch

        gradient = piece.parameter.grad
        assert gradient is not None
        self._processes.add_up([gradient])
        self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))
        return self._norms[-1]

    def _optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return [piece.optimizer for piece in self._pieces.values()]

    def _optimizer_state(self) -> Mapping[Any, Any]:
        return {name: optimizer_state(piece.optimizer) for name, piece in self._pieces.items()}

    def _load_optimizer(self, state: Mapping[Any, Any]) -> None:
        for name, piece in self._pieces.items():
            load_optimizer(piece.optimizer, state[name])


def make_updater(
    trainables: Sequence[Trainable],
    options: TrainOptions,
    lr_factor: Callable[[int], float],
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes | None = None,
) -> Updater:
    """What updates a run's parameters: all at once, or one at a time where the options ask for it."""

    def make(groups: Sequence[Group]) -> torch.optim.Optimizer:
        return make_optimizer(options.optimizer, groups, options.weight_decay)

    common: dict[str, Any] = {"max_grad_norm": options.max_grad_norm, "ema": options.ema, "processes": processes}
    if options.fused_backward or options.weights != "fp32":
        fused = options.fused_backward
        return PiecewiseUpdater(trainables, make, lr_factor, device, dtype, fused=fused, **common)
    groups = [group for trainable in trainables for group in trainable.groups()]
    return Updater(trainables, make(groups), lr_factor, device, dtype, **common)
