"""For which model family an adapter was made, told from its header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdkit.formats._others import other_family, undecided
from sdkit.weights import TensorInfo, Weights

# Width of the text that cross-attention looks at → family.
_TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
_CROSS_ATTENTION = re.compile(r".*attn2[._](?:processor\.)?to_[kv](?:_lora|_custom_diffusion)?\..*")
_INPUT_SIDE = re.compile(
    r".*\.(?:lora_down|lora_A(?:\.default)?|lora\.down|down|hada_w1_b|to_[kv]_custom_diffusion)(?:\.weight)?"
    r"|.*attn2\.to_[kv]\.weight(?:\.v)?"
)
_TRANSFORMER = re.compile(
    r"(?:transformer\.|diffusion_model\.|lora_unet_|lora_transformer_|lycoris_)?(?:transformer_)?blocks[._]\d"
)
_NETWORK = re.compile(r"(768|1024|2048)\.[01kv]\.linear.*")  # widths of text alone: 1280 is in every U-Net too
_POSITION_DOWN = re.compile(r"unet:\d+:down")
_DEEP_BLOCK = re.compile(r".*transformer_blocks[._](?:[1-9]\d*)[._].*")
_UNET = re.compile(r"(?:lora_unet|oft_unet|lycoris|unet)[._]|(?:down|up|mid)_blocks?\.")
_TEXT_KEY = re.compile(
    r"(?:lora_te|text_encoder)[._:].*self_attn.*\.(?:lora_down|lora_A|down|lora_linear_layer\.down).*"
)
_T5 = re.compile(
    r"lora_te[23]_encoder_block_|text_encoder_[23]\.encoder\.block\.|(?:text_encoders\.t5xxl\.transformer|t5)\.encoder\."
)
_CLIP_L = re.compile(r"lora_te1_text_model_|text_encoder\.text_model\.|(?:text_encoders\.)?clip_l\.")
_CLIP_G = re.compile(r"lora_te2_text_model_|text_encoder_2\.text_model\.|(?:text_encoders\.)?clip_g\.")
# The prefix of a module → its family.
_FOREIGN = {
    "lora_unet_double_blocks": "flux",
    "lora_unet_single_blocks": "flux",
    "transformer.single_transformer_blocks": "flux",
    "double_blocks.": "flux",
    "diffusion_model.double_blocks": "flux",
    "diffusion_model.single_blocks": "flux",
    "diffusion_model.joint_blocks": "sd3",
    "transformer.double_blocks": "flux",
    "transformer.single_blocks": "flux",
    "transformer.joint_blocks": "sd3",
    "single_blocks.": "flux",
    "base_model.model.double_blocks": "flux",
    "base_model.model.single_blocks": "flux",
    "lora_transformer_single_transformer_blocks": "flux",
    "lycoris_single_transformer_blocks": "flux",
    "lora_unet_joint_blocks": "sd3",
    "lora_prior": "cascade",
}
_JOINT = re.compile(
    r"(?:transformer\.|lora_transformer_|lycoris_)?transformer_blocks[._]\d+[._]attn[._](?:to|add)_[qkv](?:_proj)?"
    r"\.(?:lora_A(?:\.default)?|lora_down|lora\.down)\.weight"
)
_JOINT_WIDTHS = {3072: "flux", 1536: "sd3", 2432: "sd3"}
_METADATA = {
    "modelspec.architecture": (
        ("stable-diffusion-xl-v1-refiner", "sdxl-refiner"),
        ("stable-diffusion-xl", "sdxl"),
        ("stable-diffusion-v1", "sd1"),
        ("stable-diffusion-v2", "sd2"),
        ("stable-diffusion-3", "sd3"),
        ("flux-2", "flux2"),
        ("flux2", "flux2"),
        ("flux", "flux"),
        ("z-image", "z-image"),
    ),
    "ss_base_model_version": (
        ("sdxl", "sdxl"),
        ("sd_v1", "sd1"),
        ("sd_v2", "sd2"),
        ("sd3", "sd3"),
        ("flux2", "flux2"),
        ("flux", "flux"),
    ),
}


def adapter_family(weights: Weights) -> tuple[str | None, str]:
    """The family and the evidence in one sentence; (None, why not) when nothing in the header tells.

    Shapes count more than names, and names more than metadata, which people copy and edit.
    """
    open_question = undecided(weights)
    for evidence in (_from_metadata,) if open_question else _EVIDENCE:
        found = next(evidence(weights), None)
        if found is not None:
            return found
    return None, open_question or "no cross-attention, no second text encoder and no metadata tell the family"


def claimed_family(weights: Weights) -> str | None:
    """The family that a file's metadata claim, whatever its tensors show; None where they claim none."""
    return next((family for family, _ in _from_metadata(weights)), None)


