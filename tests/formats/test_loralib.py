"""loralib's state dicts: made by loralib itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter
from sdkit.weights import Weights, open_weights

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def trained(folder: Path) -> tuple[Path, torch.Tensor]:
    """A file of one layer as `lora.lora_state_dict` gives it, and its change by loralib's own merge."""
    lora = pytest.importorskip("loralib")
    shape = models.sd1_modules()[f"lora_unet_{QUERY.replace('.', '_')}"]
    layer = lora.Linear(shape[1], shape[0], r=4, lora_alpha=6, bias=False)
    torch.manual_seed(1)
    nn.init.normal_(layer.lora_B)
    holder = nn.Module()
    holder.add_module("x", layer)
    state = {f"{QUERY}.{name.partition('.')[2]}": tensor for name, tensor in lora.lora_state_dict(holder).items()}
    torch.save(state, folder / "lora.pt")
    before = layer.weight.detach().clone()
    layer.eval()  # merges
    return folder / "lora.pt", (layer.weight.detach() - before).double()


def test_equals_loralibs_own_merge(tmp_path: Path) -> None:
    base = models.save(models.sd1(), tmp_path / "base.safetensors")
    path, wanted = trained(tmp_path)
    with pytest.raises(SdkitError, match="does not store alpha") as failure:
        sdkit.convert(path, "kohya", tmp_path / "k.safetensors", base=base)
    assert "--network-alpha" in failure.value.hint
    report = sdkit.convert(path, "kohya", tmp_path / "k.safetensors", base=base, network_alpha=6)
    change = models.delta(load_file(report.output), f"lora_unet_{QUERY.replace('.', '_')}")
    assert torch.allclose(change, wanted, atol=1e-5)


def test_a_merge_asks_for_alpha(tmp_path: Path) -> None:
    base = models.save(models.sd1(), tmp_path / "base.safetensors")
    path, _ = trained(tmp_path)
    with pytest.raises(SdkitError, match="its strength is not known") as failure:
        sdkit.merge(base, [path], tmp_path / "out.safetensors")
    assert "--network-alpha" in failure.value.hint


def test_what_is_no_linear_layer_is_refused(tmp_path: Path, save: Callable[..., Weights]) -> None:
    with pytest.raises(SdkitError, match="no factor of a linear layer"):
        read_adapter(save({"conv_in.lora_A": torch.ones(3, 2, 3, 3), "conv_in.lora_B": torch.ones(2, 3)}))
    with pytest.raises(SdkitError, match="incomplete"):
        read_adapter(save({f"{QUERY}.lora_A": torch.ones(2, 3)}, name="b"))
    assert open_weights(tmp_path / "b.safetensors")
