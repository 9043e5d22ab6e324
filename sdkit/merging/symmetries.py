"""What may be renumbered in a Stable Diffusion model without changing what it computes.

The order of hidden units has no meaning: permuting the rows that make them, and with these the columns that read them,
gives another set of weights for the same function (Ainsworth, Hayase, Srinivasa 2022, https://arxiv.org/abs/2209.04836).
Which permutations are allowed follows from what lies between:

- a layer normalisation, an activation: any;
- a group normalisation: only those that keep the groups together;
- attention heads: heads may change places, and dimensions within a head (of queries and keys alike, of values and
  outputs alike);
- a residual stream passes many layers, all of which must be renumbered alike. One that is concatenated with others
  meets group normalisations of several widths; only moves within the finest of all their groups keep all of them.

Every symmetry here leaves the function exactly as it was. Names are diffusers', and no torch is needed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_DEFAULT_GROUPS = 32
_HEAD_WIDTH = 64
_SD1_HEADS = 8
_LOOKS_AT_TEXT = re.compile(r"unet\..*\.attn2\.to_[kv]\.weight$")


@dataclass(frozen=True, slots=True)
class Axis:
    """Where permuted units lie: `width` entries of one dimension of a parameter, from `offset`."""

    name: str
    axis: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Symmetry:
    """Units that may be renumbered.

    Attributes:
        name: what they are.
        cells: sizes of the cells that the units are divided into; units only move with or within their cell.
        movable: whether cells (all of one size then) may change places.
        parts: groups of axes. Cells move alike in all of them; within the cells each part has an order of its own.
    """

    name: str
    cells: tuple[int, ...]
    movable: bool
    parts: tuple[tuple[Axis, ...], ...]

    @property
    def width(self) -> int:
        """How many units there are."""
        return sum(self.cells)

    @property
    def axes(self) -> list[Axis]:
        """All axes."""
        return [axis for part in self.parts for axis in part]


@dataclass(frozen=True, slots=True)
class Facts:
    """What shapes do not tell.

    Attributes:
        family: a family's name; it gives the heads where no configuration does.
        configs: configurations by component.
    """

    family: str = ""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Groups of each group normalisation of the U-Net."""
        return int(self.configs.get("unet", {}).get("norm_num_groups") or _DEFAULT_GROUPS)

    def unet_heads(self, block: str, width: int) -> int:
        """Attention heads in a block of the U-Net (``down_blocks.1``); the configuration calls their number a width."""
        config = self.configs.get("unet", {})
        given = config.get("num_attention_heads") or config.get("attention_head_dim")
        if given is None:
            return _SD1_HEADS if self.family == "sd1" else max(1, width // _HEAD_WIDTH)
        if isinstance(given, int):
            return given
        kind, _, index = block.partition(".")
        levels = {"down_blocks": given, "up_blocks": given[::-1]}.get(kind, given[-1:])
        return int(levels[int(index or 0)])

    def text_heads(self, component: str, width: int) -> int:
        """Attention heads of a text encoder."""
        return int(self.configs.get(component, {}).get("num_attention_heads") or max(1, width // _HEAD_WIDTH))


def symmetries(shapes: Shapes, facts: Facts) -> list[Symmetry]:
    """Everything that may be renumbered, in the order of the data's way through the model.

    Args:
        shapes: parameter → shape. What is not there is not renumbered, nor what hangs together with it.
        facts: what shapes do not tell.
    """
    unet = _UNet(shapes, facts)
    found = [*_text(shapes, facts), *unet.embeddings(), *unet.resnets(), *unet.attentions(), *unet.streams()]
    return [symmetry for symmetry in found if _fits(symmetry, shapes)]


def _fits(symmetry: Symmetry, shapes: Shapes) -> bool:
    return symmetry.width > 1 and all(
        axis.name in shapes and axis.offset + symmetry.width <= shapes[axis.name][axis.axis] for axis in symmetry.axes
    )


def _prefixes(pattern: str, shapes: Shapes) -> list[str]:
    """The beginnings of parameters' names that match, each once, in the order of the numbers in them."""
    matches = (re.match(pattern, name) for name in shapes)
    found = {match[0] for match in matches if match}
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")])


def _free(name: str, width: int, axes: Iterable[Axis]) -> Symmetry:
    """Units that may change places in any way."""
    return Symmetry(name, (width,), False, (tuple(axes),))


def _rows(module: str, shapes: Shapes, offset: int = 0) -> list[Axis]:
    """What makes a module's outputs: the rows of its weight, and its bias where it has one."""
    names = [f"{module}.weight", *([f"{module}.bias"] if f"{module}.bias" in shapes else [])]
    return [Axis(name, 0, offset) for name in names]


def _columns(module: str, offset: int = 0) -> Axis:
    return Axis(f"{module}.weight", 1, offset)


def _heads(name: str, count: int, width: int, paths: tuple[list[Axis], list[Axis]]) -> Iterator[Symmetry]:
    """Heads, and the dimensions within them: of queries and keys, of values and outputs."""
    if count and width % count == 0:
        yield Symmetry(name, (width // count,) * count, True, (tuple(paths[0]), tuple(paths[1])))


def _text(shapes: Shapes, facts: Facts) -> Iterator[Symmetry]:
    tokens = "{}.text_model.embeddings.token_embedding.weight"
    found = [name for name in ("text_encoder", "text_encoder_2") if tokens.format(name) in shapes]
    widths = [shapes[tokens.format(component)][1] for component in found]
    looked_at = {shape[1] for name, shape in shapes.items() if _LOOKS_AT_TEXT.match(name)}
    if looked_at - {sum(widths)}:
        return  # an encoder is missing: where the others' texts stand is not known
    offset = 0
    for component, width in zip(found, widths, strict=True):
        yield from _text_encoder(component, width, offset, shapes, facts)
        offset += width  # SDXL's U-Net looks at both encoders' texts, side by side


def _text_encoder(component: str, width: int, offset: int, shapes: Shapes, facts: Facts) -> Iterator[Symmetry]:
    root = f"{component}.text_model"
    layers = _prefixes(rf"{root}\.encoder\.layers\.\d+", shapes)
    stream = [Axis(f"{root}.embeddings.{name}_embedding.weight", 1) for name in ("token", "position")]
    stream += _rows(f"{root}.final_layer_norm", shapes)
    for layer in layers:
        attention, hidden = f"{layer}.self_attn", f"{layer}.mlp.fc1"
        queries, keys, values = (f"{attention}.{name}_proj" for name in "qkv")
        paths = (
            [*_rows(queries, shapes), *_rows(keys, shapes)],
            [*_rows(values, shapes), _columns(f"{attention}.out_proj")],
        )
        yield from _heads(attention, facts.text_heads(component, width), width, paths)
        inner = shapes.get(f"{hidden}.weight", (0,))[0]
        yield _free(hidden, inner, [*_rows(hidden, shapes), _columns(f"{layer}.mlp.fc2")])
        stream += [_columns(module) for module in (queries, keys, values, hidden)]
        for module in ("layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc2"):
            stream += _rows(f"{layer}.{module}", shapes)
    projection, label = f"{component}.text_projection", "unet.add_embedding.linear_1"
    if f"{projection}.weight" in shapes:
        stream.append(_columns(projection))
        if f"{label}.weight" in shapes:
            pooled = shapes[f"{projection}.weight"][0]
            yield _free(projection, pooled, [*_rows(projection, shapes), _columns(label)])
    readers = [Axis(name, 1, offset) for name in shapes if _LOOKS_AT_TEXT.match(name)]
    if readers:  # without the U-Net nobody knows what reads the text
        yield _free(f"{root} stream", width, [*stream, *readers])


@dataclass(slots=True)
class _Stream:
    """A residual stream of the U-Net: channels that layers add to.

    Attributes:
        name: of what makes it.
        width: channels.
        axes: everything that makes or reads them.
        edges: where groups of normalisations begin.
        groupings: the normalisations it meets: size of a group, and how much of one lies before the stream.
    """

    name: str
    width: int
    axes: list[Axis] = field(default_factory=list)
    edges: set[int] = field(default_factory=lambda: {0})
    groupings: set[tuple[int, int]] = field(default_factory=set)

    def symmetry(self) -> Symmetry:
        """Moves within the cells that all groups are made of; of whole cells only where all groups are these cells."""
        edges = sorted(edge for edge in self.edges if edge < self.width) + [self.width]
        cells = tuple(end - start for start, end in zip(edges, edges[1:], strict=False))
        movable = len(self.groupings) == 1 and len(set(cells)) == 1 and len(cells) > 1
        return Symmetry(f"{self.name} stream", cells, movable, (tuple(self.axes),))


class _UNet:
    """The symmetries of a U-Net, from the names and shapes of its parameters."""

    def __init__(self, shapes: Shapes, facts: Facts) -> None:
        self._shapes, self._facts = shapes, facts
        self._modules = {name.removesuffix(".weight") for name in shapes if name.startswith("unet.")}

    def _width(self, module: str, axis: int = 0) -> int:
        shape = self._shapes.get(f"{module}.weight", ())
        return shape[axis] if len(shape) > axis else 0

    def _found(self, pattern: str) -> list[str]:
        return _prefixes(pattern, self._shapes)

    def embeddings(self) -> Iterator[Symmetry]:
        """What is inside the embeddings of the time and the label, and their common output."""
        readers = [_columns(f"{resnet}.time_emb_proj") for resnet in self._found(r"unet\..*\.resnets\.\d+")]
        output: list[Axis] = []
        for name in ("time_embedding", "add_embedding", "class_embedding"):
            first, second = f"unet.{name}.linear_1", f"unet.{name}.linear_2"
            if first in self._modules:
                yield _free(first, self._width(first), [*_rows(first, self._shapes), _columns(second)])
                output += _rows(second, self._shapes)
        yield _free("unet.time_embedding", self._width("unet.time_embedding.linear_2"), [*output, *readers])

    def resnets(self) -> Iterator[Symmetry]:
        """The channels between the two convolutions of each residual layer: groups, and what is in them."""
        for resnet in self._found(r"unet\..*\.resnets\.\d+"):
            width, groups = self._width(f"{resnet}.conv1"), self._facts.groups
            axes = [
                *_rows(f"{resnet}.conv1", self._shapes),
                *_rows(f"{resnet}.time_emb_proj", self._shapes),
                *_rows(f"{resnet}.norm2", self._shapes),
                _columns(f"{resnet}.conv2"),
            ]
            if width % groups == 0:
                yield Symmetry(f"{resnet}.conv1", (width // groups,) * groups, True, (tuple(axes),))

    def attentions(self) -> Iterator[Symmetry]:
        """The stream inside each attention module, its heads, and the hidden units of its feed-forward layers."""
        for module in self._found(r"unet\..*\.attentions\.\d+"):
            width = self._width(f"{module}.proj_in")
            stream = [*_rows(f"{module}.proj_in", self._shapes), _columns(f"{module}.proj_out")]
            block = re.sub(r"\.?attentions\.\d+$", "", module.removeprefix("unet."))
            for layer in self._found(re.escape(module) + r"\.transformer_blocks\.\d+"):
                yield from self._transformer(layer, block, width, stream)
            yield _free(f"{module}.proj_in", width, stream)

    def _transformer(self, layer: str, block: str, width: int, stream: list[Axis]) -> Iterator[Symmetry]:
        for attention in ("attn1", "attn2"):
            queries, keys, values = (f"{layer}.{attention}.to_{letter}" for letter in "qkv")
            output = f"{layer}.{attention}.to_out.0"
            paths = (
                [*_rows(queries, self._shapes), *_rows(keys, self._shapes)],
                [*_rows(values, self._shapes), _columns(output)],
            )
            yield from _heads(f"{layer}.{attention}", self._facts.unet_heads(block, width), width, paths)
            readers = (queries, keys, values) if attention == "attn1" else (queries,)
            stream += [_columns(reader) for reader in readers]
            stream += _rows(output, self._shapes)
        gated, output = f"{layer}.ff.net.0.proj", f"{layer}.ff.net.2"
        hidden = self._width(output, 1)
        gates = [*_rows(gated, self._shapes), *_rows(gated, self._shapes, hidden)]  # values, and below them their gates
        yield _free(gated, hidden, [*gates, _columns(output)])
        for norm in ("norm1", "norm2", "norm3"):
            stream += _rows(f"{layer}.{norm}", self._shapes)
        stream += [_columns(gated), *_rows(output, self._shapes)]

    def streams(self) -> Iterator[Symmetry]:
        """The residual streams between the modules, by following the data."""
        if "unet.conv_in" not in self._modules:
            return
        current = self._made("unet.conv_in")
        skips, streams = [current], [current]
        for level in self._found(r"unet\.down_blocks\.\d+"):
            for place in self._layers(level):
                current = self._pass(place, [current], streams)
                skips.append(current)
            current = self._resample(f"{level}.downsamplers.0.conv", current, streams)
            if f"{level}.downsamplers.0.conv" in self._modules:
                skips.append(current)
        for number, resnet in enumerate(self._found(r"unet\.mid_block\.resnets\.\d+")):
            current = self._resnet(resnet, [current], streams)
            if f"unet.mid_block.attentions.{number}.proj_in" in self._modules:
                self._attend(f"unet.mid_block.attentions.{number}", current)
        for level in self._found(r"unet\.up_blocks\.\d+"):
            for place in self._layers(level):
                if not skips:
                    return  # not built the way this module describes
                current = self._pass(place, [current, skips.pop()], streams)
            current = self._resample(f"{level}.upsamplers.0.conv", current, streams)
        self._normalise("unet.conv_norm_out", [current])
        current.axes.append(_columns("unet.conv_out"))
        yield from (stream.symmetry() for stream in streams)

    def _layers(self, level: str) -> list[tuple[str, str]]:
        """The layers of a level: the residual part, and the attention behind it, if any."""
        count = len(self._found(re.escape(level) + r"\.resnets\.\d+"))
        return [(f"{level}.resnets.{number}", f"{level}.attentions.{number}") for number in range(count)]

    def _made(self, module: str) -> _Stream:
        return _Stream(module, self._width(module), _rows(module, self._shapes))

    def _pass(self, place: tuple[str, str], inputs: list[_Stream], streams: list[_Stream]) -> _Stream:
        resnet, attention = place
        current = self._resnet(resnet, inputs, streams)
        if f"{attention}.proj_in" in self._modules:
            self._attend(attention, current)
        return current

    def _resnet(self, module: str, inputs: list[_Stream], streams: list[_Stream]) -> _Stream:
        """The stream behind a residual layer: the same one, or a new one where a convolution takes the place of it."""
        self._normalise(f"{module}.norm1", inputs)
        shortcut = f"{module}.conv_shortcut"
        offset = 0
        for stream in inputs:
            readers = [f"{module}.conv1", *([shortcut] if shortcut in self._modules else [])]
            stream.axes += [_columns(reader, offset) for reader in readers]
            offset += stream.width
        if shortcut not in self._modules and len(inputs) == 1:
            inputs[0].axes += _rows(f"{module}.conv2", self._shapes)
            return inputs[0]
        made = self._made(f"{module}.conv2")
        made.axes += _rows(shortcut, self._shapes)
        streams.append(made)
        return made

    def _attend(self, module: str, stream: _Stream) -> None:
        self._normalise(f"{module}.norm", [stream])
        stream.axes += [_columns(f"{module}.proj_in"), *_rows(f"{module}.proj_out", self._shapes)]

    def _resample(self, module: str, current: _Stream, streams: list[_Stream]) -> _Stream:
        if module not in self._modules:
            return current
        current.axes.append(_columns(module))
        streams.append(self._made(module))
        return streams[-1]

    def _normalise(self, module: str, inputs: list[_Stream]) -> None:
        """Streams side by side meet a group normalisation: note where its groups begin in each."""
        size = max(1, sum(stream.width for stream in inputs) // self._facts.groups)
        offset = 0
        for stream in inputs:
            stream.axes += _rows(module, self._shapes, offset)
            stream.edges |= {edge - offset for edge in range(0, offset + stream.width, size) if edge >= offset}
            stream.groupings.add((size, offset % size))
            offset += stream.width


def by_parameter(found: Iterable[Symmetry]) -> dict[str, list[tuple[Symmetry, int, Axis]]]:
    """Parameter → the symmetries that touch it, with the part and the axis."""
    touched: dict[str, list[tuple[Symmetry, int, Axis]]] = defaultdict(list)
    for symmetry in found:
        for number, part in enumerate(symmetry.parts):
            for axis in part:
                touched[axis.name].append((symmetry, number, axis))
    return touched
