"""LiDB from its bases to the baked LoRA, beside the formula written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.artifact import Target
from sdkit.adapters.deltas.lightweight import Basis, Lightweight, bases_digest
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import reference
from sdkit.formats import read_adapter
from sdkit.jobs.quickstart import PICTURES
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.method import load_method
from sdkit.training.options import parse_options
from sdkit.training.trainable import Trainable
from sdkit.weights import open_weights

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
LIDB: dict[str, Any] = {"algo": "lidb", "basis_up": 10, "basis_down": 6}


def train(base: Path, data: Path, out: Path, **given: Any) -> Any:
    options = {"steps": 2, "batch": 2, "lr": 0.05, "seed": 3, **LIDB}
    return sdkit.train("lora", base, data, out, **{**options, **given})


@pytest.fixture
def trained(tiny_base: Path, pictures: Path, tmp_path: Path) -> Path:
    return Path(train(tiny_base, pictures, tmp_path / "x", text_encoder=True, rank=2).output)


def continued(backbone: Backbone, path: Path, given: dict[str, Any]) -> Trainable:
    name, method = load_method("lora")
    (trainable,) = method.trainables(
        backbone, parse_options(method.options, {**given, "init": str(path)}, name), StepRNG(0)
    )
    return trainable


def outputs(backbone: Backbone) -> torch.Tensor:
    noised = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize(["a cat"]), (16, 16))
        return backbone.denoise(noised, torch.tensor([500]), cond)


def test_bases_are_orthonormal_and_each_layers_own() -> None:
    basis = Basis(5, "unet.a.to_q", 40, 30, 10, 6)
    left, right = basis.left(torch.float64), basis.right(torch.float64)
    torch.testing.assert_close(left.T @ left, torch.eye(10, dtype=torch.float64))
    torch.testing.assert_close(right @ right.T, torch.eye(6, dtype=torch.float64))
    assert torch.equal(left, Basis(5, "unet.a.to_q", 40, 30, 10, 6).left(torch.float64))
    for other in (Basis(6, "unet.a.to_q", 40, 30, 10, 6), Basis(5, "unet.a.to_k", 40, 30, 10, 6)):
        assert (other.left(torch.float64) - left).abs().max() > 0.1
        assert bases_digest([other]) != bases_digest([basis])
    before = torch.random.get_rng_state()
    basis.left(torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bases_stay_what_they_are() -> None:
    """Files depend on it: should numpy's normal numbers change, this is where it shows."""
    first = Basis(0, "unet.mid_block.to_q", 4, 3, 2, 2)
    assert bases_digest([first]) == "08ce119310623219a651495fb496c1ffe7a6d20ff25028744764e583655b8bd2"


def test_the_digest_does_not_hang_on_the_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from sdkit.adapters.deltas import lightweight

    basis = Basis(0, "unet.mid_block.to_q", 64, 48, 20, 10)
    wanted = bases_digest([basis])
    qr = np.linalg.qr

    def noisy(matrix: Any) -> Any:
        q, r = qr(matrix)
        return q + np.random.default_rng(0).normal(0, 1e-14, q.shape), r

    monkeypatch.setattr(np.linalg, "qr", noisy)
    lightweight._digest.cache_clear()
    assert bases_digest([basis]) == wanted


def test_sd15_takes_thirty_thousand_numbers() -> None:
    name, method = load_method("lora")
    size = method.size(reference("sd1"), parse_options(method.options, {"algo": "lidb", "text_encoder": True}, name))
    assert size.modules == 128 + 72 and size.parameters == 200 * (100 + 50) == 30_000


def test_it_learns_what_was_not_shown(tmp_path: Path) -> None:
    """A rocket on two colours, which the embedded base has never seen, lowers its loss on a third."""
    import PIL.Image

    drawing = PIL.Image.open(PICTURES / "rocket--noto.png").convert("RGBA")
    for folder, grounds in {"shown": ("white", "blue"), "held-out": ("pink",)}.items():
        (tmp_path / folder).mkdir()
        for ground in grounds:
            picture = PIL.Image.new("RGBA", drawing.size, ground)
            picture.alpha_composite(drawing)
            picture.convert("RGB").save(tmp_path / folder / f"{ground}.png")
            caption = f"sks airplane, noto style, on a {ground} background"
            (tmp_path / folder / f"{ground}.txt").write_text(caption)
    report = sdkit.train(
        "lora",
        "tiny",
        tmp_path / "shown",
        tmp_path / "x",
        algo="lidb",
        text_encoder=True,
        validation=str(tmp_path / "held-out"),
        steps=8,
        batch=2,
        lr=3e-2,
        seed=1,
        save_every=0,
    )
    assert report.parameters <= 30_000
    assert report.validation_fall is not None and report.validation_before is not None
    assert report.validation_fall[0] > 0 and report.validation < 0.8 * report.validation_before


def test_the_change_is_the_formula(tiny_base: Path, trained: Path) -> None:
    tensors, fields = load_file(trained), json.loads(open_weights(trained).metadata["lidb"])
    assert (fields["a"], fields["b"], fields["r"], fields["seed"]) == (10, 6, 2, 0)
    up, down = (tensors[f"{QUERY}.lidb_{side}"].double() for side in ("up", "down"))
    assert up.shape == (10, 2) and down.shape == (2, 6) and up.abs().max() > 0
    basis = Basis(0, QUERY, 32, 32, 10, 6)
    wanted = basis.left(torch.float64) @ up @ down @ basis.right(torch.float64)
    backbone = load_backbone(tiny_base)
    with open_weights(trained) as weights:
        delta = read_adapter(weights, backbone.model).deltas[Target(QUERY)]
        assert isinstance(delta, Lightweight)
        found = torch.zeros(32, 32, dtype=torch.float64)
        delta.prepare(0.5, torch.float64).add_rows(found, 0)
    torch.testing.assert_close(found, 0.5 * wanted)


