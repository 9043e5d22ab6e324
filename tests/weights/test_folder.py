from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from weight_files import entry, floats, raw_file

from sdkit.core.errors import SdkitError
from sdkit.weights import open_weights
from sdkit.weights.folder import MAX_CONFIG_BYTES
from sdkit.weights.header import DamagedFileError
from sdkit.weights.reader import Container


def write_json(path: Path, fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def component(folder: Path, stem: str = "diffusion_pytorch_model", **tensors: list[float]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"_class_name": folder.name})
    return floats(folder / f"{stem}.safetensors", **tensors)


def index(folder: Path, stem: str = "model", suffix: str = "safetensors", **places: str) -> Path:
    return write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": 4}, "weight_map": places})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    write_json(
        tmp_path / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "safety_checker": [None, None],
            "../../etc": ["diffusers", "Evil"],
        },
    )
    component(tmp_path / "unet", weight=[1.0, 2.0])
    component(tmp_path / "text_encoder", "model", weight=[3.0])
    write_json(tmp_path / "scheduler" / "scheduler_config.json", {"prediction_type": "epsilon"})
    return tmp_path


def test_a_pipeline_names_its_tensors_by_component(pipeline: Path) -> None:
    with open_weights(pipeline) as weights:
        assert weights.container is Container.FOLDER
        assert list(weights.tensors) == ["text_encoder/weight", "unet/weight"]
        assert weights.prefixes == ("text_encoder/", "unet/")
        assert weights.scalar("text_encoder/weight") == 3.0
        assert weights.read(weights.tensors["unet/weight"]) == b"\0\0\x80?\0\0\0@"
        assert weights.stored_name(weights.tensors["unet/weight"]) == "weight"
        assert set(weights.configs) == {"model_index", "scheduler", "text_encoder", "unet"}
        assert weights.configs["scheduler"] == {"prediction_type": "epsilon"}
        assert weights.configs["unet"] == {"_class_name": "unet"}


def test_a_component_keeps_its_names(pipeline: Path) -> None:
    with open_weights(pipeline / "unet") as weights:
        assert list(weights.tensors) == ["weight"]
        assert weights.configs == {"config": {"_class_name": "unet"}}


def test_metadata_are_what_all_files_say_alike(tmp_path: Path) -> None:
    for name, note in (("a", "one"), ("b", "two")):
        metadata = {"format": "pt", "note": note}
        raw_file(tmp_path / f"{name}.safetensors", {"__metadata__": metadata, name: entry("U8", [1], 0, 1)}, b"\0")
    with open_weights(index(tmp_path, a="a.safetensors", b="b.safetensors")) as weights:
        assert weights.metadata == {"format": "pt"}
        assert [facts["note"] for facts in weights.file_metadata] == ["one", "two"]


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_a_folder_of_shards_is_one_model(tmp_path: Path, name: str) -> None:
    floats(tmp_path / "model-00002-of-00002.safetensors", b=[2.0])
    floats(tmp_path / "model-00001-of-00002.safetensors", a=[1.0])
    path = index(tmp_path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    path.rename(tmp_path / name)
    for opened in (tmp_path, tmp_path / name) if name.endswith(".index.json") else (tmp_path,):
        with open_weights(opened) as weights:
            assert list(weights.tensors) == ["a", "b"]
            assert (weights.scalar("a"), weights.scalar("b")) == (1.0, 2.0)
            assert [path.name for path in weights.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    floats(tmp_path / "one.safetensors", a=[1.0])
    index(tmp_path, a="one.safetensors", b="two.safetensors")
    with pytest.raises(SdkitError, match=r"two\.safetensors: this shard is missing"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "..\\a.safetensors", "./a.safetensors"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    index(tmp_path, a=name)
    with pytest.raises(DamagedFileError, match=r"lies outside the folder|is no weight file"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors.index.json", "a\x1b[31m.safetensors", "a.py"])
def test_a_shard_that_is_no_weight_file_is_refused(tmp_path: Path, name: str) -> None:
    index(tmp_path, a=name)  # its own name among them: that must not go round in circles
    with pytest.raises(DamagedFileError) as caught:
        open_weights(tmp_path)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("fields", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {}}])
def test_an_index_without_a_map_of_files_is_refused(tmp_path: Path, fields: object) -> None:
    path = write_json(tmp_path / "model.safetensors.index.json", fields)
    with pytest.raises(DamagedFileError, match="weight_map"):
        open_weights(path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    floats(tmp_path / "one.safetensors", a=[1.0])
    floats(tmp_path / "two.safetensors", a=[1.0])
    index(tmp_path, a="one.safetensors", b="two.safetensors")
    with pytest.raises(DamagedFileError, match="two shards hold the tensor 'a'"):
        open_weights(tmp_path)


def test_full_precision_is_preferred_and_half_precision_is_enough(tmp_path: Path) -> None:
    component(tmp_path, "diffusion_pytorch_model.fp16", half=[1.0])
    assert list(open_weights(tmp_path).tensors) == ["half"]
    component(tmp_path, "diffusion_pytorch_model.non_ema", other=[1.0])
    assert list(open_weights(tmp_path).tensors) == ["half"]
    component(tmp_path, full=[1.0])
    assert list(open_weights(tmp_path).tensors) == ["full"]


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    component(tmp_path, "diffusion_pytorch_model.fp16", half=[1.0])
    assert list(open_weights(tmp_path).tensors) == ["half"]


def test_pickled_shards_are_found(tmp_path: Path) -> None:
    floats(tmp_path / "pytorch_model-1.bin", a=[1.0])  # the content decides how it is read
    index(tmp_path, "pytorch_model", "bin", a="pytorch_model-1.bin")
    assert list(open_weights(tmp_path).tensors) == ["a"]


def test_a_peft_folder_keeps_its_names_and_its_configuration(tmp_path: Path) -> None:
    floats(tmp_path / "adapter_model.safetensors", **{"base_model.model.q.lora_A.weight": [1.0]})
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 8})
    with open_weights(tmp_path) as weights:
        assert list(weights.tensors) == ["base_model.model.q.lora_A.weight"]
        assert weights.configs["adapter_config"] == {"peft_type": "LORA", "lora_alpha": 8}


def test_diffusers_adapter_folders_are_read(tmp_path: Path) -> None:
    floats(tmp_path / "pytorch_lora_weights.safetensors", a=[1.0])
    assert list(open_weights(tmp_path).tensors) == ["a"]


def test_an_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(SdkitError, match="no weights in this folder") as caught:
        open_weights(tmp_path)
    for name in ("model_index.json", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors", "single file"):
        assert name in caught.value.hint


def test_a_pipeline_without_weights_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(SdkitError, match="names no component with weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
        (b'{"a":%s}' % (b"9" * 5000), "not JSON"),
        (b" " * (MAX_CONFIG_BYTES + 1), "is no configuration"),
    ],
    ids=["open", "not UTF-8", "a list", "deep", "a long number", "too large"],
)
def test_bad_json_is_refused_with_its_file(content: bytes, reason: str, pipeline: Path) -> None:
    path = pipeline / "unet" / "config.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=reason) as caught:
        open_weights(pipeline)
    assert str(path) in caught.value.message


def test_a_damaged_component_is_named(pipeline: Path) -> None:
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match="truncated") as caught:
        open_weights(pipeline)
    assert str(path) in caught.value.message
