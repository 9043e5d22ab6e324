from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdkit.core.errors import SdkitError, UsageError
from sdkit.generation.parameters import Parameters, parse_parameters, png, read_settings
from sdkit.generation.request import Request

FULL = Request("a cat", "a dog", 3, 20, 6.5, 512, 768, "DPM++ 2M Karras", 2)

# As a web UI of 2023 wrote it, and one of 2024, which has the schedule apart from the sampler.
OLD = """masterpiece, (red:1.2) fox,
<lora:ink:0.8>
Negative prompt: blurry,
bad hands
Steps: 28, Sampler: Euler a, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, Model: v1-5, \
Clip skip: 2, Lora hashes: "ink: 0123456789ab, more: ba9876543210", Version: v1.6.0"""
NEW = """a fox
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 8x8, Model: "a, b: c", Version: v1"""


def test_the_text_is_that_of_the_web_ui() -> None:
    text = str(Parameters(FULL, "some: model", "0123456789", {"ink": "0123456789ab", "zap": "ba9876543210"}))
    prompt, negative, settings = text.split("\n")
    assert (prompt, negative) == ("a cat", "Negative prompt: a dog")
    assert settings.startswith(
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 3, Size: 512x768, Model hash: 0123456789, "
        'Model: "some: model", Clip skip: 2, RNG: CPU, Lora hashes: "ink: 0123456789ab, zap: ba9876543210", '
        "Version: sdkit "
    )
    assert "Negative" not in str(Parameters(Request("a", width=8, height=8)))


def test_texts_of_web_uis_are_read() -> None:
    assert parse_parameters(OLD) == {
        "prompt": "masterpiece, (red:1.2) fox,\n<lora:ink:0.8>",
        "negative": "blurry,\nbad hands",
        "steps": 28,
        "sampler": "Euler a",
        "cfg": 7.5,
        "seed": 1234567890,
        "width": 512,
        "height": 768,
        "clip_skip": 2,
    }
    new = parse_parameters(NEW)
    assert (new["sampler"], new["prompt"], new["negative"]) == ("DPM++ 2M Karras", "a fox", "")
    assert parse_parameters("only a prompt: yes") == {"prompt": "only a prompt: yes", "negative": ""}


@pytest.mark.parametrize("prompt", ["a cat", "a: b, c: d", "naïve 日本 “x”", 'a "quoted" \\(x\\)', "two\nlines", ""])
def test_what_is_written_is_read_back(tmp_path: Path, prompt: str) -> None:
    request = Request(prompt, prompt, -5, 20, 6.25, 512, 768, "Euler a", 2)
    path = tmp_path / "picture.png"
    path.write_bytes(png(Image.new("RGB", (8, 8)), str(Parameters(request, "m"))))
    assert Request(**read_settings(path)) == request


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown sampler 'Restart'"):
        parse_parameters("a\nSteps: 20, Sampler: Restart, Seed: 1")
    with pytest.raises(SdkitError, match="cannot be read"):
        parse_parameters("a\nSteps: many, Sampler: Euler, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    with pytest.raises(SdkitError, match="does not say what it was drawn with"):
        read_settings(tmp_path / "bare.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "bare.png").read_bytes()[:40])
    with pytest.raises(SdkitError, match="is no picture that can be read"):
        read_settings(tmp_path / "broken.png")
