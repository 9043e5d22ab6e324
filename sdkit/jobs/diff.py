"""Comparing checkpoints: what differs, how much, where, and which came from which."""

from __future__ import annotations

import io
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import UsageError
from sdkit.core.hashing import quick_id
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.jobs.blend import open_models
from sdkit.jobs.inputs import ModelInput, label
from sdkit.merging.agree import check_families
from sdkit.merging.align import Source
from sdkit.merging.blocks import BASE, block_order
from sdkit.merging.compare import Products, between, common_parents, comparable, compare, stored_bytes
from sdkit.registry.recipes import made_by
from sdkit.streaming.engine import default_threads
from sdkit.streaming.lazy import LazyWeights
from sdkit.weights.atomic import check_target, write_file

PathLike = str | os.PathLike[str]

# Columns of the heat map: what of a diffusers name says which kind of layer it is; the first that fits counts.
KINDS = {
    "attn1": r"\.attn1\.",
    "attn2": r"\.attn2\.",
    "self attn": r"\.self_attn\.",
    "ff": r"\.(ff|mlp)\.",
    "proj": r"\.(proj_in|proj_out|text_projection)\.",
    "time": r"(time_emb|add_embedding|class_embedding)",
    "norm": r"norm\w*\.(weight|bias)$",
    "conv": r"\.(conv\w*|quant_conv|post_quant_conv|conv)\.",
    "embed": r"\.embeddings\.",
}
OTHER = "other"
_TEXT_LAYER = re.compile(r"^(text_encoder\w*)\..*\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Difference:
    """How a part of one model differs from that part of A.

    Attributes:
        name: of the part.
        parameters: how many parameters it has.
        changed: how many of them differ at all.
        distance: ‖model − A‖ / ‖A‖.
        cosine: of the angle between the two.
    """

    name: str
    parameters: int
    changed: int
    distance: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model beside A.

    Attributes:
        model: its name.
        whole: everything that was compared.
        components: U-Net, text encoders, autoencoder.
        blocks: the U-Net's blocks, the text encoders' layers, the autoencoder's halves, from input to output.
        only_a: parameters that only A has, or has in another shape.
        only_other: parameters that only the other model has.
    """

    model: str
    whole: Difference
    components: tuple[Difference, ...]
    blocks: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_other: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiffReport(Report):
    """What differs.

    Attributes:
        models: names, A first.
        family: of all of them.
        comparisons: one for each model but A.
        relations: what the files' metadata and the numbers say about which came from which, one sentence each.
        image: the heat map; None where none was asked for.
        seconds: wall time.
    """

    models: tuple[str, ...]
    family: str
    comparisons: tuple[Comparison, ...]
    relations: tuple[str, ...]
    image: str | None
    seconds: float


def diff(
    models: Sequence[ModelInput],
    *,
    image: PathLike | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare checkpoints of one family: distances and cosines by component and block, and who may come from whom.

    Args:
        models: two or more; all are compared with the first. Names and containers may differ.
        image: a PNG file for a heat map of the distances, blocks × kinds of layers.
        force: replace a picture that is there.
        threads: workers; they never change a number. Default: one per core.
        progress: told about the bytes compared.

    Raises:
        SdkitError: a model cannot be read, is an adapter, or is of another family.
    """
    began = time.perf_counter()
    if len(models) < 2:
        raise UsageError("a comparison takes two models or more", "sdkit diff A B")
    if image is not None:
        check_target(Path(image), overwrite=force)
    with ExitStack() as stack:
        sources = open_models(models, stack)
        check_families(sources)
        names = [name for name in sources[0].model.places if comparable(sources, name)]
        if not names:
            raise UsageError("the models have no parameter in common", "`sdkit inspect` shows what each of them is")
        progress = progress or NoProgress()
        progress.start("comparing", sum(stored_bytes(sources[0], name) for name in names))
        found = compare(sources, names, threads=threads or default_threads(), advance=progress.advance)
        comparisons = tuple(_comparison(found, sources, other) for other in range(1, len(sources)))
        if image is not None:
            write_file(Path(image), _png(found, sources), overwrite=force)
        return DiffReport(
            models=tuple(label(source.weights) for source in sources),
            family=sources[0].model.family,
            comparisons=comparisons,
            relations=(*_said(sources), *_seen(Products.sum(list(found.values())), sources)),
            image=str(image) if image is not None else None,
            seconds=time.perf_counter() - began,
        )


def _comparison(found: Mapping[str, Products], sources: Sequence[Source], other: int) -> Comparison:
    a, model = sources[0].model, sources[other].model
    components: dict[str, dict[str, Products]] = defaultdict(dict)
    parts: dict[str, dict[str, Products]] = defaultdict(dict)
    for name, products in found.items():
        components[name.partition(".")[0]][name] = products
        parts[part_of(name, sources[0])][name] = products
    order = parts_in_order(parts, sources[0])
    return Comparison(
        model=label(sources[other].weights),
        whole=_difference("all", found, other),
        components=tuple(_difference(name, components[name], other) for name in sorted(components)),
        blocks=tuple(_difference(name, parts[name], other) for name in order),
        only_a=tuple(name for name in a.places if name not in found),
        only_other=tuple(name for name in model.places if name not in a.places),
    )


def _difference(name: str, found: Mapping[str, Products], other: int) -> Difference:
    total = Products.sum(list(found.values()))
    changed = sum(products.distance(0, other) > 0 for products in found.values())
    norm, distance = total.norm(0), total.distance(0, other)
    relative = distance / norm if norm else float(distance > 0)
    return Difference(name, len(found), changed, relative, total.cosine(0, other) if changed else 1.0)


def part_of(name: str, source: Source) -> str:
    """The part of a model a parameter belongs to: a block of the U-Net, a layer of a text encoder, half a VAE."""
    component, _, rest = name.partition(".")
    if component == "unet":
        block = source.model.block_of(name)
        return block if block != BASE else "time"
    if component == "vae":
        return "VAE decoder" if rest.startswith(("decoder", "post_quant")) else "VAE encoder"
    layer = _TEXT_LAYER.match(name)
    if component.startswith("text_encoder"):
        short = "TE2" if component.endswith("2") else "TE"
        return f"{short} {int(layer[2]):02d}" if layer else f"{short} ends"
    return component


def parts_in_order(parts: Mapping[str, object], source: Source) -> list[str]:
    """Text encoders, the U-Net from input to output, the autoencoder."""
    order = {name: number for number, name in enumerate(["time", *block_order(source.model)])}

    def place(name: str) -> tuple[int, int, str]:
        stage = 0 if name.startswith("TE") else 1 if name in order else 2
        return (stage, order.get(name, 0), name)

    return sorted(parts, key=place)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), OTHER)


