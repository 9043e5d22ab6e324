"""Custom Diffusion's four forms, as their authors' code lays them out, on a model small enough to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.artifact import Artifact, Target
from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.formats import read_adapter, recognise
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights

BASE = "unet/diffusion_pytorch_model.safetensors"
# diffusers' name of each attention of the tiny U-Net → LDM's
ATTENTIONS = {
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "mid_block.attentions.0": "middle_block.1",
}
SLOTS = ("to_k", "to_v")
INSIDE = "transformer_blocks.0.attn2"
WORD = torch.linspace(-1, 1, 24)
OTHER = torch.linspace(2, 3, 24)


@pytest.fixture
def model(tiny_base: Path) -> Model:
    with open_weights(tiny_base) as weights:
        return identify(weights)


@pytest.fixture
def trained(tiny_base: Path) -> dict[str, torch.Tensor]:
    """diffusers' name of each weight → its new value, of rank 3 away from the base's."""
    base, generator = load_file(tiny_base / BASE), torch.Generator().manual_seed(1)
    names = [f"{attention}.{INSIDE}.{slot}.weight" for attention in ATTENTIONS for slot in SLOTS]
    return {name: base[name] + _change(base[name].shape, generator) for name in names}


def _change(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    up, down = torch.randn(shape[0], 3, generator=generator), torch.randn(3, shape[1], generator=generator)
    return 0.01 * up @ down


def ldm(name: str) -> str:
    attention = next(start for start in ATTENTIONS if name.startswith(start))
    return f"model.diffusion_model.{ATTENTIONS[attention]}{name.removeprefix(attention)}"


def lay_out(form: str, folder: Path, trained: dict[str, torch.Tensor], base: Path) -> Path:
    """A file as the program of that form would save it."""
    folder.mkdir()
    if form == "delta":
        torch.save({"unet": trained, "modifier_token": {"<new1>": WORD, "<new2>": OTHER}}, folder / "delta.bin")
        return folder / "delta.bin"
    if form == "ldm":
        state = {ldm(name): weight for name, weight in trained.items()}
        rows = torch.stack([WORD, OTHER])
        torch.save({"state_dict": {**state, "embed": rows}}, folder / "delta_epoch=000009.ckpt")
        return folder / "delta_epoch=000009.ckpt"
    if form == "compressed":
        own, pairs = load_file(base / BASE), {}
        for name, weight in trained.items():
            u, s, v = torch.linalg.svd((weight - own[name]).double())
            pairs[name] = {"u": (u[:, :3] * s[:3]).float(), "v": v[:3].float()}
        torch.save({"unet": pairs, "modifier_token": {"<new1>": WORD, "<new2>": OTHER}}, folder / "compressed.bin")
        return folder / "compressed.bin"
    named = {name.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): weight
             for name, weight in trained.items()}  # fmt: skip
    save_file(named, folder / "pytorch_custom_diffusion_weights.safetensors")
    torch.save({"<new1>": WORD}, folder / "<new1>.bin")
    save_file({"<new2>": OTHER}, folder / "<new2>.safetensors")
    return folder


def words(artifact: Artifact) -> dict[str, torch.Tensor]:
    return {rows.token: Read(rows.weights, rows.info).load().flatten() for rows in artifact.tokens}


def weights_on(base: Path, artifact: Artifact) -> dict[str, torch.Tensor]:
    """What the base's weights become."""
    own, changed = load_file(base / BASE), {}
    for target, delta in artifact.deltas.items():
        value = own[target.name.removeprefix("unet.")].double().clone()
        delta.prepare(1.0, torch.float64).add_rows(value, 0)
        changed[target.name.removeprefix("unet.")] = value.float()
    return changed


