"""An inverted picture that `generate` draws again or edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.trajectory import Trajectory
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.hashing import quick_id
from sdkit.formats import read_adapter
from sdkit.generation.edit import (
    CROSS_REPLACE,
    SELF_REPLACE,
    Edit,
    Inverted,
    check_base,
    check_edit,
    checked,
    draw_edit,
)
from sdkit.generation.pictures import Watch
from sdkit.generation.request import Request
from sdkit.weights import Weights, open_weights

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdkit.runtime.backbone import Backbone

__all__ = ["CROSS_REPLACE", "SELF_REPLACE", "EditedPicture"]

SAMPLER = "DDIM"
_OPEN = frozenset({"prompt", "cfg"})  # what an inversion leaves to a person


@dataclass(frozen=True, slots=True)
class EditedPicture:
    """An inversion's file, and how much of the picture an edit keeps.

    Attributes:
        path: the file.
        cross_replace: as `Edit.cross_replace`.
        self_replace: as `Edit.self_replace`.
    """

    path: Path
    cross_replace: float
    self_replace: float

    def settings(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        """The settings of the picture, with those that are `given`.

        Raises:
            SdkitError: the file is no inversion, or one of them is the inversion's to say.
        """
        strange = next((name for name in given if name not in _OPEN), None)
        if strange is not None:
            raise UsageError(f"{strange} does not go with an inversion, which says it itself", "leave it out")
        if count != 1:
            raise UsageError(f"count {count}: nothing in an edit is left to chance", "give several prompts instead")
        check_edit(Edit("", cross_replace=self.cross_replace, self_replace=self.self_replace))
        with open_weights(self.path) as weights:
            about = checked(_trajectory(weights), str(self.path))
        return {"prompt": about.prompt, "cfg": about.guidance, **given, "steps": about.steps, "sampler": SAMPLER}

    def check(self, base: Weights) -> None:
        """Refuse another base than the picture was inverted with.

        Raises:
            SdkitError: it is another.
        """
        with open_weights(self.path) as weights:
            about = checked(_trajectory(weights), str(self.path))
        check_base(about, quick_id(*base.files), base.path.name, str(self.path))

    def draw(self, backbone: Backbone, request: Request, watch: Watch) -> tuple[Request, Image]:
        """The picture a request makes of it, and the request with the picture's size.

        Raises:
            SdkitError: it is of another base, or cannot be drawn.
        """
        with open_weights(self.path) as weights:
            inverted = Inverted.load(_trajectory(weights), backbone, str(self.path))
        width, height = inverted.size(backbone)
        edit = Edit(request.prompt, request.cfg, self.cross_replace, self.self_replace)
        return replace(request, width=width, height=height), draw_edit(backbone, inverted, edit, watch)


def _trajectory(weights: Weights) -> Trajectory:
    artifact: Artifact = read_adapter(weights)
    if artifact.trajectory is None:
        raise SdkitError(
            f"{weights.path}: is no inverted picture, but a file of kind {artifact.kind}",
            "`sdkit train null-text-inversion` makes one",
        )
    return artifact.trajectory
