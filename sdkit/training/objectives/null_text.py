"""Null-text inversion (arXiv:2211.09794): at every step the empty text that leads guided DDIM back to the pivot.

The picture is inverted without guidance; what that passes through are the pivots. Then it is drawn again with guidance,
from the noise down, and before each step the empty text ∅ is moved by a few steps of Adam until the step arrives where
the pivot lies:

    min over ∅_t of ‖ z*_(t−1) − DDIM(z̄_t, ε(∅_t) + w (ε(prompt) − ε(∅_t))) ‖²

Each ∅_t begins as the one before it, and the next step begins where this one has arrived.

Departures from the published code: of the tries the best is kept, so no step is left worse than it was found, and the
last try is looked at too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone, Cond, Frame
from sdkit.runtime.ddim import Ddim
from sdkit.runtime.inversion import guided, invert, times
from sdkit.training.batch import Batch, Loss
from sdkit.training.solver import Solved
from sdkit.training.trainable import Trainable
from sdkit.training.trainables.null_text import NullText
from sdkit.training.updates import Update

if TYPE_CHECKING:
    import torch

RATE_FALLS_BY = 0.5  # of the learning rate, over all steps
TOLERANCE_GROWS_BY = 100.0  # times that of the first step, over all steps


@dataclass(frozen=True, slots=True)
class Search:
    """How the empty text of a step is looked for.

    Attributes:
        tries: steps of Adam, at most; 0 takes what is there.
        lr: learning rate of the first step; the last has half of it.
        tolerance: of the first step's loss: below it nothing more is tried. It grows from step to step, as published.
    """

    tries: int
    lr: float
    tolerance: float

    def rate(self, share: float) -> float:
        """The learning rate when a `share` of the steps is done."""
        return self.lr * (1 - RATE_FALLS_BY * share)

    def enough(self, share: float) -> float:
        """The loss that is good enough when a `share` of the steps is done."""
        return self.tolerance * (1 + TOLERANCE_GROWS_BY * share)


class NullTextSolver:
    """Finds the empty text of a step; see `sdkit.training.solver.Solver`.

    Args:
        steps: of DDIM.
        guidance: w.
        search: how; None takes the prompt itself for the empty text (negative-prompt inversion, arXiv:2305.16807).
        warm: whether a step's empty text begins as the one of the step before.
    """

    def __init__(self, steps: int, guidance: float, search: Search | None, *, warm: bool = True) -> None:
        self._steps = steps
        self._guidance = guidance
        self._search = search
        self._warm = warm
        self._pivots: torch.Tensor | None = None
        self._latents: torch.Tensor | None = None

    @property
    def inputs(self) -> frozenset[str]:
        """The picture's latents and its prompt."""
        return frozenset({"latents", "cond"})

    @property
    def noise(self) -> torch.Tensor:
        """What the picture is drawn from, [1, c, h, w]."""
        assert self._pivots is not None, "a step is done"
        return self._pivots[0]

    @property
    def latents(self) -> torch.Tensor:
        """What has been drawn so far, [1, c, h, w]."""
        assert self._latents is not None, "a step is done"
        return self._latents

    def solve(self, backbone: Backbone, trained: Sequence[Trainable], batch: Batch, step: int) -> Solved:
        """Solve a step.

        Raises:
            SdkitError: the loss is no number.
        """
        (rows,) = trained
        assert isinstance(rows, NullText) and batch.cond is not None
        cond = whole(backbone, batch)
        ddim = Ddim(backbone.schedule, self._steps)
        if step == 0:
            self._begin(backbone, ddim, batch, cond)
        assert self._pivots is not None
        problem = _Problem(backbone, ddim, step, self.latents, self._pivots[step + 1], cond, self._guidance)
        with backbone.evaluating():
            found = self._as_prompt(problem) if self._search is None else self._searched(problem, rows, self._search)
        if not bool(found.loss.isfinite()):
            raise SdkitError(f"the loss is no number at step {step}", "use precision=fp32, or less guidance=")
        rows.put(step, found.null)
        self._latents = found.latents
        return Solved(Loss(found.loss, {"before": found.before}), Update(found.lr, found.norm))

    def state(self) -> Mapping[str, Any]:
        """The pivots, and where the picture has got to."""
        return {"pivots": self._pivots, "latents": self._latents}

    def load(self, state: Mapping[str, Any], backbone: Backbone) -> None:
        """Take up a saved state."""
        pivots, latents = state["pivots"], state["latents"]
        self._pivots = None if pivots is None else pivots.to(backbone.device)
        self._latents = None if latents is None else latents.to(backbone.device)

    def _begin(self, backbone: Backbone, ddim: Ddim, batch: Batch, cond: Cond) -> None:
        assert batch.latents is not None
        self._pivots = invert(backbone, ddim, batch.latents.mean.float(), cond)
        self._latents = self._pivots[0]

    def _as_prompt(self, problem: _Problem) -> _Found:
        import torch

        with torch.no_grad():
            positive = problem.predict(problem.cond)
            latents, loss = problem.arrive(positive, positive)
        return _Found(problem.cond, latents, loss, loss, torch.zeros(()), 0.0)

    def _searched(self, problem: _Problem, rows: NullText, search: Search) -> _Found:
        share = problem.step / self._steps
        start = rows.texts.at(max(problem.step - 1, 0) if self._warm else problem.step, problem.cond)
        return problem.searched(start, search.tries, search.rate(share), search.enough(share))


