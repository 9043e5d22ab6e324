"""Run as a process of its own: one training and what it led to, or what the base does by itself.

    python -m benchmarks.methods.one ORDER

where ORDER is a JSON object (see `Order`). Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.methods.concepts import Concept, Picture, concept, laid_out
from benchmarks.methods.settings import CLASS_IMAGES, method_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdkit.runtime.backbone import Backbone

PAIRS = 8  # of noise and timestep, for each picture
CLASS_HELD_OUT = 8
STEPS, CFG = 20, 3.0

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What a process shall do.

    Attributes:
        base: the base's path.
        base_id: its quick id.
        data: the folder that recipes/tiny-base/pictures.py made.
        out: where pictures and what is trained go.
        concept: by name.
        condition: what is trained; empty to measure the base by itself.
        seed: of the training.
        options: of the training.
        draw: whether pictures are drawn.
    """

    base: str
    base_id: str
    data: str
    out: str
    concept: str
    condition: str = ""
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    draw: bool = True

    @property
    def said(self) -> Line:
        """What the result says of it; two results that agree in this are the same."""
        left = ("base", "data", "out")
        return {key: value for key, value in asdict(self).items() if key not in left}

    @property
    def pictures(self) -> Path:
        """Where the drawn pictures go: another folder for other options."""
        digest = hashlib.sha256(json.dumps(self.said, sort_keys=True).encode()).hexdigest()[:8]
        words = f"{self.concept} {self.condition or 'base'} {self.seed} {digest}"
        return Path(self.out) / "pictures" / re.sub(r"\W+", "-", words)


def measure_base(order: Order) -> Line:
    """The losses and pictures of the base by itself, asked in the words that suit it best; the class is drawn."""
    from sdkit.runtime.load import load_backbone

    thing = concept(Path(order.data), order.concept)
    backbone = load_backbone(order.base)
    began = time.process_time()
    drawn = _draw_class(order, thing, backbone)
    class_seconds = time.process_time() - began
    asked = _best_words(backbone, thing)
    losses = _losses(backbone, _measured_on(order, thing), asked)
    nearest = _drawn(backbone, order, thing, asked)
    cost = {"class_drawn": drawn, "class_cpu_seconds": round(class_seconds, 1)}
    return {**order.said, "asked": asked, "losses": losses, "nearest": nearest, **cost}


def _best_words(backbone: Backbone, thing: Concept) -> str:
    """What the base is asked for: the thing's own name, or what it knows that comes nearest."""

    def loss(phrase: str) -> float:
        return sum(map(sum, _losses(backbone, {"held_out": thing.held_out}, phrase)["held_out"]))

    return min((thing.like, thing.name), key=loss)


def measure_run(order: Order) -> Line:
    """Train, and measure what was trained."""
    began = time.perf_counter()
    import sdkit
    from sdkit.core.events import Event, Step

    steps: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event.seconds)

    method, thing = method_of(order.condition), concept(Path(order.data), order.concept)
    place = Path(order.out) / "trained" / order.pictures.name
    shutil.rmtree(place, ignore_errors=True)
    pictures = laid_out(thing.taught, place / "pictures", thing.called(method))
    report = sdkit.train(method, order.base, pictures, place / "run", seed=order.seed, watch=watch, **order.options)
    cost = {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "mib": round(report.peak_memory_mib or 0.0, 1),
        "steps": report.step,
        "steps_per_second": round(len(steps) / sum(steps), 2),
        "parameters": report.parameters,
        "bytes": report.output_bytes,
    }
    with _trained(order, Path(report.output)) as backbone:
        phrase = thing.called(method)
        losses = _losses(backbone, _measured_on(order, thing), phrase)
        nearest = _drawn(backbone, order, thing, phrase) if order.draw else None
    shutil.rmtree(place)
    return {**order.said, **cost, "losses": losses, "nearest": nearest}


@contextmanager
def _trained(order: Order, result: Path) -> Iterator[Backbone]:
    """The base with what was trained: itself changed, or an adapter live in it."""
    from sdkit.formats import read_adapter
    from sdkit.runtime.install import install
    from sdkit.runtime.load import load_backbone
    from sdkit.weights import open_weights

    if method_of(order.condition) == "dreambooth":
        yield load_backbone(result)
        return
    backbone = load_backbone(order.base)
    with open_weights(result) as weights, install(read_adapter(weights, backbone.model), backbone):
        yield backbone


