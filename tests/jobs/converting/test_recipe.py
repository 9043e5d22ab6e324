"""Every option that changes what `convert` writes is told in the file, and followed when the file is made again."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from flow import make_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError

WITHOUT_EFFECT = {"verify", "force", "dry_run", "threads", "progress"}
NO_OPTIONS = {"source", "to", "output"}
Asked = tuple[Path | str, str, dict[str, Any]]
Case = Callable[[Path, Path, Path], Asked]  # a folder for the inputs, a small SD1 and a small SDXL → what is converted
CASES: dict[str, Case] = {}


def case(of: Case) -> Case:
    """Register the case of the option that the function is called after."""
    CASES[of.__name__.removeprefix("of_")] = of
    return of


def single(inputs: Path, base: Path, name: str = "single.safetensors", **more: torch.Tensor) -> Path:
    path = inputs / name
    sdkit.convert(base, "single", path, verify=False)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), **more}, path, metadata)
    return path


def adapter(inputs: Path, metadata: dict[str, str] | None = None, **how: Any) -> Path:
    return models.save(models.kohya_lora(models.sd1_modules(), **how), inputs / "lora.safetensors", metadata)


def its_base(inputs: Path) -> Path:
    return models.save(models.sd1(), inputs / "base.safetensors")


def loha(inputs: Path, name: str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q") -> Path:
    rows, columns = models.sd1_modules()[name]
    shapes = {"hada_w1_a": (rows, 2), "hada_w1_b": (2, columns), "hada_w2_a": (rows, 2), "hada_w2_b": (2, columns)}
    generator = torch.Generator().manual_seed(3)
    tensors = {f"{name}.{part}": torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    return models.save({**tensors, f"{name}.alpha": torch.tensor(1.0)}, inputs / "loha.safetensors")


@case
def of_only(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sdxl), "single", {"only": "text-encoder-2"}


@case
def of_dtype(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1), "single", {"dtype": "bf16"}


@case
def of_prune(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1, betas=torch.rand(9)), "single", {"prune": True}


@case
def of_ema(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    prefix = "model.diffusion_model."
    tensors = load_file(single(inputs, sd1, "plain.safetensors"))
    copy = {
        f"model_ema.diffusion_model{name.removeprefix(prefix).replace('.', '')}": tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return single(inputs, sd1, **copy), "single", {"ema": True}


@case
def of_bake_vae(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1), "single", {"bake_vae": single(inputs, sdxl, "other.safetensors")}


@case
def of_parts(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    parts = [inputs / "clip.safetensors", inputs / "vae.safetensors"]
    for part, component in zip(parts, ("text_encoder", "vae"), strict=True):
        sdkit.convert(sdxl, "single", part, only=component)
    return single(inputs, sd1), "single", {"parts": parts}


@case
def of_prediction(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1), "single", {"prediction": "v_prediction"}


@case
def of_family(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D"] * 2, "latent_channels": 4}
    AutoencoderKL(**sizes, up_block_types=["UpDecoderBlock2D"] * 2).save_pretrained(inputs / "vae")
    path = Path(sdkit.convert(inputs / "vae", "single", inputs / "vae.safetensors").output)
    save_file(load_file(path), path)  # without its configuration
    return path, "diffusers", {"family": "sdxl"}


@case
def of_configs(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    path = single(inputs, sd1)
    save_file(load_file(path), path)
    return path, "diffusers", {"configs": shutil.copytree(sd1, inputs / "configs")}


@case
def of_tokenizer(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    pipeline = make_pipeline("flux", inputs / "flux")
    sdkit.convert(pipeline, "single", inputs / "flux.safetensors")
    tokenizer = shutil.copytree(pipeline / "tokenizer_2", inputs / "t5")
    shutil.rmtree(pipeline)
    return inputs / "flux.safetensors", "diffusers", {"tokenizer": tokenizer}


@case
def of_variant(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1), "diffusers", {"variant": "fp16", "only": "unet"}


@case
def of_shard_size(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return single(inputs, sd1), "diffusers", {"shard_size": "0.06 MB", "only": "unet"}


@case
def of_base(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return adapter(inputs), "diffusers", {"base": its_base(inputs)}


@case
def of_network_alpha(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return adapter(inputs, alpha=None), "kohya", {"base": its_base(inputs), "network_alpha": 0.5}


@case
def of_rank(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return loha(inputs), "diffusers", {"base": its_base(inputs), "allow_lossy": True, "rank": 1}


@case
def of_allow_lossy(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    return loha(inputs), "diffusers", {"base": its_base(inputs), "allow_lossy": True}


@case
def of_keep_training_metadata(inputs: Path, sd1: Path, sdxl: Path) -> Asked:
    source = adapter(inputs, {"ss_tag_frequency": '{"me": {"holiday": 3}}'})
    return source, "kohya", {"base": its_base(inputs), "keep_training_metadata": True}


def test_every_option_has_a_case() -> None:
    assert set(inspect.signature(sdkit.convert).parameters) - NO_OPTIONS - WITHOUT_EFFECT == CASES.keys()


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", CASES)
def test_an_option_is_told_and_followed(tmp_path: Path, tiny_base: Path, tiny_sdxl: Path, name: str) -> None:
    """The inputs lie elsewhere under other names by then; without the option, something else comes out, or nothing."""
    (tmp_path / "inputs").mkdir()
    source, to, options = CASES[name](tmp_path / "inputs", tiny_base, tiny_sdxl)
    suffix = ".safetensors" if to in ("single", "kohya") or "base" in options else ""
    made = tmp_path / "made" / f"out{suffix}"
    made.parent.mkdir()
    sdkit.convert(source, to, made, **options)
    weights = made if made.is_file() else next(made.rglob("*.safetensors"))
    with safe_open(weights, "pt") as file:
        recipe = json.loads(file.metadata()["sdkit.recipe"])
    assert "/" not in json.dumps(recipe).replace("model.diffusion_model", "")  # no path of this machine
    less = {key: value for key, value in options.items() if key != name}
    try:
        sdkit.convert(source, to, tmp_path / f"less{suffix}", **less)
        assert contents(tmp_path / f"less{suffix}") != contents(made)
    except SdkitError:
        pass  # it is needed

    for number, path in enumerate(sorted((tmp_path / "inputs").iterdir())):
        path.rename(path.with_name(f"{number}{path.suffix}"))
    (tmp_path / "inputs").rename(tmp_path / "moved")
    report = sdkit.reproduce(made, [tmp_path / "moved"], tmp_path / f"again{suffix}")
    assert report.identical and report.differing == ()
    assert contents(tmp_path / f"again{suffix}") == contents(made)


def test_a_folder_that_lent_its_configurations_is_found_by_what_it_says(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "in").mkdir()
    source, _, options = of_configs(tmp_path / "in", tiny_base, tiny_base)
    sdkit.convert(source, "diffusers", tmp_path / "out", **options)
    scheduler = tmp_path / "in/configs/scheduler/scheduler_config.json"
    text = scheduler.read_text()
    scheduler.write_text(text.replace("scaled_linear", "linear"))
    with pytest.raises(SdkitError, match=r"missing: configs \(files1-"):
        sdkit.reproduce(tmp_path / "out", [tmp_path / "in"])
    scheduler.write_text(text)
    assert sdkit.reproduce(tmp_path / "out", [tmp_path / "in"]).identical
    written = tmp_path / "out/scheduler/scheduler_config.json"
    written.write_text(text.replace("scaled_linear", "linear"))
    report = sdkit.reproduce(tmp_path / "out", [tmp_path / "in"])
    assert not report.identical and report.differing == ("scheduler/scheduler_config.json",)


def test_a_pair_of_embeddings_and_the_words_of_a_lora_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("cat", "cat-neg")):
        rows = torch.randn(2, 768, generator=torch.Generator().manual_seed(number))
        models.save({"emb_params": rows}, tmp_path / f"in/{name}.safetensors")
    sdkit.convert(tmp_path / "in/cat.safetensors", "diffusers", tmp_path / "cat.safetensors")
    for name in ("cat", "cat-neg"):
        assert sdkit.reproduce(tmp_path / f"{name}.safetensors", [tmp_path / "in"]).identical
    disney = Path(__file__).parents[2] / "data" / "lora_disney.safetensors"
    sdkit.convert(disney, "diffusers", tmp_path / "disney.safetensors")
    assert sdkit.reproduce(tmp_path / "disney.safetensors", [disney.parent]).identical
