"""Drawing an inverted picture again, as it was or as another prompt has it.

The picture is followed step by step along its own trajectory, and beside it the edited one, which begins at the same
noise, has the same empty texts, and takes over its attention (prompt-to-prompt, arXiv:2208.01626): over the text for
most of the steps, over the picture itself for the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.trajectory import About, Trajectory
from sdkit.core.errors import SdkitError, UsageError
from sdkit.generation.alignment import Alignment, align, read_plain, read_prompt
from sdkit.runtime.attention import Change, Control, controlled
from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.ddim import Ddim
from sdkit.runtime.inversion import NullTexts, guided, times

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


CROSS_REPLACE, SELF_REPLACE = 0.8, 0.4  # as published for the replacement of a word


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to become of an inverted picture.

    Attributes:
        prompt: what the picture should show; the inversion's own draws it as it was.
        cfg: guidance of the edited picture; None is the inversion's.
        cross_replace: share of the steps whose attention over the text is taken over.
        self_replace: share of the steps whose attention over the picture is taken over: more keeps more of its shapes.
    """

    prompt: str
    cfg: float | None = None
    cross_replace: float = CROSS_REPLACE
    self_replace: float = SELF_REPLACE


@dataclass(frozen=True, slots=True)
class Inverted:
    """An inverted picture, loaded.

    Attributes:
        noise: [1, c, h, w].
        null: what stands for the empty text.
        about: how it was inverted.
    """

    noise: torch.Tensor
    null: NullTexts
    about: About

    @classmethod
    def load(cls, trajectory: Trajectory, backbone: Backbone, name: str) -> Inverted:
        """Read a trajectory, to the base's device.

        Args:
            name: of its file.

        Raises:
            SdkitError: it lacks something, or is of another base.
        """
        about = checked(trajectory, name)
        check_base(about, backbone.base_id, backbone.base_name, name)
        if about.prediction != backbone.schedule.prediction:
            raise SdkitError(
                f"{name}: was inverted with {about.prediction}, the base predicts {backbone.schedule.prediction}",
                f"draw with --prediction {about.prediction}",
            )
        assert trajectory.latents is not None
        reads = (trajectory.latents, trajectory.uncond, trajectory.pooled)
        noise, uncond, pooled = (
            read.load().to(backbone.device).float() if read is not None else None for read in reads
        )
        assert noise is not None and uncond is not None
        return cls(noise, NullTexts(uncond, pooled), about)

    def size(self, backbone: Backbone) -> tuple[int, int]:
        """Width and height of the picture."""
        height, width = (side * backbone.pixels_per_latent for side in self.noise.shape[-2:])
        return width, height


def checked(trajectory: Trajectory, name: str) -> About:
    """How a picture was inverted, of a trajectory that can be followed.

    Raises:
        SdkitError: it cannot.
    """
    if trajectory.latents is None or trajectory.about is None:
        raise SdkitError(
            f"{name}: holds the empty texts alone, and not the noise the picture begins with",
            "find it again: sdkit train null-text-inversion --data PICTURE init=FILE tries=0",
        )
    return trajectory.about


def check_base(about: About, base_id: str, base_name: str, name: str) -> None:
    """Refuse another base than a picture was inverted with, whatever it is called.

    Raises:
        SdkitError: it is another.
    """
    if about.base != base_id:
        raise SdkitError(
            f"{name}: was inverted with the base {about.base_name} ({about.base}), not with {base_name} ({base_id})",
            "draw with the same base, or invert the picture with this one",
        )


def check_edit(edit: Edit) -> None:
    """Check what can be without a base.

    Raises:
        UsageError: a share is none.
    """
    for name, share in (("cross_replace", edit.cross_replace), ("self_replace", edit.self_replace)):
        if not 0 <= share <= 1:
            raise UsageError(f"{name}: {share:g} is no share of the steps", "use 0 to 1")


def draw_edit(
    backbone: Backbone, inverted: Inverted, edit: Edit, watch: Callable[[int, int], None] | None = None
) -> Image:
    """The picture that an edit makes of an inverted one. Nothing is left to chance.

    Args:
        watch: called after every step with the number of steps done and of all steps.

    Raises:
        SdkitError: the prompt cannot be read, or what is drawn is no number.
    """
    import torch

    from sdkit.generation.pictures import picture_of

    check_edit(edit)
    with torch.no_grad(), backbone.evaluating():
        latents = _Drawing(backbone, inverted, edit).run(watch or (lambda done, total: None))
        if not bool(latents.isfinite().all()):
            raise SdkitError("the drawn picture is no number", "draw it with --precision fp32, or less --cfg")
        return picture_of(backbone, latents)


class _Drawing:
    """One edit. Rows of a batch are the picture as it was, and as it is edited, if it is."""

    def __init__(self, backbone: Backbone, inverted: Inverted, edit: Edit) -> None:
        import torch

        first, edited = read_plain(backbone, inverted.about.prompt), read_prompt(backbone, edit.prompt)
        self._backbone = backbone
        self._inverted = inverted
        self._edit = edit
        self._ddim = Ddim(backbone.schedule, inverted.about.steps)
        self._alone = first.words == edited.words and set(edited.weights) <= {1.0}
        texts = [inverted.about.prompt] if self._alone else [inverted.about.prompt, edited.text]
        size = inverted.size(backbone)
        self._conds = [backbone.encode_text(backbone.tokenize([text]), size) for text in texts]
        own = inverted.about.guidance
        scales = [own, own if edit.cfg is None else edit.cfg][-len(texts) :]
        self._scales = torch.tensor(scales, device=backbone.device).reshape(-1, 1, 1, 1)
        length = self._conds[0].context.shape[1]
        self._change = None if self._alone else _change(align(first, edited, length), backbone.device)

    def run(self, watch: Callable[[int, int], None]) -> torch.Tensor:
        """The drawn latents [1, c, h, w]."""
        latents = self._inverted.noise.expand(len(self._conds), -1, -1, -1)
        control = Control()
        with controlled(self._backbone, control):
            for step in range(self._ddim.steps):
                self._set(control, step)
                latents = self._ddim.down(latents, self._predicted(latents, step), step)
                watch(step + 1, self._ddim.steps)
        return latents[-1:]

    def _set(self, control: Control, step: int) -> None:
        """What is taken over at a step."""
        share = step / self._ddim.steps
        early = share < self._edit.cross_replace
        control.over_text = self._change and self._change(early)
        control.over_picture = not self._alone and share < self._edit.self_replace

    def _predicted(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """The guided predictions. The texts come last in the batch, the edited one at its end, as `Control` has it."""
        import torch

        null = [self._inverted.null.at(step, cond) for cond in self._conds]
        timesteps = times(self._backbone, self._ddim, step, 2 * len(latents))
        both = self._backbone.denoise(torch.cat([latents, latents]), timesteps, Cond.join([*null, *self._conds]))
        negative, positive = both.chunk(2)
        return guided(positive, negative, self._scales)


def _change(alignment: Alignment, device: torch.device) -> Callable[[bool], Change]:
    """What becomes of the edited prompt's attention: early, it is taken over; its weights act at every step."""
    mapper, taken, weights = (part.to(device) for part in (alignment.mapper, alignment.taken, alignment.weights))

    def early(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((source @ mapper) * taken + target * (1 - taken)) * weights

    def late(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target * weights

    return lambda is_early: early if is_early else late
