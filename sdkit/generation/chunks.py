"""Prompts of any length as chunks of a text encoder's own length.

A text encoder reads so many tokens at once, CLIP's 77 with the marks of start and end. A longer prompt is read in
several goes, whose results stand one behind the other in the denoiser's cross-attention, as A1111 does it: where a
chunk is full and a comma lies near its end, the next begins behind the comma, so that a thought stays together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.generation.prompt import Prompt
from sdkit.runtime.tokens import installed_words

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone

_COMMA_REACH = 20 / 75  # of a chunk: how far before its end a comma is looked for


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a text encoder reads at once, without the marks of start and end.

    Attributes:
        ids: of its tokens.
        weights: of its tokens.
    """

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def chunk_length(backbone: Backbone, component: str) -> int:
    """Tokens a text encoder reads at once, without the two marks."""
    encoder: Any = backbone.components[component]
    return int(encoder.config.max_position_embeddings) - 2


def split_prompt(backbone: Backbone, component: str, prompt: Prompt) -> list[Chunk]:
    """The chunks of a prompt; an empty prompt is one empty chunk.

    Raises:
        UsageError: an embedding has more vectors than a chunk has places.
    """
    comma = backbone.token_ids(component, ",")
    words = {ids[0]: ids for ids in installed_words(backbone, component).values()}
    builder = _Builder(chunk_length(backbone, component), comma[0] if len(comma) == 1 else None)
    for number, section in enumerate(prompt.sections):
        if number:
            builder.close()
        for piece in section:
            for unit in _units(backbone.token_ids(component, piece.text), words):
                builder.add(unit, piece.weight)
    return builder.finish()


def _units(ids: Sequence[int], words: Mapping[int, Sequence[int]]) -> Iterator[Sequence[int]]:
    """Single tokens, and the vectors of an installed word together: they mean nothing apart."""
    place = 0
    while place < len(ids):
        unit = words.get(ids[place], (ids[place],))
        yield unit
        place += len(unit)


class _Builder:
    """Fills chunks."""

    def __init__(self, length: int, comma: int | None) -> None:
        self._length = length
        self._comma = comma
        self._chunks: list[Chunk] = []
        self._tokens: list[tuple[int, float]] = []
        self._last_comma: int | None = None  # its place among the tokens

    def add(self, unit: Sequence[int], weight: float) -> None:
        if len(unit) > self._length:
            raise UsageError(f"an embedding has {len(unit)} vectors, the text encoder reads {self._length} tokens")
        is_comma = unit[0] == self._comma
        if len(self._tokens) == self._length and not is_comma and self._comma_is_near():
            moved = self._tokens[self._behind_comma :]
            del self._tokens[self._behind_comma :]
            self.close()
            self._tokens = moved
        if len(self._tokens) + len(unit) > self._length:
            self.close()
        if is_comma:
            self._last_comma = len(self._tokens)
        self._tokens += [(token, weight) for token in unit]

    def close(self) -> None:
        """Begin a new chunk."""
        ids, weights = zip(*self._tokens, strict=True) if self._tokens else ((), ())
        self._chunks.append(Chunk(ids, weights))
        self._tokens, self._last_comma = [], None

    def finish(self) -> list[Chunk]:
        if self._tokens or not self._chunks:
            self.close()
        return self._chunks

    @property
    def _behind_comma(self) -> int:
        return (self._last_comma or 0) + 1

    def _comma_is_near(self) -> bool:
        reach = _COMMA_REACH * self._length
        return self._last_comma is not None and len(self._tokens) - self._last_comma <= reach
