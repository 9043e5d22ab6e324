"""A prompt of the vocabulary's own words, found by gradients (PEZ; Wen et al. 2023, arXiv:2302.03668)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.image_tower import text_features, unit
from sdkit.runtime.install import replaced
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tokens import TABLE, token_table
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

WORD = "<prompt>"  # what stands for the prompt while it is sought
KEPT = 32  # prompts that are compared at the end


class Prompt:
    """Rows of the token table, each read as the nearest word of the vocabulary.

    Args:
        backbone: with its towers; the prompt is sought with the first text encoder that has one.
        tokens: how many words.
        lr: learning rate.
        rng: chooses the words it begins as.
    """

    def __init__(self, backbone: Backbone, tokens: int, *, lr: float, rng: StepRNG) -> None:
        import torch
        from torch import nn

        self._component = next(iter(backbone.towers))
        self._allowed = torch.tensor(plain_words(backbone.tokenizers[self._component]))
        chosen = [int(self._allowed[rng.integer(len(self._allowed), "word", str(place))]) for place in range(tokens)]
        table = token_table(backbone, self._component)
        self._lr = lr
        self.parameters: dict[str, nn.Parameter] = {
            "rows": nn.Parameter(table.weight[chosen].detach().float().clone()),
            "best": nn.Parameter(torch.full((KEPT, tokens), -1.0), requires_grad=False),
            "scores": nn.Parameter(torch.full((KEPT,), -2.0), requires_grad=False),  # below any cosine
        }

    @property
    def trains_text(self) -> bool:
        """Always."""
        return True

    def groups(self) -> list[Group]:
        """The rows; and what is remembered, which no gradient reaches."""
        kept = [self.parameters["best"], self.parameters["scores"]]
        return [Group("prompt", [self.parameters["rows"]], self._lr), Group("kept", kept, 0.0)]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Let the text know the prompt as one word."""
        from sdkit.runtime.layers.nearest import NearestEmbedding

        rows, best, scores = self.parameters.values()
        words = {WORD: tuple(-1 - row for row in range(len(rows)))}
        table = token_table(backbone, self._component)
        layer = NearestEmbedding(table, rows, words, self._allowed, best, scores)
        with replaced(backbone, f"{self._component}.{TABLE}", layer):
            yield

    def texts(self, backbone: Backbone) -> list[str]:
        """The prompts kept, each of which the tokenizer takes apart into the very words it was made of."""
        tokenizer = backbone.tokenizers[self._component]
        kept = [ids for ids in self.parameters["best"].detach().long().tolist() if ids[0] >= 0]
        texts = [" ".join(_word(tokenizer, number) for number in ids) for ids in kept]
        return [text for text, ids in zip(texts, kept, strict=True) if _ids(tokenizer, text) == ids]

    def best(self, backbone: Backbone, mean: torch.Tensor) -> tuple[str, float]:
        """The kept prompt that is most like all pictures, and its mean cosine with them.

        Args:
            mean: of the pictures' unit vectors, [d].

        Raises:
            SdkitError: none was kept.
        """
        import torch

        texts = self.texts(backbone)
        if not texts:
            raise SdkitError(
                "no prompt was found that reads back as it was written", "train longer, or with other seed="
            )
        with torch.no_grad():
            scores = unit(text_features(backbone, texts)[self._component]) @ mean
        place = int(scores.argmax())
        return texts[place], float(scores[place])


def plain_words(tokenizer: Any) -> list[int]:
    """Ids of tokens that are whole words of letters and digits, and are read back as themselves wherever they stand.

    Any row of such words, with spaces between, is read back as the same tokens: words are taken apart one by one.
    """
    marks = set(tokenizer.all_special_ids)
    words = {
        number: _word(tokenizer, number) for number in sorted(tokenizer.get_vocab().values()) if number not in marks
    }
    plain = {number: word for number, word in words.items() if word.isalnum()}
    read = tokenizer(list(plain.values()), add_special_tokens=False).input_ids if plain else []
    found = [number for number, ids in zip(plain, read, strict=True) if ids == [number]]
    if not found or list(_ids(tokenizer, " ".join(plain[number] for number in found[:8]))) != found[:8]:
        raise SdkitError("the tokenizer knows no whole words, so no prompt can be made of its tokens")
    return found


def _word(tokenizer: Any, number: int) -> str:
    text: str = tokenizer.decode([number])
    return text.strip()


def _ids(tokenizer: Any, text: str) -> Sequence[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
