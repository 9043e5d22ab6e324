"""Layers with a LoRA beside them, for any PyTorch model (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    import sdkit.loralib as lora

    self.projection = lora.Linear(768, 768, r=8)        # in the place of nn.Linear(768, 768)
    lora.mark_only_lora_as_trainable(model)
    torch.save(lora.lora_state_dict(model), "lora.pt")

Each layer is the one it replaces, of the same name in `torch.nn`, with ``scaling · lora_B lora_A`` added to its weight,
where ``scaling = lora_alpha / r``. Names and shapes of the factors are those of the package ``loralib``, so files go
back and forth. ``model.eval()`` adds the change to the weight, ``model.train()`` puts the original weight back, the
very same bits; ``state_dict()`` always holds the original. Only torch is needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.core.errors import UsageError

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Embedding",
    "Linear",
    "LoRALayer",
    "MergedLinear",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merged_state_dict",
]

_BIASES = ("none", "all", "lora_only")


class LoRALayer(nn.Module, ABC):
    """What the layers share: two factors, and a weight that holds their product while the layer is evaluated.

    A subclass also derives from a layer of `torch.nn`, and calls `_add_factors` when that has been made.

    Attributes:
        r: rank; 0 for a layer as it is in `torch.nn`.
        scaling: what the product of the factors is multiplied with.
        merge_weights: whether `eval` adds the product to the weight.
        original_weight: the weight without the product, while it is merged.
    """

    weight: torch.Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    original_weight: torch.Tensor | None

    def _add_factors(
        self,
        r: int,
        lora_alpha: float,
        lora_dropout: float,
        merge_weights: bool,
        shapes: tuple[tuple[int, int], tuple[int, int]],
    ) -> None:
        """Freeze the weight and put factors of these shapes beside it, unless `r` is 0."""
        if r < 0:
            raise UsageError(f"r={r}: a rank is at least 0")
        self.r = r
        self.merge_weights = merge_weights
        self.lora_dropout: nn.Module = nn.Dropout(lora_dropout) if lora_dropout else nn.Identity()
        self.register_buffer("original_weight", None, persistent=False)
        if r:
            self.scaling = lora_alpha / r
            self.lora_A = nn.Parameter(self.weight.new_zeros(shapes[0]))
            self.lora_B = nn.Parameter(self.weight.new_zeros(shapes[1]))
            self.weight.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as the layer of `torch.nn` does, with factors whose product is zero."""
        super().reset_parameters()  # type: ignore[misc]  # of the layer of torch.nn
        if hasattr(self, "lora_A"):
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    @abstractmethod
    def change(self) -> torch.Tensor:
        """What is added to the weight, in the weight's shape."""

    @property
    def merged(self) -> bool:
        """Whether the weight holds the change."""
        return self.original_weight is not None

    @property
    def adds(self) -> bool:
        """Whether the factors have still to be added to what the weight gives."""
        return hasattr(self, "lora_A") and not self.merged

    @torch.no_grad()
    def merge(self) -> None:
        """Add the change to the weight; the original is kept, because subtracting would not give it back."""
        if self.adds:
            self.original_weight = self.weight.data
            self.weight.data = self.weight.data + self.change()

    def unmerge(self) -> None:
        """Put the original weight back."""
        if self.original_weight is not None:
            self.weight.data = self.original_weight
            self.original_weight = None

    def train(self, mode: bool = True) -> Self:
        """Train with the factors beside the weight, or evaluate with both as one."""
        super().train(mode)
        if mode:
            self.unmerge()
        elif self.merge_weights:
            self.merge()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.original_weight is not None:
            destination[f"{prefix}weight"] = self.original_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        merged = self.merged
        self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if merged:
            self.merge()


