"""Small adapter files, hand-made models, and the dense change of a delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdkit.adapters.artifact import Artifact, Target
from sdkit.families.family import Model, Place
from sdkit.weights import Weights, open_weights

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Weights]:
    def make(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None, name: str = "a") -> Weights:
        path = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
        return open_weights(path)

    return make


@pytest.fixture
def make_model() -> Callable[..., Model]:
    """A model of the given hub modules, each with a weight, and a bias as long as the weight has rows."""

    def make(shapes: Mapping[str, tuple[int, ...]], kohya: Mapping[str, str] | None = None) -> Model:
        places = {f"{module}.weight": Place(f"{module}.weight", shape) for module, shape in shapes.items()}
        places |= {f"{module}.bias": Place(f"{module}.bias", shape[:1]) for module, shape in shapes.items()}
        names = {}
        for module in shapes:
            component, _, rest = module.partition(".")
            names[f"{PREFIXES[component]}_{rest.replace('.', '_')}"] = module
        return Model("sd1", places=places, kohya_modules=names | dict(kohya or {}))

    return make


@pytest.fixture
def dense() -> Callable[..., torch.Tensor]:
    """The whole change of one parameter in an artifact, in float64 and the delta's own shape."""

    def make(artifact: Artifact, module: str, parameter: str = "weight", strength: float = 1.0) -> torch.Tensor:
        delta = artifact.deltas[Target(module, parameter)]
        out = torch.zeros(delta.shape[0], torch.Size(delta.shape[1:]).numel(), dtype=torch.float64)
        delta.prepare(strength, torch.float64).add_rows(out, 0)
        return out.reshape(delta.shape)

    return make


@pytest.fixture(scope="session")
def sd1_shapes() -> dict[str, tuple[int, ...]]:
    """The attention layers of SD1's U-Net and text encoder, in diffusers' present order."""
    blocks = [("down_blocks", 0, 320, 2), ("down_blocks", 1, 640, 2), ("down_blocks", 2, 1280, 2)]
    blocks += [("mid_block", None, 1280, 1)]
    blocks += [("up_blocks", 1, 1280, 3), ("up_blocks", 2, 640, 3), ("up_blocks", 3, 320, 3)]
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, index, width, count in blocks:
        place = f"unet.{stage}" if index is None else f"unet.{stage}.{index}"
        for attention in range(count):
            block = f"{place}.attentions.{attention}.transformer_blocks.0"
            for name, text in (("attn1", width), ("attn2", 768)):
                sizes = {"to_q": width, "to_k": text, "to_v": text, "to_out.0": width}
                shapes |= {f"{block}.{name}.{slot}": (width, size) for slot, size in sizes.items()}
            shapes[f"{block}.ff.net.0.proj"] = (8 * width, width)
    for layer in range(12):
        for slot in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"text_encoder.text_model.encoder.layers.{layer}.self_attn.{slot}"] = (768, 768)
    return shapes
