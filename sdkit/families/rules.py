"""What a family is made of: its components, how they are called where, and what tells it from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdkit.families.parts import Parts, TransformerLayout
from sdkit.families.unet import UNetLayout


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text encoder of a family.

    Attributes:
        component: its hub name.
        prefix: what stands before its names in a single file.
        style: who named it there, ``hf``, ``openclip`` or ``t5``.
        kohya: what kohya puts before its flattened module names.
        projects: whether its pooled output goes through ``text_projection``.
        max_layers: layers the pipeline runs; a file may hold further ones, which nothing uses.
        folders: the folders it may lie in, in a diffusers layout; its hub name when empty.
    """

    component: str
    prefix: str
    style: str
    kohya: str
    projects: bool = False
    max_layers: int | None = None
    folders: tuple[str, ...] = ()

    @property
    def published(self) -> str:
        """The folder its published configuration lies in."""
        return (self.folders or (self.component,))[-1]

    def prefixes(self) -> tuple[str, ...]:
        """All prefixes it may have in a checkpoint."""
        return (self.prefix, *(f"{folder}/" for folder in self.folders or (self.component,)))


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Attributes:
        name: as `Model.family` has it.
        title: as people write it.
        text_encoders: its text encoders.
        variants: variant → what its U-Net's or transformer's layout has that no other variant's has, the usual first.
        objection: why components are not of this family, as a clause ("its …"); empty when they are.
        configs: variant → folder of `sdkit/assets/families` with its published configuration.
        sizes: variant → fields of its published layout that are not the usual variant's, where no configuration of it
            is there; by default those of `variants`.
        layouts: variant → the published layout of its transformer, of families without configurations here: those
            whose adapters are read, and whose checkpoints are not converted.
        flow: whether it predicts a flow (straight from noise to picture), not the noise or the velocity.
        vae_prefix: what stands before the autoencoder's names in a single file.
    """

    name: str
    title: str
    text_encoders: tuple[TextEncoder, ...]
    variants: Mapping[str, Mapping[str, int]]
    objection: Callable[[Parts], str]
    configs: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    layouts: Mapping[str, TransformerLayout] = field(default_factory=dict)
    flow: bool = False
    vae_prefix: str = "first_stage_model."

    @property
    def usual(self) -> str:
        """The variant that is meant where none is named."""
        return next(iter(self.variants))

    def variant(self, parts: Parts) -> str:
        """What kind of this family the components are."""
        layout = parts.unet_layout or parts.transformer_layout
        if layout is None:
            return ""
        if isinstance(layout, UNetLayout) and layout.label_dim and layout.label_module == "class_embedding":
            return "unclip"
        for name, telling in self.variants.items():
            if all(getattr(layout, field) == value for field, value in telling.items()):
                return name
        return f"{layout.in_channels}-channel"


LATENT_VARIANTS = {"base": {"in_channels": 4}, "inpainting": {"in_channels": 9}, "pix2pix": {"in_channels": 8}}


def single_file_text(parts: Parts) -> str:
    """The prefix of the text encoder in a single file: what kind it is, its maker wrote into the name."""
    prefixes = [text.prefix for text in parts.texts if text.prefix.startswith(("cond_stage_model.", "conditioner."))]
    return prefixes[0] if prefixes else ""
