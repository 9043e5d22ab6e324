"""What a merge says, and writes into the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merge_files import BASE, metadata, run, sha256
from models import save, sd1_modules

import sdkit


def test_the_default_output_is_named_after_its_parents(monkeypatch: pytest.MonkeyPatch, base: Path, lora: Path) -> None:
    folder = base.parent / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = run(base, lora)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == ["base+lora.safetensors"]
    assert "base+lora.safetensors" in result.stdout


def test_a_dry_run_writes_nothing(base: Path, lora: Path, out: Path) -> None:
    before = sorted(base.parent.iterdir())
    result = run(base, lora, "-o", out, "--dry-run", "--undo", base.parent / "undo")
    assert result.exit_code == 0, result.stderr
    assert "nothing was written" in result.stdout
    assert sorted(base.parent.iterdir()) == before


def test_json_is_the_report(base: Path, lora: Path, out: Path) -> None:
    result = run(base, f"{lora}=0.8", "-o", out, "--json")
    report = json.loads(result.stdout)
    count = len(sd1_modules())
    assert {key: report[key] for key in ("family", "matched", "unmatched", "changed", "tensors", "overflowed")} == {
        "family": "sd1",
        "matched": count,
        "unmatched": [],
        "changed": count,
        "tensors": len(BASE),
        "overflowed": [],
    }
    assert report["output"] == str(out)
    assert report["dry_run"] is False
    assert report["seconds"] > 0
    assert report["adapters"][0]["format"] == "kohya"
    assert [(entry["name"], entry["role"]) for entry in report["parents"]] == [
        ("base.safetensors", "base"),
        ("lora.safetensors", "adapter"),
    ]
    assert result.stderr == ""


def test_factors_that_were_asked_for_are_said(base: Path, lora: Path, out: Path) -> None:
    said = run(base, lora, "-o", out, "--te-alpha", "0.5", "--blocks", "IN04=0.5", "--dry-run").stdout
    assert said.startswith("factors: text encoders × 0.5, blocks IN04=0.5\n")
    assert run(base, lora, "-o", out, "--dry-run").stdout.startswith("would merge")


def test_quiet_prints_the_path(base: Path, lora: Path, out: Path) -> None:
    result = run(base, lora, "-o", out, "-q")
    assert (result.stdout, result.stderr) == (f"{out}\n", "")


def test_the_metadata_tell_the_recipe_and_no_secret(tmp_path: Path, lora: Path, out: Path) -> None:
    stale = {"modelspec.hash_sha256": "0xabc", "sshs_model_hash": "abc", "sshs_legacy_hash": "abc"}
    said = {"format": "pt", "modelspec.title": "Mine", "modelspec.prediction_type": "v", "note": "kept"}
    base = save(BASE, tmp_path / "base.safetensors", {**said, **stale})
    sdkit.merge(base, {lora: 0.8}, out, te_alpha=0.5, blocks="IN04=0.5")
    written = metadata(out)
    assert not stale.keys() & written.keys()
    assert {key: written[key] for key in said} == said
    recipe = json.loads(written["sdkit.recipe"])
    assert recipe["verb"] == "merge"
    assert [entry["name"] for entry in recipe["parents"]] == ["base.safetensors", "lora.safetensors"]
    assert recipe["parents"][1]["strength"] == 0.8
    assert (recipe["te_alpha"], recipe["blocks"]) == (0.5, {"IN04": 0.5})
    assert "unet_alpha" not in recipe
    assert written["modelspec.merged_from"] == "base.safetensors, lora.safetensors"
    assert str(tmp_path) not in json.dumps(written)


def test_merging_again_keeps_the_lineage(tmp_path: Path, base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, {lora: 0.8}, out)
    again = tmp_path / "again.safetensors"
    sdkit.merge(out, {lora: -0.2}, again)
    recipe = json.loads(metadata(again)["sdkit.recipe"])
    assert recipe["base_recipe"] == json.loads(metadata(out)["sdkit.recipe"])


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, base: Path, lora: Path) -> None:
    hashes = set()
    for number, threads in enumerate((1, 2, 3, None)):
        path = tmp_path / f"{number}.safetensors"
        sdkit.merge(base, {lora: 0.8}, path, threads=threads)
        hashes.add(sha256(path))
    assert len(hashes) == 1


def test_the_same_stochastic_command_gives_the_same_bytes(tmp_path: Path, base: Path, lora: Path) -> None:
    hashes = set()
    for threads in (1, 3):
        path = tmp_path / f"{threads}.safetensors"
        sdkit.merge(base, {lora: 0.8}, path, threads=threads, dtype="bf16", stochastic=7)
        hashes.add(sha256(path))
    assert len(hashes) == 1
