"""There and back again: the same tensors, by readers that know nothing of sdkit."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import SCHEDULER

import sdkit
from sdkit.families.configs import CONFIG_KEY


def folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape, name
        assert models.bytes_of(tensor) == models.bytes_of(other[name]), name


def metadata_of(path: Path | str) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_folder_comes_back_whole(tmp_path: Path, pipeline: tuple[str, Path]) -> None:
    _, folder = pipeline
    sdkit.convert(folder, "single", tmp_path / "single.safetensors")
    sdkit.convert(tmp_path / "single.safetensors", "diffusers", tmp_path / "back", configs=folder)
    assert_same(folder_tensors(folder), folder_tensors(tmp_path / "back"))
    for name in ("unet", "vae", "text_encoder", "scheduler"):
        (file,) = (folder / name).glob("*config.json")
        assert json.loads(file.read_text()) == json.loads((tmp_path / "back" / name / file.name).read_text())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_single_file_comes_back_whole(tmp_path: Path, tiny_sdxl: Path, dtype: torch.dtype) -> None:
    """With position ids, the temperature, schedule constants and flags, none of which a folder has a place for."""
    source = tmp_path / "sdxl.safetensors"
    sdkit.convert(tiny_sdxl, "single", source)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source).items()}
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6055)
    tensors |= {"betas": torch.rand(1000), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    tensors["unknown_to_nobody"] = tensors.pop("betas")
    stated = metadata_of(source)
    save_file(tensors, source, stated)
    with pytest.raises(sdkit.SdkitError, match="unknown_to_nobody"):
        sdkit.convert(source, "diffusers", tmp_path / "folder", configs=tiny_sdxl)

    tensors["betas"] = tensors.pop("unknown_to_nobody")
    save_file(tensors, source, stated)
    there = sdkit.convert(source, "diffusers", tmp_path / "folder", configs=tiny_sdxl)
    assert there.kept_beside == 4 and there.dropped == () and there.prediction == "v_prediction"
    scheduler = json.loads((tmp_path / "folder/scheduler/scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    sdkit.convert(tmp_path / "folder", "single", tmp_path / "back.safetensors")
    assert_same(tensors, load_file(tmp_path / "back.safetensors"))


def test_every_bit_is_kept_where_arithmetic_would_lose_some(tmp_path: Path) -> None:
    """NaNs with a payload and signed zeros in fused rows; float64 would not survive float32."""
    tensors = models.sdxl(dtype=torch.float32)
    projections = [
        name for name in tensors if name.startswith(models.VAE) and "attn_1" in name and tensors[name].ndim == 2
    ]
    tensors |= {name: tensors[name][:, :, None, None] for name in projections}  # as real files have them
    fused = next(name for name in tensors if name.endswith("in_proj_weight"))
    tensors[fused].view(torch.int32)[:] = torch.randint(-(2**31), 2**31 - 1, tensors[fused].shape, dtype=torch.int32)
    kept = next(name for name in tensors if name.endswith("to_k.weight"))
    tensors[kept] = tensors[kept].double() + 1e-12
    source = models.save(tensors, tmp_path / "in.safetensors")
    configs = write_model_configs(tmp_path / "configs")
    sdkit.convert(source, "diffusers", tmp_path / "folder", configs=configs)
    sdkit.convert(tmp_path / "folder", "single", tmp_path / "back.safetensors")
    assert_same(tensors, load_file(tmp_path / "back.safetensors"))


def write_model_configs(folder: Path) -> Path:
    """Configurations and tokenizers for `models.sdxl`."""
    from tiny import SDXL_UNET, TEXT, TEXT_2, VAE, write_sdxl_configs

    write_sdxl_configs(folder)
    sizes = {"max_position_embeddings": 77, "vocab_size": 64}
    fields = {
        "unet": {
            **SDXL_UNET,
            "cross_attention_dim": 80,
            "layers_per_block": 2,
            "projection_class_embeddings_input_dim": 96,
        },
        "vae": {**VAE, "block_out_channels": [32, 32]},
        "text_encoder": {**TEXT, **sizes, "hidden_size": 32, "intermediate_size": 128},
        "text_encoder_2": {
            **TEXT_2,
            **sizes,
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "projection_dim": 48,
        },
    }
    for name, config in fields.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def test_the_projection_is_transposed_and_the_fused_rows_are_in_order(tmp_path: Path, tiny_sdxl: Path) -> None:
    sdkit.convert(tiny_sdxl, "single", tmp_path / "single.safetensors")
    folder, single = (
        load_file(tiny_sdxl / "text_encoder_2/model.safetensors"),
        load_file(tmp_path / "single.safetensors"),
    )
    prefix = "conditioner.embedders.1.model."
    projection = folder["text_projection.weight"]
    assert projection.shape == (20, 40)
    assert torch.equal(single[f"{prefix}text_projection"], projection.T)
    stem = "text_model.encoder.layers.1.self_attn."
    rows = [folder[f"{stem}{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(single[f"{prefix}transformer.resblocks.1.attn.in_proj_weight"], torch.cat(rows))
    attention = load_file(tiny_sdxl / "vae/diffusion_pytorch_model.safetensors")[
        "decoder.mid_block.attentions.0.to_q.weight"
    ]
    assert torch.equal(single["first_stage_model.decoder.mid.attn_1.q.weight"], attention[:, :, None, None])


def test_a_velocity_is_marked_for_the_programs_that_look_for_it(
    tmp_path: Path, tiny_base: Path, tiny_sd2: Path
) -> None:
    sdkit.convert(tiny_base, "single", tmp_path / "v.safetensors", prediction="v_prediction")
    assert load_file(tmp_path / "v.safetensors")["v_pred"].numel() == 0
    said = metadata_of(tmp_path / "v.safetensors")
    assert said["modelspec.prediction_type"] == "v"
    assert json.loads(said[CONFIG_KEY])["scheduler"] == {**SCHEDULER, "prediction_type": "v_prediction"}

    sdkit.convert(tiny_sd2, "single", tmp_path / "sd2.safetensors")
    said = metadata_of(tmp_path / "sd2.safetensors")
    assert (said["modelspec.prediction_type"], said["modelspec.architecture"]) == ("v", "stable-diffusion-v2-768-v")
    assert "v_pred" not in load_file(tmp_path / "sd2.safetensors")
