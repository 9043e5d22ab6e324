"""How well an image encoder finds pictures by their captions: those held out, an unseen style, unseen subjects.

    python -m benchmarks.tiny_tower runs/emoji [--tower tiny]

takes the folder that recipes/tiny-base/pictures.py made and prints one line of JSON: for each set the number of
pictures, and how often the picture a caption belongs to comes first, and among the first five, of all of the set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from sdkit.core.errors import SdkitError
from sdkit.runtime.image_tower import ImageTower, load_tower
from sdkit.training.data import Sample, read_dataset, split_dataset
from sdkit.training.images import fit, open_picture, pixels

HELD_OUT = 0.1  # as recipes/tiny-image-tower.yaml has it
AT_ONCE = 64


def ranks(tower: ImageTower, samples: Sequence[Sample]) -> torch.Tensor:
    """The place [n] of each caption's own picture among all, the nearest 0."""
    shown = [pixels(fit(open_picture(sample.path, "white"), (tower.side, tower.side))) for sample in samples]
    images = torch.cat([tower.images(part) for part in torch.stack(shown).split(AT_ONCE)])
    captions = [sample.caption for sample in samples]
    texts = torch.cat([tower.texts(captions[at : at + AT_ONCE]) for at in range(0, len(captions), AT_ONCE)])
    cosines = texts @ images.T
    return (cosines > cosines.diagonal()[:, None]).sum(1)


def figures(tower: ImageTower, samples: Sequence[Sample]) -> dict[str, float]:
    """Pictures, and the shares found first and among the first five. Bare concepts, which fit several, are left out."""
    chosen = [sample for sample in samples if "style" in sample.caption]
    found = ranks(tower, chosen)
    shares = {f"top {count}": round(float((found < count).float().mean()), 4) for count in (1, 5)}
    return {"pictures": len(chosen), **shares}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tower", default="tiny", help="a base, or an image encoder's folder beside tiny's")
    arguments = parser.parse_args()
    tower = load_tower(arguments.tower, "tiny")
    if tower is None:
        raise SdkitError(f"{arguments.tower}: has no image encoder")
    _, held_out = split_dataset(read_dataset(arguments.data / "base"), HELD_OUT)
    sets = {
        "held out": held_out.samples,
        "unseen style": read_dataset(arguments.data / "fluent-held-out").samples,
        "unseen subjects": [
            sample
            for folder in sorted((arguments.data / "subjects").iterdir())
            for sample in read_dataset(folder).samples
        ],
    }
    print(json.dumps({name: figures(tower, samples) for name, samples in sets.items()}))


if __name__ == "__main__":
    main()
