"""A Stable Diffusion pipeline small enough for tests: SD1's layout, random weights, a vocabulary of letters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TEXT = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "quick_gelu",
    "hidden_size": 24,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 12,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_dim": 24,
    "vocab_size": 64,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 4,
    "block_out_channels": [32, 64],
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 16,
    "scaling_factor": 0.5,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
MARKS = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 12, "pad_token": "</s>"}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_configs(folder: Path) -> Path:
    """A pipeline folder without weights."""
    return _write(folder, _files())


def _files() -> dict[str, object]:
    return {
        "model_index.json": INDEX,
        "text_encoder/config.json": TEXT,
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": SCHEDULER,
        "tokenizer/tokenizer.json": _tokenizer(),
        "tokenizer/tokenizer_config.json": MARKS,
    }


def _write(folder: Path, files: dict[str, object]) -> Path:
    for name, fields in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(fields))
    return folder


TEXT_2 = {
    **TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "pad_token_id": 2,
    "projection_dim": 20,
}
SDXL_UNET = {
    **UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "block_out_channels": [32, 64, 64],
    "cross_attention_dim": 64,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "transformer_layers_per_block": [1, 1, 2],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
SDXL_INDEX = {
    **INDEX,
    "_class_name": "StableDiffusionXLPipeline",
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
}


def write_sdxl_configs(folder: Path) -> Path:
    """A pipeline folder of SDXL's layout without weights; its second tokenizer fills up with another token."""
    return _write(
        folder,
        {
            **_files(),
            "model_index.json": SDXL_INDEX,
            "unet/config.json": SDXL_UNET,
            "text_encoder_2/config.json": TEXT_2,
            "tokenizer_2/tokenizer.json": _tokenizer(),
            "tokenizer_2/tokenizer_config.json": {**MARKS, "pad_token": "<unk>"},
        },
    )


def _tokenizer() -> dict[str, object]:
    """One token a letter, between a beginning and an end."""
    letters = ["<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789,.-'"]
    special = [
        {"id": number, "content": letters[number], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number in range(3)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]},
            },
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {letter: number for number, letter in enumerate(letters)},
            "unk_token": "<unk>",
        },
    }


def write_single_file(folder: Path) -> Path:
    """A pipeline with CLIP's vocabulary, `folder`/base, and the same as an LDM checkpoint, whose path comes back."""
    from sdkit.families.clip import text_parameters
    from sdkit.families.configs import CONFIG_KEY, text_layout, unet_layout, vae_layout
    from sdkit.families.unet import unet_parameters
    from sdkit.families.vae import vae_parameters
    from sdkit.runtime.create import create_base
    from sdkit.runtime.load import load_backbone
    from sdkit.runtime.tensors import write_tensors

    text = {**TEXT, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    configs = write_configs(folder / "configs")
    (configs / "text_encoder/config.json").write_text(json.dumps(text))
    create_base(configs, folder / "base")
    backbone = load_backbone(folder / "base")
    components = {
        "unet": ("model.diffusion_model.", unet_parameters(unet_layout(UNET))),
        "vae": ("first_stage_model.", vae_parameters(vae_layout(VAE))),
        "text_encoder": ("cond_stage_model.transformer.", text_parameters(text_layout(text), "hf")),
    }
    tensors = {}
    for component, (prefix, rows) in components.items():
        for row in rows:
            module, _, name = row.hub.rpartition(".")
            tensors[prefix + row.ldm] = getattr(backbone.module(f"{component}.{module}"), name)
    stated = {CONFIG_KEY: json.dumps({"unet": UNET, "vae": VAE, "text_encoder": text, "scheduler": SCHEDULER})}
    write_tensors(folder / "single.safetensors", tensors, stated)
    return folder / "single.safetensors"


def write_clip_model(folder: Path, base: Path, component: str = "text_encoder", *, seed: int = 0) -> Path:
    """A ``CLIPModel`` of transformers whose text encoder is a base's, and whose image side sees 16 by 16 pixels."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    text = json.loads((base / component / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = CLIPConfig.from_dict({"text_config": text, "vision_config": vision, "projection_dim": 20})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    own = load_file(base / component / "model.safetensors")
    missing = model.load_state_dict({key: own[key] for key in own if key != "text_projection.weight"}, strict=False)
    assert not missing.unexpected_keys
    model.save_pretrained(folder)
    for file in (base / component.replace("text_encoder", "tokenizer")).iterdir():
        shutil.copy(file, folder)
    return folder
