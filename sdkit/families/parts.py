"""Finding the components in a checkpoint: where a U-Net, an autoencoder or a text encoder lies, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdkit.families import unet_header, vae
from sdkit.families.clip import NESTING, TextLayout, read_text, text_parameters
from sdkit.families.parameter import Names, OddLayout, Parameter, Shape
from sdkit.families.unet import UNetLayout, unet_parameters
from sdkit.families.vae import VaeLayout, old_attention_name, vae_parameters

_UNET_PREFIXES = {"ldm": ("model.diffusion_model.", "diffusion_model.", ""), "diffusers": ("unet/", "")}
_VAE_PREFIXES = {"ldm": ("first_stage_model.", "vae.", ""), "diffusers": ("vae/", "")}
_TEXT_ANCHORS = {"hf": "embeddings.token_embedding.weight", "openclip": "positional_embedding"}


@dataclass(frozen=True, slots=True)
class Part:
    """One component found in a checkpoint.

    Attributes:
        naming: ``ldm``, ``diffusers``; for text encoders ``hf`` or ``openclip``.
        prefix: what stands before its names.
        layout: the numbers that decide its names and shapes.
        nested: for text encoders named by transformers: whether the names begin with ``text_model.``.
        old: for autoencoders: whether the attention has the names of diffusers before 0.18.
    """

    naming: str
    prefix: str
    layout: UNetLayout | VaeLayout | TextLayout
    nested: bool = True
    old: bool = False

    def parameters(self) -> list[Parameter]:
        """Its parameters by the rules of its kind."""
        if isinstance(self.layout, UNetLayout):
            return unet_parameters(self.layout)
        if isinstance(self.layout, VaeLayout):
            return vae_parameters(self.layout)
        return text_parameters(self.layout, self.naming)

    def key(self, parameter: Parameter) -> str:
        """The tensor that holds one of its parameters."""
        if self.naming in ("ldm", "openclip"):
            return self.prefix + parameter.ldm
        if self.old:
            return self.prefix + old_attention_name(parameter.hub)
        return self.prefix + (parameter.hub if self.nested else parameter.hub.removeprefix(NESTING))


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of a checkpoint, not yet explained by a family.

    Attributes:
        unet: the U-Net, if there is one that the rules can read.
        vae: the autoencoder, likewise.
        texts: the text encoders, likewise.
        broken_unet: why a U-Net is there that the rules cannot read; empty where there is none.
        oddities: why something that begins like another component is none, one sentence each.
    """

    unet: Part | None
    vae: Part | None
    texts: tuple[Part, ...]
    broken_unet: str = ""
    oddities: tuple[str, ...] = ()

    @property
    def unet_layout(self) -> UNetLayout | None:
        """The layout of the U-Net."""
        return self.unet.layout if self.unet and isinstance(self.unet.layout, UNetLayout) else None


def find_parts(shapes: Mapping[str, Shape]) -> Parts:
    """Look for components by the names each of them begins with."""
    oddities: list[str] = []
    unet, broken = _find_unet(shapes)
    return Parts(unet, _find_vae(shapes, oddities), _find_texts(shapes, oddities), broken, tuple(oddities))


def _find_unet(shapes: Mapping[str, Shape]) -> tuple[Part | None, str]:
    for naming, prefixes in _UNET_PREFIXES.items():
        for prefix in prefixes:
            names = Names(shapes, prefix)
            if not unet_header.has_unet(names, naming):
                continue
            try:
                return Part(naming, prefix, unet_header.read_unet(names, naming)), ""
            except OddLayout as odd:
                return None, f"its U-Net is not built as this version knows it: {odd}"
    return None, ""


def _find_vae(shapes: Mapping[str, Shape], oddities: list[str]) -> Part | None:
    for naming, prefixes in _VAE_PREFIXES.items():
        for prefix in prefixes:
            names = Names(shapes, prefix)
            if not vae.has_vae(names, naming):
                continue
            try:
                return Part(naming, prefix, vae.read_vae(names, naming), old=vae.uses_old_attention_names(names))
            except OddLayout as odd:
                oddities.append(f"its autoencoder is not built as this version knows it: {odd}")
    return None


def _find_texts(shapes: Mapping[str, Shape], oddities: list[str]) -> tuple[Part, ...]:
    found = []
    for key in shapes:
        style = next((style for style, anchor in _TEXT_ANCHORS.items() if key.endswith(anchor)), None)
        if style is None:
            continue
        stem = key.removesuffix(_TEXT_ANCHORS[style])
        try:
            layout = read_text(Names(shapes, stem), style)
        except OddLayout as odd:
            oddities.append(f"{stem or 'the file'} begins like a text encoder, but {odd}")
            continue
        prefix = stem.removesuffix(NESTING) if style == "hf" else stem
        found.append(Part(style, prefix, layout, nested=stem != prefix))
    return tuple(found)