def _measured_on(order: Order, thing: Concept) -> dict[str, Sequence[Picture]]:
    """The pictures whose losses are measured, by what they are."""
    parts = {"held_out": thing.held_out, "other": thing.other, "known": thing.known, "class": _class(order, thing)}
    return {part: pictures for part, pictures in parts.items() if pictures}


def _losses(backbone: Backbone, parts: Mapping[str, Sequence[Picture]], phrase: str) -> dict[str, list[list[float]]]:
    """Held-out losses [pictures, pairs] of each part; the pairs are the same for every model."""
    from sdkit.runtime.losses import HeldOut, held_out_losses
    from sdkit.training.images import fit, open_picture, pixels

    def held_out(picture: Picture) -> HeldOut:
        seen = pixels(fit(open_picture(picture.file, "white"), (64, 64)))[None]
        digest = hashlib.sha256(picture.file.read_bytes()).hexdigest()
        return HeldOut(digest, picture.caption.replace("{}", phrase), (64, 64), backbone.encode_image(seen))

    return {
        part: [
            [round(loss, 6) for loss in row]
            for row in held_out_losses(backbone, [held_out(picture) for picture in pictures], pairs=PAIRS).tolist()
        ]
        for part, pictures in parts.items()
    }


def _class(order: Order, thing: Concept) -> Sequence[Picture]:
    """Pictures of the class that the base has drawn, and that no run trains on."""
    if thing.is_style:
        return ()
    wanted = _class_pictures(order, thing)
    return [Picture(wanted.path(CLASS_IMAGES + number), wanted.prompt) for number in range(CLASS_HELD_OUT)]


def _draw_class(order: Order, thing: Concept, backbone: Backbone) -> int:
    """Draw the class, for all runs; how many pictures were not there yet."""
    if thing.is_style:
        return 0
    wanted = _class_pictures(order, thing)
    return sum(1 for _ in wanted.draw(backbone, wanted.missing))


def _class_pictures(order: Order, thing: Concept) -> Any:
    from sdkit.jobs.class_pictures import class_pictures
    from sdkit.training.method import Prior
    from sdkit.training.methods.dreambooth import with_article
    from sdkit.training.options import TrainOptions
    from sdkit.training.plan import look_at_base

    count = CLASS_IMAGES + CLASS_HELD_OUT
    options, prior = TrainOptions(device="cpu", precision="fp32"), Prior(with_article(thing.like), count)
    return class_pictures(look_at_base(Path(order.base)), options, prior, shown=count)


def _drawn(backbone: Backbone, order: Order, thing: Concept, phrase: str) -> dict[str, int]:
    """Draw and keep pictures; how many are nearest to a drawing of the right concept, and of the right style."""
    from sdkit.generation.pictures import draw
    from sdkit.generation.request import Request

    asked = thing.drawn
    prompts = [picture.caption.replace("{}", phrase) for picture in asked]
    requests = [Request(prompt, seed=number, steps=STEPS, cfg=CFG) for number, prompt in enumerate(prompts)]
    pictures = draw(backbone, requests, batch=len(requests))
    order.pictures.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(order.pictures / f"{number}.png")
    return _nearest(Path(order.data), asked, pictures)


def _nearest(data: Path, asked: Sequence[Picture], pictures: Sequence[Image]) -> dict[str, int]:
    import PIL.Image

    from sdkit.report.nearest import by_distance

    files = sorted((data / "reference").glob("*.png"))
    drawings = [PIL.Image.open(file).convert("RGBA") for file in files]
    concepts = styles = 0
    for wanted, picture in zip(asked, pictures, strict=True):
        found = files[by_distance(picture, drawings)[0]].stem.partition("--")
        concepts += found[0].replace("-", " ") == wanted.concept
        styles += found[2] == wanted.file.stem.split("--")[1]
    return {"pictures": len(pictures), "concept": concepts, "style": styles}


def main() -> None:
    """Do what the order says."""
    order = Order(**json.loads(sys.argv[1]))
    print(json.dumps(measure_run(order) if order.condition else measure_base(order)))


if __name__ == "__main__":
    main()
