"""LoRAs of SDXL: the plan of the real one, and a tiny one trained, resumed, exported and loaded elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.families import reference
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import read_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
OPTIONS = {"rank": 2, "steps": 2, "batch": 2, "lr": 0.05, "save_dtype": "fp32", "text_encoder": True}


def test_the_real_sdxl_is_planned_from_its_header(
    sparse: Callable[..., Path], real_header: Callable[[str], dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    header = {name: entry for name, entry in real_header("sdxl-sgm").items() if not name.startswith("edm")}
    base = sparse(header, name="sdxl.safetensors")
    plan = sdkit.train("lora", base, pictures, tmp_path / "x", rank=4, resolution=256, dry_run=True, steps=10).plan
    shapes = [tuple(shape) for name, shape in real_header("sdxl-kohya-lora-modules").items() if "lora_unet" in name]
    assert plan.family == "sdxl" and plan.modules == len(shapes) == 722
    assert plan.parameters == sum(4 * (shape[0] + math.prod(shape[1:])) for shape in shapes)
    assert plan.memory_bytes > 4 * 2_567_463_684


def test_a_folder_is_planned_too(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    plan = sdkit.train("lora", tiny_sdxl, pictures, tmp_path / "x", dry_run=True, **OPTIONS).plan
    assert plan.family == "sdxl" and plan.seconds > 0


@pytest.fixture(scope="module")
def trained(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("sdxl")
    (folder / "data").mkdir()
    for number in range(3):
        Image.new("RGB", (20 + 8 * number, 24), (80 * number, 30, 200)).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"a ball, {number}")
    return {
        format: sdkit.train("lora", tiny_sdxl, folder / "data", folder / format / "x", format=format, **OPTIONS)
        for format in ("kohya", "peft")
    }


def outputs(unet: Any, cond: Any) -> torch.Tensor:
    noised = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    with torch.no_grad():
        out: torch.Tensor = unet(noised, torch.tensor([500]), cond.context, added_cond_kwargs=cond.added).sample
    return out


def test_kohya_s_names_are_the_single_file_s(trained: dict[str, Any]) -> None:
    names = read_tensors(Path(trained["kohya"].output))
    assert any(name.startswith("lora_unet_input_blocks_") for name in names)
    assert any(name.startswith("lora_te1_") for name in names) and any(name.startswith("lora_te2_") for name in names)
    assert not any(name.startswith("lora_unet_down_blocks_") for name in names)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_merged_it_is_what_diffusers_loads(
    tiny_sdxl: Path, trained: dict[str, Any], tmp_path: Path, format: str
) -> None:
    """Each export, loaded by diffusers or PEFT, and merged by us: one model, in all three components."""
    from diffusers import StableDiffusionXLPipeline

    report = trained[format]
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    before = pipeline.encode_prompt(["a ball"], do_classifier_free_guidance=False)[0]
    if format == "kohya":
        pipeline.load_lora_weights(report.output)
        sdkit.merge(tiny_sdxl, report.output, tmp_path / "merged")
        merged = load_backbone(tmp_path / "merged")
        with torch.no_grad():
            cond = merged.encode_text(merged.tokenize(["a ball"]), (16, 16))
            context, _, pooled, _ = pipeline.encode_prompt(["a ball"], do_classifier_free_guidance=False)
        torch.testing.assert_close(cond.context, context, atol=1e-5, rtol=0)
        torch.testing.assert_close(cond.added["text_embeds"], pooled, atol=1e-5, rtol=0)
        assert (context - before).abs().max() > 1e-3
        torch.testing.assert_close(outputs(merged.unet, cond), outputs(pipeline.unet, cond), atol=1e-5, rtol=0)
        return
    from peft import PeftModel

    assert {path.name for path in Path(report.output).iterdir()} == {"unet", "text_encoder", "text_encoder_2"}
    kohya = load_backbone(tiny_sdxl)
    sdkit.merge(tiny_sdxl, trained["kohya"].output, tmp_path / "merged")
    merged = load_backbone(tmp_path / "merged")
    cond = kohya.encode_text(kohya.tokenize(["a ball"]), (16, 16))
    unet = PeftModel.from_pretrained(pipeline.unet, f"{report.output}/unet").base_model.model
    torch.testing.assert_close(outputs(unet, cond), outputs(merged.unet, cond), atol=1e-5, rtol=0)


def test_pictures_are_told_apart_by_their_cut(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    from sdkit.runtime.rng import StepRNG
    from sdkit.training.cache import TensorCache
    from sdkit.training.data import read_dataset
    from sdkit.training.feed import Feed, FeedSettings

    Image.new("RGB", (64, 32), "red").save(pictures / "5.png")
    (pictures / "5.txt").write_text("a ball, 0")
    samples = [sample for sample in read_dataset(pictures).samples if sample.path.stem in "05"]
    feed = Feed(
        samples,
        load_backbone(tiny_sdxl),
        TensorCache(None),
        FeedSettings(batch=2, buckets=[(16, 16)]),
        frozenset({"latents", "cond"}),
    )
    cond = feed.batch(0, StepRNG(0)).cond
    assert cond is not None
    assert sorted(cond.added["time_ids"].int().tolist()) == [[16, 16, 0, 0, 16, 16], [32, 64, 0, 8, 16, 16]]


def test_what_lacks_a_text_encoder_is_refused(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_sdxl, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder_2")
    with pytest.raises(SdkitError, match="text_encoder_2"):
        sdkit.train("lora", tmp_path / "base", pictures, tmp_path / "x", dry_run=True, **OPTIONS)
    assert "text_encoder_2" in reference("sdxl").components
