"""LoRA, LoCon, LoHa and LoKr files of kohya's sd-scripts and LyCORIS, as the web UIs read them.

Writers: sd-scripts, LyCORIS, and nearly every trainer's export; readers: A1111, Forge, ComfyUI, diffusers.
A key is ``<prefix>_<module with underscores>.<role>``. The prefix is ``lora_unet``, ``lora_te`` (one text encoder),
``lora_te1`` and ``lora_te2`` (SDXL's two), ``oft_unet`` (sd-scripts' own OFT, whose alpha limits it at 0 too), or
``lycoris`` (LyCORIS' wrapper, relative to the wrapped model); the roles are those of `_lycoris`.
The underscores lose information, so modules are looked up in a table of the model's own.
SDXL's U-Net is spelled as sgm (``input_blocks_4_1_…``) or diffusers (``down_blocks_1_…``) do; some files hold both.
A transformer (SD3's, FLUX's) is ``lora_unet`` with its makers' names, where q, k and v are one layer
(``lora_unet_double_blocks_0_img_attn_qkv``), or OneTrainer's ``lora_transformer`` with diffusers'; T5 is ``lora_te3``.
``bundle_emb.<token>.<key>`` are embeddings that a web UI's bundle carries along.

    LoRA, LoCon, Tucker   lora_down.weight [r, in, k, k], lora_up.weight [out, r, 1, 1] (a linear layer's are matrices);
                          Tucker: lora_down.weight [r, in, 1, 1] and lora_mid.weight [r, r, k, k]
    LoHa                  hada_w1_a [out, r], hada_w1_b [r, in·k²], hada_w2_a, hada_w2_b; with cores hada_t1, hada_t2
    LoKr                  lokr_w1 or lokr_w1_a, lokr_w1_b; lokr_w2 or lokr_w2_a, lokr_w2_b; with a core lokr_t2
    DoRA                  dora_scale [out, 1] or [1, in] beside one of the above
    alpha                 one number beside them; ΔW = alpha / rank · up @ down, and a missing alpha means alpha = rank
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import _lycoris_write
from sdkit.formats._lycoris import KINDS, ROLES, SCRIPTS_OFT
from sdkit.formats._named import named_contents, read_named
from sdkit.formats._stacks import single_file_changes
from sdkit.formats._write import write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.formats.textual_inversion import BUNDLE
from sdkit.streaming.expression import Read
from sdkit.weights import Weights

CHANGES = KINDS
WORDS = True
_DIFFUSERS = ("sd1", "sd2", "sdxl", "flux")  # it has no rules for SD3's
_OLDER = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux")  # where nothing proves that later ones are read, too
_LEAVES = {"diffusers": ("dora", "bias")}  # it drops dora_scale with a warning, and reads its own files' DoRAs
DIALECTS = (
    Dialect(
        ("a1111", "comfyui", "diffusers", "forge", "lycoris", "sd-scripts"),
        says="SDXL's U-Net and every transformer as in the single file",
        said=("invokeai", "onetrainer", "sd-next"),
        families={
            "diffusers": (*_DIFFUSERS, "flux2", "z-image"),
            "lycoris": ("sd1", "sd2"),
            "onetrainer": _OLDER,
            "sd-next": _OLDER,
        },
        leaves=_LEAVES,
    ),
    Dialect(
        ("a1111", "comfyui", "diffusers", "forge", "lycoris"),
        name="diffusers-names",
        says="SDXL's U-Net and every transformer in diffusers' names",
        said=("onetrainer",),
        families={"comfyui": _OLDER, "diffusers": _DIFFUSERS, "lycoris": ("sd1", "sd2", "sdxl"), "onetrainer": _OLDER},
        leaves=_LEAVES,
    ),
    Dialect(
        ("comfyui", "lycoris"),
        name="wrapper",
        says="as LyCORIS names what it wraps: one component, diffusers' names",
        families={"comfyui": _OLDER},
    ),
)

_MODULE = re.compile(r"(lora_(?:unet|te[123]?|transformer|prior)|lycoris|oft_unet)_[^.]+")
_COMPONENTS = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
_COMPONENTS |= {"lora_te3": "text_encoder_3", "lora_transformer": "transformer", "oft_unet": "unet"}


def detect(weights: Weights) -> Verdict:
    """Recognised by a module name with one of the prefixes and a known role."""
    count = sum(1 for name in weights.tensors if _split(name) is not None)
    if count:
        return Verdict(True, f"{count} tensors are named like lora_unet_….lora_down.weight")
    return Verdict(False, "no tensor is named like lora_unet_….lora_down.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    one_encoder = not any(name.startswith("lora_te2_") for name in weights.tensors)
    return read_named(weights, model, "kohya", _split, lambda spelled: _resolve(model, spelled, one_encoder))


def write(
    artifact: Artifact,
    model: Model | None,
    path: Path,
    metadata: Mapping[str, str],
    *,
    dialect: str = "",
    overwrite: bool = False,
) -> None:
    """See `formats.write_adapter`.

    Args:
        dialect: ``diffusers-names`` to spell SDXL's U-Net, or a transformer, so; by default as in the single file, as
            kohya's scripts do. ``wrapper`` to spell one component so behind ``lycoris_``.

    Raises:
        SdkitError: also when a wrapper's file would hold several components, which its names do not tell apart.
    """
    components = sorted({target.component for target in artifact.deltas})
    if dialect == "wrapper" and len(components) > 1:
        raise SdkitError(
            f"a file of LyCORIS' wrapper holds one component, not {' and '.join(components)}", "write it as kohya"
        )
    names = artifact.spelled if model is None else _written_names(model, dialect)
    whole = artifact.deltas.items() if dialect else single_file_changes(artifact, model)
    contents = named_contents(whole, names, model, "kohya's format")
    several = Counter(rows.token for rows in artifact.tokens)
    contents |= {_token_name(rows, several[rows.token]): Read(rows.weights, rows.info) for rows in artifact.tokens}
    metadata = {**metadata, **_lycoris_write.network_metadata(artifact.deltas.values())}
    write_adapter_file(path, contents, metadata, overwrite=overwrite)


def _token_name(rows: TokenRows, encoders: int) -> str:
    """The name of a token's rows in a bundle, as the web UIs read it: with two text encoders both by name."""
    if rows.info.name.startswith(BUNDLE):
        return rows.info.name
    name = "clip_g" if rows.component == "text_encoder_2" else "clip_l" if encoders > 1 else "string_to_param.*"
    return f"{BUNDLE}{rows.token}.{name}"


