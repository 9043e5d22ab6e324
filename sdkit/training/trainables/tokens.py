"""The rows of a new word, the only parameters of textual inversion (arXiv:2208.01618).

Elsewhere the token table is trained whole and put back after each step but for the new rows, which for SD1 costs the
gradient and two moments of 38 million numbers. Here the rows are spliced in where the table is looked up, so gradients
and moments are those of the rows alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.runtime.tokens import Rows, spliced, token_table, words_of
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn


class Tokens:
    """A word's rows, [vectors, width] for each text encoder, in float32.

    Args:
        word: what calls them up.
        rows: text encoder's component → their values at the start.
        lr: learning rate.
        ema: decay of their moving average; None for the run's.
    """

    def __init__(self, word: str, rows: Rows, *, lr: float, ema: float | None = None) -> None:
        from torch import nn

        self.word = word
        self._rows = {component: nn.Parameter(part.detach().float().clone()) for component, part in rows.items()}
        self._lr = lr
        self._ema = ema

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Text encoder's component → rows."""
        return dict(self._rows)

    @property
    def trains_text(self) -> bool:
        """Always: captions mean something else after every step."""
        return True

    def groups(self) -> list[Group]:
        """All rows, with one rate."""
        return [Group("tokens", list(self._rows.values()), self._lr, self._ema)]

    def install(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Let the text know the word."""
        return spliced(backbone, {self.word: self._rows})

    def artifact(self, dtype: torch.dtype) -> Artifact:
        """The embedding as it is now, rounded to `dtype`."""
        held = in_memory("the trained word", {name: rows.detach().to(dtype) for name, rows in self._rows.items()})
        tokens = tuple(TokenRows(self.word, component, held, held.tensors[component]) for component in self._rows)
        return Artifact(held, "trained", kind="textual-inversion", tokens=tokens)


def rows_of_text(backbone: Backbone, text: str, vectors: int) -> Rows:
    """The rows of a text's own tokens, repeated or cut to `vectors`: the new word begins as what it resembles.

    Raises:
        SdkitError: the text has no tokens.
    """
    import torch

    rows = {}
    for component in backbone.text_encoders:
        ids = backbone.token_ids(component, text)
        if not ids:
            raise SdkitError(f"init={text}: the tokenizer of {backbone.base_name} finds no word in it")
        with torch.no_grad():
            table = token_table(backbone, component)
            rows[component] = _count(table(torch.tensor(ids, device=table.weight.device)), vectors)
    return rows


def rows_of_file(artifact: Artifact, backbone: Backbone, vectors: int) -> Rows:
    """The rows of an existing embedding, repeated or cut to `vectors`.

    Raises:
        SdkitError: it was made for another family, or holds several words.
    """
    words = words_of(artifact, backbone)
    if len(words) != 1 or artifact.deltas:
        raise SdkitError(f"{artifact.source.path}: one word's embedding is needed to begin with, not {len(words)}")
    (rows,) = words.values()
    return {component: _count(part, vectors) for component, part in rows.items()}


def rows_of_noise(backbone: Backbone, vectors: int, rng: StepRNG) -> Rows:
    """Random directions, as long as the vocabulary's rows are on average.

    The length matters: the text encoder adds positions to the rows before it normalises anything, so beside a row of
    unit length every position would vanish, and a tiny row would vanish beside its position.
    """
    rows = {}
    for component in backbone.text_encoders:
        weight = token_table(backbone, component).weight.detach().float().cpu()
        noise = rng.normal((vectors, weight.shape[1]), "tokens", component)
        rows[component] = noise / noise.norm(dim=1, keepdim=True) * weight.norm(dim=1).mean()
    return rows


def _count(rows: Any, vectors: int) -> torch.Tensor:
    """`vectors` rows: as many of `rows` as are wanted, again from the first where they are too few."""
    picked: torch.Tensor = rows[[index % len(rows) for index in range(vectors)]]
    return picked
