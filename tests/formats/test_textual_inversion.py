from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, recognise, write_adapter
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights

METADATA = {
    "ss_steps": "300",
    "sdkit.recipe": json.dumps({"parents": [{"role": "base", "name": "v1-5.safetensors"}]}),
    "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
}


def embedding(word: str = "<cat-toy>", dtype: torch.dtype = torch.float32, **widths: int) -> Artifact:
    """Two random rows for each text encoder."""
    torch.manual_seed(3)
    held = in_memory("test", {name: torch.randn(2, width).to(dtype) for name, width in widths.items()})
    tokens = (TokenRows(word, name, held, held.tensors[name]) for name in widths)
    return Artifact(held, "test", kind="textual-inversion", tokens=tuple(tokens))


def rows(artifact: Artifact) -> dict[str, torch.Tensor]:
    return {part.component: Read(part.weights, part.info).load() for part in artifact.tokens}


def write(artifact: Artifact, path: Path, dialect: str = "") -> Path:
    write_adapter(artifact, None, path, METADATA, format="textual-inversion", dialect=dialect)
    return path


def a1111(path: Path) -> tuple[str, torch.Tensor, int]:
    """The word, rows and step as the web UI takes them: the file's name, and the only entry of string_to_param."""
    data = torch.load(path, map_location="cpu", weights_only=True)
    assert set(data["string_to_token"]) == {"*"} and isinstance(data["string_to_token"]["*"], int)
    (vectors,) = data["string_to_param"].values()
    assert data["sd_checkpoint"] is None and data["sd_checkpoint_name"] == "v1-5" and isinstance(data["name"], str)
    return path.stem, vectors, data["step"]


def test_a1111_reads_what_we_write(tmp_path: Path) -> None:
    meant = embedding(text_encoder=24)
    path = write(meant, tmp_path / "cat-toy.pt")
    word, vectors, step = a1111(path)
    assert (word, step) == ("cat-toy", 300)
    assert torch.equal(vectors, rows(meant)["text_encoder"])
    with open_weights(path) as weights:
        again = read_adapter(weights)
    assert again.tokens[0].token == "<cat-toy>" and torch.equal(rows(again)["text_encoder"], vectors)


def test_a1111_reads_sdxl_s_two_encoders_by_their_names(tmp_path: Path) -> None:
    meant = embedding(text_encoder=768, text_encoder_2=1280)
    data = torch.load(write(meant, tmp_path / "x.pt", "a1111"), weights_only=True)
    assert torch.equal(data["clip_l"], rows(meant)["text_encoder"])
    assert torch.equal(data["clip_g"], rows(meant)["text_encoder_2"])
    assert data["name"] == "<cat-toy>" and "string_to_param" not in data


@pytest.mark.parametrize(
    ("dialect", "widths", "names"),
    [
        ("", {"text_encoder": 24}, ["<cat-toy>"]),
        ("diffusers", {"text_encoder": 768}, ["<cat-toy>"]),
        ("kohya", {"text_encoder": 24}, ["emb_params"]),
        ("kohya", {"text_encoder": 768, "text_encoder_2": 1280}, ["clip_g", "clip_l"]),
        ("diffusers", {"text_encoder": 768, "text_encoder_2": 1280}, ["clip_g", "clip_l"]),
    ],
)
def test_safetensors_by_dialect(tmp_path: Path, dialect: str, widths: dict[str, int], names: list[str]) -> None:
    meant = embedding(dtype=torch.float16, **widths)
    path = write(meant, tmp_path / "x.safetensors", dialect)
    assert sorted(load_file(path)) == names
    with open_weights(path) as weights:
        assert recognise(weights)[0] == "textual-inversion"
        again = read_adapter(weights)
        assert weights.metadata["ss_steps"] == "300"
    assert {part.token for part in again.tokens} == {"<cat-toy>" if names == ["<cat-toy>"] else "x"}
    found = rows(again)
    assert found.keys() == widths.keys()
    assert all(torch.equal(found[component], value) for component, value in rows(meant).items())


def test_the_same_embedding_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in ("pt", "safetensors"):
        one = write(embedding(text_encoder=24), tmp_path / f"one.{suffix}")
        two = write(embedding(text_encoder=24), tmp_path / f"two.{suffix}")
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["emb_params", "emp_params", "*", "<any>"])
def test_every_name_that_says_embedding_may_have_any_width(save: Callable[..., Any], name: str) -> None:
    weights = save({name: torch.ones(2, 24)})
    assert recognise(weights)[0] == "textual-inversion"
    (part,) = read_adapter(weights).tokens
    assert (part.token, part.component) == ("<any>" if name == "<any>" else "a", "text_encoder")


def test_a_plain_word_of_strange_width_needs_metadata(save: Callable[..., Any]) -> None:
    assert recognise(save({"cat": torch.ones(2, 24)}))[0] is None
    assert recognise(save({"cat": torch.ones(2, 24)}, METADATA, name="b"))[0] == "textual-inversion"


def test_one_trainer_s_output_embeddings_are_no_rows(save: Callable[..., Any]) -> None:
    artifact = read_adapter(save({"clip_l": torch.ones(2, 768), "clip_l_out": torch.ones(2, 768)}))
    assert [part.info.name for part in artifact.tokens] == ["clip_l"]
    assert artifact.unmatched == ("clip_l_out",) and "behind the text encoder" in artifact.notes[0]


@pytest.mark.parametrize("vectors", [torch.ones(2, 3, 4), torch.ones(2, 24, dtype=torch.long), torch.ones(())])
def test_a_broken_file_of_a1111_is_named(tmp_path: Path, vectors: torch.Tensor) -> None:
    torch.save({"string_to_param": {"*": vectors}, "name": "x"}, tmp_path / "x.pt")
    with open_weights(tmp_path / "x.pt") as weights, pytest.raises(SdkitError, match="no row of tokens"):
        read_adapter(weights)


def test_two_embeddings_of_one_name_are_refused(save: Callable[..., Any]) -> None:
    with pytest.raises(SdkitError, match="holds a 2 times for the text_encoder"):
        read_adapter(save({"emb_params": torch.ones(1, 24), "emp_params": torch.ones(2, 24)}))


def test_what_no_reader_could_read_is_not_written(tmp_path: Path) -> None:
    two, other = embedding(text_encoder=24), embedding("<other>", text_encoder=24)
    both = Artifact(two.source, "test", kind="textual-inversion", tokens=two.tokens + other.tokens)
    with pytest.raises(SdkitError, match="holds one word, here are <cat-toy>, <other>"):
        write(both, tmp_path / "x.safetensors")
    with pytest.raises(SdkitError, match="is no embedding"):
        write(Artifact(two.source, "test"), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_reads_back_differently_is_an_error(tmp_path: Path) -> None:
    meant = embedding(text_encoder=24)
    held = in_memory("nan", {"text_encoder": torch.full((1, 24), float("nan"))})
    broken = Artifact(
        held, "t", kind=meant.kind, tokens=(TokenRows("<w>", "text_encoder", held, held.tensors["text_encoder"]),)
    )
    with pytest.raises(SdkitError, match="<w> does not read back"):
        write(broken, tmp_path / "x.safetensors")
