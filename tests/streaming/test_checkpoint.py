from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdkit.core.errors import SdkitError
from sdkit.streaming import Map, Output, Read
from sdkit.streaming.checkpoint import check_output, checkpoint_stream, is_folder
from sdkit.weights import Weights, open_weights


def write_json(path: Path, fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def shards(folder: Path, stem: str, files: Mapping[str, Mapping[str, torch.Tensor]], **extra: Any) -> None:
    """Save each file, and the index that names them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        save_file(dict(tensors), folder / file, {"format": "pt", "shard": file})
    places = {name: file for file, tensors in files.items() for name in tensors}
    suffix = "bin" if next(iter(files)).endswith(".bin") else "safetensors"
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": 1, **extra}, "weight_map": places})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A diffusers folder with a single-file UNet, a sharded text encoder and side files."""
    root = tmp_path / "base"
    components = {"unet": ["diffusers", "UNet"], "text_encoder": ["transformers", "CLIP"]}
    write_json(root / "model_index.json", {"_class_name": "P", **components, "tokenizer": ["transformers", "T"]})
    write_json(root / "unet" / "config.json", {"sample_size": 8})
    save_file({"w": torch.ones(4, 4)}, root / "unet" / "diffusion_pytorch_model.safetensors", {"note": "unet"})
    parts = {
        "model-00001-of-00002.safetensors": {"a": torch.full((2, 2), 2.0)},
        "model-00002-of-00002.safetensors": {"b": torch.full((3,), 3.0), "ids": torch.arange(4)},
    }
    shards(root / "text_encoder", "model", parts, author="somebody")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "merges.txt").write_text("a b\n")
    (root / "README.md").write_text("# A model\n")
    (root / "LICENSE").write_text("free\n")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref\n")
    (root / "preview.png").write_bytes(b"png")
    return root


def doubled(base: Weights) -> list[Output]:
    """Everything twice as large, except integers."""
    return [
        Output(name, info.dtype, Map(lambda v: v * 2, (Read(base, info),)) if info.dtype.is_float else Read(base, info))
        for name, info in base.tensors.items()
    ]


