"""Give queries and keys, values and outputs the same energy in every attention head; what is drawn does not change.

    q' = T q,   k' = T⁻¹ k,   T symmetric, so that q' q'ᵀ = k' k'ᵀ;   v and outᵀ alike
    T = S^½,   S = (q qᵀ)⁻¹ # (k kᵀ), the geometric mean of the two matrices

q and k are [dimensions of a head, inputs and bias]. The logits qᵀk and the sums out·v stay what they are; the numbers
get alike in size, which rounds better and averages better. In the U-Net and the text encoders; all other weights stay.
(sd-mecha applies S, which exchanges the two energies.)
Source: sd-mecha's `balance_attention`; the geometric mean: Bhatia 2007, Positive Definite Matrices
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.merging.method import Weight, merge_method
from sdkit.merging.symmetries import Facts
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole

if TYPE_CHECKING:
    import torch

# The two sides of each product; the second gets the inverse. Outputs are read by columns.
PAIRS = (("to_q", "to_k"), ("to_v", "to_out.0"), ("q_proj", "k_proj"), ("v_proj", "out_proj"))
OUTPUTS = ("to_out.0", "out_proj")
ATTENTION = (".attn1.", ".attn2.", ".self_attn.")
TINY = 1e-12  # of the largest energy: directions that are not used


@merge_method("tensor", named=True)
def balance_attention(a: Weight, *, where: Where, whole: Whole) -> Weight:
    """A with the energies of its heads balanced."""
    module, _, kind = where.name.rpartition(".")
    pair = next((pair for pair in PAIRS for side in pair if _is_side(module, side)), None)
    if pair is None or (module.endswith(OUTPUTS) and kind == "bias"):
        return a
    stem = module.removesuffix(next(side for side in pair if module.endswith(f".{side}")))
    first, second = (_heads(whole, stem + side) for side in pair)
    balance = _balance(first, second)
    if balance is None:
        return a
    turn = balance[0] if module.endswith(f".{pair[0]}") else balance[1]
    return _turned(a, turn, columns=module.endswith(OUTPUTS))


def _is_side(module: str, side: str) -> bool:
    return module.endswith(f".{side}") and any(part in module for part in ATTENTION)


def _heads(whole: Whole, module: str) -> torch.Tensor:
    """What a head's dimensions do: [heads, dimensions, inputs and bias], float64."""
    import torch

    weight = whole.read(f"{module}.weight").double()
    if module.endswith(OUTPUTS):
        weight = weight.t()
    elif f"{module}.bias" in whole.tensors:
        weight = torch.cat([weight, whole.read(f"{module}.bias").double()[:, None]], 1)
    return weight.reshape(_count(whole, module, len(weight)), -1, weight.shape[1])


def _count(whole: Whole, module: str, width: int) -> int:
    facts = Facts(whole.model.family, whole.configs)
    component, _, rest = module.partition(".")
    count = facts.unet_heads(rest.partition(".attentions.")[0], width) if component == "unet" else 0
    count = count or facts.text_heads(component, width)
    return count if width % count == 0 else 1


def _balance(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """T and T⁻¹ of each head; None where a side does not use all of its dimensions, so that there is no T."""
    one, other = first @ first.mT, second @ second.mT
    root, unroot = _power(one, 0.5), _power(one, -0.5)
    if root is None or unroot is None:
        return None
    middle = _power(root @ other @ root, 0.5)
    if middle is None:
        return None
    mean = unroot @ middle @ unroot
    turn, back = _power(mean, 0.5), _power(mean, -0.5)
    return None if turn is None or back is None else (turn, back)


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor | None:
    """A power of symmetric positive definite matrices; None where one of them is not definite."""
    import torch

    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    if bool((values[..., :1] <= TINY * values[..., -1:]).any()):
        return None
    power: torch.Tensor = (vectors * values.pow(exponent)[..., None, :]) @ vectors.mT
    return power


def _turned(values: torch.Tensor, turn: torch.Tensor, *, columns: bool) -> torch.Tensor:
    """Each head's rows (or columns) multiplied with its matrix."""
    count, size, _ = turn.shape
    sides = (values.t() if columns else values).double()
    turned = (turn @ sides.reshape(count, size, -1)).reshape(sides.shape).to(values.dtype)
    return turned.t() if columns else turned
