"""Finding the components in a checkpoint: where a U-Net, an autoencoder or a text encoder lies, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdkit.families import unet_header, vae
from sdkit.families.clip import NESTING, TextLayout, read_text, text_parameters
from sdkit.families.flux2_transformer import Flux2Layout, has_flux2, read_flux2
from sdkit.families.flux_transformer import FluxLayout, has_flux, read_flux
from sdkit.families.parameter import Names, OddLayout, Parameter, Shape
from sdkit.families.sd3_transformer import Sd3Layout, has_sd3, read_sd3
from sdkit.families.t5 import FIRST, T5Layout, read_t5
from sdkit.families.unet import UNetLayout, unet_parameters
from sdkit.families.vae import VaeLayout, old_attention_name, vae_parameters
from sdkit.families.z_image_transformer import ZImageLayout, has_z_image, read_z_image

TransformerLayout = FluxLayout | Flux2Layout | Sd3Layout | ZImageLayout
Layout = UNetLayout | TransformerLayout | VaeLayout | TextLayout | T5Layout

_UNET_PREFIXES = {"ldm": ("model.diffusion_model.", "diffusion_model.", ""), "diffusers": ("unet/", "")}
_VAE_PREFIXES = {"ldm": ("first_stage_model.", "vae.", ""), "diffusers": ("vae/", "")}
_TRANSFORMER_PREFIXES = {"ldm": _UNET_PREFIXES["ldm"], "diffusers": ("transformer/", "")}
# Whether a family's transformer lies under some names, and what it is built like.
_TRANSFORMERS: tuple[tuple[Callable[[Names, str], bool], Callable[[Names, str], TransformerLayout]], ...] = (
    (has_flux, read_flux),
    (has_flux2, read_flux2),
    (has_sd3, read_sd3),
    (has_z_image, read_z_image),
)
_TEXT_ANCHORS = {"hf": "embeddings.token_embedding.weight", "openclip": "positional_embedding", "t5": FIRST}


@dataclass(frozen=True, slots=True)
class Part:
    """One component found in a checkpoint.

    Attributes:
        naming: ``ldm``, ``diffusers``; for text encoders ``hf``, ``openclip`` or ``t5``.
        prefix: what stands before its names.
        layout: the numbers that decide its names and shapes.
        nested: for text encoders named by transformers: whether the names begin with ``text_model.``.
        old: for autoencoders: whether the attention has the names of diffusers before 0.18.
    """

    naming: str
    prefix: str
    layout: Layout
    nested: bool = True
    old: bool = False

    def parameters(self) -> list[Parameter]:
        """Its parameters by the rules of its kind."""
        if isinstance(self.layout, UNetLayout):
            return unet_parameters(self.layout)
        if isinstance(self.layout, VaeLayout):
            return vae_parameters(self.layout)
        if isinstance(self.layout, TextLayout):
            return text_parameters(self.layout, self.naming)
        table = self.layout.parameters()
        return table if self.naming == "ldm" else [Parameter(row.hub, row.ldm, row.shape) for row in table]

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
        transformer: what newer families have in its place, likewise.
        vae: the autoencoder, likewise.
        texts: the text encoders, likewise.
        broken: why a U-Net or transformer is there that the rules cannot read; empty where there is none.
        oddities: why something that begins like another component is none, one sentence each.
    """

    unet: Part | None
    transformer: Part | None
    vae: Part | None
    texts: tuple[Part, ...]
    broken: str = ""
    oddities: tuple[str, ...] = ()

    @property
    def unet_layout(self) -> UNetLayout | None:
        """The layout of the U-Net."""
        return self.unet.layout if self.unet and isinstance(self.unet.layout, UNetLayout) else None

    @property
    def transformer_layout(self) -> TransformerLayout | None:
        """The layout of the transformer."""
        layout = self.transformer.layout if self.transformer else None
        return layout if isinstance(layout, TransformerLayout) else None

    @property
    def denoiser(self) -> Part | None:
        """The U-Net or the transformer."""
        return self.unet or self.transformer


def find_parts(shapes: Mapping[str, Shape]) -> Parts:
    """Look for components by the names each of them begins with."""
    oddities: list[str] = []
    unet, broken = _find_unet(shapes)
    transformer, bent = _find_transformer(shapes)
    vae, texts = _find_vae(shapes, oddities), _find_texts(shapes, oddities)
    return Parts(unet, transformer, vae, texts, broken or bent, tuple(oddities))


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


def _find_transformer(shapes: Mapping[str, Shape]) -> tuple[Part | None, str]:
    for naming, prefixes in _TRANSFORMER_PREFIXES.items():
        for prefix in prefixes:
            names = Names(shapes, prefix)
            read = next((read for has, read in _TRANSFORMERS if has(names, naming)), None)
            if read is None:
                continue
            try:
                return Part(naming, prefix, read(names, naming)), ""
            except OddLayout as odd:
                return None, f"its transformer is not built as this version knows it: {odd}"
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
    anchors = tuple(_TEXT_ANCHORS.values())
    for key in (key for key in shapes if key.endswith(anchors)):
        style = next(style for style, anchor in _TEXT_ANCHORS.items() if key.endswith(anchor))
        stem = key.removesuffix(_TEXT_ANCHORS[style])
        names = Names(shapes, stem)
        try:
            layout = read_t5(names) if style == "t5" else read_text(names, style)
        except OddLayout as odd:
            oddities.append(f"{stem or 'the file'} begins like a text encoder, but {odd}")
            continue
        prefix = stem.removesuffix(NESTING) if style == "hf" else stem
        found.append(Part(style, prefix, layout, nested=stem != prefix))
    return tuple(found)
