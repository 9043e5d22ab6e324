"""Files beside the output: words, and what undoes the merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA, PLACES, run, sha256
from models import assert_merged, expected, load, ulp

import sdkit
from sdkit.core.errors import SdkitError


def test_tokens_are_saved_beside(base: Path, bundle: Path, out: Path) -> None:
    report = sdkit.merge(base, bundle, out)
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, 1.0))
    assert report.bytes == out.stat().st_size > sdkit.merge(base, bundle, out, force=True, dry_run=True).bytes
    (saved,) = map(Path, report.saved)
    assert saved == out.with_name("out.dog.safetensors")
    assert torch.equal(load(saved)["dog"], torch.ones(2, 32))
    assert report.adapters[0].tokens == ("dog",)


def test_no_token_is_left_of_a_merge_that_fails(base: Path, bundle: Path, out: Path) -> None:
    with pytest.raises(SdkitError, match="does not fit"):
        sdkit.merge(base, {bundle: 1e9}, out)
    assert sorted(out.parent.iterdir()) == [base, bundle]


@pytest.mark.parametrize("victim", ["base", "lora", "out"])
def test_the_undo_file_replaces_nothing_that_matters(base: Path, lora: Path, out: Path, victim: str) -> None:
    hashes = sha256(base), sha256(lora)
    undo = {"base": base, "lora": lora, "out": out}[victim]
    result = run(base, lora, "-o", out, "--undo", undo, "--force")
    assert result.exit_code == 1
    assert str(undo) in result.stderr
    assert (sha256(base), sha256(lora)) == hashes
    assert not out.exists()


def test_a_token_does_not_replace_an_input(base: Path, bundle: Path) -> None:
    adapter = bundle.rename(bundle.with_name("out.dog.safetensors"))
    before = sha256(adapter)
    result = run(base, adapter, "-o", adapter.with_name("out.safetensors"), "--force")
    assert result.exit_code == 1
    assert "out.dog.safetensors: is an input" in result.stderr
    assert sha256(adapter) == before


def test_undo_and_subtraction(base: Path, lora: Path, out: Path) -> None:
    undo = out.with_name("merge.undo")
    sdkit.merge(base, {lora: 0.8}, out, te_alpha=0.5, blocks="M00=0.1", undo=undo)
    restored = out.with_name("restored.safetensors")
    assert sdkit.unmerge(out, undo=undo, output=restored).exact
    assert restored.read_bytes() == base.read_bytes()
    report = sdkit.unmerge(out, [lora], out.with_name("subtracted.safetensors"))
    assert not report.exact
    merged = load(out)
    for key, tensor in load(Path(report.output)).items():
        larger = torch.maximum(BASE[key].double().abs(), merged[key].double().abs())
        error = (tensor.double() - BASE[key].double()).abs() / ulp(larger, torch.float16)
        assert float(error.max()) <= 1.02, key
