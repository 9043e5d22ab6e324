"""What one process of a comparison shall do, and the folder in which it leaves what it found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sdkit.weights.atomic import write_file

MEASURED = "measured.json"
# Where things lie, and what people call them, does not make another comparison of it.
_ELSEWHERE = ("base", "folder", "prior_folder", "label")

Measured = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is not trained on.

    Attributes:
        id: names its content.
        path: its file.
        caption: with the new thing as it is called here.
    """

    id: str
    path: str
    caption: str


@dataclass(frozen=True, slots=True)
class Order:
    """A method to train and measure, or the base to measure by itself.

    Attributes:
        label: the contestant; empty for the base.
        method: its training method.
        options: keys of that.
        base: the base's path.
        base_id: its quick id.
        data_id: names the pictures that are trained on.
        folder: where everything of it goes.
        held_out: what the loss is measured on.
        prior: prompts of what the base knows.
        prior_folder: where the base's pictures of these lie.
        prompts: what is drawn, with the new thing as it is called here.
        texts: the same in words the base knows, which the pictures are compared with.
        shown: files of pictures that are trained on, which the drawn ones are compared with.
        steps: of the sampler.
        cfg: guidance of what is drawn.
        device: as `sdkit train` takes it.
        precision: as `sdkit train` takes it.
        resolution: as `sdkit train` takes it.
        trial: train these few steps and measure nothing, to see how long one takes; 0 for the whole.
    """

    label: str
    method: str
    options: dict[str, Any]
    base: str
    base_id: str
    data_id: str
    folder: str
    held_out: tuple[Picture, ...]
    prior: tuple[str, ...]
    prior_folder: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    shown: tuple[Picture, ...]
    steps: int
    cfg: float
    device: str = "auto"
    precision: str = "auto"
    resolution: int | None = None
    trial: int = field(default=0)

    @classmethod
    def read(cls, text: str) -> Order:
        """From a line of JSON, as `line` writes it."""
        raw = json.loads(text)
        for name in ("held_out", "shown"):
            raw[name] = tuple(Picture(**entry) for entry in raw[name])
        for name in ("prior", "prompts", "texts"):
            raw[name] = tuple(raw[name])
        return cls(**raw)

    @property
    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self))

    @property
    def digest(self) -> str:
        """Two orders of the same digest lead to the same result."""
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _ELSEWHERE}
        said |= {name: [(each.id, each.caption) for each in said[name]] for name in ("held_out", "shown")}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]

    @property
    def drawn(self) -> Path:
        """Where drawn pictures go."""
        return Path(self.folder) / "drawn"

    def measured(self) -> Measured | None:
        """What has been found; None where nothing is there yet."""
        file = Path(self.folder) / MEASURED
        if not file.is_file():
            return None
        found: Measured = json.loads(file.read_text(encoding="utf-8"))
        return found

    def keep(self, found: Measured) -> None:
        """Leave what was found, whole."""
        text = json.dumps({"order": self.digest, **found}, indent=1)
        write_file(Path(self.folder) / MEASURED, text.encode(), overwrite=True)
