"""The refiner, inpainting, pix2pix and thinned models: configured as published, and built by diffusers from that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import diffusers
import pytest
import torch
from header_files import single_file_shapes, weights_of
from safetensors.torch import load_file

import sdkit
from sdkit.conversion.checkpoint import read_checkpoint
from sdkit.conversion.plan import Plan, Settings, load_target
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.reader import Container

Shapes = Mapping[str, tuple[int, ...]]


def planned(weights: Weights, to: str, **settings: Any) -> Plan:
    checkpoint = read_checkpoint(weights)
    return load_target(to)[1].plan(checkpoint, checkpoint, Settings(**settings))


def as_folder(plan: Plan) -> Weights:
    """The folder that is planned, as it would be opened."""
    tensors = {
        file.prefix + output.name: TensorInfo(file.prefix + output.name, output.dtype, output.shape, 0)
        for file in plan.files
        for output in file.tensors
    }
    configs = {
        name.partition("/")[0].removesuffix(".json"): json.loads(data)
        for name, data in plan.side_files.items()
        if name.endswith(("config.json", "index.json")) and not name.startswith("tokenizer")
    }
    return Weights(Path("folder"), Container.FOLDER, [Path("folder")], tensors, {}, configs=configs)


def built_unet(config: Mapping[str, Any]) -> Shapes:
    """What diffusers builds from a configuration, name and shape."""
    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def written_unet(plan: Plan) -> Shapes:
    (file,) = (file for file in plan.files if file.name.startswith(("unet/", "diffusion_pytorch_model")))
    return {output.name: output.shape for output in file.tensors}


@pytest.mark.parametrize(
    ("family", "variant", "published", "pipeline"),
    [
        ("sd1", "inpainting", "stable-diffusion-inpainting", "StableDiffusionInpaintPipeline"),
        ("sd2", "inpainting", "stable-diffusion-2-inpainting", "StableDiffusionInpaintPipeline"),
        ("sdxl", "inpainting", "stable-diffusion-xl-1.0-inpainting-0.1", "StableDiffusionXLInpaintPipeline"),
        ("sdxl-refiner", "base", "stable-diffusion-xl-refiner-1.0", "StableDiffusionXLImg2ImgPipeline"),
        ("sd1", "pix2pix", "", "StableDiffusionInstructPix2PixPipeline"),
        ("sdxl", "pix2pix", "", "StableDiffusionXLInstructPix2PixPipeline"),
    ],
)
def test_a_variant_becomes_the_pipeline_it_was_published_as(
    test_data: Path, family: str, variant: str, published: str, pipeline: str
) -> None:
    single = single_file_shapes(family, variant)
    plan = planned(weights_of(single), "diffusers", prediction="epsilon" if family == "sd2" else None)
    index = json.loads(plan.side_files["model_index.json"])
    assert index["_class_name"] == pipeline and hasattr(diffusers, pipeline)
    assert built_unet(json.loads(plan.side_files["unet/config.json"])) == written_unet(plan)
    back = planned(as_folder(plan), "single")
    assert {output.name: output.shape for output in back.tensors if output.name in single} == single | {
        name: (*shape, 1, 1) for name, shape in single.items() if ".mid.attn_1." in name and len(shape) == 2
    }
    for component in plan.parts if published else ():
        folder = "text_encoder" if (family, component) == ("sdxl-refiner", "text_encoder_2") else component
        file = test_data / "data" / "models" / published / folder / "config.json"
        fields = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        assert json.loads(plan.side_files[f"{component}/config.json"]) == fields, component


# Transformer blocks by level as thinned models have them: fewer, and other numbers on the way up than down.
THINNED = {
    "ssd-1b": {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": None,
    },
    "vega": {
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        "mid_block_type": None,
    },
}


@pytest.mark.parametrize("name", THINNED)
def test_a_thinned_model_is_described_by_its_depths(name: str) -> None:
    from importlib import resources

    text = resources.files("sdkit").joinpath("assets/families/sdxl/base/unet/config.json").read_text()
    wanted = built_unet({**json.loads(text), **THINNED[name]})
    single = planned(weights_of(wanted), "single")
    back = planned(weights_of({output.name: output.shape for output in single.tensors}), "diffusers")
    assert json.loads(back.side_files["config.json"])["mid_block_type"] is None
    assert written_unet(back) == wanted == built_unet(json.loads(back.side_files["config.json"]))


def test_prediction_and_zero_snr_are_kept_both_ways(tmp_path: Path, tiny_base: Path) -> None:
    base = copytree(tiny_base, tmp_path / "base")
    file = base / "scheduler/scheduler_config.json"
    said = {**json.loads(file.read_text()), "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps(said))
    single = sdkit.convert(base, "single", tmp_path / "single.safetensors").output
    tensors = load_file(single)
    assert {"v_pred", "ztsnr"} <= set(tensors) and tensors["v_pred"].numel() == tensors["ztsnr"].numel() == 0
    report = sdkit.convert(single, "diffusers", tmp_path / "back", configs=tiny_base)  # which says epsilon
    after = json.loads((tmp_path / "back/scheduler/scheduler_config.json").read_text())
    assert report.prediction == after["prediction_type"] == "v_prediction" and after["rescale_betas_zero_snr"] is True
    assert diffusers.DDIMScheduler.from_pretrained(tmp_path / "back/scheduler").alphas_cumprod[-1] == 0.0
