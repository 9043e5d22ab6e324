"""From gradients to new parameters: precision, clipping, the optimizer, its learning rates, and the moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.runtime.rng import StepRNG
from sdkit.training.processes import Processes
from sdkit.training.trainable import Trainable

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Update:
    """What one step did; the tensor may still be on the device."""

    lr: float
    grad_norm: torch.Tensor


class Updater:
    """Applies gradients.

    Args:
        trainables: whose parameters are updated.
        optimizer: over their groups; each group's ``initial_lr`` is its full learning rate.
        lr_factor: step → what the learning rates are multiplied with.
        device: where the parameters are.
        dtype: what is computed in.
        max_grad_norm: gradients longer than this are shortened; 0 leaves them.
        ema: decay of the moving average of groups that have none of their own; None for none.
    """

    def __init__(
        self,
        trainables: Sequence[Trainable],
        optimizer: torch.optim.Optimizer,
        lr_factor: Callable[[int], float],
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_grad_norm: float,
        ema: float | None = None,
        processes: Processes | None = None,
    ) -> None:
        import torch

        self.parameters = named_parameters(trainables)
        self.optimizer = optimizer
        self.lr_scale = 1.0
        self._lr_factor = lr_factor
        self._device, self._dtype = device, dtype
        self._max_grad_norm = max_grad_norm
        self._processes = processes or Processes()
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.scaled)
        self._averages = _moving_averages(trainables, ema)
        for each in self._optimizers():
            if trains_elsewhere(each):
                each.train()  # type: ignore[attr-defined]

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled up, because float16 loses small gradients."""
        return str(self._dtype) == "torch.float16"

    @property
    def state_bytes(self) -> int:
        """About how much a saved state takes: parameters, two moments and an average in float32."""
        return 16 * sum(parameter.numel() for parameter in self.parameters.values())

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the run's type, with the parameters in float32."""
        import torch

        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def begin(self, rng: StepRNG) -> None:
        """Begin the step whose randomness this is."""
        factor = self._lr_factor(rng.step) * self.lr_scale
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def apply(self) -> Update:
        """Make one step with the gradients gathered, unless they hold NaN or infinity; then forget them."""
        import torch

        self._scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        self._processes.add_up(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self._max_grad_norm, norm)
        if self.scaled:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            guarded_step(self.optimizer, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return self._applied(norm)

    def _applied(self, norm: torch.Tensor) -> Update:
        """What follows a step, whoever made it."""
        for average, parameters in self._averages:
            average.step(parameters)
        return Update(float(self._optimizers()[0].param_groups[0]["lr"]), norm)

    def _optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return (self.optimizer,)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The parameters as the optimizer means them while the context lasts: schedule-free ones train beside those."""
        elsewhere: list[Any] = [optimizer for optimizer in self._optimizers() if trains_elsewhere(optimizer)]
        # Its own way back rounds, and a run that looked at its result would not be the run that did not.
        kept = {name: value.detach().clone() for name, value in self.parameters.items()} if elsewhere else {}
        for optimizer in elsewhere:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in elsewhere:
                optimizer.train()
            for name, value in kept.items():
                self.parameters[name].data.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving averages in the places of the parameters while the context lasts, or else what is `settled`."""
        with self.settled():
            for average, parameters in self._averages:
                average.store(parameters)
                average.copy_to(parameters)
            try:
                yield
            finally:
                for average, parameters in self._averages:
                    average.restore(parameters)

    def state(self) -> dict[str, Any]:
        """Everything that decides the next step."""
        return {
            "parameters": dict(self.parameters),
            "optimizer": self._optimizer_state(),
            "scaler": self._scaler.state_dict(),
            "ema": [average.state_dict() for average, _ in self._averages],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            SdkitError: it is of other parameters.
        """
        import torch

        saved = state["parameters"]
        if {name: tuple(value.shape) for name, value in saved.items()} != {
            name: tuple(value.shape) for name, value in self.parameters.items()
        }:
            raise SdkitError("the saved state is of other parameters than this run's", "resume with the run's options")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved[name])
        self._load_optimizer(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        averages = [state["ema"]] if isinstance(state["ema"], Mapping) else state["ema"] or ()  # once there was one
        for (average, _), found in zip(self._averages, averages, strict=True):
            average.load_state_dict(found)
            average.to(self._device)

    def _optimizer_state(self) -> Mapping[Any, Any]:
        return optimizer_state(self.optimizer)

    def _load_optimizer(self, state: Mapping[Any, Any]) -> None:
        load_optimizer(self.optimizer, state)


def guarded_step(optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
    """Make an optimizer's step, unless the length of the gradient is no finite number."""
    import torch

    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # The optimizer looks at the flag itself: nobody waits for the device.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(torch.isfinite(norm)):
        optimizer.step()


def optimizer_state(optimizer: torch.optim.Optimizer) -> Mapping[Any, Any]:
    """What an optimizer remembers: of its parameters, by their numbers, and of its groups (Prodigy's step size)."""
    import torch

    saved = optimizer.state_dict()
    learnt = [
        {
            name: value
            for name, value in group.items()
            if isinstance(value, (int, float, torch.Tensor)) and name not in ("lr", "initial_lr")
        }
        for group in saved["param_groups"]
    ]
    return {"state": saved["state"], "groups": learnt}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[Any, Any]) -> None:
    """Give an optimizer what `optimizer_state` said; learning rates stay as the run has them."""
    state = state if "state" in state else {"state": state, "groups": ()}  # as states were saved once
    groups = optimizer.state_dict()["param_groups"]
    for group, learnt in zip(groups, state["groups"], strict=False):
        group.update(learnt)
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    optimizer.zero_grad(set_to_none=True)


def trains_elsewhere(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer trains at other parameters than those it means, and has to be told which are wanted."""
    return callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))


def named_parameters(trainables: Sequence[Trainable]) -> dict[str, nn.Parameter]:
    """The parameters of all trainables, each name with the trainable's number in front."""
    return {
        f"{number}.{name}": parameter
        for number, trainable in enumerate(trainables)
        for name, parameter in trainable.parameters.items()
    }


def _moving_averages(trainables: Sequence[Trainable], usual: float | None) -> list[tuple[Any, list[nn.Parameter]]]:
    """The moving averages, one for each decay, with the parameters they are of."""
    from diffusers.training_utils import EMAModel

    groups = [group for trainable in trainables for group in trainable.groups()]
    own = {parameter: group.ema for group in groups for parameter in group.parameters}
    by_decay: dict[float, list[nn.Parameter]] = {}
    for parameter in named_parameters(trainables).values():
        decay = usual if own[parameter] is None else own[parameter]
        if decay is not None:
            by_decay.setdefault(decay, []).append(parameter)
    averages = [(EMAModel(parameters, decay=decay), parameters) for decay, parameters in by_decay.items()]
    for average, _ in averages:  # a ten-thousandth of the way towards a parameter would be lost in bfloat16
        average.shadow_params = [shadow.float() for shadow in average.shadow_params]
    return averages