def _written_names(model: Model, dialect: str = "") -> dict[str, str]:
    """Hub module → the name kohya's scripts give it."""
    if dialect == "wrapper":
        return {hub: f"lycoris_{hub.partition('.')[2].replace('.', '_')}" for hub in model.kohya_modules.values()}
    names: dict[str, str] = {}
    single = (model.family.startswith("sdxl") or "transformer" in model.components) and not dialect
    for spelled, hub in model.kohya_modules.items():
        is_hub_spelling = spelled.endswith(hub.partition(".")[2].replace(".", "_"))
        # Only the U-Net and transformer have the single file's names; text encoders' tables have the hub's alone.
        if hub not in names or is_hub_spelling != single:
            names[hub] = spelled
    return names


def _split(name: str) -> tuple[str, str] | None:
    """(module, role), or None for a tensor of another kind."""
    module, _, role = name.partition(".")
    return (module, role) if role in ROLES and _MODULE.fullmatch(module) else None


def _resolve(model: Model | None, spelled: str, one_encoder: bool) -> str | None:
    if model is None:
        return _readable(spelled)
    known = [model.kohya_modules[name] for name in _spellings(spelled, one_encoder) if name in model.kohya_modules]
    # A wrapper's name without its component may fit both of SDXL's text encoders: then it says nothing.
    return known[0] if len(set(known)) == 1 else None


def _spellings(spelled: str, one_encoder: bool) -> list[str]:
    """The names under which the model's table may know a module."""
    if spelled.startswith("lycoris_"):
        rest = spelled.removeprefix("lycoris_")
        return [f"{prefix}_{rest}" for prefix in _COMPONENTS if prefix != SCRIPTS_OFT[:-1]]
    if spelled.startswith(SCRIPTS_OFT):
        return ["lora_unet_" + spelled.removeprefix(SCRIPTS_OFT)]
    if spelled.startswith("lora_unet_"):  # some trainers put a transformer's names in diffusers behind this prefix
        return [spelled, "lora_transformer_" + spelled.removeprefix("lora_unet_")]
    if spelled.startswith("lora_te2_encoder_block_"):  # OneTrainer once numbered FLUX.1's T5 so
        return [spelled, "lora_te3_" + spelled.removeprefix("lora_te2_")]
    if spelled.startswith("lora_te1_") and one_encoder:  # diffusers' own kohya export numbers SD1's only encoder
        return [spelled, "lora_te_" + spelled.removeprefix("lora_te1_")]
    return [spelled]


def _readable(spelled: str) -> str:
    """A module's name for a person when there is no model to ask: the component, then the flat rest."""
    prefix, rest = next(
        ((prefix, spelled.removeprefix(f"{prefix}_")) for prefix in _COMPONENTS if spelled.startswith(f"{prefix}_")),
        ("", spelled),
    )
    return f"{_COMPONENTS[prefix]}.{rest}" if prefix else spelled
