"""A token table with rows of installed words beside it: negative ids are looked up there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F


class SplicedEmbedding(nn.Module):
    """Stands in for a text encoder's token embedding; id −1−k is row k of all `rows` taken together.

    The vocabulary keeps its size. A row of its own behind the last token would have the highest id of all, and CLIP
    models whose configuration says ``eos_token_id: 2`` take the pooled text from where the highest id stands.

    Args:
        table: the `nn.Embedding` whose place it takes.
        rows: [n, width] each.
        words: word → ids of its rows.
    """

    def __init__(self, table: nn.Module, rows: Sequence[torch.Tensor], words: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.table = table
        parameters = (part if isinstance(part, nn.Parameter) else nn.Parameter(part, False) for part in rows)
        self.rows = nn.ParameterList(parameters)
        self.words = dict(words)

    @property
    def weight(self) -> torch.Tensor:
        """The table's rows, [vocabulary, width]: callers look at its size, type and device."""
        weight: torch.Tensor = self.table.weight  # type: ignore[assignment]
        return weight

    def installed(self) -> torch.Tensor:
        """The rows of all installed words, [n, width]."""
        return torch.cat(list(self.rows))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., width] of ids [...], in the table's type."""
        plain: torch.Tensor = self.table(ids.clamp(min=0))
        rows = self.installed().to(plain)
        spliced = F.embedding((-1 - ids).clamp(min=0), rows)
        return torch.where((ids < 0).unsqueeze(-1), spliced, plain)
