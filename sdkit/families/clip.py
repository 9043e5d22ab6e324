"""CLIP's text encoder as a rule, named by transformers (`hf`) or by OpenCLIP (`openclip`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdkit.families.parameter import Names, OddLayout, Parameter, affine

_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
NESTING = "text_model."  # old SD1 files and transformers 5 leave it out; hub names always have it


@dataclass(frozen=True, slots=True)
class TextLayout:
    """The numbers that decide every name and shape of a text encoder.

    Attributes:
        width: of a token's vector.
        inner: width inside the feed-forward layers.
        layers: transformer layers.
        vocabulary: tokens.
        positions: longest prompt in tokens.
        projection: width of the projected (pooled) text; 0 where there is none.
    """

    width: int
    inner: int
    layers: int
    vocabulary: int
    positions: int
    projection: int = 0


def text_parameters(layout: TextLayout, style: str) -> list[Parameter]:
    """Every parameter of the text encoder; in style `hf` the single file's names are the hub's."""
    table = _embeddings(layout)
    for number in range(layout.layers):
        table += _layer(number, layout)
    table += affine("text_model.final_layer_norm", "ln_final", (layout.width,))
    if layout.projection:
        shape = (layout.projection, layout.width)
        # OpenCLIP multiplies x @ text_projection, a linear layer x @ weight.T: one is the transpose of the other.
        table.append(Parameter("text_projection.weight", "text_projection", shape, transposed=True))
    return table if style == "openclip" else [Parameter(row.hub, row.hub, row.shape) for row in table]


def _embeddings(layout: TextLayout) -> list[Parameter]:
    tokens, positions = (layout.vocabulary, layout.width), (layout.positions, layout.width)
    return [
        Parameter("text_model.embeddings.token_embedding.weight", "token_embedding.weight", tokens),
        Parameter("text_model.embeddings.position_embedding.weight", "positional_embedding", positions),
    ]


def _layer(number: int, layout: TextLayout) -> list[Parameter]:
    hub, ldm, width = f"text_model.encoder.layers.{number}", f"transformer.resblocks.{number}", layout.width
    table = []
    for position, name in enumerate(("q_proj", "k_proj", "v_proj")):  # OpenCLIP stacks the three in one tensor
        rows = (position * width, (position + 1) * width)
        stem = f"{hub}.self_attn.{name}"
        table.append(Parameter(f"{stem}.weight", f"{ldm}.attn.in_proj_weight", (width, width), rows, height=3 * width))
        table.append(Parameter(f"{stem}.bias", f"{ldm}.attn.in_proj_bias", (width,), rows, height=3 * width))
    table += affine(f"{hub}.self_attn.out_proj", f"{ldm}.attn.out_proj", (width, width))
    shapes = {"mlp.fc1": (layout.inner, width), "mlp.fc2": (width, layout.inner)}
    for name, other in _LAYER.items():
        table += affine(f"{hub}.{name}", f"{ldm}.{other}", shapes.get(name, (width,)))
    return table


def read_text(names: Names, style: str) -> TextLayout:
    """The layout of the text encoder in `names`, whose prefix includes the nesting in style `hf`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    hf = style == "hf"
    layer, inner = ("encoder.layers.{}", "mlp.fc1") if hf else ("transformer.resblocks.{}", "mlp.c_fc")
    tokens = "embeddings.token_embedding.weight" if hf else "token_embedding.weight"
    positions = "embeddings.position_embedding.weight" if hf else "positional_embedding"
    layers = names.count(f"{layer}.{inner}.weight")
    if not layers:
        raise OddLayout("it has no layers")
    return TextLayout(
        width=names.dim(tokens, 1),
        inner=names.dim(f"{layer.format(0)}.{inner}.weight", 0),
        layers=layers,
        vocabulary=names.dim(tokens, 0),
        positions=names.dim(positions, 0),
        projection=_projection(names, hf),
    )


def _projection(names: Names, hf: bool) -> int:
    if not hf:
        return names.dim("text_projection", 1) if "text_projection" in names else 0
    outside = replace(names, prefix=names.prefix.removesuffix(NESTING))
    return outside.dim("text_projection.weight", 0) if "text_projection.weight" in outside else 0
