"""docs/methods.md: what each training method updates and where the loss flows, drawn from its own trainables.

    python -m benchmarks.method_diagrams docs

Every method makes what it trains for the embedded base; where those parameters then stand in the model is drawn.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from benchmarks.which_method import sd15_model
from sdkit.core.human import human_bytes
from sdkit.families.bases import TINY, resolve_base
from sdkit.training.method import Method, Size, load_method, methods

if TYPE_CHECKING:
    from torch import nn

    from sdkit.runtime.backbone import Backbone
    from sdkit.training.trainable import Trainable

BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"
PAGE, PICTURES = "methods.md", "pictures/methods"
# What a method cannot do without.
NEEDED: Mapping[str, Mapping[str, Any]] = {}
# What trains and stands in no module of the base: the trainable's class → its box, and what that says.
OUTSIDE = {
    "NullText": ("empty", "empty text, step by step"),
    "Population": ("predictor", "network that predicts layers"),
    "MeanFeatures": ("mean", "mean vector"),
    "Tower": ("image", "image encoder"),
}
UNET_ROWS = {
    "kv": "cross-attention: keys, values",
    "attention": "other attention",
    "transformer": "rest of the transformers",
    "rest": "convolutions, norms, time",
}


@dataclass(frozen=True, slots=True)
class Updated:
    """What a method trains, by place.

    Attributes:
        own: places whose own weights are trained.
        beside: places that have new layers beside or before them.
        words: words whose rows are trained.
        outside: the box of what trains and is no part of the base; empty for none.
    """

    own: frozenset[str]
    beside: frozenset[str]
    words: int
    outside: str = ""

    @property
    def places(self) -> frozenset[str]:
        """Everything that learns."""
        more = [key for key, trained in (("tokens", self.words), (self.outside, self.outside)) if trained]
        return self.own | self.beside | frozenset(more)


def updated(backbone: Backbone, trained: Sequence[Trainable]) -> Updated:
    """Where the parameters of trainables stand in the model.

    Raises:
        KeyError: something stands in no module, and `OUTSIDE` does not know it.
    """
    own, beside, words, outside = set(), set(), 0, ""
    bare = {hub for hub, _ in backbone.modules()}
    for trainable in trained:
        wanted = {id(parameter) for parameter in trainable.parameters.values()}
        with trainable.install(backbone):
            found = [hub for hub, module in backbone.modules() if _holds(module, wanted)]
            ours = {hub for hub, module in backbone.modules() if type(module).__module__.startswith("sdkit.")}
        words += any(_place(hub) == "tokens" for hub in found)
        if not found:
            outside, _ = OUTSIDE[type(trainable).__name__]
        for hub in found or ours:  # layers without parameters of their own have them from what stands outside
            (own if hub in bare - ours else beside).add(_place(hub))
    return Updated(frozenset(own), frozenset(beside) - {"tokens"}, words, outside)


def _holds(module: nn.Module, wanted: Collection[int]) -> bool:
    """Whether a module has one of the parameters itself."""
    return any(id(parameter) in wanted for parameter in module.parameters(recurse=False))


def _place(hub: str) -> str:
    """The box of the diagram a module belongs to."""
    component = hub.partition(".")[0]
    if ".token_embedding" in hub:
        return "tokens"
    if component != "unet":
        return "text" if component.startswith("text_encoder") else component
    if re.search(r"\.attn2\.to_[kv]\b", hub):
        return "kv"
    if re.search(r"\.attn[12]\.", hub):
        return "attention"
    return "transformer" if ".transformer_blocks." in hub or ".attentions." in hub else "rest"


# The picture


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the model: left and top, width and height in pixels, and what it says."""

    x: int
    y: int
    width: int
    height: int
    text: str

    @property
    def middle(self) -> float:
        """Its height above the ground of the picture."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes, what leads from one to another, and what is drawn within one."""

    boxes: Mapping[str, Box]
    arrows: Sequence[tuple[str, str]]
    rows: Mapping[str, str] = field(default_factory=dict)


def layout_of(method: Method[Any], found: Updated) -> Layout:
    """The boxes of a method."""
    if method.component == "vae":
        return autoencoder()
    if method.component == "image_encoder":
        return steering() if found.outside == "mean" else image_encoder()
    return denoiser(found, method.passes)


