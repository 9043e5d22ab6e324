"""Stable Diffusion 3's transformer as a rule: joint blocks of a picture's and a text's stream.

Stability's files stack q, k and v in one tensor; diffusers keeps them apart. The last block needs nothing more of the
text: its context side has no output, and a modulation of two parts. That one, and the last layer's, have the shift's
rows first in the file and the scale's first in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Names, Parameter, affine, stacked

_PROJECTIONS = {
    "x_block.attn": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_NORMS = {
    "x_block.attn": ("attn.norm_q", "attn.norm_k"),
    "context_block.attn": ("attn.norm_added_q", "attn.norm_added_k"),
    "x_block.attn2": ("attn2.norm_q", "attn2.norm_k"),
}
_FIXED = {  # where the sizes are read, in each naming
    "ldm": {
        "image": "x_embedder.proj.weight",
        "text": "context_embedder.weight",
        "out": "final_layer.linear.weight",
        "time": "t_embedder.mlp.0.weight",
        "pooled": "y_embedder.mlp.0.weight",
        "positions": "pos_embed",
        "block": "joint_blocks.{}.x_block.adaLN_modulation.1.weight",
        "inner": "joint_blocks.0.x_block.mlp.fc1.weight",
        "norm": "joint_blocks.0.x_block.attn.ln_q.weight",
        "second": "joint_blocks.{}.x_block.attn2.proj.weight",
        "first": "joint_blocks.0.context_block.adaLN_modulation.1.weight",
    },
    "diffusers": {
        "image": "pos_embed.proj.weight",
        "text": "context_embedder.weight",
        "out": "proj_out.weight",
        "time": "time_text_embed.timestep_embedder.linear_1.weight",
        "pooled": "time_text_embed.text_embedder.linear_1.weight",
        "positions": "pos_embed.pos_embed",
        "block": "transformer_blocks.{}.norm1.linear.weight",
        "inner": "transformer_blocks.0.ff.net.0.proj.weight",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
        "second": "transformer_blocks.{}.attn2.to_out.0.weight",
        "first": "transformer_blocks.0.norm1_context.linear.weight",
    },
}


@dataclass(frozen=True, slots=True)
class Sd3Layout:
    """The numbers that decide every name and shape of SD3's transformer.

    Attributes:
        width: of a token's vector.
        depth: joint blocks.
        second: the first blocks, that attend to the picture a second time (3.5 medium).
        head: width of one attention head where q and k are normalised (3.5); 0 where they are not.
        inner: width inside the feed-forward layers.
        patch: pixels of the latent per token, along one side.
        in_channels: of a latent.
        out_rows: numbers predicted per token.
        positions: places of the learned grid.
        text_dim: width of the text.
        pooled_dim: width of the pooled text.
        time_dim: width of the timestep's sinusoids.
    """

    width: int
    depth: int
    second: int
    head: int
    inner: int
    patch: int
    in_channels: int
    out_rows: int
    positions: int
    text_dim: int
    pooled_dim: int
    time_dim: int

    @property
    def normalises(self) -> bool:
        """Whether q and k are normalised."""
        return self.head > 0

    @property
    def attends_twice(self) -> bool:
        """Whether some blocks have a second attention."""
        return self.second > 0

    def parameters(self) -> list[Parameter]:
        """Every parameter, in both namings and with its shape in diffusers."""
        width = self.width
        table = affine("pos_embed.proj", "x_embedder.proj", (width, self.in_channels, self.patch, self.patch))
        table.append(Parameter("pos_embed.pos_embed", "pos_embed", (1, self.positions, width)))
        table += affine("context_embedder", "context_embedder", (width, self.text_dim))
        for hub, ldm, into in (
            ("timestep_embedder", "t_embedder", self.time_dim),
            ("text_embedder", "y_embedder", self.pooled_dim),
        ):
            table += affine(f"time_text_embed.{hub}.linear_1", f"{ldm}.mlp.0", (width, into))
            table += affine(f"time_text_embed.{hub}.linear_2", f"{ldm}.mlp.2", (width, width))
        for number in range(self.depth):
            table += self._picture(number) + self._text(number)
        table += affine("norm_out.linear", "final_layer.adaLN_modulation.1", (2 * width, width), swapped=True)
        return table + affine("proj_out", "final_layer.linear", (self.out_rows, width))

    def blocks(self) -> dict[str, str]:
        """Module prefixes → block names; no web UI has any, so they are numbered like FLUX.1's."""
        return {f"transformer_blocks.{number}": f"J{number:02d}" for number in range(self.depth)}

    def describe(self) -> str:
        """The layout in one clause."""
        twice = f", {self.second} of them attending twice" if self.second else ""
        norms = "" if self.head else " not"
        return (
            f"{self.in_channels} input channels, {self.depth} joint blocks{twice}, {self.width} wide, "
            f"q and k{norms} normalised"
        )

    def _picture(self, number: int) -> list[Parameter]:
        hub, ldm, width = f"transformer_blocks.{number}", f"joint_blocks.{number}", self.width
        twice = number < self.second
        modulation = (9 if twice else 6) * width
        table = affine(f"{hub}.norm1.linear", f"{ldm}.x_block.adaLN_modulation.1", (modulation, width))
        for side, out in (("x_block.attn", "attn.to_out.0"), *([("x_block.attn2", "attn2.to_out.0")] if twice else [])):
            table += self._attention(hub, ldm, side)
            table += affine(f"{hub}.{out}", f"{ldm}.{side}.proj", (width, width))
        return table + self._feed_forward(f"{hub}.ff", f"{ldm}.x_block.mlp")

    def _text(self, number: int) -> list[Parameter]:
        hub, ldm, width = f"transformer_blocks.{number}", f"joint_blocks.{number}", self.width
        last = number == self.depth - 1
        modulation = ((2 if last else 6) * width, width)
        table = affine(
            f"{hub}.norm1_context.linear", f"{ldm}.context_block.adaLN_modulation.1", modulation, swapped=last
        )
        table += self._attention(hub, ldm, "context_block.attn")
        if last:
            return table
        table += affine(f"{hub}.attn.to_add_out", f"{ldm}.context_block.attn.proj", (width, width))
        return table + self._feed_forward(f"{hub}.ff_context", f"{ldm}.context_block.mlp")

    def _attention(self, hub: str, ldm: str, side: str) -> list[Parameter]:
        width = self.width
        table = stacked([f"{hub}.{name}" for name in _PROJECTIONS[side]], f"{ldm}.{side}.qkv", [width] * 3, width)
        if self.head:
            for name, other in zip(_NORMS[side], ("ln_q", "ln_k"), strict=True):
                table += affine(f"{hub}.{name}", f"{ldm}.{side}.{other}", (self.head,), bias=False)
        return table

    def _feed_forward(self, hub: str, ldm: str) -> list[Parameter]:
        table = affine(f"{hub}.net.0.proj", f"{ldm}.fc1", (self.inner, self.width))
        return table + affine(f"{hub}.net.2", f"{ldm}.fc2", (self.width, self.inner))


def has_sd3(names: Names, naming: str) -> bool:
    """Whether SD3's transformer lies here."""
    fixed = _FIXED[naming]
    return fixed["first"] in names and fixed["positions"] in names


def read_sd3(names: Names, naming: str) -> Sd3Layout:
    """The layout of the transformer in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    fixed = _FIXED[naming]
    return Sd3Layout(
        width=names.dim(fixed["image"], 0),
        depth=names.count(fixed["block"]),
        second=names.count(fixed["second"]),
        head=names.dim(fixed["norm"], 0) if fixed["norm"] in names else 0,
        inner=names.dim(fixed["inner"], 0),
        patch=names.dim(fixed["image"], 2),
        in_channels=names.dim(fixed["image"], 1),
        out_rows=names.dim(fixed["out"], 0),
        positions=names.dim(fixed["positions"], 1),
        text_dim=names.dim(fixed["text"], 1),
        pooled_dim=names.dim(fixed["pooled"], 1),
        time_dim=names.dim(fixed["time"], 1),
    )
