from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event, Step
from sdkit.jobs import compare as job
from sdkit.jobs.compare import CompareReport
from sdkit.jobs.comparing import measure, process, worker
from sdkit.jobs.comparing.order import Order
from sdkit.jobs.models.files import add_models
from sdkit.jobs.stop import StopRequest
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.training.data import read_dataset
from sdkit.training.images import fit, open_picture, pixels

Carry = Callable[[Order, Callable[[Event], None], Callable[[], bool]], bool]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """What is carried out, in this process and with few pictures of few steps."""
    done: list[Order] = []

    def here(order: Order, watch: Callable[[Event], None], should_stop: StopRequest) -> bool:
        Path(order.folder).mkdir(parents=True, exist_ok=True)
        done.append(order)
        monkeypatch.setattr(worker, "tell", watch)
        if not order.method:
            worker.measure_base(order)
            return True
        return worker.measure_method(order, should_stop)

    monkeypatch.setattr(job, "carry_out", here)
    monkeypatch.setattr(job, "STEPS", 2)
    monkeypatch.setattr(measure, "PRIOR_PICTURES", 2)
    return done


def compare(base: Path | str, data: Path, out: Path, *methods: str, **more: Any) -> CompareReport:
    given = {"budget": "2", "held_out": "0.4", "lr": 1e-2, "save_dtype": "fp32", **more}
    report: CompareReport = sdkit.compare(methods or ("lora:rank=2",), base, data, out, **given)
    return report


def test_all_methods_are_measured_alike(tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]) -> None:
    out = tmp_path / "out"
    named = ("lora:rank=2", "textual-inversion:init=k", "fine-tune", "autoencoder")
    report = compare(tiny_base, pictures, out, *named, subject="ball")
    assert report.finished and [entry.label for entry in report.rows] == ["lora", "textual-inversion", "fine-tune"]
    assert "trains no denoiser" in report.left_out["autoencoder"]
    base, lora, word, _ = orders
    assert [picture.id for picture in base.held_out] == [picture.id for picture in lora.held_out]
    assert {picture.caption[:6] for picture in base.held_out} == {"a ball"}
    assert {picture.caption[:10] for picture in lora.held_out} == {"a sks ball"}
    assert {picture.caption[:5] for picture in word.held_out} == {"a sks"}
    assert lora.texts == base.prompts and report.rows[2].output_bytes > report.rows[0].output_bytes
    for entry in report.rows:
        assert entry.steps == 2 and entry.seconds > 0 and (entry.memory_mib or 0) > 0
    assert report.rows[1].drift == 0.0, "a word changes nothing that does not name it"
    assert report.rows[0].drift != 0.0
    assert not (out / "lora-rank-2" / "state").exists()
    assert len(list((out / "lora-rank-2" / "drawn").glob("*.png"))) == 2
    page = (out / "report.html").read_text()
    assert report.advice in page and page.count("<img") == 4 * 2 + 3
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs nothing else"
    figures = json.loads((out / "results.json").read_text())
    assert figures["rows"][0]["fall"] == report.rows[0].fall


def test_the_losses_are_those_of_the_file_put_live(
    tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]
) -> None:
    """The merged file, measured by the house's loss on the held-out pictures as they lie there."""
    out = tmp_path / "out"
    compare(tiny_base, pictures, out, subject="ball")
    merged = sdkit.merge(tiny_base, out / "lora-rank-2" / "lora-rank-2.safetensors", tmp_path / "merged").output
    trained = {sample.id for sample in read_dataset(out / "lora-rank-2" / "pictures").samples}
    backbone = load_backbone(merged)
    held_out = []
    for sample in read_dataset(pictures).samples:
        if sample.id not in trained:
            size = (16, 16) if sample.size == (16, 16) else (12, 20)
            seen = pixels(fit(open_picture(sample.path), size))[None]
            caption = sample.caption.replace("ball", "sks ball")
            held_out.append(HeldOut(sample.id, caption, size, backbone.encode_image(seen)))
    found = json.loads((out / "lora-rank-2" / "measured.json").read_text())["held_out"]
    expected = held_out_losses(backbone, held_out)
    torch.testing.assert_close(torch.tensor(found).sort(0)[0], expected.sort(0)[0], atol=1e-4, rtol=1e-4)


def test_what_is_finished_stays_and_a_further_method_joins(
    tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]
) -> None:
    out = tmp_path / "out"
    first = compare(tiny_base, pictures, out)
    orders.clear()
    second = compare(tiny_base, pictures, out, "lora:rank=2", "lora:rank=1")
    assert [order.label for order in orders] == ["lora:rank=1"]
    assert second.rows[0] == replace(first.rows[0], label="lora:rank=2") and len(second.rows) == 2
    with pytest.raises(SdkitError, match="was measured with other settings"):
        compare(tiny_base, pictures, out, seed=5)
    orders.clear()
    assert compare(tiny_base, pictures, out, seed=5, force=True).finished and len(orders) == 2


def test_a_comparison_that_is_stopped_goes_on(
    tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]
) -> None:
    out, stop = tmp_path / "out", StopRequest()
    watched: list[Event] = []

    def watch(event: Event) -> None:
        watched.append(event)
        if isinstance(event, Step):
            stop.ask()

    stopped = compare(tiny_base, pictures, out, "lora:rank=2", "lora:rank=1", should_stop=stop, watch=watch)
    assert not stopped.finished and not stopped.rows and (out / "lora-rank-2" / "state").exists()
    report = compare(tiny_base, pictures, out, "lora:rank=2", "lora:rank=1")
    whole = compare(tiny_base, pictures, tmp_path / "whole", "lora:rank=2", "lora:rank=1")
    assert report.finished and [entry.fall for entry in report.rows] == [entry.fall for entry in whole.rows]


