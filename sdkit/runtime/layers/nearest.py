"""A token table whose installed rows are read as the vocabulary's nearest: a prompt that gradients can move (PEZ)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.runtime.layers.spliced import SplicedEmbedding


class NearestEmbedding(SplicedEmbedding):
    """Stands in for a text encoder's token embedding.

    Forward, each trained row is the row of the vocabulary that points most nearly the same way; backward, the gradient
    of that goes straight to the trained row (Wen et al. 2023, arXiv:2302.03668).

    Args:
        table: the `nn.Embedding` whose place it takes.
        rows: the trained rows, [n, width].
        words: word → ids of its rows.
        allowed: ids of the vocabulary a prompt may be made of, [m].
        best: prompts kept with their scores, ids [k, n]; those not yet there are −1.
        scores: of the kept prompts, [k].
    """

    def __init__(
        self,
        table: nn.Module,
        rows: nn.Parameter,
        words: Mapping[str, tuple[int, ...]],
        allowed: torch.Tensor,
        best: nn.Parameter,
        scores: nn.Parameter,
    ) -> None:
        super().__init__(table, [rows], dict(words))
        self.register_buffer("allowed", allowed.to(rows.device), persistent=False)
        self.best, self.scores = best, scores

    def nearest(self) -> torch.Tensor:
        """Ids [n] of the vocabulary's rows that stand for the trained ones."""
        allowed: torch.Tensor = self.allowed  # type: ignore[assignment]
        with torch.no_grad():
            known = F.normalize(self.weight[allowed].float(), dim=-1)
            places = (F.normalize(self.rows[0].float(), dim=-1) @ known.T).argmax(-1)
        return allowed[places]

    def installed(self) -> torch.Tensor:
        """The vocabulary's rows, with the trained rows' gradient."""
        rows: torch.Tensor = self.rows[0]
        return self.weight[self.nearest()].to(rows) + rows - rows.detach()

    def remember(self, score: torch.Tensor) -> None:
        """Keep the present prompt if its score is above the least of those kept."""
        with torch.no_grad():
            ids = self.nearest().to(self.best)
            known = (self.best == ids).all(1)
            place = int(known.int().argmax()) if bool(known.any()) else int(self.scores.argmin())
            if float(score) > float(self.scores[place]):
                self.best[place], self.scores[place] = ids, score