def _png(found: Mapping[str, Products], sources: Sequence[Source]) -> bytes:
    """The heat map: distances of every part and kind of layer, the models side by side."""
    from sdkit.report.heat import heat_map

    cells: dict[str, dict[str, list[Products]]] = defaultdict(lambda: defaultdict(list))
    for name, products in found.items():
        cells[part_of(name, sources[0])][_kind(name)].append(products)
    used = {kind for row in cells.values() for kind in row}
    kinds = [kind for kind in (*KINDS, OTHER) if kind in used]
    others = range(1, len(sources))
    rows = [
        (part, [[_relative(cells[part].get(kind), other) for kind in kinds] for other in others])
        for part in parts_in_order(cells, sources[0])
    ]
    names = [label(source.weights) for source in sources]
    # In words: the built-in font has no ‖.
    heads = [f"relative distance of {name} from {names[0]}" for name in names[1:]]
    data = io.BytesIO()
    heat_map(kinds, rows, heads).save(data, "PNG", optimize=True)
    return data.getvalue()


def _relative(parts: list[Products] | None, other: int) -> float | None:
    if not parts:
        return None
    total = Products.sum(parts)
    return total.distance(0, other) / total.norm(0) if total.norm(0) else None


def _said(sources: Sequence[Source]) -> Iterator[str]:
    """What the files say about their parents."""
    written = [source for source in sources if not isinstance(source.weights, LazyWeights)]
    names = [label(source.weights) for source in written]
    ids = {quick_id(*source.weights.files): name for source, name in zip(written, names, strict=True)}
    for source, name in zip(written, names, strict=True):
        made = made_by(source.weights.metadata)
        if made is None:
            continue
        parents = [ids.get(entry.value, entry.name) for entry in made.inputs if entry.scheme == "quick"]
        here = [parent for parent in dict.fromkeys(parents) if parent in names]
        elsewhere = [parent for parent in dict.fromkeys(parents) if parent not in names]
        if here:
            yield f"{name} was made from {' and '.join(here)} ({made.verb}), as its metadata say"
        elif elsewhere:
            yield f"{name} was made from {' and '.join(elsewhere)} ({made.verb}), as its metadata say; none is here"


def _seen(total: Products, sources: Sequence[Source]) -> Iterator[str]:
    """What the numbers say about it."""
    names, count = [label(source.weights) for source in sources], len(sources)
    for one in range(count):
        for other in range(one + 1, count):
            if total.distance(one, other) == 0:
                yield f"{names[one]} and {names[other]} are equal in all that was compared"
    lines = between(total, count)
    for entry in lines:
        model, start, end = (names[index] for index in (entry.model, entry.start, entry.end))
        rest = "exactly" if entry.rest < 0.01 else f"but for {entry.rest:.0%} of its distance"
        yield f"{model} lies between: {1 - entry.share:.2f} {start} + {entry.share:.2f} {end}, {rest}"
    if not lines:
        for parent, (one, other) in common_parents(total, count).items():
            yield f"{names[parent]} may be what both {names[one]} and {names[other]} were trained from"