def run(source: Path, target: Path, metadata: Mapping[str, str] | None = None, **options: Any) -> None:
    with open_weights(source) as base:
        check_output(base, target, overwrite=bool(options.get("overwrite")))
        with checkpoint_stream(base, doubled(base), target, metadata or {}, **options) as stream:
            stream.run()


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_folder_becomes_a_folder_with_all_that_belongs_to_it(pipeline: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(pipeline, target, {"sdkit.recipe": "{}"})
    assert tree(target) == [
        "LICENSE",
        "README.md",
        "model_index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert (target / "model_index.json").read_bytes() == (pipeline / "model_index.json").read_bytes()
    assert torch.equal(load_file(target / "unet" / "diffusion_pytorch_model.safetensors")["w"], torch.full((4, 4), 2.0))
    second = load_file(target / "text_encoder" / "model-00002-of-00002.safetensors")
    assert torch.equal(second["b"], torch.full((3,), 6.0))
    assert torch.equal(second["ids"], torch.arange(4))
    with open_weights(target) as result, open_weights(pipeline) as base:
        assert list(result.tensors) == list(base.tensors)


def test_each_file_keeps_its_metadata_and_says_format(pipeline: Path, tmp_path: Path) -> None:
    run(pipeline, tmp_path / "out", {"sdkit.recipe": "{}"})
    with safe_open(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "unet", "sdkit.recipe": "{}"}
    shard = "model-00002-of-00002.safetensors"
    with safe_open(tmp_path / "out" / "text_encoder" / shard, "pt") as file:
        assert file.metadata() == {"format": "pt", "shard": shard, "sdkit.recipe": "{}"}


def test_the_shard_index_has_the_new_size(pipeline: Path, tmp_path: Path) -> None:
    run(pipeline, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "text_encoder" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"author": "somebody", "total_size": 16 + 12 + 32}
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "ids": "model-00002-of-00002.safetensors",
    }


def test_a_shard_index_stands_for_its_folder(pipeline: Path, tmp_path: Path) -> None:
    run(pipeline / "text_encoder" / "model.safetensors.index.json", tmp_path / "out")
    assert tree(tmp_path / "out") == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_the_index_of_a_variant_that_is_not_written_stays_behind(pipeline: Path, tmp_path: Path) -> None:
    shards(pipeline / "unet", "diffusion_pytorch_model.fp16", {"half-1.safetensors": {"w": torch.ones(4, 4).half()}})
    (pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors.index.json").rename(
        pipeline / "unet" / "other.safetensors.index.json"
    )
    write_json(pipeline / "unet" / "strange.index.json", {"weight_map": 7})
    run(pipeline, tmp_path / "out")
    assert [name for name in tree(tmp_path / "out") if name.startswith("unet/")] == [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_pickled_names_become_the_names_transformers_looks_for(pipeline: Path, tmp_path: Path) -> None:
    shutil.rmtree(pipeline / "text_encoder")
    parts = {"pytorch_model-1.bin": {"a": torch.ones(2)}, "pytorch_model-2.bin": {"b": torch.ones(2)}}
    shards(pipeline / "text_encoder", "pytorch_model", parts)
    unet = pipeline / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    run(pipeline, tmp_path / "out")
    assert [name for name in tree(tmp_path / "out") if "encoder" in name or "unet" in name] == [
        "text_encoder/model-1.safetensors",
        "text_encoder/model-2.safetensors",
        "text_encoder/model.safetensors.index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    with open_weights(tmp_path / "out") as result:
        assert list(result.tensors) == ["text_encoder/a", "text_encoder/b", "unet/w"]


def test_an_error_leaves_nothing_and_keeps_the_old_folder(pipeline: Path, tmp_path: Path) -> None:
    run(pipeline, tmp_path / "out")
    before = tree(tmp_path)
    with open_weights(pipeline) as base, pytest.raises(SdkitError, match="half way"):
        with checkpoint_stream(base, doubled(base), tmp_path / "out", {}, overwrite=True) as stream:
            stream.run()
            raise SdkitError("half way")
    assert tree(tmp_path) == before
    with pytest.raises(SdkitError, match="already exists"):
        run(pipeline, tmp_path / "out")


def test_a_folder_can_be_replaced(pipeline: Path, tmp_path: Path) -> None:
    run(pipeline, tmp_path / "out")
    (pipeline / "LICENSE").unlink()
    run(pipeline, tmp_path / "out", overwrite=True)
    assert "LICENSE" not in tree(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


def test_the_input_is_never_replaced(pipeline: Path) -> None:
    for target in (pipeline, pipeline / "unet" / ".."):
        with pytest.raises(SdkitError, match=r"is the input itself|no name of its own"):
            run(pipeline, target, overwrite=True)
    write_json(pipeline.parent / "config.json", {})
    with pytest.raises(SdkitError, match="is the input itself, or holds it"):
        run(pipeline, pipeline.parent, overwrite=True)


def test_a_file_becomes_a_file(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4)}, tmp_path / "in.safetensors")
    run(tmp_path / "in.safetensors", tmp_path / "out.safetensors", {"a": "b"})
    with open_weights(tmp_path / "out.safetensors") as result:
        assert not is_folder(result)
        assert result.metadata == {"a": "b"}
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], torch.full((4,), 2.0))
    with pytest.raises(SdkitError, match="already exists"):
        run(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(SdkitError, match="is a folder"):
        run(tmp_path / "in.safetensors", tmp_path, overwrite=True)


def test_the_same_work_gives_the_same_folder(pipeline: Path, tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("two", 3)):
        run(pipeline, tmp_path / name, {"z": "1", "a": "2"}, threads=threads)
    contents = [
        [(path, (tmp_path / name / path).read_bytes()) for path in tree(tmp_path / name)] for name in ("one", "two")
    ]
    assert contents[0] == contents[1]
