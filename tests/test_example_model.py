from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from example_model import REAL_SIZES, Sizes, checkpoint_shapes, lora_modules, make_checkpoint, make_lora

SMALL = Sizes()


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    return make_checkpoint(SMALL)


def test_at_real_sizes_the_layout_is_that_of_the_real_checkpoint(test_data: Path) -> None:
    entries = json.loads((test_data / "data/keys/sd1-ldm.json").read_text())
    real = {
        key: tuple(entry["shape"])
        for key, entry in entries.items()
        if entry["component"] in ("diffuser", "vae", "clip_l")
    }
    assert checkpoint_shapes(REAL_SIZES) == real


def test_at_real_sizes_the_lora_trains_what_kohya_trains(test_data: Path) -> None:
    real = json.loads((test_data / "data/keys/sd1-kohya-lora-modules.json").read_text())
    assert lora_modules(REAL_SIZES) == {name: tuple(shape) for name, shape in real.items()}


def test_diffusers_loads_the_small_unet(checkpoint: dict[str, torch.Tensor]) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {
        "block_out_channels": [32, 64, 128, 128],
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(checkpoint), dict(unet.config)), strict=True)


def test_diffusers_loads_the_small_autoencoder(checkpoint: dict[str, torch.Tensor]) -> None:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    converted = convert_ldm_vae_checkpoint(dict(checkpoint), dict(vae.config))
    shapes = {name: tensor.shape for name, tensor in vae.state_dict().items()}
    # diffusers stores the attention of the middle as linear layers, and reshapes it after this conversion.
    assert {name: tensor.numel() for name, tensor in converted.items()} == {
        name: shape.numel() for name, shape in shapes.items()
    }


def test_the_same_seed_gives_the_same_file(checkpoint: dict[str, torch.Tensor]) -> None:
    again, other = make_checkpoint(SMALL), make_checkpoint(SMALL, seed=5)
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    assert all(torch.equal(checkpoint[name], again[name]) for name in checkpoint)
    assert not torch.equal(checkpoint[key], other[key])


def test_types_are_those_of_real_files(checkpoint: dict[str, torch.Tensor]) -> None:
    whole = {name for name, tensor in checkpoint.items() if tensor.dtype == torch.int64}
    assert whole == {"cond_stage_model.transformer.text_model.embeddings.position_ids"}
    assert {tensor.dtype for tensor in checkpoint.values()} == {torch.int64, torch.float16}
    assert all(tensor.isfinite().all() for tensor in checkpoint.values())


def test_the_lora_fits_the_weights_it_changes() -> None:
    tensors = make_lora(SMALL, rank=4, alpha=2.0)
    modules = lora_modules(SMALL)
    assert len(tensors) == 3 * len(modules)
    for name, shape in modules.items():
        up, down = tensors[f"{name}.lora_up.weight"].float(), tensors[f"{name}.lora_down.weight"].float()
        assert down.shape[0] == up.shape[1] == 4
        change = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        assert change.shape == shape
        assert change.abs().max() > 0
        assert tensors[f"{name}.alpha"] == 2.0
