"""Which word of an edited prompt stands where a word of the first one stood.

Where both prompts agree, a word keeps its attention; a word in another's place takes over that one's; a new word has
its own. That is prompt-to-prompt's replacement and refinement (arXiv:2208.01626, section 3.2) as one rule, because
which of them is meant shows in the words. A weight, ``(word:2)``, multiplies the word's attention (its reweighting).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.generation.chunks import chunk_length
from sdkit.generation.prompt import parse_prompt

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone

_WORD = re.compile(r"\w+|[^\w\s]")

Word = tuple[int, ...]  # ids of its tokens


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt as one chunk of a text encoder.

    Attributes:
        text: its words alone.
        words: each by its tokens.
        weights: of the tokens.
    """

    text: str
    words: tuple[Word, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the attention on an edited prompt's tokens is made of that on the first one's.

    Attributes:
        mapper: [tokens of the first, tokens of the edited]: shares of the first one's attention.
        taken: [tokens of the edited]: 1 where attention is taken over, 0 where a token keeps its own.
        weights: [tokens of the edited]: what its attention is multiplied with.
    """

    mapper: torch.Tensor
    taken: torch.Tensor
    weights: torch.Tensor


def read_plain(backbone: Backbone, text: str) -> Read:
    """A text in which every sign is only a sign."""
    words = _words(backbone, backbone.text_encoders[0], text)
    return Read(text, tuple(words), (1.0,) * sum(map(len, words)))


def read_prompt(backbone: Backbone, prompt: str) -> Read:
    """A prompt for an edit, in the syntax of `sdkit.generation.prompt`.

    Raises:
        UsageError: it is longer than a text encoder reads at once, of several parts, or a part of a word has a weight.
    """
    parsed = parse_prompt(prompt)
    if len(parsed.sections) > 1:
        raise UsageError("BREAK in the prompt: an edit has one part", "leave it out")
    component = backbone.text_encoders[0]
    words: list[Word] = []
    weights: list[float] = []
    for piece in parsed.sections[0]:
        found = _words(backbone, component, piece.text)
        words += found
        weights += [piece.weight] * sum(map(len, found))
    room = chunk_length(backbone, component)
    if len(weights) > room:
        raise UsageError(f"the prompt has {len(weights)} tokens, an edit's has at most {room}", "shorten it")
    text = "".join(piece.text for piece in parsed.sections[0])
    if [token for word in words for token in word] != backbone.token_ids(component, text):
        raise UsageError("a weight in the prompt begins or ends within a word", "weigh whole words: (word:2)")
    return Read(text, tuple(words), tuple(weights))


def align(first: Read, edited: Read, length: int) -> Alignment:
    """The alignment of two prompts of `length` tokens with marks and padding."""
    import torch

    mapper, taken = torch.zeros(length, length), torch.zeros(length)
    for source, target in _matches(first, edited, length):
        mapper[source.start : source.stop, target.start : target.stop] = _shares(len(source), len(target))
        taken[target.start : target.stop] = 1.0
    weights = torch.ones(length)
    weights[1 : 1 + len(edited.weights)] = torch.tensor(edited.weights)
    return Alignment(mapper, taken, weights)


def _words(backbone: Backbone, component: str, text: str) -> list[Word]:
    """The words of a text; where its tokens are not those of its words one by one, each token is a word."""
    whole = backbone.token_ids(component, text)
    words = [tuple(backbone.token_ids(component, word)) for word in _WORD.findall(text)]
    return words if [token for word in words for token in word] == whole else [(token,) for token in whole]


def _matches(first: Read, edited: Read, length: int) -> Iterator[tuple[range, range]]:
    """Places of the first prompt's tokens and those of the edited one's that stand for them."""
    sources, targets = _places(first.words), _places(edited.words)
    yield range(1), range(1)  # the mark of the start
    matcher = SequenceMatcher(None, first.words, edited.words, autojunk=False)
    for kind, begin, end, start, stop in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and end - begin == stop - start):
            yield from zip(sources[begin:end], targets[start:stop], strict=True)
        elif kind == "replace":
            yield (
                range(sources[begin].start, sources[end - 1].stop),
                range(targets[start].start, targets[stop - 1].stop),
            )
    behind = [1 + sum(map(len, read.words)) for read in (first, edited)]
    for offset in range(length - max(behind)):  # the mark of the end, and the padding
        yield tuple(range(place + offset, place + offset + 1) for place in behind)  # type: ignore[misc]


def _places(words: Sequence[Word]) -> list[range]:
    """Where the tokens of each word stand, behind the mark of the start."""
    places, start = [], 1
    for word in words:
        places.append(range(start, start + len(word)))
        start += len(word)
    return places


def _shares(sources: int, targets: int) -> torch.Tensor:
    """Token to token where there are as many; else all attention is shared evenly."""
    import torch

    return torch.eye(sources) if sources == targets else torch.full((sources, targets), 1 / targets)
