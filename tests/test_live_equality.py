"""A pipeline with a LoRA merged into its weights makes the pictures it makes with the LoRA loaded live through peft."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import SD1_TEXT, UNET, VAE
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.families.clip import TextLayout, text_parameters
from sdkit.families.unet import UNetLayout, unet_parameters
from sdkit.families.vae import VaeLayout, vae_parameters

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

STRENGTH = 0.8
CHANNELS, TEXT_WIDTH, VOCABULARY = (32, 64, 64, 64), 32, 49408
Pictures = dict[str, np.ndarray]

UNET_MODULES = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
]
TEXT_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 1's layout with small random float32 weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with as_file(files("sdkit") / "assets" / "tokenizers" / "clip") as tokenizer:
        pipeline = StableDiffusionPipeline(
            unet=unet,
            vae=vae,
            text_encoder=CLIPTextModel(config),
            tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    path = tmp_path_factory.mktemp("pipeline") / "base"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loras(folder: Path) -> dict[str, Path]:
    """One random LoRA of both components, made by peft, in two dialects."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(1)
    pipeline = opened(folder)
    for component, modules in ((pipeline.unet, UNET_MODULES), (pipeline.text_encoder, TEXT_MODULES)):
        component.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False))
    states = {
        name: get_peft_model_state_dict(component, adapter_name="default")
        for name, component in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder))
    }
    StableDiffusionPipeline.save_lora_weights(
        folder.parent,
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=states["text_encoder"],
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipeline.text_encoder.peft_config["default"].to_dict(),
    )
    kohya = folder.parent / "kohya.safetensors"
    save_file(as_kohya(states), kohya)
    return {"diffusers": folder.parent / "pytorch_lora_weights.safetensors", "kohya": kohya}


def as_kohya(states: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The same factors under kohya's names."""
    tensors = {}
    for component, state in states.items():
        for key, tensor in state.items():
            module, side = key.rsplit(".lora_", 1)
            if component == "text_encoder" and not module.startswith("text_model."):
                module = f"text_model.{module}"  # transformers 5 leaves it out
            name = f"lora_{'unet' if component == 'unet' else 'te'}_{module.replace('.', '_')}"
            tensors[f"{name}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = tensor.contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(6.0)
    return tensors


def opened(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)


def pictures(pipeline: Any) -> Pictures:
    """The latents and the picture of a prompt, in float32."""
    pipeline.set_progress_bar_config(disable=True)
    result = {}
    for kind in ("latent", "np"):
        out = pipeline(
            "a photo of a dog",
            num_inference_steps=4,
            guidance_scale=5.0,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(3),
            output_type=kind,
        )
        result[kind] = np.asarray(out.images)
    return result


def distance(one: Pictures, other: Pictures) -> float:
    assert all(np.isfinite(array).all() for pictures in (one, other) for array in pictures.values())
    return max(float(np.abs(one[kind] - other[kind]).max()) for kind in one)


@pytest.fixture(scope="module")
def live(folder: Path, loras: dict[str, Path]) -> Callable[[float, float], Pictures]:
    """A function from the strengths in the U-Net and the text encoder to the pictures with the LoRA loaded live."""
    pipeline = opened(folder)
    pipeline.load_lora_weights(loras["diffusers"].parent, weight_name=loras["diffusers"].name, adapter_name="it")
    made: dict[tuple[float, float], Pictures] = {}

    def make(unet: float, text: float) -> Pictures:
        if (unet, text) not in made:
            pipeline.set_adapters(["it"], [{"unet": unet, "text_encoder": text}])
            made[unet, text] = pictures(pipeline)
        return made[unet, text]

    return make


def test_the_lora_matters_in_both_components(folder: Path, live: Callable[[float, float], Pictures]) -> None:
    base = pictures(opened(folder))
    assert distance(base, live(0.0, 0.0)) <= 1e-6
    assert distance(base, live(STRENGTH, 0.0)) > 0.01
    assert distance(base, live(0.0, STRENGTH)) > 0.01


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize(("unet", "text"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (-0.5, 0.25)])
def test_a_merged_folder_equals_the_live_adapter(
    folder: Path,
    loras: dict[str, Path],
    live: Callable[[float, float], Pictures],
    tmp_path: Path,
    dialect: str,
    unet: float,
    text: float,
) -> None:
    sdkit.merge(folder, {loras[dialect]: STRENGTH}, tmp_path / "merged", unet_alpha=unet, te_alpha=text)
    assert distance(pictures(opened(tmp_path / "merged")), live(STRENGTH * unet, STRENGTH * text)) <= 1e-4


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_a_merged_single_file_equals_the_live_adapter(
    folder: Path, loras: dict[str, Path], live: Callable[[float, float], Pictures], tmp_path: Path, dialect: str
) -> None:
    from diffusers import StableDiffusionPipeline

    merged = tmp_path / "merged.safetensors"
    sdkit.merge(single_file(folder, tmp_path / "base.safetensors"), {loras[dialect]: STRENGTH}, merged)
    pipeline = StableDiffusionPipeline.from_single_file(
        merged, config=str(folder), local_files_only=True, safety_checker=None
    )
    assert pipeline.unet.dtype == torch.float32
    assert distance(pictures(pipeline), live(STRENGTH, STRENGTH)) <= 1e-4


def single_file(folder: Path, path: Path) -> Path:
    """The folder's weights as a Stable Diffusion 1 single file; diffusers' own reader proves the names right."""
    attention = ((1, 1),) * 3 + ((0, 0),)
    unet = UNetLayout(
        channels=CHANNELS,
        down=attention,
        middle=1,
        middle_resnets=2,
        up=tuple((*depths, depths[0]) for depths in reversed(attention)),
        in_channels=4,
        out_channels=4,
        time_dim=4 * CHANNELS[0],
        cross_dim=TEXT_WIDTH,
        linear=False,
    )
    text = TextLayout(width=TEXT_WIDTH, inner=4 * TEXT_WIDTH, layers=2, vocabulary=VOCABULARY, positions=77)
    vae = VaeLayout(channels=(16, 16), layers=(1, 1), in_channels=3, out_channels=3, latent_channels=4)
    parts = (
        ("unet/diffusion_pytorch_model", UNET, unet_parameters(unet)),
        ("text_encoder/model", SD1_TEXT, text_parameters(text, "hf")),
        ("vae/diffusion_pytorch_model", VAE, vae_parameters(vae)),
    )
    tensors = {}
    for name, prefix, table in parts:
        stored = load_file(folder / f"{name}.safetensors")
        short = {key.removeprefix("text_model."): tensor for key, tensor in stored.items()}
        for row in table:
            tensor = short.pop(row.hub.removeprefix("text_model."))
            is_old_attention = name.startswith("vae") and ".mid.attn_1." in row.ldm and tensor.dim() == 2
            tensors[prefix + row.ldm] = tensor[:, :, None, None] if is_old_attention else tensor
        assert not short
    save_file(tensors, path)
    return path
