"""What a family is made of: its components, how they are called where, and what tells it from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdkit.families.parts import Parts


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text encoder of a family.

    Attributes:
        component: its hub name.
        prefix: what stands before its names in a single file.
        style: who named it there, ``hf`` or ``openclip``.
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
        variants: channels of the U-Net's input → variant.
        objection: why components are not of this family, as a clause ("its …"); empty when they are.
        configs: variant → folder of `sdkit/assets/families` with its published configuration.
    """

    name: str
    title: str
    text_encoders: tuple[TextEncoder, ...]
    variants: Mapping[int, str]
    objection: Callable[[Parts], str]
    configs: Mapping[str, str] = field(default_factory=dict)

    def variant(self, parts: Parts) -> str:
        """What kind of this family the components are."""
        layout = parts.unet_layout
        if layout is None:
            return ""
        if layout.label_dim and layout.label_module == "class_embedding":
            return "unclip"
        return self.variants.get(layout.in_channels, f"{layout.in_channels}-channel")


LATENT_VARIANTS = {4: "base", 9: "inpainting", 8: "pix2pix"}


def single_file_text(parts: Parts) -> str:
    """The prefix of the text encoder in a single file: what kind it is, its maker wrote into the name."""
    prefixes = [text.prefix for text in parts.texts if text.prefix.startswith(("cond_stage_model.", "conditioner."))]
    return prefixes[0] if prefixes else ""