def denoiser(found: Updated, passes: int) -> Layout:
    """The boxes of methods that learn by denoising."""
    tokens = "token rows" if found.words < 2 else f"token rows of {found.words} words"
    prediction = "guided prediction, of two" if passes > 1 else "predicted noise"
    boxes = {
        "caption": Box(10, 44, 84, 34, "caption"),
        "tokens": Box(124, 44, 116, 34, tokens),
        "text": Box(270, 44, 106, 34, "text encoder"),
        "picture": Box(10, 132, 84, 34, "picture"),
        "vae": Box(124, 132, 116, 34, "autoencoder"),
        "noised": Box(270, 132, 106, 34, "latents + noise"),
        "unet": Box(410, 24, 216, 156, "U-Net"),
        "loss": Box(660, 82, 130, 40, f"loss: {prediction}"),
    }
    arrows = _chain("caption", "tokens", "text", "unet", "loss") + _chain("picture", "vae", "noised", "unet")
    if found.outside:
        text = next(text for key, text in OUTSIDE.values() if key == found.outside)
        boxes[found.outside] = Box(250, 86, 126, 38, text)
        arrows.append((found.outside, "unet"))
    return Layout(boxes, arrows, UNET_ROWS)


def autoencoder() -> Layout:
    """The boxes of a method that learns to give a picture back."""
    boxes = {
        "picture": Box(10, 70, 84, 34, "picture"),
        "vae": Box(134, 70, 130, 34, "autoencoder"),
        "again": Box(304, 70, 160, 34, "latents, and the picture again"),
        "loss": Box(504, 70, 160, 34, "loss: difference, divergence"),
    }
    return Layout(boxes, _chain(*boxes))


def image_encoder() -> Layout:
    """The boxes of methods that bring pictures and texts together by CLIP."""
    boxes = {
        "caption": Box(10, 44, 84, 34, "caption"),
        "tokens": Box(124, 44, 116, 34, "token rows"),
        "text": Box(270, 44, 106, 34, "text encoder"),
        "picture": Box(10, 128, 84, 34, "picture"),
        "image": Box(270, 128, 106, 34, "image encoder"),
        "loss": Box(430, 36, 130, 134, "loss: how far their vectors are apart"),
    }
    return Layout(boxes, _chain("caption", "tokens", "text", "loss") + _chain("picture", "image", "loss"))


def steering() -> Layout:
    """The boxes of a method that keeps what an image encoder sees, and steers the text encoder by it when drawing."""
    boxes = {
        "picture": Box(10, 70, 84, 34, "pictures"),
        "image": Box(134, 70, 116, 34, "image encoder"),
        "mean": Box(290, 70, 106, 34, "mean vector"),
        "text": Box(436, 70, 200, 34, "text encoder, steered anew for each prompt"),
    }
    return Layout(boxes, _chain(*boxes))


def _chain(*keys: str) -> list[tuple[str, str]]:
    return list(zip(keys, keys[1:], strict=False))


def flowing(layout: Layout, places: frozenset[str]) -> set[tuple[str, str]]:
    """The arrows along which gradients flow, backwards: those that lead from what learns to the loss."""
    reached = {"unet" if place in layout.rows else place for place in places}
    found: set[tuple[str, str]] = set()
    if "loss" not in layout.boxes:
        return found
    while new := {arrow for arrow in layout.arrows if arrow[0] in reached} - found:
        found |= new
        reached |= {end for _, end in new}
    return found


WIDTH, HEIGHT = 800, 196
STYLE = (
    "text{font:12px sans-serif;fill:#24292f}.box{fill:#f6f8fa;stroke:#8c959f}.own{fill:#ffd8a8;stroke:#c2570c}"
    ".beside{fill:#cfe4fb;stroke:#0b6bcb;stroke-dasharray:4 3}.arrow{stroke:#8c959f;fill:none;stroke-width:1.5}"
    ".flow{stroke:#c2570c;fill:none;stroke-width:2.5}.head{fill:#8c959f}.back{fill:#c2570c}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.box{fill:#21262d}.own{fill:#7a3b0a}.beside{fill:#123a63}}"
)


