"""Z-Image's transformer as a rule: picture and text, each refined by blocks of their own, go through one stream.

Single files (ComfyUI's) stack the attention's q, k and v in one tensor and call its output ``out``; diffusers keeps
them apart. Blocks that know the time are modulated by a small layer each. All feed-forward layers are gated.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Names, Parameter, affine, stacked

_PATCH = "2-1"  # diffusers names the layers around the blocks by the patch: 2 pixels wide and high, 1 frame
_BLOCKS = {"noise_refiner": "N", "context_refiner": "C", "layers": "L"}
_FIXED = {  # where the sizes are read: the same in both namings but for these
    "ldm": {
        "image": "x_embedder.weight",
        "norm": "layers.0.attention.q_norm.weight",
    },
    "diffusers": {
        "image": f"all_x_embedder.{_PATCH}.weight",
        "norm": "layers.0.attention.norm_q.weight",
    },
}
_MODULATION = "layers.0.adaLN_modulation.0.weight"


@dataclass(frozen=True, slots=True)
class ZImageLayout:
    """The numbers that decide every name and shape of Z-Image's transformer.

    Attributes:
        width: of a token's vector.
        head: width of one attention head.
        inner: width inside the feed-forward layers.
        depth: blocks of the one stream.
        refiners: blocks that refine the picture alone, and as many the text.
        in_channels: of a latent, of which a token takes a square of two by two pixels.
        text_dim: width of the text.
        time_dim: width of the timestep's sinusoids.
        time_inner: width inside the timestep's layers.
        time_width: of the timestep's vector, which modulates.
    """

    width: int
    head: int
    inner: int
    depth: int
    refiners: int
    in_channels: int
    text_dim: int
    time_dim: int
    time_inner: int
    time_width: int

    def parameters(self) -> list[Parameter]:
        """Every parameter, in both namings and with its shape in diffusers."""
        width, last = self.width, f"all_final_layer.{_PATCH}"
        table = [Parameter(name, name, (1, width)) for name in ("x_pad_token", "cap_pad_token")]
        table += affine(f"all_x_embedder.{_PATCH}", "x_embedder", (width, 4 * self.in_channels))
        table += _same("t_embedder.mlp.0", (self.time_inner, self.time_dim), bias=True)
        table += _same("t_embedder.mlp.2", (self.time_width, self.time_inner), bias=True)
        table += _same("cap_embedder.0", (self.text_dim,))
        table += _same("cap_embedder.1", (width, self.text_dim), bias=True)
        for number in range(self.refiners):
            table += self._block(f"noise_refiner.{number}") + self._block(f"context_refiner.{number}", timed=False)
        for number in range(self.depth):
            table += self._block(f"layers.{number}")
        modulation = (width, self.time_width)
        table += affine(f"{last}.adaLN_modulation.1", "final_layer.adaLN_modulation.1", modulation)
        return table + affine(f"{last}.linear", "final_layer.linear", (4 * self.in_channels, width))

    def blocks(self) -> dict[str, str]:
        """Module prefixes → block names; no web UI has any, so they are numbered like FLUX.1's."""
        return {
            f"{name}.{number}": f"{letter}{number:02d}"
            for name, letter in _BLOCKS.items()
            for number in range(self.depth if name == "layers" else self.refiners)
        }

    def describe(self) -> str:
        """The layout in one clause."""
        return (
            f"{self.in_channels} input channels, {self.depth} blocks behind {self.refiners} of picture and text each, "
            f"{self.width} wide"
        )

    def _block(self, name: str, *, timed: bool = True) -> list[Parameter]:
        width, attention = self.width, f"{name}.attention"
        table = [*_same(f"{name}.adaLN_modulation.0", (4 * width, self.time_width), bias=True)] if timed else []
        members = [f"{attention}.{part}" for part in ("to_q", "to_k", "to_v")]
        table += stacked(members, f"{attention}.qkv", [width] * 3, width, bias=False)
        for part in "qk":
            table += affine(f"{attention}.norm_{part}", f"{attention}.{part}_norm", (self.head,), bias=False)
        table += affine(f"{attention}.to_out.0", f"{attention}.out", (width, width), bias=False)
        for part, shape in (("w1", (self.inner, width)), ("w2", (width, self.inner)), ("w3", (self.inner, width))):
            table += _same(f"{name}.feed_forward.{part}", shape)
        for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            table += _same(f"{name}.{norm}", (width,))
        return table


def _same(name: str, shape: tuple[int, ...], *, bias: bool = False) -> list[Parameter]:
    """A layer of one name in both namings."""
    return affine(name, name, shape, bias)


def has_z_image(names: Names, naming: str) -> bool:
    """Whether Z-Image's transformer lies here."""
    return _MODULATION in names and _FIXED[naming]["norm"] in names


def read_z_image(names: Names, naming: str) -> ZImageLayout:
    """The layout of the transformer in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    fixed = _FIXED[naming]
    return ZImageLayout(
        width=names.dim(fixed["image"], 0),
        head=names.dim(fixed["norm"], 0),
        inner=names.dim("layers.0.feed_forward.w1.weight", 0),
        depth=names.count("layers.{}.feed_forward.w1.weight"),
        refiners=names.count("noise_refiner.{}.feed_forward.w1.weight"),
        in_channels=names.dim(fixed["image"], 1) // 4,
        text_dim=names.dim("cap_embedder.1.weight", 1),
        time_dim=names.dim("t_embedder.mlp.0.weight", 1),
        time_inner=names.dim("t_embedder.mlp.0.weight", 0),
        time_width=names.dim("t_embedder.mlp.2.weight", 0),
    )
