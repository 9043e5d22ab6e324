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


ZERO_SNR = {"steps": 1, "lr": 1e-3, "prediction": "v_prediction", "zero_terminal_snr": True}


def assert_begins_in_noise(alphas: torch.Tensor) -> None:
    """The schedule of arXiv:2305.08891, algorithm 1: √ᾱ moved and stretched from its last value to 0."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0).sqrt()
    wanted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    assert float((alphas.double().sqrt() - wanted).abs().max()) < 1e-4 and float(alphas[-1]) == 0


def test_a_base_taught_velocities_down_to_no_signal_says_so(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    report = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "run", **ZERO_SNR)
    made = Path(report.output)
    scheduler = DiffusionPipeline.from_pretrained(made).scheduler
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "trailing"
    assert_begins_in_noise(scheduler.alphas_cumprod)
    again = load_backbone(made)
    assert again.schedule.prediction == "v_prediction" and again.schedule.zero_terminal_snr
    plain = sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "plain", steps=1)
    kept = json.loads((Path(plain.output) / "scheduler/scheduler_config.json").read_text())
    assert kept == json.loads((tiny_base / "scheduler/scheduler_config.json").read_text())
    sure = sdkit.train("fine-tune", made, pictures, tmp_path / "further", steps=1)  # the base says it by itself now
    assert load_backbone(sure.output).schedule.zero_terminal_snr


def test_a_single_file_taught_velocities_carries_the_markers(pictures: Path, tmp_path: Path) -> None:
    report = sdkit.train("fine-tune", write_single_file(tmp_path), pictures, tmp_path / "run", **ZERO_SNR)
    assert {"v_pred", "ztsnr"} <= read_tensors(Path(report.output)).keys()
    schedule = load_backbone(report.output).schedule
    assert schedule.prediction == "v_prediction" and schedule.zero_terminal_snr
    assert_begins_in_noise(schedule.alphas)
    options = {"steps": 1, "lr": 1e-3, "prediction": "epsilon"}
    back = sdkit.train("fine-tune", report.output, pictures, tmp_path / "back", **options)
    assert "v_pred" not in read_tensors(Path(back.output))
    assert load_backbone(back.output).schedule.prediction == "epsilon"


def test_noise_is_not_learnt_from_noise_alone(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is learnt of the last timestep"):
        sdkit.train("fine-tune", tiny_base, pictures, tmp_path / "run", steps=1, zero_terminal_snr=True)
