"""The held-out loss of an adapter, whoever wrote its file, as one line of JSON.

    python -m benchmarks.held_out BASE ADAPTER PICTURES

PICTURES is a folder of captioned pictures that were not trained on; noise and timesteps are the same for every file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from sdkit.families.bases import resolve_base
from sdkit.formats import read_adapter
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, fall_interval, held_out_losses
from sdkit.training.data import read_dataset
from sdkit.training.images import fit, open_picture, pixels
from sdkit.weights import open_weights


def held_out(backbone: Backbone, folder: Path) -> Iterator[HeldOut]:
    """The pictures of a folder, encoded at their own sizes."""
    for sample in read_dataset(folder).samples:
        picture = pixels(fit(open_picture(sample.path, "white"), sample.size))[None]
        yield HeldOut(sample.id, sample.caption, sample.size, latents=backbone.encode_image(picture))


def main(base: str, adapter: str, folder: str) -> None:
    """Measure and print."""
    backbone = load_backbone(resolve_base(base))
    pictures = list(held_out(backbone, Path(folder)))
    before = held_out_losses(backbone, pictures)
    with open_weights(Path(adapter)) as weights, install(read_adapter(weights, backbone.model), backbone):
        after = held_out_losses(backbone, pictures)
    low, high = fall_interval(before, after)
    print(json.dumps({"before": float(before.mean()), "after": float(after.mean()), "low": low, "high": high}))


if __name__ == "__main__":
    main(*sys.argv[1:])
