"""Whether a word chosen for something new means something to the base already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# CLIP's vocabulary is in the order its pieces were merged, frequent ones first: its last tenth holds what hardly
# occurs, such as "sks".
RARE = 0.9


def known_words(tokenizer: Any, text: str) -> list[str]:
    """The words of a text that are single, common tokens, so that a model has seen them often."""
    vocabulary = tokenizer.get_vocab()
    known = []
    for word in text.split():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id and ids[0] < RARE * len(vocabulary):
            known.append(word)
    return known


def base_tokenizer(base: Path, text_config: Mapping[str, Any]) -> Any:
    """The tokenizer of a base's first text encoder, without the base itself."""
    from sdkit.runtime.load import load_tokenizer
    from sdkit.weights import open_weights

    with open_weights(base) as weights:
        return load_tokenizer(weights, "text_encoder", int(text_config["vocab_size"]))


def word_for(name: str) -> str:
    """A new word for the result called `name`: in brackets, so that it is none that anybody writes by chance."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return f"<{plain}>"
