from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tokens import installed_words, token_table
from sdkit.training.optimizers import make_optimizer
from sdkit.training.trainables.tokens import Tokens, rows_of_file, rows_of_noise, rows_of_text
from sdkit.weights import open_weights

ENCODER = "text_encoder"


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def table(backbone: Backbone) -> torch.Tensor:
    weight: torch.Tensor = token_table(backbone, ENCODER).weight
    return weight


@pytest.mark.parametrize(("vectors", "letters"), [(1, "c"), (3, "cat"), (5, "catca")])
def test_a_word_s_own_rows_are_repeated_or_cut(backbone: Backbone, vectors: int, letters: str) -> None:
    rows = rows_of_text(backbone, "cat", vectors)
    ids = backbone.tokenizers[ENCODER](letters, add_special_tokens=False).input_ids
    assert torch.equal(rows[ENCODER], table(backbone)[ids])
    assert not rows[ENCODER].requires_grad


def test_a_text_without_tokens_is_no_beginning(backbone: Backbone) -> None:
    with pytest.raises(SdkitError, match="finds no word"):
        rows_of_text(backbone, "", 1)


def test_noise_is_as_long_as_the_vocabulary_s_rows(backbone: Backbone) -> None:
    rows = rows_of_noise(backbone, 3, StepRNG(1))[ENCODER]
    wanted = table(backbone).norm(dim=1).mean().expand(3)
    torch.testing.assert_close(rows.norm(dim=1), wanted)
    assert len({tuple(row.tolist()) for row in rows}) == 3
    assert torch.equal(rows, rows_of_noise(backbone, 3, StepRNG(1))[ENCODER])
    assert not torch.equal(rows, rows_of_noise(backbone, 3, StepRNG(2))[ENCODER])


def test_a_file_s_rows(backbone: Backbone, tmp_path: Path) -> None:
    own = torch.arange(48.0).reshape(2, 24)
    save_file({"<w>": own}, tmp_path / "one.safetensors")
    save_file({"<w>": own, "<v>": own.clone()}, tmp_path / "two.safetensors")
    with open_weights(tmp_path / "one.safetensors") as weights:
        rows = rows_of_file(read_adapter(weights), backbone, 3)
    assert torch.equal(rows[ENCODER], own[[0, 1, 0]])
    with open_weights(tmp_path / "two.safetensors") as weights, pytest.raises(SdkitError, match="one word's embedding"):
        rows_of_file(read_adapter(weights), backbone, 1)


def test_the_optimizer_holds_the_rows_alone_and_nothing_else_changes(backbone: Backbone) -> None:
    tokens = Tokens("<w>", rows_of_text(backbone, "cat", 3), lr=0.1)
    before = {name: value.clone() for name, value in backbone.components[ENCODER].named_parameters()}
    optimizer = make_optimizer("adamw", tokens.groups(), 0.0)
    with tokens.install(backbone):
        for _ in range(2):
            optimizer.zero_grad()
            backbone.encode_text(backbone.tokenize(["a <w>"]), (16, 16)).context.square().sum().backward()
            optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert sum(value.numel() for value in moments) == 2 * 3 * 24
    after = dict(backbone.components[ENCODER].named_parameters())
    assert before.keys() == after.keys() and installed_words(backbone, ENCODER) == {}
    assert all(torch.equal(before[name], after[name]) and after[name].grad is None for name in before)
    assert (tokens.parameters[ENCODER] - rows_of_text(backbone, "cat", 3)[ENCODER]).abs().max() > 0.05


def test_two_encoders_have_rows_of_their_own(backbone: Backbone) -> None:
    """As in SDXL; the tiny base's encoder stands in for the second one."""
    backbone.components["text_encoder_2"] = backbone.components[ENCODER]
    backbone.tokenizers["text_encoder_2"] = backbone.tokenizers[ENCODER]
    tokens = Tokens("<w>", rows_of_noise(backbone, 2, StepRNG(0)), lr=0.1)
    assert {name: tuple(part.shape) for name, part in tokens.parameters.items()} == {
        ENCODER: (2, 24),
        "text_encoder_2": (2, 24),
    }
    assert not torch.equal(*tokens.parameters.values())
    artifact = tokens.artifact(torch.float16)
    assert [(part.token, part.component) for part in artifact.tokens] == [("<w>", ENCODER), ("<w>", "text_encoder_2")]
