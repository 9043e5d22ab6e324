"""An adapter finds the published model whose layers have its shapes."""

from __future__ import annotations

import models
import pytest
import torch
from header_files import weights_of

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.jobs.fitting import fitting_model

# A layer's width in each variant, as published.
CASES = [
    ("flux2", "klein-4b", "double_blocks.0.img_attn.proj", 3072),
    ("flux2", "klein-9b", "double_blocks.0.img_attn.proj", 4096),
    ("flux2", "dev", "double_blocks.0.img_attn.proj", 6144),
    ("sd3", "medium", "joint_blocks.0.x_block.attn.proj", 1536),
    ("sd3", "3.5-medium", "joint_blocks.0.x_block.attn2.proj", 1536),
    ("sd3", "3.5-large", "joint_blocks.0.x_block.attn.proj", 2432),
]


@pytest.mark.parametrize(("family", "variant", "module", "width"), CASES)
def test_the_first_that_has_its_shapes(family, variant, module, width):
    names = (f"diffusion_model.{module}.lora_{side}.weight" for side in "AB")
    found = fitting_model(family, weights_of(dict(zip(names, [(4, width), (width, 4)], strict=True))))
    assert found is not None and found.variant == variant


def test_the_usual_one_where_none_fits_and_none_without_rules():
    shapes = {"diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": (4, 7)}
    shapes["diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight"] = (7, 4)
    found = fitting_model("flux2", weights_of(shapes))
    assert found is not None and found.variant == "klein-4b"
    assert fitting_model("chroma", weights_of(shapes)) is None


def test_a_lora_of_another_size_than_the_usual_is_converted_and_described(tmp_path):
    name = "diffusion_model.double_blocks.0.img_attn.qkv.lora"
    tensors = {f"{name}_A.weight": torch.ones(2, 4096), f"{name}_B.weight": torch.ones(3 * 4096, 2)}
    path = models.save(tensors, tmp_path / "klein.safetensors")
    found = sdkit.inspect(path)
    assert (found.family, found.adapter.blocks, found.problems) == ("flux2", {"D00": 3}, ())
    report = sdkit.convert(path, "diffusers", tmp_path / "d.safetensors")
    modules = {key.partition(".lora_")[0] for key in models.load(report.output)}
    assert modules == {f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"}
    assert sdkit.convert(path, "kohya", tmp_path / "k.safetensors").programs == ("comfyui", "diffusers")


def test_a_checkpoint_of_a_family_whose_adapters_alone_are_read_is_refused(tmp_path):
    from sdkit.families.flux2_transformer import Flux2Layout

    table = Flux2Layout(12, 4, 36, 1, 1, 8, 8, 10, 256, guidance=False).parameters()
    tensors = {row.ldm: torch.zeros(row.height or row.shape[0], *row.shape[1:]) for row in table}
    path = models.save(tensors, tmp_path / "flux2.safetensors")
    assert sdkit.inspect(path).family == "flux2"
    with pytest.raises(SdkitError, match=r"checkpoints of FLUX\.2 are not converted yet"):
        sdkit.convert(path, "diffusers", tmp_path / "folder")