FORMS = ["delta", "ldm", "compressed", "folder"]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_with_its_words(
    form: str, tiny_base: Path, model: Model, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with open_weights(lay_out(form, tmp_path / "x", trained, tiny_base)) as weights:
        name, _ = recognise(weights)
        artifact = read_adapter(weights, model)
        assert name is not None and name.startswith("custom-diffusion-") and artifact.kind == "custom-diffusion"
        assert not artifact.unmatched and artifact.deltas.keys() == {Target(f"unet.{name[:-7]}") for name in trained}
        found = weights_on(tiny_base, artifact)
        for name, weight in trained.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6 if form == "compressed" else 0, rtol=0)
        said = words(artifact)
        assert said.keys() == {"<new1>", "<new2>"}
        assert torch.equal(said["<new1>"], WORD) and torch.equal(said["<new2>"], OTHER)
        assert any("have no names in it" in note for note in artifact.notes) == (form == "ldm")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", ["delta", "ldm", "custom-diffusion-folder"])
def test_each_becomes_each(
    form: str, to: str, tiny_base: Path, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = lay_out(form, tmp_path / "x", trained, tiny_base)
    if form == "compressed":
        with pytest.raises(SdkitError):  # what a delta holds is no change
            sdkit.convert(source, to, tmp_path / "out", base=tiny_base)
        return
    sdkit.convert(source, to, tmp_path / "out", base=tiny_base)
    if to == "custom-diffusion-folder":
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"<new1>.safetensors", "<new2>.safetensors"}
        written = load_file(tmp_path / "out/pytorch_custom_diffusion_weights.safetensors")
        read = {name.replace(".processor", "").replace("_custom_diffusion", ""): value
                for name, value in written.items() if value.numel()}  # fmt: skip
        own = load_file(tmp_path / "out/<new2>.safetensors")["<new2>"]
    else:
        contents: dict[str, Any] = torch.load(tmp_path / "out", weights_only=True)
        if to == "delta":
            read, own = contents["unet"], contents["modifier_token"]["<new2>"]
            assert own.shape == (24,)
        else:
            state = contents["state_dict"]
            read, own = {name: state.get(ldm(name)) for name in trained}, state["embed"][1]
            assert state.keys() == {*map(ldm, trained), "embed"} and contents["modifier_token"] == "<new1>+<new2>"
    assert read.keys() == trained.keys() and all(torch.equal(read[name], trained[name]) for name in trained)
    assert torch.equal(own.flatten(), OTHER)


def test_a_delta_becomes_a_compressed_one_and_a_lora_where_that_is_allowed(
    tiny_base: Path, model: Model, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = lay_out("delta", tmp_path / "x", trained, tiny_base)
    with pytest.raises(SdkitError, match="of the kind replacement, which kohya cannot hold"):
        sdkit.convert(source, "kohya", tmp_path / "lora.safetensors", base=tiny_base)
    for to, name in (("custom-diffusion-compressed", "small.bin"), ("kohya", "lora.safetensors")):
        report = sdkit.convert(source, to, tmp_path / name, base=tiny_base, allow_lossy=True)
        assert report.changes == len(trained) and report.proof.error < 1e-3
        assert {entry.rank for entry in report.approximations} == {3}
        with open_weights(tmp_path / name) as weights:
            artifact = read_adapter(weights, model)
            found = weights_on(tiny_base, artifact)
            assert words(artifact).keys() == {"<new1>", "<new2>"}
        for weight, value in trained.items():
            torch.testing.assert_close(found[weight], value, atol=1e-4, rtol=0)
    pairs = torch.load(tmp_path / "small.bin", weights_only=True)["unet"]
    assert pairs.keys() == trained.keys() and all(pair["u"].shape[1] == len(pair["v"]) for pair in pairs.values())


def test_half_a_pair_is_refused(
    tiny_base: Path, model: Model, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = lay_out("compressed", tmp_path / "x", trained, tiny_base)
    contents = torch.load(path, weights_only=True)
    del next(iter(contents["unet"].values()))["u"]
    torch.save(contents, path)
    with open_weights(path) as weights, pytest.raises(SdkitError, match="has only its v"):
        read_adapter(weights, model)
