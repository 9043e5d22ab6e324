from __future__ import annotations

import math
import time

import pytest

from sdkit.core.errors import UsageError
from sdkit.generation.prompt import MAX_LENGTH, Tag, parse_prompt


def pieces(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt without BREAK, weights rounded to what can be read."""
    (section,) = parse_prompt(text).sections
    return [(piece.text, round(piece.weight, 4)) for piece in section]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red)) cat", [("red", 1.21), (" cat", 1)]),
        ("(red:1.5) cat", [("red", 1.5), (" cat", 1)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("[dull]", [("dull", 0.9091)]),
        ("(a [b] (c:2))", [("a ", 1.1), ("b", 1), (" ", 1.1), ("c", 2.2)]),
        ("(a (b:1.3)):2", [("a ", 1.1), ("b", 1.43), (":2", 1)]),
        (r"nami \(one piece\)", [("nami (one piece)", 1)]),
        (r"(nami \(one piece\):1.2)", [("nami (one piece)", 1.2)]),
        (r"\[x\] a\\b", [("[x] a\\b", 1)]),
        (r"a\b", [("ab", 1)]),
        ("(unclosed and on", [("unclosed and on", 1.1)]),
        ("closed) only", [("closed) only", 1)]),
        ("ratio 16:9, a:1.2) b", [("ratio 16:9, a:1.2) b", 1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a|b)", [("a|b", 1.1)]),
        ("[(a:1.2), b]", [("a", 1.0909), (", b", 0.9091)]),
        ("a <token> b", [("a <token> b", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
    ],
)
def test_weights_are_those_of_the_web_ui(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == expected


def test_break_divides_sections_and_drops_the_space_around_it() -> None:
    prompt = parse_prompt("a (b:2) BREAK c BREAK\nBREAKFAST")
    texts = [[piece.text for piece in section] for section in prompt.sections]
    assert texts == [["a ", "b"], ["c"], ["BREAKFAST"]]
    assert [len(section) for section in parse_prompt("BREAK").sections] == [0, 0]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<lora:x>", Tag("lora", "x")),
        ("<lora:x:0.8>", Tag("lora", "x", 0.8, 0.8)),
        ("<lora:x:0.8:0.5>", Tag("lora", "x", 0.8, 0.5)),
        ("<lora:x:te=0.2:unet=-1>", Tag("lora", "x", 0.2, -1)),
        ("<lora:x:0.7:unet=1>", Tag("lora", "x", 0.7, 1)),
        ("<LyCO:my style.safetensors:1>", Tag("lora", "my style.safetensors")),
        ("<hypernet:dir/anime:0.6>", Tag("hypernet", "dir/anime", 0.6, 0.6)),
    ],
)
def test_adapters_are_taken_out_of_the_text(text: str, tag: Tag) -> None:
    prompt = parse_prompt(f"a {text}cat")
    assert prompt.tags == (tag,) and prompt.text == "a cat"
    assert parse_prompt(str(tag)).tags == (tag,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cat:dog:0.5]", "changes from step to step"),
        ("[cat:0.5]", "changes from step to step"),
        ("a [(cat:1.2)::12] b", "changes from step to step"),
        ("[cat|dog]", "changes from step to step"),
        ("a cat AND a dog :1.2", "AND in the prompt"),
        ("(red:1.2.3)", "'1.2.3' in :1.2.3\\) is no weight"),
        ("<laura:x:1>", "laura is no kind of adapter"),
        ("<lora:x:much>", "'much' is no number"),
        ("<lora:x:nan>", "'nan' is no number"),
        ("<lora:x:1:1:1>", "is no adapter"),
        ("<lora: :1>", "is no adapter"),
        ("<lora:x:dyn=8>", "is no adapter"),
        ("(" * 9000 + "a", "is no finite number"),
        ("a" * (MAX_LENGTH + 1), "10001 characters"),
        ("caf\udce9", "bytes that are no text"),
    ],
)
def test_what_would_be_drawn_wrongly_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_prompt(text)


def test_nearest_kind_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse_prompt("<hypernetwork:x:1>")
    assert caught.value.hint == "did you mean hypernet?"


@pytest.mark.parametrize("unit", ["(a", "[a", "(a:1.1)", "a)", ":", "\\", "<lora:", "(a:", "BREAK "])
def test_hostile_prompts_are_read_quickly_or_refused(unit: str) -> None:
    began = time.perf_counter()
    try:
        for section in parse_prompt(unit * (MAX_LENGTH // len(unit))).sections:
            assert all(math.isfinite(piece.weight) for piece in section)
    except UsageError:
        pass
    assert time.perf_counter() - began < 2
