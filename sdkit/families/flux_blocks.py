"""What the transformers of FLUX.1 and FLUX.2 have alike: the attention of their blocks, and how blocks are counted."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Parameter, affine, stacked


@dataclass(frozen=True, slots=True)
class Stream:
    """diffusers' names of one stream's attention in a block of two.

    Attributes:
        projections: of q, k and v.
        out: of the result.
        norms: of q and k.
        feed: the feed-forward layers beside it.
    """

    projections: tuple[str, str, str]
    out: str
    norms: tuple[str, str]
    feed: str


STREAMS = {  # by the file's names for the picture's stream and the text's
    "img": Stream(("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "ff"),
    "txt": Stream(
        ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k"), "ff_context"
    ),
}


@dataclass(frozen=True, slots=True)
class FluxBlocks:
    """The numbers that both layouts have.

    Attributes:
        width: of a token's vector.
        head: width of one attention head.
        inner: width inside the feed-forward layers, behind the gate where there is one.
        double: blocks of two streams.
        single: blocks of one.
        in_channels: of a latent, four pixels of it together; more with a mask or a picture beside it.
        out_channels: of the prediction.
        text_dim: width of the text.
    """

    width: int
    head: int
    inner: int
    double: int
    single: int
    in_channels: int
    out_channels: int
    text_dim: int

    def blocks(self) -> dict[str, str]:
        """Module prefixes → block names as the web UIs number them."""
        double = {f"transformer_blocks.{number}": f"D{number:02d}" for number in range(self.double)}
        return double | {f"single_transformer_blocks.{number}": f"S{number:02d}" for number in range(self.single)}

    def described(self, *, guidance: bool) -> str:
        """The layout in one clause.

        Args:
            guidance: whether it is told the guidance it imitates.
        """
        return (
            f"{self.in_channels} input channels, {self.double} blocks of two streams and {self.single} of one, "
            f"{self.width} wide, {'told' if guidance else 'not told'} the guidance"
        )

    def attention(self, hub: str, ldm: str, stream: Stream, *, bias: bool = True) -> list[Parameter]:
        """The attention of one stream of a block of two, in the order of the file.

        Args:
            hub: the block in diffusers.
            ldm: the stream in the file, ``double_blocks.0.img``.
        """
        members, width = [f"{hub}.attn.{name}" for name in stream.projections], self.width
        table = stacked(members, f"{ldm}_attn.qkv", [width] * 3, width, bias=bias)
        table += self.norms(hub, f"{ldm}_attn.norm", stream.norms)
        return table + affine(f"{hub}.attn.{stream.out}", f"{ldm}_attn.proj", (width, width), bias=bias)

    def norms(self, hub: str, ldm: str, names: tuple[str, str] = ("norm_q", "norm_k")) -> list[Parameter]:
        """The norms of an attention's q and k, whose weights the file calls ``scale``."""
        pairs = zip(names, ("query_norm", "key_norm"), strict=True)
        return [Parameter(f"{hub}.attn.{name}.weight", f"{ldm}.{other}.scale", (self.head,)) for name, other in pairs]
