from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TEXT

import sdkit
from sdkit.training.identifier import base_tokenizer, known_words


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("dog", ["dog"]),
        ("Sunflower", ["Sunflower"]),
        ("sks", []),
        ("<dog>", []),
        ("ohwx", []),
        ("sks dog", ["dog"]),
        ("", []),
    ],
)
def test_words_clip_has_seen_often(text: str, known: list[str]) -> None:
    from transformers import CLIPTokenizer

    folder = Path(sdkit.__file__).parent / "assets" / "tokenizers" / "clip"
    assert known_words(CLIPTokenizer.from_pretrained(folder, local_files_only=True), text) == known


def test_a_base_s_own_tokenizer_is_asked(tiny_base: Path) -> None:
    tokenizer = base_tokenizer(tiny_base, TEXT)
    assert known_words(tokenizer, "a dog") == ["a"]  # a letter a token
