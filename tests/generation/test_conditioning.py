from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sdkit.core.errors import UsageError
from sdkit.generation.chunks import split_prompt
from sdkit.generation.conditioning import encode_texts, weigh
from sdkit.generation.prompt import parse_prompt
from sdkit.generation.request import Request
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import spliced

LETTERS = {letter: number for number, letter in enumerate("..?abcdefghijklmnopqrstuvwxyz0123456789,.-'")}


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def context(backbone: Backbone, prompt: str, negative: str = "") -> torch.Tensor:
    with torch.no_grad():
        return encode_texts(backbone, Request(prompt, negative=negative, width=16, height=16)).prompt.context


def encoded(backbone: Backbone, ids: Sequence[int]) -> torch.Tensor:
    """What the text encoder says of ids between its marks: 0 before, 1 behind, 1 up to twelve."""
    marked = [0, *ids, 1] + [1] * (10 - len(ids))
    with torch.no_grad():
        return backbone.components["text_encoder"](torch.tensor([marked])).last_hidden_state


def chunks(backbone: Backbone, text: str) -> list[str]:
    """The chunks of a prompt as letters; rows of words as their numbers."""
    signs = {number: letter for letter, number in LETTERS.items()}
    parts = split_prompt(backbone, "text_encoder", parse_prompt(text))
    return ["".join(signs.get(token, str(token)) for token in part.ids) for part in parts]


def test_a_short_prompt_is_encoded_as_diffusers_does(tiny_base: Path, backbone: Backbone) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True, safety_checker=None)
    pipeline.tokenizer.model_max_length = 12
    with torch.no_grad():
        theirs, negative = pipeline.encode_prompt("a,cat", "cpu", 1, True, "dog")
    ours = encode_texts(backbone, Request("a,cat", negative="dog", width=16, height=16))
    assert torch.equal(ours.prompt.context, theirs) and torch.equal(ours.negative.context, negative)


def test_a_weight_multiplies_its_tokens(backbone: Backbone) -> None:
    """The random text encoder ends in a plain layer norm, so its vectors have no mean that could be restored."""
    expected = encoded(backbone, [LETTERS[letter] for letter in "abcd"]).double()
    expected[0, 2:4] *= 1.5  # b and c: a stands behind the mark of the start
    expected[0, 4] /= 1.1
    assert torch.allclose(context(backbone, "a(bc:1.5)[d]").double(), expected, atol=1e-6)


def test_the_mean_is_restored() -> None:
    vectors = torch.arange(1.0, 9.0).reshape(1, 4, 2)  # 1 2, 3 4, 5 6, 7 8: mean 4.5
    weighed = weigh(vectors, [2.0, 0.5])  # 1 2, 6 8, 2.5 3, 7 8: mean 37.5 / 8
    expected = torch.tensor([[[1, 2], [6, 8], [2.5, 3], [7, 8]]]) * (36 / 37.5)
    assert torch.allclose(weighed, expected) and float(weighed.mean()) == pytest.approx(4.5)


def test_a_prompt_is_weighed_and_its_mean_restored(backbone: Backbone) -> None:
    norm = backbone.module("text_encoder.text_model.final_layer_norm")
    norm.bias.fill_(0.5)
    try:
        plain = encoded(backbone, [LETTERS["a"], LETTERS["b"]]).double()
        expected = plain.clone()
        expected[0, 2] *= 1.3
        expected *= plain.mean() / expected.mean()
        assert torch.allclose(context(backbone, "a(b:1.3)").double(), expected, atol=1e-6)
    finally:
        norm.bias.fill_(0.0)


def test_long_prompts_go_in_chunks_one_behind_the_other(backbone: Backbone) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert chunks(backbone, letters) == ["abcdefghij", "klmnopqrst", "uvwxyz"]
    ids = [LETTERS[letter] for letter in letters]
    parts = [encoded(backbone, ids[start : start + 10]) for start in (0, 10, 20)]
    assert torch.equal(context(backbone, letters), torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("abcdefghij", ["abcdefghij"]),
        ("abBREAKcd", ["abbreakcd"]),
        ("ab BREAK cd", ["ab", "cd"]),
        ("ab BREAK BREAK cd BREAK", ["ab", "", "cd"]),
        ("abcdefgh,ijk", ["abcdefgh,", "ijk"]),  # the comma is near enough, so i moves on with what belongs to it
        ("abcdefghi,jk", ["abcdefghi,", "jk"]),
        ("abcde,fghijk", ["abcde,fghi", "jk"]),  # this one is too far away
        ("abcdefghij,k", ["abcdefghij", ",k"]),
    ],
)
def test_where_chunks_end(backbone: Backbone, text: str, expected: list[str]) -> None:
    assert chunks(backbone, text) == expected


def test_the_vectors_of_a_word_stay_together(backbone: Backbone) -> None:
    with spliced(backbone, {"zz": {"text_encoder": torch.zeros(4, 24)}}):
        assert chunks(backbone, "abcdefgh zz k") == ["abcdefgh?", "-1-2-3-4?k"]
    with (
        spliced(backbone, {"zz": {"text_encoder": torch.zeros(11, 24)}}),
        pytest.raises(UsageError, match="11 vectors, the text encoder reads 10"),
    ):
        chunks(backbone, "zz")


def test_the_shorter_prompt_is_filled_up_with_empty_chunks(backbone: Backbone) -> None:
    request = Request("abcdefghijklm", negative="x", width=16, height=16)
    texts = encode_texts(backbone, request)
    expected = torch.cat([encoded(backbone, [LETTERS["x"]]), encoded(backbone, [])], dim=1)
    assert torch.equal(texts.negative.context, expected)


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no finite numbers"):
        weigh(torch.ones(1, 4, 2), [-1.0, -1.0, 1.0])


def test_adapters_have_no_place_in_a_bare_request(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="<lora:x:1>: adapters are not looked up here"):
        context(backbone, "a <lora:x:1>")
