"""ComfyUI's own names, against the keys of the real single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdkit.adapters.artifact import Target
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.core.errors import SdkitError
from sdkit.families import reference
from sdkit.formats import read_adapter, recognise, write_adapter
from sdkit.weights import DTYPES, Weights, open_weights


def made(modules: dict[str, tuple[int, ...]]) -> Any:
    changes = {
        Target(module): Computed.of({"up": torch.ones(shape[0], 1), "down": torch.ones(1, shape[1])}, 0.5)
        for module, shape in modules.items()
        if len(shape) == 2
    }
    return computed_artifact("made", changes, DTYPES["F16"])


@pytest.mark.parametrize(("family", "header"), [("sd1", "sd1-ldm"), ("sdxl", "sdxl-sgm")])
def test_every_written_module_lies_in_the_real_file(
    tmp_path: Path, real_header: Callable[[str], dict[str, Any]], family: str, header: str
) -> None:
    model = reference(family)
    linear = {
        hub.removesuffix(".weight"): place.shape
        for hub, place in model.places.items()
        if not hub.startswith("vae.")
        and hub.endswith((".to_q.weight", ".proj.weight", ".q_proj.weight", ".fc1.weight"))
    }
    meant = made(linear)
    write_adapter(meant, model, tmp_path / "a.safetensors", {}, format="comfyui-native")
    names = {name.partition(".lora_")[0].partition(".alpha")[0] for name in load_file(tmp_path / "a.safetensors")}
    real = real_header(header)
    unet = {name for name in names if name.startswith("diffusion_model.")}
    assert len(unet) > 40
    assert all(f"model.{name}.weight" in real for name in unet)
    encoders = {name.split(".")[1] for name in names - unet}
    assert encoders == ({"clip_l"} if family == "sd1" else {"clip_l", "clip_g"})
    assert all(".transformer.text_model.encoder.layers." in name for name in names - unet)
    read = read_adapter(open_weights(tmp_path / "a.safetensors"), model)
    assert read.format == "comfyui-native" and set(read.deltas) == set(meant.deltas) and read.unmatched == ()


def test_pefts_names_of_factors_are_read_too(save: Callable[..., Weights], dense: Callable[..., torch.Tensor]) -> None:
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    a, b = torch.randn(2, 320), torch.randn(320, 2)
    weights = save({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.alpha": torch.tensor(1.0)})
    artifact = read_adapter(weights, reference("sd1"))
    change = dense(artifact, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.allclose(change, b.double() @ a.double() / 2)


def test_a_checkpoints_own_tensors_are_no_adapter(save: Callable[..., Weights]) -> None:
    format, verdicts = recognise(save({"diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}))
    assert format is None and not verdicts["comfyui-native"].recognised


def test_unknown_modules_are_left_by_name(save: Callable[..., Weights]) -> None:
    weights = save({"diffusion_model.nowhere.diff": torch.ones(2), "what": torch.ones(1)})
    assert read_adapter(weights, reference("sd1")).unmatched == ("what", "diffusion_model.nowhere")


def test_half_a_pair_is_refused(save: Callable[..., Weights]) -> None:
    with pytest.raises(SdkitError, match="incomplete"):
        read_adapter(save({"diffusion_model.out.2.lora_A.weight": torch.ones(1, 2)}))
