"""GLoRA, IA³, Diag-OFT and BOFT baked into weights: what LyCORIS' own modules make of the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from example_model import Sizes, make_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.streaming import expression

UNET = "model.diffusion_model"
KEYS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        f"{UNET}.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    ),
    "lora_unet_down_blocks_0_resnets_0_conv1": f"{UNET}.input_blocks.1.0.in_layers.2.weight",
}
KINDS = ("glora", "ia3", "ia3-in", "oft", "oft-rescaled", "oft-limited", "boft")


@pytest.fixture(scope="module")
def base_tensors() -> dict[str, torch.Tensor]:
    tensors = make_checkpoint(Sizes())
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture
def base(base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(base_tensors, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def layer(weight: torch.Tensor) -> nn.Module:
    rows, columns, *kernel = weight.shape
    made = (
        nn.Conv2d(columns, rows, kernel[0], padding=1, bias=False) if kernel else nn.Linear(columns, rows, bias=False)
    )
    made.weight.data.copy_(weight)
    return made


def module(kind: str, flat: str, weight: torch.Tensor) -> Any:
    """A trained module of LyCORIS around a layer of this weight."""
    pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.ia3 import IA3Module

    name, _, variant = kind.partition("-")
    options: dict[str, dict[str, Any]] = {
        "glora": {"lora_dim": 3, "alpha": 1.5},
        "ia3": {"train_on_input": variant == "in"},
        "oft": {"lora_dim": 4, "rescaled": variant == "rescaled", "constraint": 0.01 if variant == "limited" else 0},
        "boft": {"lora_dim": 4, "rescaled": True},
    }
    classes = {"glora": GLoRAModule, "ia3": IA3Module, "oft": DiagOFTModule, "boft": ButterflyOFTModule}
    made = classes[name](flat, layer(weight), 1.0, **options[name])
    generator = torch.Generator().manual_seed(len(flat))
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return made


def adapter(kind: str, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A file of two modules, and the modules by the base's key."""
    made = {key: module(kind, flat, tensors[key]) for flat, key in KEYS.items()}
    stored = {
        f"{flat}.{role}": tensor.detach().clone().contiguous()
        for flat, key in KEYS.items()
        for role, tensor in (made[key].custom_state_dict() or made[key].state_dict()).items()
    }
    return stored, made


@pytest.mark.parametrize("tile", [256 * 1024, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_lycoris(
    kind: str,
    tile: int,
    base: Path,
    base_tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a weight is cut into several tiles, whose rows a rotation mixes."""
    monkeypatch.setattr(expression, "TILE_ELEMENTS", tile)
    stored, modules = adapter(kind, base_tensors)
    save_file(stored, tmp_path / "a.safetensors")
    sdkit.merge(base, {tmp_path / "a.safetensors": 1.0}, tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for key, lycoris in modules.items():
        with torch.no_grad():
            wanted = lycoris.get_merged_weight(1)[0].reshape(base_tensors[key].shape)
        assert not torch.allclose(merged[key], base_tensors[key], atol=1e-3)
        assert torch.allclose(merged[key], wanted, atol=2e-5), key


@pytest.mark.parametrize("kind", ["glora", "ia3", "oft", "boft"])
def test_half_strength(kind: str, base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stored, modules = adapter(kind, base_tensors)
    if kind == "boft":  # LyCORIS rescales in full at any strength, even at 0
        stored = {name: tensor for name, tensor in stored.items() if not name.endswith("rescale")}
        for made in modules.values():
            made.rescaled = False
    save_file(stored, tmp_path / "a.safetensors")
    sdkit.merge(base, {tmp_path / "a.safetensors": 0.5}, tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for key, lycoris in modules.items():
        with torch.no_grad():
            wanted = lycoris.get_merged_weight(0.5)[0].reshape(base_tensors[key].shape)
        assert torch.allclose(merged[key], wanted, atol=2e-5), key


def test_the_factors_as_lycoris_had_them_first(
    base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """In its first layout a1 and a2, b1 and b2 had each other's names; shapes tell, unless they are square."""
    flat, key = next(iter(KEYS.items()))
    made = module("glora", flat, base_tensors[key])
    stored = {f"{flat}.{role}": tensor.detach().clone() for role, tensor in made.custom_state_dict().items()}
    swapped = dict(stored)
    for one, other in (("a1", "a2"), ("b1", "b2")):
        swapped[f"{flat}.{one}.weight"], swapped[f"{flat}.{other}.weight"] = (
            stored[f"{flat}.{name}.weight"] for name in (other, one)
        )
    outs = []
    for name, tensors in (("new", stored), ("old", swapped)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        sdkit.merge(base, [tmp_path / f"{name}.safetensors"], tmp_path / f"{name}-out.safetensors")
        outs.append(load_file(tmp_path / f"{name}-out.safetensors")[key])
    assert torch.equal(*outs)
    rows, columns = base_tensors[key].shape
    square = {f"{flat}.{role}.weight": torch.ones(rows, columns) for role in ("a1", "a2", "b1", "b2")}
    save_file(square, tmp_path / "square.safetensors")
    with pytest.raises(SdkitError, match="factors are square"):
        sdkit.merge(base, [tmp_path / "square.safetensors"], tmp_path / "no.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_is_written_as_it_was_read(
    kind: str, base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    stored, _ = adapter(kind, base_tensors)
    save_file(stored, tmp_path / "a.safetensors")
    report = sdkit.convert(tmp_path / "a.safetensors", "kohya", tmp_path / "b.safetensors", base=base)
    assert report.proof.exact == 2
    after = load_file(report.output)
    assert after.keys() == stored.keys()
    assert all(torch.equal(after[name].double(), tensor.double()) for name, tensor in stored.items())


def test_what_does_not_fit_is_refused(base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    flat, key = next(iter(KEYS.items()))
    rows, columns = base_tensors[key].shape
    broken = {
        "factors for": {"weight": torch.ones(rows + 1), "on_input": torch.tensor(0)},
        "do not rotate": {"oft_blocks": torch.ones(3, 5, 5), "alpha": torch.tensor(0.0)},
        "on_input missing": {"weight": torch.ones(rows)},
        "do not mix": {f"{role}.weight": torch.ones(shape) for role, shape in (
            ("a1", (columns + 1, 2)), ("a2", (2, columns + 1)), ("b1", (rows, 2)), ("b2", (2, columns))
        )},
    }  # fmt: skip
    for number, (match, parts) in enumerate(broken.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"{flat}.{role}": tensor for role, tensor in parts.items()}, path)
        with pytest.raises(SdkitError, match=match):
            sdkit.merge(base, [path], tmp_path / "no.safetensors")
