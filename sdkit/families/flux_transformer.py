"""FLUX.1's transformer as a rule: blocks of two streams, then of one, and what names and shapes follow.

Black Forest Labs' files stack the attention's q, k and v in one tensor (of single blocks the feed-forward layer too);
diffusers keeps them apart. The last modulation shifts and scales: the file has the shift's rows first, diffusers the
scale's.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.flux_blocks import STREAMS, FluxBlocks
from sdkit.families.parameter import Names, Parameter, affine, stacked

_EMBEDDERS = {  # diffusers → the file
    "timestep_embedder": "time_in",
    "text_embedder": "vector_in",
    "guidance_embedder": "guidance_in",
}
_MODULATIONS = {"img": "norm1", "txt": "norm1_context"}
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
class FluxLayout(FluxBlocks):
    """The numbers that decide every name and shape of FLUX.1's transformer.

    Attributes:
        pooled_dim: width of the pooled text.
        time_dim: width of the timestep's sinusoids.
        guidance: whether it is told the guidance it imitates (dev; not schnell).
    """

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
            for stream in STREAMS:
                table += self._stream(f"transformer_blocks.{number}", f"double_blocks.{number}", stream)
        for number in range(self.single):
            table += self._single(f"single_transformer_blocks.{number}", f"single_blocks.{number}")
        table += affine("norm_out.linear", "final_layer.adaLN_modulation.1", (2 * width, width), swapped=True)
        return table + affine("proj_out", "final_layer.linear", (self.out_channels, width))

    def describe(self) -> str:
        """The layout in one clause."""
        return self.described(guidance=self.guidance)

    def _stream(self, hub: str, ldm: str, name: str) -> list[Parameter]:
        stream, width, ldm = STREAMS[name], self.width, f"{ldm}.{name}"
        table = affine(f"{hub}.{_MODULATIONS[name]}.linear", f"{ldm}_mod.lin", (6 * width, width))
        table += self.attention(hub, ldm, stream)
        table += affine(f"{hub}.{stream.feed}.net.0.proj", f"{ldm}_mlp.0", (self.inner, width))
        return table + affine(f"{hub}.{stream.feed}.net.2", f"{ldm}_mlp.2", (width, self.inner))

    def _single(self, hub: str, ldm: str) -> list[Parameter]:
        width = self.width
        table = affine(f"{hub}.norm.linear", f"{ldm}.modulation.lin", (3 * width, width))
        members = [f"{hub}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        table += stacked(members, f"{ldm}.linear1", [width] * 3 + [self.inner], width)
        table += self.norms(hub, f"{ldm}.norm")
        return table + affine(f"{hub}.proj_out", f"{ldm}.linear2", (width, width + self.inner))


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
