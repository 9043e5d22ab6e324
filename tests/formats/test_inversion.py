from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import sdkit
from sdkit.adapters.artifact import Artifact
from sdkit.adapters.trajectory import About, Trajectory
from sdkit.core.errors import SdkitError
from sdkit.formats import format_for, read_adapter, recognise, write_adapter
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.weights import Weights, open_weights

ABOUT = About("quick1-5-ab", "sd15", "an owl", "0123", 3, 7.5, "epsilon", "null-text", 25.0, 26.5)
TENSORS = {"latents": torch.ones(1, 4, 8, 8), "uncond": torch.arange(3 * 77 * 96.0).reshape(3, 1, 77, 96)}


def inversion(**more: torch.Tensor) -> Artifact:
    held = in_memory("memory", {**TENSORS, **more})
    reads: dict[str, Any] = {name: Read(held, info) for name, info in held.tensors.items()}
    return Artifact(held, "trained", kind="inversion", trajectory=Trajectory(**reads, about=ABOUT))


def test_what_is_written_is_read_back_and_by_the_library_too(tmp_path: Path) -> None:
    path = tmp_path / "owl.safetensors"
    write_adapter(inversion(pooled=torch.zeros(3, 1, 20)), None, path, {"a": "b"}, format="inversion")
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["latents", "pooled", "uncond"]
        assert torch.equal(file.get_tensor("uncond"), TENSORS["uncond"])
        assert json.loads(file.metadata()["sdkit.inversion"])["prompt"] == "an owl"
        assert file.metadata()["a"] == "b"
    with open_weights(path) as weights:
        found = read_adapter(weights)
        assert (found.kind, found.format) == ("inversion", "inversion") and not found.unmatched
        assert found.trajectory is not None and found.trajectory.about == ABOUT
    assert "way out of noise" in (found.not_bakeable or "")
    assert format_for("inversion", "inversion")[0].name == "inversion"
    seen = sdkit.inspect(path)
    assert seen.kind == "inversion"


def test_the_communitys_tensor_is_recognised_and_said_to_be_half_of_it(tmp_path: Path) -> None:
    torch.save(torch.randn(50, 1, 77, 768), tmp_path / "owl.png.pt")
    with open_weights(tmp_path / "owl.png.pt") as weights:
        artifact = read_adapter(weights)
    assert artifact.kind == "inversion" and artifact.trajectory is not None
    assert artifact.trajectory.uncond.shape == (50, 1, 77, 768)
    assert artifact.trajectory.latents is None and artifact.trajectory.about is None
    assert "does not say which base" in artifact.notes[0]
    assert sdkit.inspect(tmp_path / "owl.png.pt").kind == "inversion"


@pytest.mark.parametrize("shape", [(1, 768), (4, 2, 77, 768), (320, 1, 3, 3), (1, 4, 64, 64), (77, 768)])
def test_other_bare_tensors_are_none(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(torch.zeros(shape), tmp_path / "a.pt")
    with open_weights(tmp_path / "a.pt") as weights:
        assert recognise(weights)[0] != "inversion"


def meta(**changes: Any) -> dict[str, str]:
    fields = {name: getattr(ABOUT, name) for name in ABOUT.__slots__}
    return {"sdkit.inversion": json.dumps({**fields, **changes})}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"latents": torch.zeros(2, 4, 8, 8)}, meta(), r"latents is F32 \[2, 4, 8, 8\]"),
        ({"uncond": torch.zeros(3, 77, 96)}, meta(), r"uncond is F32 \[3, 77, 96\]"),
        ({"uncond": torch.zeros(3, 1, 77, 96, dtype=torch.int32)}, meta(), "uncond is I32"),
        ({"pooled": torch.zeros(3, 20)}, meta(), "pooled is F32"),
        ({}, meta(steps=4), "it has 3 rows for 4 steps"),
        ({}, {"sdkit.inversion": "[]"}, "cannot be read"),
        ({}, {"sdkit.inversion": "{}"}, "cannot be read"),
        ({}, meta(steps="x"), "cannot be read"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(
    save: Callable[..., Weights], tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    with save({**TENSORS, **tensors}, metadata) as weights, pytest.raises(SdkitError, match=message):
        read_adapter(weights)


def test_another_kind_is_not_written_as_one(tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="a lora is no inversion"):
        write_adapter(replace(inversion(), kind="lora", trajectory=None), None, tmp_path / "x", {}, format="inversion")
    assert not (tmp_path / "x").exists()
