"""The vocabulary of model families: what a checkpoint's keys mean, in diffusers' names.

The *hub* of all naming is the diffusers parameter with its component in front, for example
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight`` or
``text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj.weight`` (as published model folders spell them).
A family's rules say where such a parameter lies in a concrete file: a `Place`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Place:
    """Where one hub parameter lies in a checkpoint.

    Attributes:
        key: the tensor's name in the checkpoint.
        rows: first and last row (exclusive) when several parameters share one tensor (OpenCLIP's q, k and v).
        transposed: the checkpoint stores the transpose (OpenCLIP's ``text_projection``).
        swapped: the checkpoint stores the second half of the rows first (shift and scale of SD3's and FLUX.1's last
            modulation).
        shape: the parameter's shape in diffusers' convention; it may differ from the stored one by trailing ones
            (a 1×1 convolution against a linear layer), never in the number of elements.
    """

    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """A module of a single file's naming whose rows are those of one or several hub modules.

    Attributes:
        members: the hub modules, from the top, with the rows each has.
        swapped: the second half of the rows comes first; then there is one member.
    """

    members: tuple[tuple[str, int], ...]
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint as its header explains it.

    Attributes:
        family: ``sd1``, ``sd2``, ``sdxl``, ``sdxl-refiner``, ``sd3``, ``flux``, ``flux2``,
            ``z-image``, another's name, or ``unknown``.
        variant: ``base``, ``inpainting``, ``pix2pix``, ``depth``, …; empty for an unknown family.
        naming: ``ldm`` (also sgm) for single files, ``diffusers`` for folders; empty when unknown.
        prediction: ``epsilon`` or ``v_prediction`` where something in the file says so, else None.
        components: the components present, in diffusers' names (``unet``, ``text_encoder``, ``vae``, …).
        reasons: the evidence, one sentence each: why this family, and why none of the others.
        places: hub parameter → where it lies.
        block_names: hub module prefix → block name as the web UIs write it (``IN04``, ``M00``, ``OUT11``, ``BASE``; of
            a transformer ``D03``); the longest matching prefix counts.
        kohya_modules: flattened kohya module name (``lora_unet_…``) → hub module; both spellings for SDXL.
        native_modules: hub module → its name in the family's single file, without the component's prefix.
        stacks: modules of the single file's naming that are no hub module, with the component in front: where this
            table has a name, so have the tables of kohya's and native names, in place of its members'.
        markers: keys that are flags, not weights (``v_pred``, ``ztsnr``).
        ema: keys of the exponential moving average copy inside the file.
        unclaimed: keys no rule explains (copied untouched, never merged).
        faults: those of the reasons that say what is wrong with it: tensors the layout calls for that are missing,
            shapes it cannot have.
    """

    family: str
    variant: str = ""
    naming: str = ""
    prediction: str | None = None
    components: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)
    block_names: Mapping[str, str] = field(default_factory=dict)
    kohya_modules: Mapping[str, str] = field(default_factory=dict)
    native_modules: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    ema: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def has_denoiser(self) -> bool:
        """Whether the U-Net, or the transformer in its place, is there."""
        return "unet" in self.components or "transformer" in self.components

    def block_of(self, hub_name: str) -> str:
        """The web UIs' name of the block a hub module or parameter belongs to; ``BASE`` when no block claims it."""
        parts = hub_name.split(".")
        for length in range(len(parts), 0, -1):
            block = self.block_names.get(".".join(parts[:length]))
            if block is not None:
                return block
        return "BASE"
