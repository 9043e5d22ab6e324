from __future__ import annotations

import hashlib
import io
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from example_model import Sizes, make_checkpoint, make_lora
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.cli.progress import LineProgress
from sdkit.core.errors import SdkitError, UsageError


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    made = SimpleNamespace(base=folder / "base.safetensors", lora=folder / "lora.safetensors")
    save_file(make_checkpoint(Sizes()), made.base)
    save_file(make_lora(Sizes()), made.lora)
    made.merged = folder / "merged.safetensors"
    sdkit.merge(made.base, {made.lora: 0.8}, made.merged)
    return made


def test_an_undo_file_restores_every_bit(example, tmp_path) -> None:
    merged, undo, restored = tmp_path / "m.safetensors", tmp_path / "m.undo", tmp_path / "r.safetensors"
    sdkit.merge(example.base, {example.lora: 0.8}, merged, undo=undo)
    report = sdkit.unmerge(merged, output=restored, undo=undo)
    assert report.exact and report.changed == 204
    assert sha256(restored) == sha256(example.base) != sha256(merged)


def test_undo_works_for_a_pickled_base(example, tmp_path) -> None:
    tensors = load_file(example.base)
    torch.save({"state_dict": tensors}, tmp_path / "base.ckpt")
    sdkit.merge(tmp_path / "base.ckpt", {example.lora: 1.0}, tmp_path / "m.safetensors", undo=tmp_path / "undo")
    sdkit.unmerge(tmp_path / "m.safetensors", output=tmp_path / "r.safetensors", undo=tmp_path / "undo")
    restored = load_file(tmp_path / "r.safetensors")
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())


def test_a_failing_undo_file_leaves_no_merge_without_its_undo(example, tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(SdkitError, match="is a folder"):
        sdkit.merge(example.base, {example.lora: 1.0}, tmp_path / "m.safetensors", undo=tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_subtraction_takes_strengths_and_factors_from_the_metadata(example, tmp_path) -> None:
    """In float32 nothing is lost, so the base comes back nearly exactly only if every factor is the merge's."""
    base = tmp_path / "base.safetensors"
    save_file({k: t.float() if t.is_floating_point() else t for k, t in load_file(example.base).items()}, base)
    merged, back = tmp_path / "m.safetensors", tmp_path / "b.safetensors"
    sdkit.merge(base, {example.lora: 0.7}, merged, unet_alpha=0.5, te_alpha=2.0, blocks="OUT*=0.25,BASE=1.5")
    report = sdkit.unmerge(merged, [example.lora], back)
    assert not report.exact and "one unit in the last place" in report.exactness
    before, after = load_file(base), load_file(back)
    assert all(torch.allclose(after[name], tensor, rtol=1e-6, atol=1e-8) for name, tensor in before.items())


def test_its_progress_bears_its_own_name(example, tmp_path) -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, itertools.count(0, 60).__next__)  # a minute between any two pieces
    sdkit.unmerge(example.merged, [example.lora], tmp_path / "b.safetensors", progress=progress)
    lines = stream.getvalue().splitlines()
    assert lines and all(line.startswith("unmerging: ") for line in lines)


def test_a_given_strength_overrides_the_metadata(example, tmp_path) -> None:
    sdkit.merge(example.base, {example.lora: 0.7}, tmp_path / "m.safetensors")
    report = sdkit.unmerge(tmp_path / "m.safetensors", [(example.lora, 0.2)], tmp_path / "b.safetensors")
    assert report.subtraction.adapters[0].strength == -0.2


def test_what_cannot_be_known_is_asked_for(example, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"needs the adapters \(lora.safetensors\)"):
        sdkit.unmerge(example.merged, output=tmp_path / "b.safetensors")
    with pytest.raises(SdkitError, match="does not say with which strength"):
        sdkit.unmerge(example.base, [example.lora], tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="needs no adapters"):
        sdkit.unmerge(example.merged, [example.lora], undo=tmp_path / "undo")
    assert not list(tmp_path.iterdir())


def test_the_report_is_json(example, tmp_path) -> None:
    sdkit.merge(example.base, {example.lora: 0.8}, tmp_path / "m.safetensors", undo=tmp_path / "undo")
    report = sdkit.unmerge(tmp_path / "m.safetensors", output=tmp_path / "r.safetensors", undo=tmp_path / "undo")
    assert json.loads(json.dumps(report.as_dict()))["exact"] is True


def test_tokens_are_not_saved_again_when_their_adapter_is_taken_out(example, tmp_path) -> None:
    lora = load_file(example.lora)
    save_file({**lora, "bundle_emb.sks.string_to_param.*": torch.ones(2, 64)}, tmp_path / "bundle.safetensors")
    sdkit.merge(example.base, {tmp_path / "bundle.safetensors": 0.5}, tmp_path / "m.safetensors")
    assert (tmp_path / "m.sks.safetensors").exists()
    sdkit.unmerge(tmp_path / "m.safetensors", [tmp_path / "bundle.safetensors"], tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").exists() and not (tmp_path / "b.sks.safetensors").exists()
