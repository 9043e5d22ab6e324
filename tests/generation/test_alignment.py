from __future__ import annotations

import pytest
import torch

from sdkit.core.errors import UsageError
from sdkit.families.bases import resolve_base
from sdkit.generation.alignment import Read, align, read_plain, read_prompt
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone

LENGTH = 8  # mark, up to six tokens, mark or padding


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(resolve_base("tiny"))


def words(*ids: int | tuple[int, ...], weights: tuple[float, ...] = ()) -> Read:
    tokens = tuple((entry,) if isinstance(entry, int) else entry for entry in ids)
    return Read("", tokens, weights or (1.0,) * sum(map(len, tokens)))


def moved(mapper: torch.Tensor, taken: torch.Tensor) -> list[list[int] | None]:
    """For each token of the edited prompt, the first one's that it takes attention from; None for its own."""
    columns = [mapper[:, target].nonzero().flatten().tolist() for target in range(len(taken))]
    return [places if take else None for places, take in zip(columns, taken.tolist(), strict=True)]


def test_a_replaced_word_takes_over_the_others_place() -> None:
    found = align(words(5, 6, 7), words(5, 9, 7), LENGTH)
    assert moved(found.mapper, found.taken) == [[place] for place in range(LENGTH)]
    assert torch.equal(found.mapper, torch.eye(LENGTH))


def test_a_new_word_keeps_its_own_and_the_rest_moves_aside() -> None:
    found = align(words(5, 7), words(5, 9, 7), LENGTH)
    assert moved(found.mapper, found.taken) == [[0], [1], None, [2], [3], [4], [5], [6]]


def test_a_word_that_is_left_out_is_dropped_and_the_last_padding_keeps_its_own() -> None:
    found = align(words(5, 6, 7), words(5, 7), LENGTH)
    assert moved(found.mapper, found.taken) == [[0], [1], [3], [4], [5], [6], [7], None]


def test_words_of_other_lengths_share_all_attention_there_is() -> None:
    found = align(words(5, (6, 7)), words(5, (8, 9, 10)), LENGTH)
    assert moved(found.mapper, found.taken)[:5] == [[0], [1], [2, 3], [2, 3], [2, 3]]
    attention = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close((attention @ found.mapper)[2:5], torch.full((3,), 0.7 / 3))


def test_weights_stand_at_their_tokens() -> None:
    found = align(words(5, 6), words(5, 6, weights=(1.0, 2.0)), LENGTH)
    assert found.weights.tolist() == [1, 1, 2, 1, 1, 1, 1, 1]
    assert bool((found.taken == 1).all())


def test_a_prompt_is_read_word_by_word(backbone: Backbone) -> None:
    plain = read_plain(backbone, "owl (sad), noto style")
    assert [token for word in plain.words for token in word] == backbone.token_ids("text_encoder", plain.text)
    read = read_prompt(backbone, "a (big:2) owl, noto style")
    assert read.text == "a big owl, noto style"
    assert [token for word in read.words for token in word] == backbone.token_ids("text_encoder", read.text)
    weighed = {word for word, weight in zip(_spread(read), read.weights, strict=True) if weight == 2.0}
    assert weighed == {tuple(backbone.token_ids("text_encoder", "big"))}


def _spread(read: Read) -> list[tuple[int, ...]]:
    return [word for word in read.words for _ in word]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("owl " * 40, "the prompt has 80 tokens, an edit's has at most 30"),
        ("an owl BREAK a cat", "BREAK in the prompt"),
        ("an o(wl:2)", "begins or ends within a word"),
    ],
)
def test_what_an_edit_cannot_read_is_refused(backbone: Backbone, prompt: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompt(backbone, prompt)