def _from_cross_attention(weights: Weights) -> Iterator[tuple[str, str]]:
    attention = weights.tensors.items() if weights.mentions("attn2") else ()
    for name, info in attention:
        named = _CROSS_ATTENTION.fullmatch(name) and _INPUT_SIDE.fullmatch(name) and not _TRANSFORMER.match(name)
        if named and len(info.shape) >= 2 and info.shape[1] in _TEXT_WIDTHS:
            width = info.shape[1]
            yield _TEXT_WIDTHS[width], f"{name} reads text of width {width}"
    for family, width in (("sd2", 1024), ("sd1", 768)):  # in SD1 and SD2 no other layer of the U-Net has this width
        hit = next((name for name, info in weights.tensors.items() if _is_position(name, info, width)), None)
        if hit is not None:
            yield family, f"{hit} reads text of width {width}"


def _from_networks(weights: Weights) -> Iterator[tuple[str, str]]:
    for name in weights.tensors:
        match = _NETWORK.fullmatch(name)
        if match:
            yield _TEXT_WIDTHS[int(match[1])], f"it has networks for text of width {match[1]}"


def _is_position(name: str, info: TensorInfo, width: int) -> bool:
    return bool(_POSITION_DOWN.fullmatch(name)) and len(info.shape) == 2 and info.shape[1] == width


def _from_transformers(weights: Weights) -> Iterator[tuple[str, str]]:
    for start, family in _FOREIGN.items():
        name = next((name for name in weights.tensors if name.startswith(start)), None)
        if name is not None:
            yield family, f"{name} is a module of that family"
    for name, info in weights.tensors.items():  # both families have blocks of this name, of different widths
        if _JOINT.fullmatch(name) and len(info.shape) == 2 and info.shape[1] in _JOINT_WIDTHS:
            width = info.shape[1]
            yield _JOINT_WIDTHS[width], f"{name} reads tokens of width {width}"


def _from_names(weights: Weights) -> Iterator[tuple[str, str]]:
    yield from _from_t5(weights)
    for name in weights.tensors:
        if name.startswith(("lora_te2_", "text_encoder_2.")):
            yield "sdxl", f"{name} belongs to a second text encoder"
        if _UNET.match(name) and _DEEP_BLOCK.fullmatch(name):
            yield "sdxl", f"{name} lies in a second transformer block, which SD1 and SD2 do not have"


def _from_t5(weights: Weights) -> Iterator[tuple[str, str]]:
    """T5 stands beside two CLIPs in SD3, beside one in FLUX.1, whatever its number."""
    t5 = next((name for name in weights.tensors if _T5.match(name)), None)
    large = next((name for name in weights.tensors if _CLIP_G.match(name)), None)
    if t5 is not None and large is not None:
        yield "sd3", f"{t5} belongs to T5, and {large} to a second CLIP beside it"
    elif t5 is not None and any(_CLIP_L.match(name) for name in weights.tensors):
        yield "flux", f"{t5} belongs to T5, and there is one CLIP beside it"


def _from_tokens(weights: Weights) -> Iterator[tuple[str, str]]:
    if "clip_g" in weights.tensors:
        yield "sdxl", "clip_g is a token of SDXL's second text encoder"


def _from_metadata(weights: Weights) -> Iterator[tuple[str, str]]:
    for key, starts in _METADATA.items():
        value = weights.metadata.get(key, "")
        family = next((family for start, family in starts if value.lower().startswith(start)), None)
        if family is not None:
            yield family, f"its metadata say {key} = {value[:60]}"


def _from_text_encoder(weights: Weights) -> Iterator[tuple[str, str]]:
    for name, info in weights.tensors.items():
        if _TEXT_KEY.fullmatch(name) and len(info.shape) == 2 and info.shape[1] in (768, 1024):
            width = info.shape[1]
            yield _TEXT_WIDTHS[width], f"{name} belongs to a text encoder of width {width}"


_EVIDENCE = (
    other_family,
    _from_cross_attention,
    _from_networks,
    _from_transformers,
    _from_names,
    _from_tokens,
    _from_metadata,
    _from_text_encoder,
)
