from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.core.events import Sampled, Step, Validation
from sdkit.report.tensorboard import tensorboard

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def read(folder: Path) -> Any:
    """The folder as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


@needs_tensorboard
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.png")
    with tensorboard(tmp_path / "board", tmp_path, 0) as board:
        board(Step(1, 0.5, {"prior": 0.25}, 1e-4, 2.0, 0.1))
        board(Step(2, math.nan, {}, 1e-4, math.inf, 0.1, skipped=True))
        board(Validation(2, 0.75, 1.0, 8))
        board(Sampled(2, ("a dog",), ("a.png",), (0,)))
    found = read(tmp_path / "board")
    scalars = {name: [(entry.step, entry.value) for entry in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert scalars["loss/train"] == [(1, 0.5)] and scalars["loss/prior"] == [(1, 0.25)]
    assert scalars["loss/held-out"] == [(2, 0.75)] and scalars["train/grad_norm"] == [(1, 2.0)]
    (picture,) = found.Images("samples/1 a dog")
    assert (picture.step, picture.width, picture.height) == (2, 8, 4)


@needs_tensorboard
def test_a_resumed_run_is_one_curve(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    from sdkit.training.trainer import Trainer

    options = {"rank": 2, "steps": 5, "save_every": 2, "tensorboard": True}
    out, made = tmp_path / "x", Trainer._one_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):

        def dies(self: Trainer) -> None:
            if self.step == 3:
                raise RuntimeError("killed")
            made(self)

        patch.setattr(Trainer, "_one_step", dies)
        sdkit.train("lora", tiny_base, pictures, out, **options)
    sdkit.train("lora", tiny_base, pictures, out, resume=True)
    found = read(out / "tensorboard")
    assert [entry.step for entry in found.Scalars("loss/train")] == [1, 2, 3, 4, 5]


def test_a_missing_package_is_named_before_anything_is_done(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else there(name))
    with pytest.raises(SdkitError, match="needs the package tensorboard") as error:
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", tensorboard=True)
    assert error.value.hint == "pip install tensorboard" and not (tmp_path / "x").exists()