def test_a_failure_leaves_the_others_alone(
    tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Carry = job.carry_out

    def failing(order: Order, watch: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
        if order.label == "fine-tune":
            raise SdkitError("no memory left")
        return here(order, watch, should_stop)

    monkeypatch.setattr(job, "carry_out", failing)
    report = compare(tiny_base, pictures, tmp_path / "out", "fine-tune", "lora:rank=2")
    assert [entry.label for entry in report.rows] == ["lora"]
    assert report.left_out == {"fine-tune": "failed: no memory left"}


def test_a_time_becomes_steps_once(tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]) -> None:
    out = tmp_path / "out"
    report = compare(tiny_base, pictures, out, budget="0.2s")
    trial, whole = orders[1:]
    assert trial.trial and not whole.trial and whole.options["steps"] == report.rows[0].steps > 0
    assert not (out / "lora-rank-2" / "trial").exists()
    orders.clear()
    assert compare(tiny_base, pictures, out, budget="0.2s").rows == report.rows and not orders


def test_a_dry_run_plans_and_writes_nothing(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    name = add_models([tiny_base]).models[0].name
    report = compare(name, pictures, tmp_path / "out", "lora:rank=2", "autoencoder", dry_run=True)
    assert report.plans.keys() == {"lora"} and report.plans["lora"].steps == 2
    assert report.left_out.keys() == {"autoencoder"} and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(
    tiny_base: Path, pictures: Path, tmp_path: Path, orders: list[Order]
) -> None:
    mine = tmp_path / "out" / "lora-rank-2" / "pictures" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    for force in (False, True):
        with pytest.raises(SdkitError, match="is not empty, and holds no comparison"):
            compare(tiny_base, pictures, tmp_path / "out", force=force)
    assert mine.exists() and not orders


@pytest.mark.parametrize("budget", ["0", "ten", "5 weeks", "-3", "0s"])
def test_a_budget_is_steps_or_a_time(budget: str, tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither steps nor a time"):
        compare(tiny_base, pictures, tmp_path / "out", budget=budget)


def test_nothing_to_compare_is_an_error(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="none of the methods can be compared.*trains no denoiser"):
        compare(tiny_base, pictures, tmp_path / "out", "autoencoder")


def test_a_tower_says_how_alike_pictures_are(tmp_path: Path) -> None:
    """A tower that sees colours and reads their names: cosines by hand."""

    class Colours:
        def images(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :, 0, 0] + 1

        def texts(self, prompts: Sequence[str]) -> torch.Tensor:
            return torch.tensor([[float(word in prompt) for word in ("red", "green", "blue")] for prompt in prompts])

    def draw(name: str, colour: str) -> Path:
        Image.new("RGB", (16, 16), colour).save(tmp_path / name)
        return tmp_path / name

    class Asked:
        texts = ("a red ball", "a green and blue ball")
        prior_folder = str(tmp_path)
        prior = ("a ball",)
        shown = tuple(
            measure.Picture(name, str(draw(name, colour)), "") for name, colour in (("r.png", "red"), ("b.png", "blue"))
        )

    for number in range(measure.PRIOR_PICTURES):
        draw(f"{number}.png", "lime")
    drawn = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    assert measure.likeness(Asked(), drawn) == {"nearest": [1, 2]}  # type: ignore[arg-type]
    found = measure.likeness(Asked(), drawn, Colours())  # type: ignore[arg-type]
    assert found["similarity"] == pytest.approx(1 / 4)  # red to red alone
    assert found["following"] == pytest.approx((1 + 0.5**0.5) / 2)


def test_what_a_process_says_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events, noise of libraries, and an error with its hint."""
    monkeypatch.setattr(process, "WORDS", [sys.executable, "-c", SPEAKER])
    order = Order("x", "lora", {}, "b", "id", "d", str(tmp_path), (), ("p",), "q", (), (), (), 2, 1.0)
    events: list[Event] = []
    with pytest.raises(SdkitError, match="no memory left") as caught:
        process.carry_out(order, events.append, lambda: False)
    assert caught.value.hint == "buy some" and [event.step for event in events] == [3]
    monkeypatch.setattr(process, "WORDS", [sys.executable, "-c", "raise ValueError('surprise')"])
    with pytest.raises(SdkitError, match="ValueError: surprise"):
        process.carry_out(order, events.append, lambda: False)


SPEAKER = """
import json, sys
assert json.loads(sys.stdin.readline())["label"] == "x"
print("a library has something to say")
print(json.dumps({"event": "step", "step": 3, "loss": 0.5, "parts": {}, "lr": 0.1, "grad_norm": 1, "seconds": 1}))
print(json.dumps({"error": "no memory left", "hint": "buy some"}))
sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "sdkit", "compare", "lora", "--base", str(tiny_base), "--data", str(pictures)]
    words += ["-o", str(out), "--held-out", "0.4", "--budget", "100", "rank=2", "lr=1e-3"]
    log = out / "lora" / "events.jsonl"
    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as running:
        while running.poll() is None and not (log.exists() and '"step": 3,' in log.read_text()):
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        running.communicate()
    assert running.returncode == 130 and (out / "lora" / "state").is_dir()
    done = subprocess.run([*words, "--json"], capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert report["finished"] and report["rows"][0]["steps"] == 100
    assert "resumed" in (out / "lora" / "events.jsonl").read_text()
