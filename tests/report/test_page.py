from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdkit.core.errors import SdkitError
from sdkit.jobs.report import report
from sdkit.report.log import read_log
from sdkit.report.page import render

PLAN = {
    "method": "lora",
    "base": "sd15.safetensors",
    "family": "sd1",
    "output": "dog.safetensors",
    "pictures": 5,
    "caption_sources": {".txt files": 5},
    "examples": {"0.png": "<script>alert(1)</script> & a dog"},
    "buckets": {"512x512": 5},
    "parameters": 1_234_567,
    "modules": 192,
    "steps": 40,
    "epochs": 8.0,
    "batch": 1,
}
BEGUN = {
    "event": "begun",
    "step": 0,
    "plan": PLAN,
    "options": {"rank": 4, "flip": True, "te_lr": None, "caption": "a dog's life"},
    "changed": {"rank": 4, "caption": "a dog's life"},
    "data": "photos",
    "device": "cpu, float32",
    "versions": {"sdkit": "1"},
}


def step(number: int, **fields: Any) -> dict[str, Any]:
    loss = {"event": "step", "step": number, "loss": 1 / number, "parts": {}, "lr": 1e-4, "grad_norm": 0.1}
    return {**loss, "seconds": 0.5, "skipped": False, **fields}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


ENDED = {"event": "ended", "step": 40, "seconds": 25, "memory_mib": 500, "device_memory_mib": None}


def finished(**more: Any) -> list[dict[str, Any]]:
    validation = {"event": "validation", "base": 0.5, "pairs": 8}
    return [
        BEGUN,
        {**validation, "step": 0, "loss": 0.5, "fall": None},
        *(step(number) for number in range(1, 41)),
        {**validation, "step": 40, "loss": 0.25, "fall": [0.125, 0.375]},
        {"event": "finished", "step": 40},
        {**ENDED, "output_bytes": 3_000_000, **more},
    ]


class Reader(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", finished())
    page = Reader(render(read_log(folder)))
    assert page.addresses == [] and "script" not in page.tags and "link" not in page.tags
    assert "url(" not in render(read_log(folder)) and "@import" not in render(read_log(folder))
    assert "<script>alert(1)</script> & a dog" in page.words  # as words, not as a tag


def test_the_page_says_what_happened(tmp_path: Path) -> None:
    page = Reader(render(read_log(write(tmp_path / "run", finished()))))
    assert "finished, 40 steps" in page.words
    assert "fell by 0.2500 from 0.5000 (95 %: 0.1250 to 0.3750, 8 fixed pairs)" in page.words
    assert {"0.2500", "25 s", "1,234,567", "3.0 MB", "524.3 MB", "2.00 steps a second"} <= set(page.words)
    command = "sdkit train lora --base sd15.safetensors --data photos rank=4 'caption=a dog'\"'\"'s life'"
    assert command in page.words
    assert page.tags.count("svg") >= 4


def test_a_run_that_stopped_says_so(tmp_path: Path) -> None:
    begun = [BEGUN, step(1), step(2)]
    assert "2 of 40 steps; running, or stopped without a word" in Reader(render(read_log(write(tmp_path, begun)))).words
    stopped = [*begun, {"event": "interrupted", "step": 2, "path": "x"}, {**ENDED, "step": 2, "output_bytes": None}]
    assert "interrupted after 2 of 40 steps" in Reader(render(read_log(write(tmp_path, stopped)))).words
    killed = [BEGUN, step(1), {**BEGUN, "step": 1}, step(2), *stopped[-1:]]
    assert "26 s" in Reader(render(read_log(write(tmp_path, killed)))).words  # the killed one's step counts
    resumed = [*stopped, {**BEGUN, "step": 2}, *(step(number) for number in range(3, 41)), *finished()[-2:]]
    words = Reader(render(read_log(write(tmp_path, resumed)))).words
    assert "finished, 40 steps" in words and "once" in words and "50 s" in words  # both processes


def test_steps_made_again_after_a_roll_back_count_once(tmp_path: Path) -> None:
    back = {"event": "rolledback", "step": 3, "to_step": 1, "lr_scale": 0.5}
    nothing = step(2, loss=None, grad_norm=None, skipped=True)
    records = [BEGUN, step(1), nothing, step(3, loss=None, skipped=True), back, step(2, loss=7.0), step(3, loss=8.0)]
    log = read_log(write(tmp_path, records))
    assert [record["loss"] for record in log.steps] == [1.0, 7.0, 8.0]
    assert "step 3: no finite gradients; back to step 1, lr × 0.5" in Reader(render(log)).words


def test_samples_are_in_the_page_and_nothing_from_outside_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (600, 300), "red").save(folder / "samples" / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "secret.png")
    sampled = {"event": "sampled", "seeds": [0, 1], "prompts": ["a dog", "a cat"]}
    records = finished() + [
        {**sampled, "step": 0, "files": ["a.png", "../../secret.png"]},
        {**sampled, "step": 40, "files": ["gone.png"]},
    ]
    page = Reader(render(read_log(write(folder, records))))
    (address,) = page.addresses
    picture = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))
    assert picture.size == (256, 128)
    assert {"a dog", "a cat", "base", "step 40"} <= set(page.words)


def test_many_samples_are_thinned_with_both_ends(tmp_path: Path) -> None:
    sampled = {"event": "sampled", "seeds": [0], "prompts": ["a dog"], "files": []}
    records = finished() + [{**sampled, "step": number} for number in range(0, 1001, 10)]
    words = Reader(render(read_log(write(tmp_path, records)))).words
    heads = [word for word in words if word == "base" or word.startswith("step ") and ":" not in word]
    assert len(heads) == 8 and heads[0] == "base" and heads[-1] == "step 1,000"


def test_parts_of_the_loss_have_lines_of_their_own(tmp_path: Path) -> None:
    records = [BEGUN, *(step(number, parts={"instance": 1.0, "prior": 2.0}) for number in range(1, 9))]
    words = Reader(render(read_log(write(tmp_path, records)))).words
    assert {"instance", "prior"} <= set(words)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match=r"holds no events.jsonl"):
        report(tmp_path)
    write(tmp_path, [step(1)])
    with pytest.raises(SdkitError, match="does not say what the run is"):
        report(tmp_path)
    write(tmp_path, [{**BEGUN, "plan": 3}])
    with pytest.raises(SdkitError, match="not as a run writes it"):
        report(tmp_path)
    write(tmp_path, finished())
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "st')  # a killed process
    made = report(tmp_path / "dog.safetensors")  # beside its log
    assert made.output == str(tmp_path / "report.html") and made.step == 40
    assert (tmp_path / "report.html").stat().st_size == made.bytes
