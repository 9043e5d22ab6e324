from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.generation import pictures as drawing
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.jobs.samples import sample_prompts
from sdkit.jobs.stop import StopRequest
from sdkit.report.sheet import CELL, GAP, HEAD, LABEL, contact_sheet
from sdkit.runtime.load import load_backbone

RUN = {"rank": 2, "steps": 4, "batch": 2, "lr": 0.05, "save_every": 2, "save_dtype": "fp32", "text_encoder": True}
SAMPLES = {"sample": "a ball| a cat ", "sample_every": 2, "sample_steps": 2, "sample_cfg": 3, "sample_seed": 7}


def events(out: Path, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == name]


def difference(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema())


def test_samples_change_nothing_and_show_the_base_and_the_result(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    plain = sdkit.train("lora", tiny_base, pictures, tmp_path / "1" / "x", **RUN)
    out = tmp_path / "2" / "x"
    report = sdkit.train("lora", tiny_base, pictures, out, **RUN, **SAMPLES)
    assert Path(plain.output).read_bytes() == Path(report.output).read_bytes()
    names = [f"step-{step:08d}-{number}.png" for step in (0, 2, 4) for number in (1, 2)]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["sheet.png", *names]
    sampled = events(out, "sampled")
    assert [record["step"] for record in sampled] == [0, 2, 4]
    assert (sampled[0]["prompts"], sampled[0]["seeds"]) == (["a ball", "a cat"], [7, 8])
    requests = [Request(prompt, seed=seed, steps=2, cfg=3) for prompt, seed in (("a ball", 7), ("a cat", 8))]
    sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    for base, step, allowed in ((tiny_base, 0, 0), (tmp_path / "merged", 4, 1)):
        for picture, name in zip(draw(load_backbone(base), requests), sampled[step // 2]["files"], strict=True):
            assert difference(picture, Image.open(out / "samples" / name)) <= allowed
    first, last = (Image.open(out / "samples" / f"step-0000000{step}-1.png") for step in (0, 4))
    assert difference(first, last) > 1
    assert (out / "report.html").read_text().count("data:image/webp") == 6


def test_a_resumed_run_has_the_whole_sheet(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    sdkit.train("lora", tiny_base, pictures, tmp_path / "1" / "x", **RUN, **SAMPLES)
    stop = StopRequest()

    def watch(event: Any) -> None:
        if event.name == "step" and event.step == 3:
            stop.ask()

    sdkit.train("lora", tiny_base, pictures, tmp_path / "2" / "x", watch=watch, should_stop=stop, **RUN, **SAMPLES)
    sdkit.train("lora", tiny_base, pictures, tmp_path / "2" / "x", resume=True)
    sheets = [(tmp_path / place / "x" / "samples" / "sheet.png").read_bytes() for place in "12"]
    assert sheets[0] == sheets[1]
    assert [record["step"] for record in events(tmp_path / "2" / "x", "sampled")] == [0, 2, 4]


@pytest.mark.parametrize(
    ("error", "words"),
    [(torch.OutOfMemoryError("CUDA"), "memory does not suffice"), (RuntimeError("strange"), "no samples: strange")],
)
def test_a_failure_to_draw_is_a_note_and_the_state_is_saved_before(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    out = tmp_path / "x"
    saved = []

    def fail(*arguments: Any, **options: Any) -> None:
        saved.append(sorted(path.name for path in (out / "state").iterdir()))
        raise error

    monkeypatch.setattr(drawing, "draw", fail)
    options = {**RUN, "steps": 3, "save_every": 0, **SAMPLES}
    assert sdkit.train("lora", tiny_base, pictures, out, **options).finished
    assert [names[-1] for names in saved] == ["step-00000000", "step-00000002", "step-00000003"]
    notes = events(out, "note")
    assert [note["step"] for note in notes] == [0, 2, 3] and all(words in note["text"] for note in notes)


def test_prompts_come_from_words_or_a_file(tmp_path: Path) -> None:
    assert sample_prompts("") == ()
    assert sample_prompts(" a | b|") == ("a", "b")
    (tmp_path / "p.txt").write_text("one | still one\n\ntwo\n")
    assert sample_prompts(str(tmp_path / "p.txt")) == ("one | still one", "two")
    with pytest.raises(SdkitError, match="no such text file"):
        sample_prompts(str(tmp_path / "q.txt"))
    with pytest.raises(UsageError, match="100 prompts are too many"):
        sample_prompts("|".join("a" * 100))


def test_what_cannot_be_drawn_is_named_before_the_first_step(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="no such text file"):
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", **RUN, sample=str(tmp_path / "q.txt"))
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="steps 2000"):
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", **RUN, sample="a", sample_steps=2000)
    with pytest.raises(UsageError, match="AND"):
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", **RUN, sample="a AND b", force=True)
    assert not list((tmp_path / "x").rglob("step-*"))


def test_a_sheet_has_every_picture_in_its_place() -> None:
    colours = [["red", "lime"], ["blue", None]]
    rows = [
        (f"row {number} " * 40, [colour and Image.new("RGB", (600, 300), colour) for colour in row])
        for number, row in enumerate(colours)
    ]
    sheet = contact_sheet(["base", "step 1"], rows)
    width, height = CELL, CELL // 2
    assert sheet.height == HEAD + 2 * (height + GAP)
    margin = sheet.width - 2 * (width + GAP) - GAP
    assert LABEL - 50 < margin <= LABEL  # a word more does not fit
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        left, top = margin + GAP + column * (width + GAP), HEAD + row * (height + GAP)
        seen = sheet.crop((left, top, left + width, top + height)).getcolors()
        assert seen == [(width * height, Image.new("RGB", (1, 1), colours[row][column] or "#fbfaf8").getpixel((0, 0)))]
    assert len(sheet.crop((0, HEAD, margin, HEAD + height)).getcolors() or []) > 2  # words
    small = contact_sheet(["base"], [("dot", [Image.new("RGB", (16, 16), "red")])])
    assert small.size[1] == HEAD + 128 + GAP


def test_the_column_of_labels_is_as_wide_as_they_need() -> None:
    white = Image.new("RGB", (CELL, CELL), "white")
    widths = [
        contact_sheet(["seed 0"], [(label, [white])]).width - CELL - 2 * GAP for label in ("", "dot", "a red ball")
    ]
    assert widths[0] == 0 < GAP < widths[1] < widths[2] < LABEL // 2
    two = contact_sheet(["seed 0"], [("dot", [white]), ("a red ball", [white])])
    assert two.width - CELL - 2 * GAP == widths[2]
    label = two.crop((0, HEAD + CELL + GAP, widths[2] + GAP, HEAD + 2 * CELL)).convert("L")
    assert label.getextrema()[0] < 100 < label.crop((widths[2], 0, *label.size)).getextrema()[0]  # no letter is cut off