class Linear(LoRALayer, nn.Linear):
    """`nn.Linear` with a LoRA.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        r: rank.
        lora_alpha: scale × rank.
        lora_dropout: chance that an input of the factors is dropped while training.
        fan_in_fan_out: the weight is stored as [in, out], as GPT-2's are.
        merge_weights: whether `eval` adds the change to the weight.
        other: of `nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **other: Any,
    ) -> None:
        super().__init__(in_features, out_features, **other)
        self.fan_in_fan_out = fan_in_fan_out
        self._add_factors(r, lora_alpha, lora_dropout, merge_weights, self._shapes(r))
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T

    def _shapes(self, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (r, self.in_features), (self.out_features, r)

    def change(self) -> torch.Tensor:
        """``scaling · lora_B lora_A``, as the weight is stored."""
        return self._turned(self.lora_B @ self.lora_A) * self.scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] to […, out]."""
        out = F.linear(x, self._turned(self.weight), self.bias)
        return out + self._beside(self.lora_dropout(x)) * self.scaling if self.adds else out

    def _beside(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the factors applied to `x`, one after the other: the product itself would be large."""
        return x @ self.lora_A.T @ self.lora_B.T

    def _turned(self, weight: torch.Tensor) -> torch.Tensor:
        """From [out, in] to the way the weight is stored, and back."""
        return weight.T if self.fan_in_fan_out else weight


class MergedLinear(Linear):
    """Several linear layers in one weight (query, key and value), some of which have a LoRA.

    Args:
        in_features: width of the input.
        out_features: widths of all outputs together.
        r: rank of each LoRA.
        enable_lora: for each of the layers, whether it has one.
        options: of `Linear`.

    Raises:
        UsageError: the outputs cannot be divided evenly among the layers.
    """

    rows: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **options: Any,
    ) -> None:
        if not enable_lora or out_features % len(enable_lora):
            raise UsageError(f"{out_features} outputs cannot be divided among {len(enable_lora)} layers")
        self.enable_lora = tuple(map(bool, enable_lora))
        if not any(enable_lora):
            r = 0
        super().__init__(
            in_features, out_features, r, lora_alpha, lora_dropout, fan_in_fan_out, merge_weights, **options
        )
        rows = torch.tensor(self.enable_lora).repeat_interleave(out_features // len(self.enable_lora))
        self.register_buffer("rows", rows.to(self.weight.device), persistent=False)

    def _shapes(self, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
        count = sum(self.enable_lora)
        return (r * count, self.in_features), (self.out_features // len(self.enable_lora) * count, r)

    def change(self) -> torch.Tensor:
        """``scaling · lora_B lora_A`` of each layer that has them, in its rows of the weight; zeros elsewhere."""
        count = sum(self.enable_lora)
        products = self.lora_B.view(count, -1, self.r) @ self.lora_A.view(count, self.r, -1)
        whole = products.new_zeros(self.out_features, self.in_features)
        whole[self.rows] = products.flatten(0, 1)
        return self._turned(whole) * self.scaling

    def _beside(self, x: torch.Tensor) -> torch.Tensor:
        count = sum(self.enable_lora)
        inner = (x @ self.lora_A.T).view(*x.shape[:-1], count, 1, self.r)
        outer = inner @ self.lora_B.view(count, -1, self.r).mT
        out = x.new_zeros(*x.shape[:-1], self.out_features, dtype=outer.dtype)
        out[..., self.rows] = outer.flatten(-3)
        return out


class Embedding(LoRALayer, nn.Embedding):
    """`nn.Embedding` with a LoRA.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: width of a row.
        r: rank.
        lora_alpha: scale × rank.
        merge_weights: whether `eval` adds the change to the weight.
        other: of `nn.Embedding`.

    Raises:
        UsageError: `max_norm` is given, which would change the frozen table.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: float = 1,
        merge_weights: bool = True,
        **other: Any,
    ) -> None:
        if r and other.get("max_norm") is not None:
            raise UsageError("max_norm shortens the rows of a table that a LoRA must leave alone", "leave it out")
        super().__init__(num_embeddings, embedding_dim, **other)
        self._add_factors(r, lora_alpha, 0.0, merge_weights, ((r, num_embeddings), (embedding_dim, r)))

    def reset_parameters(self) -> None:
        """Begin as `nn.Embedding` does. Here lora_A is zero: it is what a row is looked up in."""
        nn.Embedding.reset_parameters(self)
        if hasattr(self, "lora_A"):
            nn.init.zeros_(self.lora_A)
            nn.init.normal_(self.lora_B)

    def change(self) -> torch.Tensor:
        """``scaling · (lora_B lora_A)ᵀ``."""
        return (self.lora_B @ self.lora_A).T * self.scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…] to […, width]."""
        out = super().forward(x)
        if not self.adds:
            return out
        table = self.lora_A.T
        rows = F.embedding(x, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse)
        return out + (rows @ self.lora_B.T) * self.scaling


class _Convolution(LoRALayer):
    """What the convolutions share.

    The factors' product is the weight's numbers in their own order: lora_A is [r·k, in·k] for the last side k of the
    kernel, lora_B is [out/groups·(the other sides), r·k]. For a square kernel in two dimensions that is loralib's.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    bias: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **other: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **other)
        *sides, last = self.kernel_size
        first = (r * last, in_channels * last)
        second = (out_channels // self.groups * math.prod(sides), r * last)
        self._add_factors(r, lora_alpha, lora_dropout, merge_weights, (first, second))

    def change(self) -> torch.Tensor:
        """``scaling · lora_B lora_A``, in the weight's shape."""
        return (self.lora_B @ self.lora_A).view(self.weight.shape) * self.scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the convolution of `torch.nn`."""
        if not self.adds:
            return self._convolve(x, self.weight, self.bias)
        if self.training and isinstance(self.lora_dropout, nn.Dropout):
            changed = self._convolve(self.lora_dropout(x), self.change(), None)
            return self._convolve(x, self.weight, self.bias) + changed
        return self._convolve(x, self.weight + self.change(), self.bias)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = self._conv_forward(x, weight, bias)  # type: ignore[operator]  # of torch.nn
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):  # loralib has the convolution one level deeper
            if f"{prefix}conv.{name}" in state_dict:
                state_dict[f"{prefix}{name}"] = state_dict.pop(f"{prefix}conv.{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Conv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d` with a LoRA; the options are those of `Linear` and of `nn.Conv1d`."""


class Conv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d` with a LoRA; the options are those of `Linear` and of `nn.Conv2d`."""


class Conv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d` with a LoRA; the options are those of `Linear` and of `nn.Conv3d`."""


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Freeze everything but the factors.

    Args:
        bias: the biases that train too: ``none``, ``all``, or ``lora_only`` for those of layers with a LoRA.

    Raises:
        UsageError: `bias` is another word.
    """
    parameters = dict(model.named_parameters())
    chosen = _chosen(parameters, bias)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, torch.Tensor]:
    """The factors, and biases as in `mark_only_lora_as_trainable`: what is worth saving.

    Load it with ``model.load_state_dict(…, strict=False)``.

    Raises:
        UsageError: `bias` is another word.
    """
    state = model.state_dict()
    chosen = _chosen(state, bias)
    return {name: tensor for name, tensor in state.items() if name in chosen}


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights with the changes added and no factors: for the same model made of plain layers."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not _is_factor(name)}
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer) and hasattr(module, "lora_A"):
            weight = module.weight if module.merged else module.weight + module.change()
            state[f"{name}.weight" if name else "weight"] = weight.detach()
    return state


def _chosen(names: Collection[str], bias: str) -> set[str]:
    if bias not in _BIASES:
        raise UsageError(f"bias={bias}: unknown", f"use one of {', '.join(_BIASES)}")
    factors = {name for name in names if _is_factor(name)}
    if bias == "all":
        return factors | {name for name in names if "bias" in name.rpartition(".")[2]}
    if bias == "lora_only":
        layers = {name.rpartition("lora_")[0] for name in factors}
        return factors | ({f"{layer}bias" for layer in layers} & set(names))
    return factors


def _is_factor(name: str) -> bool:
    """By the last part of the name: a module may well be called lora_something."""
    return name.rpartition(".")[2] in ("lora_A", "lora_B")
