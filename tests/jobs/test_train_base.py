"""Training a base itself, from nothing: a new base, its autoencoder, its denoiser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import write_configs, write_single_file

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.new_base import new_base
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import psnr
from sdkit.runtime.save import save_base
from sdkit.runtime.tensors import read_tensors

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def same(one: Path, other: Path) -> bool:
    first, second = read_tensors(one), read_tensors(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_new_base_is_a_function_of_its_seed(tmp_path: Path) -> None:
    configs = write_configs(tmp_path / "configs")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = [new_base(configs, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({entry.parameters for entry in made}) == 1
    assert (tmp_path / "a" / UNET).read_bytes() == (tmp_path / "b" / UNET).read_bytes()
    assert not same(tmp_path / "a" / UNET, tmp_path / "c" / UNET)
    with pytest.raises(SdkitError, match="already exists"):
        new_base(configs, tmp_path / "a")
    with pytest.raises(SdkitError, match="no model_index.json"):
        new_base(tmp_path, tmp_path / "d")


def test_an_autoencoder_learns_and_its_scale_is_written(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = sdkit.train(
        "autoencoder", tiny_base, pictures, out, steps=40, batch=5, lr=5e-3, validation=str(pictures), save_every=0
    )
    assert report.validation is not None and report.validation_before is not None
    assert psnr(report.validation) > psnr(report.validation_before) + 3
    made = Path(report.output)
    assert made == out / "run" and (made / "tokenizer" / "tokenizer.json").is_file()
    assert same(made / UNET, tiny_base / UNET) and same(made / TEXT, tiny_base / TEXT)
    assert not same(made / VAE, tiny_base / VAE)
    backbone = load_backbone(made)
    assert json.loads((made / "vae" / "config.json").read_text())["scaling_factor"] != 0.5
    from sdkit.training.images import open_picture, pixels

    latents = [
        backbone.encode_image(pixels(open_picture(path))[None]).mean.flatten() for path in pictures.glob("*.png")
    ]
    assert 0.5 < float(torch.cat(latents).std()) < 2


def test_a_fine_tuned_base_differs_where_it_was_trained(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "batch": 2, "lr": 1e-3, "ema": 0.5}
    report = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "a" / "x", **options)
    made = Path(report.output)
    assert same(made / TEXT, tiny_base / TEXT) and same(made / VAE, tiny_base / VAE)
    assert not same(made / UNET, tiny_base / UNET)
    assert report.parameters == sum(value.numel() for value in read_tensors(made / UNET).values())
    both = sdkit.train("fine_tune", tiny_base, pictures, tmp_path / "b" / "x", text_encoder=True, **options)
    assert not same(Path(both.output) / TEXT, tiny_base / TEXT)


def test_a_fine_tune_resumes_bit_for_bit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    from sdkit.jobs.stop import StopRequest

    options = {"steps": 4, "batch": 2, "lr": 1e-3, "save_every": 1, "text_encoder": True}
    whole = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "a" / "x", **options)
    stop = StopRequest()
    stop.ask()
    first = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "b" / "x", should_stop=stop, **options)
    assert not first.finished and first.step == 1 and "--resume" in first.resume
    rest = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "b" / "x", resume=True)
    assert rest.step == 4
    for name in (UNET, TEXT):
        assert (Path(whole.output) / name).read_bytes() == (Path(rest.output) / name).read_bytes()


def test_a_fine_tuned_single_file_is_a_single_file(pictures: Path, tmp_path: Path) -> None:
    single = write_single_file(tmp_path)
    report = sdkit.train("fine-tune", single, pictures, tmp_path / "out", steps=1, lr=1e-3, save_dtype="fp16")
    assert report.output == str(tmp_path / "out" / "out.safetensors")
    before, after = read_tensors(single), read_tensors(Path(report.output))
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.float16}
    changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert changed and all(name.startswith("model.diffusion_model.") for name in changed)
    load_backbone(report.output)
    with pytest.raises(UsageError, match="in a diffusers folder"):
        sdkit.train("autoencoder", single, pictures, tmp_path / "vae", steps=1)


def test_parameters_that_share_a_tensor_are_put_into_their_rows(tmp_path: Path) -> None:
    from tiny import TEXT as CONFIG

    from sdkit.families import identify
    from sdkit.families.clip import text_parameters
    from sdkit.families.configs import text_layout
    from sdkit.runtime.tensors import write_tensors
    from sdkit.weights import open_weights

    rows = text_parameters(text_layout(CONFIG), "openclip")
    shapes = {row.ldm: (3 * row.shape[0], *row.shape[1:]) if row.rows else row.shape for row in rows}
    tensors = {f"text_encoder/{name}": torch.randn(shape) for name, shape in shapes.items()}
    tensors = {name.removeprefix("text_encoder/"): value for name, value in tensors.items()}
    write_tensors(tmp_path / "te.safetensors", tensors)
    with open_weights(tmp_path / "te.safetensors") as weights:
        places = identify(weights).places
    hub = "text_encoder.text_model.encoder.layers.0.self_attn.k_proj.weight"
    assert places[hub].rows == (24, 48)
    save_base(tmp_path / "te.safetensors", {hub: torch.ones(24, 24)}, tmp_path / "new.safetensors", {})
    key = places[hub].key
    wanted = tensors[key].clone()
    wanted[24:48] = 1
    assert torch.equal(read_tensors(tmp_path / "new.safetensors")[key], wanted)
