"""T5's encoder as a rule: SD3's third text encoder and FLUX.1's second. Its names are the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Names, Parameter, Shape

FIRST = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # only the first block has one
_ATTENTION, _FEED_FORWARD = "layer.0.SelfAttention", "layer.1.DenseReluDense"


@dataclass(frozen=True, slots=True)
class T5Layout:
    """The numbers that decide every name and shape of a T5 encoder (version 1.1, gated).

    Attributes:
        width: of a token's vector.
        attention: width inside the attention, all heads together.
        heads: of the attention.
        inner: width inside the feed-forward layers.
        layers: transformer layers.
        vocabulary: tokens.
        buckets: kinds of distance between two tokens that the attention tells apart.
    """

    width: int
    attention: int
    heads: int
    inner: int
    layers: int
    vocabulary: int
    buckets: int

    def parameters(self) -> list[Parameter]:
        """Every parameter; a single file's names are the hub's."""
        shapes: dict[str, Shape] = {"shared.weight": (self.vocabulary, self.width)}
        for number in range(self.layers):
            block = f"encoder.block.{number}"
            for name in "qkv":
                shapes[f"{block}.{_ATTENTION}.{name}.weight"] = (self.attention, self.width)
            shapes[f"{block}.{_ATTENTION}.o.weight"] = (self.width, self.attention)
            if number == 0:
                shapes[FIRST] = (self.buckets, self.heads)
            shapes[f"{block}.layer.0.layer_norm.weight"] = (self.width,)
            for name in ("wi_0", "wi_1"):
                shapes[f"{block}.{_FEED_FORWARD}.{name}.weight"] = (self.inner, self.width)
            shapes[f"{block}.{_FEED_FORWARD}.wo.weight"] = (self.width, self.inner)
            shapes[f"{block}.layer.1.layer_norm.weight"] = (self.width,)
        shapes["encoder.final_layer_norm.weight"] = (self.width,)
        return [Parameter(name, name, shape) for name, shape in shapes.items()]


def read_t5(names: Names) -> T5Layout:
    """The layout of the encoder in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    query = f"encoder.block.0.{_ATTENTION}.q.weight"
    return T5Layout(
        width=names.dim(query, 1),
        attention=names.dim(query, 0),
        heads=names.dim(FIRST, 1),
        inner=names.dim(f"encoder.block.0.{_FEED_FORWARD}.wi_0.weight", 0),
        layers=names.count(f"encoder.block.{{}}.{_ATTENTION}.q.weight"),
        vocabulary=names.dim("shared.weight", 0),
        buckets=names.dim(FIRST, 0),
    )
