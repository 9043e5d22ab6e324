from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdkit.adapters.artifact import TokenRows
from sdkit.formats.textual_inversion import plain_name
from sdkit.merging.tokens import save_tokens, token_paths
from sdkit.weights import open_weights


@pytest.mark.parametrize(
    ("token", "name"),
    [("<s1>", "s1"), ("sks dog", "sksdog"), ("../../etc/passwd", "etcpasswd"), ("...", "token"), ("日本", "日本")],
)
def test_a_token_never_becomes_a_path(token, name) -> None:
    assert plain_name(token) == name
    assert Path(plain_name(token)).name == name


def test_tokens_with_one_plain_name_get_two_files(tmp_path) -> None:
    save_file({"<a>": torch.ones(4), "a": torch.zeros(4)}, tmp_path / "t.safetensors")
    with open_weights(tmp_path / "t.safetensors") as weights:
        rows = [TokenRows(name, "text_encoder", weights, info) for name, info in weights.tensors.items()]
        paths = [path.name for path, _ in token_paths(rows, tmp_path / "out.safetensors")]
    assert sorted(paths) == ["out.a.safetensors", "out.a_.safetensors"]


def test_rows_for_two_encoders_share_a_file(tmp_path) -> None:
    save_file({"one": torch.ones(2, 4), "two": torch.zeros(2, 6)}, tmp_path / "t.safetensors")
    with open_weights(tmp_path / "t.safetensors") as weights:
        rows = [
            TokenRows("<s>", "text_encoder", weights, weights.tensors["one"]),
            TokenRows("<s>", "text_encoder_2", weights, weights.tensors["two"]),
        ]
        ((path, group),) = token_paths(rows, tmp_path / "out.safetensors")
        with save_tokens(group, path, overwrite=False) as writer:
            writer.commit()
    saved = load_file(tmp_path / "out.s.safetensors")
    assert torch.equal(saved["clip_l"], torch.ones(2, 4)) and torch.equal(saved["clip_g"], torch.zeros(2, 6))