def whole(backbone: Backbone, batch: Batch) -> Cond:
    """The prompt of a batch, for a picture that is as it was: what it was cut from is not drawn again."""
    assert batch.cond is not None and batch.latents is not None
    height, width = (side * backbone.pixels_per_latent for side in batch.latents.mean.shape[-2:])
    return backbone.framed(batch.cond, [Frame.whole((width, height))])


@dataclass(frozen=True, slots=True)
class _Found:
    """The best empty text of a step.

    Attributes:
        null: the text.
        latents: where it leads.
        loss: how far that is from the pivot.
        before: the same for the text that was begun with.
        norm: of the last gradient.
        lr: learning rate.
    """

    null: Cond
    latents: torch.Tensor
    loss: torch.Tensor
    before: torch.Tensor
    norm: torch.Tensor
    lr: float


@dataclass(frozen=True, slots=True)
class _Problem:
    """A step: from `latents` to `pivot`."""

    backbone: Backbone
    ddim: Ddim
    step: int
    latents: torch.Tensor
    pivot: torch.Tensor
    cond: Cond
    guidance: float

    def predict(self, cond: Cond) -> torch.Tensor:
        """The denoiser's prediction for the latents."""
        return self.backbone.denoise(self.latents, times(self.backbone, self.ddim, self.step), cond)

    def arrive(self, positive: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where two predictions lead, and the mean squared distance from the pivot."""
        latents = self.ddim.down(self.latents, guided(positive, negative, self.guidance), self.step)
        return latents, (latents - self.pivot).square().mean()

    def searched(self, start: Cond, tries: int, lr: float, enough: float) -> _Found:
        """The best of the texts that Adam comes by, beginning with `start`."""
        import torch

        with torch.no_grad():
            positive = self.predict(self.cond)
        moved = {"context": start.context.detach().clone()}
        if "text_embeds" in start.added:
            moved["text_embeds"] = start.added["text_embeds"].detach().clone()
        for tensor in moved.values():
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam(moved.values(), lr=lr)
        best: _Found | None = None
        norm = torch.zeros(())
        for number in range(tries + 1):
            last = number == tries
            with torch.set_grad_enabled(not last):
                latents, loss = self.arrive(positive, self.predict(_text(moved, start)))
            found = loss.detach()
            before = best.before if best is not None else found
            if best is None or bool(found < best.loss):
                kept = _text({name: tensor.detach().clone() for name, tensor in moved.items()}, start)
                best = _Found(kept, latents.detach(), found, before, norm, lr)
            if last or bool(found < enough) or not bool(found.isfinite()):
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in moved.values() if tensor.grad is not None])
            optimizer.step()
        assert best is not None
        return best


def _text(moved: Mapping[str, torch.Tensor], start: Cond) -> Cond:
    """The conditioning with the tensors that move."""
    added = {name: moved.get(name, value) for name, value in start.added.items()}
    return Cond(moved["context"], added)