@pytest.mark.parametrize("to", ["kohya", "peft"])
def test_baked_merged_and_live_are_the_same(tiny_base: Path, trained: Path, tmp_path: Path, to: str) -> None:
    backbone = load_backbone(tiny_base)
    plain = outputs(backbone)
    with continued(backbone, trained, {**LIDB, "text_encoder": True}).install(backbone):
        live = outputs(backbone)
    assert (live - plain).abs().max() > 1e-3
    report = sdkit.convert(trained, to, tmp_path / f"baked-{to}", base=tiny_base)
    assert report.approximations == () and report.changes == 44  # exact: nobody has to allow it
    for path in (trained, Path(report.output)):
        with open_weights(path) as weights, install(read_adapter(weights, backbone.model), backbone):
            torch.testing.assert_close(outputs(backbone), live, atol=1e-5, rtol=0)
    sdkit.merge(tiny_base, trained, tmp_path / "merged")
    torch.testing.assert_close(outputs(load_backbone(tmp_path / "merged")), live, atol=1e-5, rtol=0)
    assert torch.equal(outputs(backbone), plain)


def test_gradients_are_those_of_the_formula() -> None:
    from sdkit.runtime.layers.lightweight import LightweightLayer

    torch.manual_seed(0)
    for base in (torch.nn.Linear(12, 8), torch.nn.Conv2d(3, 8, 2)):
        basis = Basis(0, "m", 8, 12, 5, 4)
        up, down = (torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 2), (2, 4)))
        x = torch.randn(3, 12) if base.weight.ndim == 2 else torch.randn(3, 3, 4, 4)
        layer = LightweightLayer(base, up, down, basis, 0.5)
        weight = base.weight.detach() + 0.5 * (
            basis.left(torch.float32) @ up @ down @ basis.right(torch.float32)
        ).reshape(base.weight.shape)
        apply = torch.nn.functional.linear if base.weight.ndim == 2 else torch.nn.functional.conv2d
        wanted = apply(x, weight, base.bias.detach())
        torch.testing.assert_close(layer(x).detach(), wanted.detach())
        ours = torch.autograd.grad(layer(x).square().sum(), (up, down))
        theirs = torch.autograd.grad(wanted.square().sum(), (up, down))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_relaxed_it_goes_on_as_a_lora_from_where_it_was(
    tiny_base: Path, pictures: Path, trained: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(tiny_base)
    with continued(backbone, trained, {**LIDB, "text_encoder": True}).install(backbone):
        live = outputs(backbone)
    relaxed = continued(backbone, trained, {"rank": 4})
    with relaxed.install(backbone):
        torch.testing.assert_close(outputs(backbone), live, atol=1e-6, rtol=0)
    assert relaxed.parameters[f"{QUERY}.down"].shape == (4, 32)
    assert relaxed.parameters[f"{QUERY}.up"][:, 2:].abs().max() == 0
    assert relaxed.parameters[f"{QUERY}.down"][2:].abs().min() > 0  # a gradient reaches the new half
    report = train(tiny_base, pictures, tmp_path / "y", algo="lora", init=str(trained), rank=4)
    assert report.parameters == sum(parameter.numel() for parameter in relaxed.parameters.values())
    assert sdkit.inspect(report.output).format == "kohya"
    with pytest.raises(UsageError, match="rank=1: .* has rank 2"):
        train(tiny_base, pictures, tmp_path / "z", algo="lora", init=str(trained), rank=1)


def test_it_goes_on_where_it_was(tiny_base: Path, pictures: Path, trained: Path, tmp_path: Path) -> None:
    again = Path(train(tiny_base, pictures, tmp_path / "y", init=str(trained), lr=0.0, steps=1).output)
    before, after = load_file(trained), load_file(again)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(SdkitError, match="follow from the seed 0, not 7") as caught:
        train(tiny_base, pictures, tmp_path / "z", init=str(trained), basis_seed=7)
    assert caught.value.hint == "say basis_seed=0"


def test_other_bases_are_refused(tiny_base: Path, trained: Path, tmp_path: Path) -> None:
    tensors = load_file(trained)

    def saved(**changes: Any) -> Path:
        fields = json.loads(open_weights(trained).metadata["lidb"]) | changes
        save_file(tensors, tmp_path / "other.safetensors", {"lidb": json.dumps(fields)})
        return tmp_path / "other.safetensors"

    with pytest.raises(SdkitError, match=r"not those made here from seed 1 \(sha256 [0-9a-f]{12}, the file says"):
        sdkit.merge(tiny_base, saved(seed=1), tmp_path / "m")
    with pytest.raises(SdkitError, match="'philox-2', which is not known here"):
        sdkit.merge(tiny_base, saved(basis="philox-2"), tmp_path / "m")
    for sizes in ({}, {QUERY: [1 << 40, 5]}, {QUERY: "x"}, 5):
        with pytest.raises(SdkitError):
            sdkit.merge(tiny_base, saved(sizes=sizes), tmp_path / "m")
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(SdkitError, match="its numbers mean nothing|missing or damaged"):
        sdkit.merge(tiny_base, tmp_path / "bare.safetensors", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_formats_that_cannot_hold_it_say_so(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format=kohya: no lidb is written in it"):
        train(tiny_base, pictures, tmp_path / "y", format="kohya")
    with pytest.raises(UsageError, match="format=lidb: no lora is written in it"):
        train(tiny_base, pictures, tmp_path / "y", algo="lora", format="lidb")
