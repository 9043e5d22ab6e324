"""What is written, read by the library whose layout it is; and what that library reads from the other layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import sdkit


def states(pipeline: Any) -> dict[str, dict[str, torch.Tensor]]:
    names = [name for name in ("unet", "vae", "text_encoder", "text_encoder_2") if hasattr(pipeline, name)]
    return {name: getattr(pipeline, name).state_dict() for name in names}


def assert_same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    assert one.keys() == other.keys()
    for component, tensors in one.items():
        assert tensors.keys() == other[component].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[component][name]), f"{component}.{name}"


PIPELINES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


def test_diffusers_reads_the_same_model_from_the_single_file(tmp_path: Path, pipeline: tuple[str, Path]) -> None:
    family, folder = pipeline
    report = sdkit.convert(folder, "single", tmp_path / "single.safetensors")
    assert report.proof is not None and report.proof.exact
    kind = PIPELINES[family]
    before = kind.from_pretrained(folder, local_files_only=True)
    after = kind.from_single_file(report.output, config=str(folder), local_files_only=True)
    assert_same(states(before), states(after))


def test_diffusers_reads_the_same_model_from_the_folder_of_a_single_file(
    tmp_path: Path, pipeline: tuple[str, Path]
) -> None:
    family, folder = pipeline
    single = sdkit.convert(folder, "single", tmp_path / "single.safetensors").output
    sdkit.convert(single, "diffusers", tmp_path / "back", configs=folder)
    kind = PIPELINES[family]
    before = kind.from_pretrained(folder, local_files_only=True)
    after = kind.from_pretrained(tmp_path / "back", local_files_only=True)
    assert_same(states(before), states(after))
    assert after.scheduler.config.prediction_type == before.scheduler.config.prediction_type
    with torch.no_grad():
        images = [
            pipe("a cat", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(1)).images
            for pipe in (before, after)
        ]
    assert abs(images[0] - images[1]).max() < 1e-4  # memory mapped at other places rounds otherwise


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_component_is_a_folder_of_its_own(tmp_path: Path, tiny_sdxl: Path, component: str) -> None:
    single = sdkit.convert(tiny_sdxl, "single", tmp_path / "single.safetensors").output
    sdkit.convert(single, "diffusers", tmp_path / "part", only=component)
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    kinds |= {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    kind = kinds[component]
    before, after = (kind.from_pretrained(path) for path in (tiny_sdxl / component, tmp_path / "part"))
    assert_same({"": before.state_dict()}, {"": after.state_dict()})


def test_diffusers_reads_the_extracted_autoencoder(tmp_path: Path, tiny_base: Path) -> None:
    part = sdkit.convert(tiny_base, "single", tmp_path / "vae.safetensors", only="vae").output
    after = diffusers.AutoencoderKL.from_single_file(
        part, config=str(tiny_base), subfolder="vae", local_files_only=True
    )
    before = diffusers.AutoencoderKL.from_pretrained(tiny_base / "vae")
    assert_same({"": before.state_dict()}, {"": after.state_dict()})