def diagram(name: str, found: Updated, layout: Layout) -> str:
    """The picture: what learns is filled, and the loss flows back along the thick lines."""
    title = f"{name}: what learns, and where the loss flows"
    flow = flowing(layout, found.places)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f"<style>{STYLE}</style>",
        *(_arrow(layout.boxes[one], layout.boxes[other], (one, other) in flow) for one, other in layout.arrows),
        *(_box(box, _looks(key, found)) for key, box in layout.boxes.items() if key != "unet" or not layout.rows),
    ]
    if layout.rows:
        parts += _rows(layout, found)
    return "\n".join([*parts, "</svg>", ""])


def _looks(key: str, found: Updated) -> str:
    if key in found.own or key == found.outside or (key == "tokens" and found.words):
        return "own"
    return "beside" if key in found.beside else "box"


def _box(box: Box, looks: str) -> str:
    lines = _wrapped(box.text, box.width)
    top = box.middle + 4 - 7 * (len(lines) - 1)
    text = "".join(
        f'<text x="{box.x + box.width / 2:g}" y="{top + 14 * number:g}" text-anchor="middle">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return f'<rect class="{looks}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6"/>{text}'


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) * 6.4 > width - 8:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _rows(layout: Layout, found: Updated) -> list[str]:
    """The U-Net and its parts."""
    box = layout.boxes["unet"]
    frame = f'<rect class="box" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6"/>'
    title = f'<text x="{box.x + 10}" y="{box.y + 17}">{box.text}</text>'
    rows = [
        _box(Box(box.x + 10, box.y + 26 + 32 * number, box.width - 20, 26, text), _looks(key, found))
        for number, (key, text) in enumerate(layout.rows.items())
    ]
    return [frame, title, *rows]


def _arrow(one: Box, other: Box, flows: bool) -> str:
    """From one box to the right; where the loss flows, with a second head back."""
    start, end = one.x + one.width, other.x
    y = one.middle if other.height > one.height else other.middle
    y = y if one.y <= y <= one.y + one.height else one.middle
    head = f'<path class="head" d="M{end} {y:g}l-8 -4v8z"/>'
    back = f'<path class="back" d="M{start} {y:g}l9 -5v10z"/>' if flows else ""
    return f'<path class="{"flow" if flows else "arrow"}" d="M{start} {y:g}H{end - 6}"/>{head}{back}'


# The page


def drawn(names: Sequence[str]) -> dict[str, str]:
    """Method → its diagram."""
    from sdkit.runtime.load import load_backbone
    from sdkit.runtime.rng import StepRNG

    found, base = {}, resolve_base(TINY)
    for name in names:
        method, options = usual(name)
        backbone = load_backbone(base)
        what = updated(backbone, method.trainables(backbone, options, StepRNG(0)))
        found[name] = diagram(name, what, layout_of(method, what))
    return found


def usual(name: str) -> tuple[Method[Any], Any]:
    """A method with its defaults."""
    _, method = load_method(name)
    kind, options = method.resolve(name, NEEDED.get(name, {}))
    return kind, kind.settle(options, "dog")


def listing(names: Sequence[str]) -> str:
    """What the page says of every method: its own words, its size on SD1.5, and its picture."""
    with sd15_model() as model:
        return BEGIN + "\n" + "\n".join(_section(name, _size(name, model)) for name in names) + "\n" + END


def _section(name: str, size: Size | None) -> str:
    import importlib

    module = importlib.import_module(methods()[name].module)
    text = inspect.cleandoc(module.__doc__ or "")
    facts = ""
    if size is not None:
        facts = (
            f"\nOn SD1.5 by default: {size.parameters:,} numbers in {size.modules:,} modules, "
            f"{human_bytes(size.output_bytes)}.\n"
        )
    return f"## {name}\n\n{text}\n{facts}\n![what learns, and where the loss flows]({PICTURES}/{name}.svg)\n"


def _size(name: str, model: Any) -> Size | None:
    """The size of a run on Stable Diffusion 1.5 as a single file; None for what trains folders alone."""
    from sdkit.core.errors import SdkitError

    method, options = usual(name)
    try:
        return method.size(model, options)
    except SdkitError:
        return None


def main(docs: Path) -> None:
    """Write the page and its pictures."""
    names = sorted(methods())
    folder = docs / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in drawn(names).items():
        (folder / f"{name}.svg").write_text(text, "utf-8")
    page = docs / PAGE
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    page.write_text(before + listing(names) + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
