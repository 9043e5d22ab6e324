"""What programs make of a DoRA, by hand: which of them `_programs` may say that they apply one as it was trained.

The rules are those of their code: A1111's `network.py` (`apply_weight_decompose`), ComfyUI's `weight_adapter/base.py`
and Forge's `backend/patcher/lora.py` (both `weight_decompose`).
"""

from __future__ import annotations

import pytest
import torch
from samples import Tensors

from sdkit.adapters.artifact import Target
from sdkit.adapters.deltas.dora import PreparedDora
from sdkit.adapters.drawn import drawn_as
from sdkit.core.errors import UsageError
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


@pytest.mark.parametrize("program", ["comfyui", "a1111"])
def test_a_merge_can_follow_a_program(save, make_model, program) -> None:
    artifact = read_adapter(save(tensors("dora")), make_model({"unet.conv_in": (2, 2)}))
    (drawn,) = drawn_as([artifact], program)
    prepared = drawn.deltas[Target("unet.conv_in")].prepare(1.0, torch.float64)
    if prepared.looks_first:
        for row in range(2):
            prepared.look(WEIGHT[row : row + 1], row)
    out = WEIGHT.clone()
    for row in range(2):  # row by row, as large weights are merged
        prepared.add_rows(out[row : row + 1], row)
    assert torch.allclose(out, RULES[program](LENGTHS["dora"]), atol=1e-12)


def test_a_convolution_is_normed_by_a1111_over_all_it_makes_of_an_input() -> None:
    kernel = torch.arange(1.0, 9.0, dtype=torch.float64).reshape(2, 2, 1, 2)  # two inputs, each with two places
    lengths = torch.tensor([3.0, 5.0], dtype=torch.float64)
    prepared = PreparedDora(Nothing(), lengths, kernel=2, strength=1.0)
    out = kernel.flatten(1).clone()
    prepared.look(out, 0)
    prepared.add_rows(out, 0)
    norms = kernel.transpose(0, 1).flatten(1).norm(dim=1)  # of what comes from the first input, and from the second
    assert torch.allclose(out.view(2, 2, 2), lengths[:, None, None] * kernel.squeeze(2) / norms[None, :, None])


class Nothing:
    """No change."""

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        pass


def test_a_program_that_changes_nothing_is_refused(save, make_model) -> None:
    artifact = read_adapter(save(tensors("dora-in")), make_model({"unet.conv_in": (2, 2)}))
    with pytest.raises(UsageError, match="no adapter holds a DoRA of output features"):
        drawn_as([artifact], "comfyui")
