"""FLUX.2's transformer as a rule: FLUX.1's two kinds of block without biases, modulated by layers they all share.

The feed-forward layers are gated, so their first has two halves of rows. That of a single block stands below q, k and v
in one layer, in Black Forest Labs' files and in diffusers alike; of the blocks of two streams diffusers keeps q, k
and v apart. The last modulation has the shift's rows first in the file, the scale's first in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.flux_blocks import STREAMS, FluxBlocks
from sdkit.families.parameter import Names, Parameter, affine

_EMBEDDERS = {"timestep_embedder": "time_in", "guidance_embedder": "guidance_in"}  # diffusers → the file
_MODULATIONS = {"double_stream_modulation_img": 6, "double_stream_modulation_txt": 6, "single_stream_modulation": 3}
_FIXED = {  # where the sizes are read, in each naming
    "ldm": {
        "image": "img_in.weight",
        "text": "txt_in.weight",
        "out": "final_layer.linear.weight",
        "time": "time_in.in_layer.weight",
        "guidance": "guidance_in.in_layer.weight",
        "modulation": "single_stream_modulation.lin.weight",
        "double": "double_blocks.{}.img_mlp.2.weight",
        "single": "single_blocks.{}.linear1.weight",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
    },
    "diffusers": {
        "image": "x_embedder.weight",
        "text": "context_embedder.weight",
        "out": "proj_out.weight",
        "time": "time_guidance_embed.timestep_embedder.linear_1.weight",
        "guidance": "time_guidance_embed.guidance_embedder.linear_1.weight",
        "modulation": "single_stream_modulation.linear.weight",
        "double": "transformer_blocks.{}.ff.linear_out.weight",
        "single": "single_transformer_blocks.{}.attn.to_qkv_mlp_proj.weight",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
    },
}


@dataclass(frozen=True, slots=True)
class Flux2Layout(FluxBlocks):
    """The numbers that decide every name and shape of FLUX.2's transformer.

    Attributes:
        time_dim: width of the timestep's sinusoids.
        guidance: whether it is told the guidance it imitates (dev; not klein).
    """

    time_dim: int
    guidance: bool

    def parameters(self) -> list[Parameter]:
        """Every parameter, in both namings and with its shape in diffusers."""
        width = self.width
        table = _linear("x_embedder", "img_in", (width, self.in_channels))
        table += _linear("context_embedder", "txt_in", (width, self.text_dim))
        for hub, ldm in _EMBEDDERS.items():
            if hub != "guidance_embedder" or self.guidance:
                table += _linear(f"time_guidance_embed.{hub}.linear_1", f"{ldm}.in_layer", (width, self.time_dim))
                table += _linear(f"time_guidance_embed.{hub}.linear_2", f"{ldm}.out_layer", (width, width))
        for name, parts in _MODULATIONS.items():
            table += _linear(f"{name}.linear", f"{name}.lin", (parts * width, width))
        for number in range(self.double):
            for stream in STREAMS:
                table += self._stream(f"transformer_blocks.{number}", f"double_blocks.{number}", stream)
        for number in range(self.single):
            table += self._single(f"single_transformer_blocks.{number}", f"single_blocks.{number}")
        modulation = ("norm_out.linear", "final_layer.adaLN_modulation.1")
        table += affine(*modulation, (2 * width, width), bias=False, swapped=True)
        return table + _linear("proj_out", "final_layer.linear", (self.out_channels, width))

    def describe(self) -> str:
        """The layout in one clause."""
        return self.described(guidance=self.guidance)

    def _stream(self, hub: str, ldm: str, name: str) -> list[Parameter]:
        stream, ldm = STREAMS[name], f"{ldm}.{name}"
        table = self.attention(hub, ldm, stream, bias=False)
        table += _linear(f"{hub}.{stream.feed}.linear_in", f"{ldm}_mlp.0", (2 * self.inner, self.width))
        return table + _linear(f"{hub}.{stream.feed}.linear_out", f"{ldm}_mlp.2", (self.width, self.inner))

    def _single(self, hub: str, ldm: str) -> list[Parameter]:
        width = self.width
        table = _linear(f"{hub}.attn.to_qkv_mlp_proj", f"{ldm}.linear1", (3 * width + 2 * self.inner, width))
        table += self.norms(hub, f"{ldm}.norm")
        return table + _linear(f"{hub}.attn.to_out", f"{ldm}.linear2", (width, width + self.inner))


def _linear(hub: str, ldm: str, shape: tuple[int, int]) -> list[Parameter]:
    return affine(hub, ldm, shape, bias=False)


def has_flux2(names: Names, naming: str) -> bool:
    """Whether FLUX.2's transformer lies here."""
    return _FIXED[naming]["modulation"] in names


def read_flux2(names: Names, naming: str) -> Flux2Layout:
    """The layout of the transformer in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    fixed = _FIXED[naming]
    return Flux2Layout(
        width=names.dim(fixed["image"], 0),
        head=names.dim(fixed["norm"], 0),
        inner=names.dim(fixed["double"].format(0), 1),
        double=names.count(fixed["double"]),
        single=names.count(fixed["single"]),
        in_channels=names.dim(fixed["image"], 1),
        out_channels=names.dim(fixed["out"], 0),
        text_dim=names.dim(fixed["text"], 1),
        time_dim=names.dim(fixed["time"], 1),
        guidance=fixed["guidance"] in names,
    )
