"""The solver beside the published algorithm, written out with diffusers' scheduler and torch's Adam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from sdkit.runtime.backbone import Backbone, Latents
from sdkit.runtime.inversion import NullTexts
from sdkit.runtime.load import load_backbone
from sdkit.training.batch import Batch
from sdkit.training.objectives.null_text import NullTextSolver, Search
from sdkit.training.trainables.null_text import NullText

STEPS, GUIDANCE, TRIES, LR = 4, 5.0, 3, 0.02


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def batch_of(backbone: Backbone, prompt: str = "an owl") -> Batch:
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize([prompt]), (16, 16))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.7
    return Batch(("a",), latents=Latents(latents, torch.zeros_like(latents)), cond=cond)


def empty(backbone: Backbone, rows: int) -> NullText:
    with torch.no_grad():
        context = backbone.encode_text(backbone.tokenize([""]), (16, 16)).context
    return NullText(NullTexts(context[None].repeat(rows, 1, 1, 1)))


def published(backbone: Backbone, batch: Batch) -> list[float]:
    """The first loss of every step of the published algorithm, and the final latents' distance at last."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    down = DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
    up = DDIMInverseScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
    down.set_timesteps(STEPS)
    up.set_timesteps(STEPS)
    assert batch.cond is not None and batch.latents is not None
    text, unet = batch.cond.context, backbone.unet
    pivots = [batch.latents.mean]
    with torch.no_grad():
        for t in up.timesteps:
            pivots.append(up.step(unet(pivots[-1], t, text).sample, t, pivots[-1]).prev_sample)
    null = backbone.encode_text(backbone.tokenize([""]), (16, 16)).context.detach()
    latents, found = pivots[-1], []
    for number, t in enumerate(down.timesteps):
        null = null.clone().requires_grad_(True)
        adam = torch.optim.Adam([null], lr=LR * (1 - number / (2 * STEPS)))
        with torch.no_grad():
            positive = unet(latents, t, text).sample
        tried = []
        for attempt in range(TRIES + 1):
            negative = unet(latents, t, null).sample
            arrived = down.step(negative + GUIDANCE * (positive - negative), t, latents, eta=0.0).prev_sample
            loss = functional.mse_loss(arrived, pivots[STEPS - number - 1])
            tried.append((float(loss.detach()), null.detach().clone(), arrived.detach()))
            if attempt < TRIES:
                adam.zero_grad()
                loss.backward()
                adam.step()
        found.append(tried[0][0])
        best, null, latents = min(tried, key=lambda entry: entry[0])
    return [*found, best]


def test_it_is_the_published_algorithm(backbone: Backbone) -> None:
    batch, rows = batch_of(backbone), empty(backbone, STEPS)
    solver = NullTextSolver(STEPS, GUIDANCE, Search(TRIES, LR, 0.0))
    solved = [solver.solve(backbone, [rows], batch, step) for step in range(STEPS)]
    *first, last = published(backbone, batch)
    ours = [float(step.loss.parts["before"]) for step in solved]
    assert ours == pytest.approx(first, rel=2e-3)
    assert float(solved[-1].loss.value) == pytest.approx(last, rel=2e-3)


def test_no_step_is_left_worse_than_it_was_found_even_at_a_wild_rate(backbone: Backbone) -> None:
    batch, rows = batch_of(backbone), empty(backbone, STEPS)
    solver = NullTextSolver(STEPS, GUIDANCE, Search(4, 5.0, 0.0))
    for step in range(STEPS):
        solved = solver.solve(backbone, [rows], batch, step)
        assert float(solved.loss.value) <= float(solved.loss.parts["before"])


def test_a_loss_that_is_good_enough_ends_the_search(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    denoise = type(backbone).denoise

    def counted(self: Backbone, *given: object) -> torch.Tensor:
        calls.append(1)
        return denoise(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(backbone), "denoise", counted)
    batch, rows = batch_of(backbone), empty(backbone, 1)
    NullTextSolver(1, GUIDANCE, Search(9, LR, 1e9)).solve(backbone, [rows], batch, 0)
    assert len(calls) == 1 + 1 + 1  # one to invert, the prompt, and the empty text once
    assert torch.equal(rows.texts.context, empty(backbone, 1).texts.context)


def test_the_prompt_as_the_empty_text_takes_guidance_out(backbone: Backbone) -> None:
    """Whatever the guidance, the picture comes back as it does without any."""
    batch = batch_of(backbone)
    ends = []
    for guidance in (1.0, 9.0):
        rows, solver = empty(backbone, 1), NullTextSolver(STEPS, guidance, None)
        for step in range(STEPS):
            solver.solve(backbone, [rows], batch, step)
        assert batch.cond is not None and torch.equal(rows.texts.context[0], batch.cond.context)
        ends.append(solver.latents)
    torch.testing.assert_close(ends[0], ends[1])


def test_the_search_relaxes_as_published() -> None:
    """For the 50 steps it was published for: 1e-2 · (1 − i/100), and 1e-5 + i · 2e-5."""
    search = Search(10, 1e-2, 1e-5)
    for i in range(50):
        assert search.rate(i / 50) == pytest.approx(1e-2 * (1 - i / 100))
        assert search.enough(i / 50) == pytest.approx(1e-5 + i * 2e-5)
