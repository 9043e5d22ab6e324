from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.artifact import Artifact, Steering
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, write_adapter
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights


def embedding(*components: str) -> Artifact:
    tensors = {f"{name}.v": torch.arange(1.0, 6.0)[None] + len(name) for name in components}
    tensors |= {f"{name}.p": torch.ones(5, 3) * len(name) for name in components}
    held = in_memory("an embedding", tensors)
    reads = {name: Read(held, info) for name, info in held.tensors.items()}
    parts = tuple(Steering(name, reads[f"{name}.v"], reads[f"{name}.p"]) for name in components)
    return Artifact(held, "trained", kind="aesthetic", steering=parts)


def test_the_web_uis_file_is_a_bare_tensor(tmp_path: Path) -> None:
    write_adapter(embedding("text_encoder"), None, tmp_path / "x.pt", {}, format="aesthetic")
    tensor = torch.load(tmp_path / "x.pt", weights_only=True)  # what its extension does with it, but for the flag
    assert torch.equal(tensor, torch.arange(1.0, 6.0)[None] + 12)
    with open_weights(tmp_path / "x.pt") as weights:
        (part,) = read_adapter(weights).steering
    assert (part.component, part.width, part.projection) == ("text_encoder", 5, None)


def test_our_own_file_holds_the_projection_too(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_adapter(embedding("text_encoder", "text_encoder_2"), None, path, {"a": "b"}, format="aesthetic")
    tensors = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "text_encoder.aesthetic": (1, 5),
        "text_encoder.text_projection": (5, 3),
        "text_encoder_2.aesthetic": (1, 5),
        "text_encoder_2.text_projection": (5, 3),
    }
    with open_weights(path) as weights:
        first, second = read_adapter(weights).steering
    assert second.projection is not None and torch.equal(second.projection.load(), torch.full((5, 3), 14.0))
    assert (first.component, second.component) == ("text_encoder", "text_encoder_2")
    with pytest.raises(
        SdkitError, match="the web UI's file holds one vector, here is one for each of text_encoder and"
    ):
        write_adapter(embedding("text_encoder", "text_encoder_2"), None, tmp_path / "y.pt", {}, format="aesthetic")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"text_encoder.text_projection": torch.ones(5, 3)}, "has no vector beside it"),
        (
            {"a.aesthetic": torch.ones(1, 5), "a.text_projection": torch.ones(4, 3)},
            r"\[4, 3\] does not lead to a vector",
        ),
        ({"a.aesthetic": torch.ones(2, 5)}, "a.aesthetic is no vector of a CLIP"),
        ({"a.aesthetic": torch.ones(5, dtype=torch.int32)}, "a.aesthetic is no vector of a CLIP"),
        ({"a.aesthetic": torch.tensor(5.0)}, "a.aesthetic is no vector of a CLIP"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with open_weights(tmp_path / "x.safetensors") as weights, pytest.raises(SdkitError, match=message):
        read_adapter(weights)


def test_real_files_are_read_and_written_again(test_data: Path, tmp_path: Path) -> None:
    paths = sorted((test_data / "data" / "adapters" / "aesthetic-embedding").glob("*.pt"))
    assert len(paths) == 3
    for path in paths:
        theirs = torch.load(path, weights_only=True, map_location="cpu")
        report = sdkit.convert(path, "aesthetic:a1111", tmp_path / path.name)
        ours = torch.load(report.output, weights_only=True)
        assert ours.shape == (1, 768) and torch.equal(ours, theirs.reshape(1, 768))
        safe = sdkit.convert(path, "aesthetic:projected", tmp_path / f"{path.stem}.safetensors")
        assert torch.equal(load_file(safe.output)["text_encoder.aesthetic"].flatten(), theirs.flatten())


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    """A bare tensor's pickle with another callable in it is refused, not called."""
    torch.save(torch.ones(1, 768), tmp_path / "x.pt")
    changed = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(
                name, data.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9") if "data.pkl" in name else data
            )
    (tmp_path / "x.pt").write_bytes(changed.getvalue())
    with pytest.raises(SdkitError), open_weights(tmp_path / "x.pt") as weights:
        read_adapter(weights)
