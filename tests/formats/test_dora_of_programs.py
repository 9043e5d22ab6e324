"""What programs make of a DoRA, by hand: which of them `_programs` may say that they apply one as it was trained.

The rules are those of their code: A1111's `network.py` (`apply_weight_decompose`), ComfyUI's `weight_adapter/base.py`
and Forge's `backend/patcher/lora.py` (both `weight_decompose`).
"""

from __future__ import annotations

import pytest
import torch
from samples import Tensors

from sdkit.adapters.artifact import Target
from sdkit.formats import read_adapter
from sdkit.formats._programs import objection

WEIGHT = torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
DOWN, UP = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [12.0]])
MOVED = torch.tensor([[5.0, 4.0], [12.0, 5.0]], dtype=torch.float64)  # rows of lengths √41 and 13, columns 13 and √41
LENGTHS = {"dora": torch.tensor([[10.0], [26.0]]), "dora-in": torch.tensor([[26.0, 10.0]])}
MEANT = {
    "dora": torch.tensor([[50 / 41**0.5, 40 / 41**0.5], [24.0, 10.0]], dtype=torch.float64),
    "dora-in": torch.tensor([[10.0, 40 / 41**0.5], [24.0, 50 / 41**0.5]], dtype=torch.float64),
}


def a1111(lengths: torch.Tensor) -> torch.Tensor:
    """The norms of the input features, whatever shape the lengths have."""
    return MOVED * (lengths.double() / MOVED.norm(dim=0, keepdim=True))


def comfyui(lengths: torch.Tensor) -> torch.Tensor:
    """As many lengths as rows: the norms of the base's rows."""
    if lengths.shape[0] == len(WEIGHT):
        return MOVED * (lengths.double() / WEIGHT.norm(dim=1, keepdim=True))
    return MOVED * (lengths.double() / MOVED.norm(dim=0, keepdim=True))


RULES = {"a1111": a1111, "comfyui": comfyui, "forge": comfyui}


def tensors(kind: str) -> Tensors:
    name = "lora_unet_conv_in"
    pair = {f"{name}.lora_down.weight": DOWN, f"{name}.lora_up.weight": UP, f"{name}.alpha": torch.tensor(1.0)}
    return {**pair, f"{name}.dora_scale": LENGTHS[kind]}


@pytest.mark.parametrize("kind", LENGTHS)
def test_the_axis_is_the_one_that_the_shape_tells(save, make_model, kind: str) -> None:
    artifact = read_adapter(save(tensors(kind)), make_model({"unet.conv_in": (2, 2)}))
    prepared = artifact.deltas[Target("unet.conv_in")].prepare(1.0, torch.float64)
    out = WEIGHT.clone()
    if prepared.looks_first:
        prepared.look(WEIGHT, 0)
    prepared.add_rows(out, 0)
    assert torch.allclose(out, MEANT[kind], atol=1e-12)


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("program", RULES)
def test_a_program_is_said_to_apply_what_its_rule_gives(program: str, kind: str) -> None:
    same = torch.allclose(RULES[program](LENGTHS[kind]), MEANT[kind])
    assert (objection(program, frozenset({kind}), "sd1", None) == "") == same
    assert same == (kind == "dora-in")
