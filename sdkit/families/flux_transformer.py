"""FLUX.1's transformer as a rule: blocks of two streams, then of one, and what names and shapes follow.

Black Forest Labs' files stack the attention's q, k and v in one tensor (of single blocks the feed-forward layer too);
diffusers keeps them apart. The last modulation shifts and scales: the file has the shift's rows first, diffusers the
scale's.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Names, Parameter, affine, stacked

_EMBEDDERS = {  # diffusers → the file
    "timestep_embedder": "time_in",
    "text_embedder": "vector_in",
    "guidance_embedder": "guidance_in",
}
# What one stream of a double block is made of: diffusers' names for the picture's and the text's.
_STREAMS = {
    "img": (("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "norm1", "ff"),
    "txt": (
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        "to_add_out",
        ("norm_added_q", "norm_added_k"),
        "norm1_context",
        "ff_context",
    ),
}
_FIXED = {  # where the sizes are read, in each naming
    "ldm": {
        "image": "img_in",
        "text": "txt_in",
        "out": "final_layer.linear",
        "time": "time_in.in_layer",
        "pooled": "vector_in.in_layer",
        "guidance": "guidance_in.in_layer",
        "double": "double_blocks.{}.img_mlp.0",
        "single": "single_blocks.{}.modulation.lin",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
    },
    "diffusers": {
        "image": "x_embedder",
        "text": "context_embedder",
        "out": "proj_out",
        "time": "time_text_embed.timestep_embedder.linear_1",
        "pooled": "time_text_embed.text_embedder.linear_1",
        "guidance": "time_text_embed.guidance_embedder.linear_1",
        "double": "transformer_blocks.{}.ff.net.0.proj",
        "single": "single_transformer_blocks.{}.norm.linear",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
    },
}


@dataclass(frozen=True, slots=True)
class FluxLayout:
    """The numbers that decide every name and shape of FLUX.1's transformer.

    Attributes:
        width: of a token's vector.
        head: width of one attention head.
        inner: width inside the feed-forward layers.
        double: blocks of two streams.
        single: blocks of one.
        in_channels: of a latent, four pixels of it together: 64; more with a mask or a control picture.
        out_channels: of the prediction.
        text_dim: width of the text.
        pooled_dim: width of the pooled text.
        time_dim: width of the timestep's sinusoids.
        guidance: whether it is told the guidance it imitates (dev; not schnell).
    """

    width: int
    head: int
    inner: int
    double: int
    single: int
    in_channels: int
    out_channels: int
    text_dim: int
    pooled_dim: int
    time_dim: int
    guidance: bool

    def parameters(self) -> list[Parameter]:
        """Every parameter, in both namings and with its shape in diffusers."""
        width = self.width
        table = affine("x_embedder", "img_in", (width, self.in_channels))
        table += affine("context_embedder", "txt_in", (width, self.text_dim))
        for hub, ldm in _EMBEDDERS.items():
            if hub != "guidance_embedder" or self.guidance:
                into = self.pooled_dim if hub == "text_embedder" else self.time_dim
                table += affine(f"time_text_embed.{hub}.linear_1", f"{ldm}.in_layer", (width, into))
                table += affine(f"time_text_embed.{hub}.linear_2", f"{ldm}.out_layer", (width, width))
        for number in range(self.double):
            for stream in _STREAMS:
                table += self._stream(f"transformer_blocks.{number}", f"double_blocks.{number}", stream)
        for number in range(self.single):
            table += self._single(f"single_transformer_blocks.{number}", f"single_blocks.{number}")
        table += affine("norm_out.linear", "final_layer.adaLN_modulation.1", (2 * width, width), swapped=True)
        return table + affine("proj_out", "final_layer.linear", (self.out_channels, width))

    def blocks(self) -> dict[str, str]:
        """Module prefixes → block names as the web UIs number them."""
        double = {f"transformer_blocks.{number}": f"D{number:02d}" for number in range(self.double)}
        return double | {f"single_transformer_blocks.{number}": f"S{number:02d}" for number in range(self.single)}

    def describe(self) -> str:
        """The layout in one clause."""
        return (
            f"{self.in_channels} input channels, {self.double} blocks of two streams and {self.single} of one, "
            f"{self.width} wide, {'told' if self.guidance else 'not told'} the guidance"
        )

    def _stream(self, hub: str, ldm: str, stream: str) -> list[Parameter]:
        projections, out, norms, modulation, feed = _STREAMS[stream]
        width, ldm = self.width, f"{ldm}.{stream}"
        table = affine(f"{hub}.{modulation}.linear", f"{ldm}_mod.lin", (6 * width, width))
        table += stacked([f"{hub}.attn.{name}" for name in projections], f"{ldm}_attn.qkv", [width] * 3, width)
        table += _norms(hub, f"{ldm}_attn.norm", norms, self.head)
        table += affine(f"{hub}.attn.{out}", f"{ldm}_attn.proj", (width, width))
        table += affine(f"{hub}.{feed}.net.0.proj", f"{ldm}_mlp.0", (self.inner, width))
        return table + affine(f"{hub}.{feed}.net.2", f"{ldm}_mlp.2", (width, self.inner))

    def _single(self, hub: str, ldm: str) -> list[Parameter]:
        width = self.width
        table = affine(f"{hub}.norm.linear", f"{ldm}.modulation.lin", (3 * width, width))
        members = [f"{hub}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        table += stacked(members, f"{ldm}.linear1", [width] * 3 + [self.inner], width)
        table += _norms(hub, f"{ldm}.norm", ("norm_q", "norm_k"), self.head)
        return table + affine(f"{hub}.proj_out", f"{ldm}.linear2", (width, width + self.inner))


def _norms(hub: str, ldm: str, names: tuple[str, str], head: int) -> list[Parameter]:
    pairs = zip(names, ("query_norm", "key_norm"), strict=True)
    return [Parameter(f"{hub}.attn.{name}.weight", f"{ldm}.{other}.scale", (head,)) for name, other in pairs]


def has_flux(names: Names, naming: str) -> bool:
    """Whether FLUX.1's transformer lies here."""
    fixed = _FIXED[naming]
    return fixed["norm"] in names and f"{fixed['single'].format(0)}.weight" in names


def read_flux(names: Names, naming: str) -> FluxLayout:
    """The layout of the transformer in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    fixed = {role: f"{name}.weight" for role, name in _FIXED[naming].items() if role != "norm"}
    return FluxLayout(
        width=names.dim(fixed["image"], 0),
        head=names.dim(_FIXED[naming]["norm"], 0),
        inner=names.dim(fixed["double"].format(0), 0),
        double=names.count(fixed["double"]),
        single=names.count(fixed["single"]),
        in_channels=names.dim(fixed["image"], 1),
        out_channels=names.dim(fixed["out"], 0),
        text_dim=names.dim(fixed["text"], 1),
        pooled_dim=names.dim(fixed["pooled"], 1),
        time_dim=names.dim(fixed["time"], 1),
        guidance=fixed["guidance"] in names,
    )
