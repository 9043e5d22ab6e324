"""Joining Custom Diffusions, against the constrained problem solved by its Lagrangian, and on a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.merging.concepts import CAPTIONS, _caption, change_of, weighing
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import spliced

UNET = "unet/diffusion_pytorch_model.safetensors"


def lagrangian(weight: torch.Tensor, others: torch.Tensor, texts: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The weights Ŵ that minimise ‖(Ŵ − W) othersᵀ‖ where Ŵ textsᵀ is given: the stationary point, as one system."""
    width, count = weight.shape[1], len(texts)
    system = torch.zeros(width + count, width + count, dtype=torch.float64)
    system[:width, :width] = 2 * others.T @ others
    system[:width, width:], system[width:, :width] = texts.T, texts
    right = torch.cat([2 * others.T @ others @ weight.T, wanted])
    return torch.linalg.solve(system, right)[:width].T


def test_two_by_two_by_hand() -> None:
    """W = 0, captions with twice as much of one direction as of the other, and a word (1, 0) that is to give (3, 5)."""
    others = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    word, wanted = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    down = torch.tensor([[0.25, 0.0]], dtype=torch.float64)  # (1, 0) by the inverse of diag(4, 1)
    assert torch.allclose(weighing(others.T @ others, word), down, atol=1e-7)
    up = change_of(down, word, wanted)
    assert torch.allclose(up, torch.tensor([[12.0], [20.0]], dtype=torch.float64))
    assert torch.allclose(up @ down, torch.tensor([[3.0, 0.0], [5.0, 0.0]], dtype=torch.float64))
    slanted = torch.tensor([[1.0, 2.0]], dtype=torch.float64)  # the direction that costs less is moved the more
    change = change_of(weighing(others.T @ others, slanted), slanted, wanted) @ weighing(others.T @ others, slanted)
    assert torch.allclose(change, lagrangian(torch.zeros(2, 2).double(), others, slanted, wanted), atol=1e-6)


def test_the_closed_form_is_the_constrained_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, others, texts, wanted = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 6), (40, 6), (3, 6), (3, 5))
    )
    down = weighing(others.T @ others, texts)
    found = weight + change_of(down, texts, wanted - texts @ weight.T) @ down
    torch.testing.assert_close(found, lagrangian(weight, others, texts, wanted), atol=1e-6, rtol=0)
    torch.testing.assert_close(texts @ found.T, wanted, atol=1e-9, rtol=0)


def test_the_same_condition_twice_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    others, text, wanted = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((40, 6), (1, 6), (1, 5))
    )
    twice = torch.cat([text, text])
    down = weighing(others.T @ others, twice)
    found = change_of(down, twice, torch.cat([wanted, wanted])) @ down
    torch.testing.assert_close(text @ found.T, wanted, atol=1e-6, rtol=0)


def test_captions_are_all_different() -> None:
    assert len({_caption(number) for number in range(CAPTIONS)}) == CAPTIONS


WORDS = {"<c>": torch.linspace(-0.1, 0.1, 24), "<d>": torch.linspace(0.1, -0.05, 24)}


@pytest.fixture
def concepts(tiny_base: Path, tmp_path: Path) -> dict[str, Path]:
    """Word → a delta of its own, as the authors' code saves it."""
    base, generator = load_file(tiny_base / UNET), torch.Generator().manual_seed(1)
    files = {}
    for word, row in WORDS.items():
        names = [name for name in base if ".attn2.to_k.weight" in name or ".attn2.to_v.weight" in name]
        unet = {name: base[name] + 0.02 * torch.randn(base[name].shape, generator=generator) for name in names}
        files[word] = tmp_path / f"{word.strip('<>')}.bin"
        torch.save({"unet": unet, "modifier_token": {word: row}}, files[word])
    return files


def test_each_word_keeps_its_own_keys_and_values(tiny_base: Path, concepts: dict[str, Path], tmp_path: Path) -> None:
    base = load_file(tiny_base / UNET)
    report = sdkit.merge(tiny_base, list(concepts.values()), tmp_path / "both")
    (said,) = [warning for warning in report.warnings if "constrained least squares" in warning]
    assert "2 words (<c>, <d>)" in said
    assert {Path(path).name for path in report.saved} == {"both.c.safetensors", "both.d.safetensors"}
    merged = load_file(tmp_path / "both" / UNET)
    backbone = load_backbone(tiny_base)
    with torch.no_grad(), spliced(backbone, {word: {"text_encoder": row[None]} for word, row in WORDS.items()}):
        for word, file in concepts.items():
            own = torch.load(file, weights_only=True)["unet"]
            context = backbone.encode_text(backbone.tokenize([word]), (16, 16)).context[0, 1:3]  # the word, and the end
            plain = backbone.encode_text(backbone.tokenize(["a tree"]), (16, 16)).context[0, :8]
            for name, weight in own.items():
                torch.testing.assert_close(context @ merged[name].T, context @ weight.T, atol=2e-4, rtol=0)
                alone = (plain @ (weight - base[name]).T).norm()
                assert (plain @ (merged[name] - base[name]).T).norm() < alone
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == set(torch.load(file, weights_only=True)["unet"])


def test_one_alone_and_what_cannot_be_joined_are_as_before(
    tiny_base: Path, concepts: dict[str, Path], tmp_path: Path
) -> None:
    one, other = concepts.values()
    sdkit.merge(tiny_base, one, tmp_path / "one")
    own = torch.load(one, weights_only=True)["unet"]
    merged = load_file(tmp_path / "one" / UNET)
    assert all(torch.equal(merged[name], weight) for name, weight in own.items())
    torch.save({"unet": own}, other)  # no word
    report = sdkit.merge(tiny_base, [one, other], tmp_path / "sum")
    assert any("are added up" in warning and other.name in warning for warning in report.warnings)
    torch.save({"unet": own, "modifier_token": {"<c>": WORDS["<d>"]}}, other)
    with pytest.raises(SdkitError, match="both call their concept <c>"):
        sdkit.merge(tiny_base, [one, other], tmp_path / "twice")


def test_the_wrong_base_is_told_by_numbers(tiny_base: Path, concepts: dict[str, Path], tmp_path: Path) -> None:
    file = concepts["<c>"]
    contents = torch.load(file, weights_only=True)
    base = load_file(tiny_base / UNET)
    for share, message in ((0.05, None), (0.5, "50% or more off"), (1.5, None)):
        for name in contents["unet"]:
            direction = torch.randn(base[name].shape, generator=torch.Generator().manual_seed(2))
            contents["unet"][name] = base[name] + share * base[name].norm() * direction / direction.norm()
        torch.save(contents, file)
        if share > 1:
            with pytest.raises(SdkitError, match="150% or more off those of base: that is how far"):
                sdkit.merge(tiny_base, file, tmp_path / "far")
            continue
        report = sdkit.merge(tiny_base, file, tmp_path / f"{share}")
        doubts = [warning for warning in report.warnings if "off those of" in warning]
        assert bool(doubts) == (message is not None) and all(message in doubt for doubt in doubts)
