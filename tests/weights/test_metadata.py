from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkit
from sdkit.weights.header import DamagedFileError, read_header
from sdkit.weights.metadata import merged_metadata, parent, read_recipe, source_files

RECIPE = {
    "verb": "merge",
    "parents": [
        parent("/models/base.safetensors", "quick1-1-a"),
        parent("lora.safetensors", "quick1-2-b", strength=0.8),
    ],
}


def test_merged_metadata_keep_the_base_and_drop_stale_hashes() -> None:
    base = {
        "modelspec.title": "Base",
        "modelspec.hash_sha256": "0x1",
        "sshs_model_hash": "2",
        "sshs_legacy_hash": "3",
        "ss_base_model_version": "sd_v1",
        "format": "pt",
    }
    metadata = merged_metadata(base, RECIPE)
    assert metadata == {
        "modelspec.title": "Base",
        "modelspec.merged_from": "base.safetensors, lora.safetensors",
        "ss_base_model_version": "sd_v1",
        "format": "pt",
        "sdkit.version": sdkit.__version__,
        "sdkit.recipe": '{"parents":[{"id":"quick1-1-a","name":"base.safetensors"},'
        '{"id":"quick1-2-b","name":"lora.safetensors","strength":0.8}],"verb":"merge"}',
    }
    assert "/models" not in json.dumps(metadata)


STEPS = {
    "verb": "merge",
    "parents": [{"name": "mix", "step": "mix"}, parent("lora.safetensors", "quick1-2-b")],
    "steps": {
        "mix": {"verb": "blend", "parents": [parent("a.safetensors", "quick1-1-a", sha256="12" * 32), {"step": "mix"}]}
    },
}


def test_the_files_of_a_recipe_are_those_of_all_its_steps() -> None:
    assert [entry["name"] for entry in source_files(STEPS)] == ["a.safetensors", "lora.safetensors"]
    metadata = merged_metadata({"modelspec.title": "A"}, STEPS)
    assert metadata["modelspec.merged_from"] == "a.safetensors, lora.safetensors"


def test_web_uis_find_the_recipe_of_a_checkpoint_under_their_own_keys() -> None:
    theirs = {"sd_merge_recipe": '{"type":"webui"}', "sd_merge_models": '{"ab":{"name":"old"}}'}
    metadata = merged_metadata(theirs, STEPS, checkpoint=True)
    recipe, models = (json.loads(metadata[key]) for key in ("sd_merge_recipe", "sd_merge_models"))
    assert recipe == {"type": "sdkit", **STEPS, "earlier_recipe": {"type": "webui"}}
    assert models["ab"] == {"name": "old"} and models["12" * 32]["name"] == "a.safetensors"
    again = merged_metadata(metadata, STEPS, checkpoint=True)
    assert again["sd_merge_recipe"] == metadata["sd_merge_recipe"]  # it does not grow


def test_without_modelspec_nothing_claims_to_follow_it() -> None:
    assert not any(key.startswith("modelspec.") for key in merged_metadata({"format": "pt"}, RECIPE))


def test_a_merge_of_a_merge_keeps_the_earlier_recipe() -> None:
    once = merged_metadata({}, RECIPE)
    twice = merged_metadata(once, {"verb": "merge", "parents": []})
    assert read_recipe(twice) == {"verb": "merge", "parents": [], "base_recipe": RECIPE}


@given(st.text() | st.sampled_from(["[1]", "null", '{"a":' * 5000, "[" * 100_000]))
def test_any_text_in_place_of_a_recipe_is_survived(text: str) -> None:
    metadata = merged_metadata({"sdkit.recipe": text}, RECIPE)
    assert json.loads(metadata["sdkit.recipe"])["verb"] == "merge"


def test_a_name_that_is_not_unicode_is_still_a_name() -> None:
    name = parent("bad\udcff.safetensors", "quick1-1-a")["name"]
    assert name == "bad?.safetensors"


def test_half_characters_in_metadata_are_refused(tmp_path: Path) -> None:
    text = b'{"__metadata__":{"ss_comment":"\\ud800"}}'
    path = tmp_path / "half.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(DamagedFileError, match="not Unicode"):
        read_header(path)
