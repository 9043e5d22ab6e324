"""Agreement with sd-mecha and mergekit where they mean the same mathematics, and defects of theirs that are not ours.

Both are test-only and optional: neither can be installed beside everything else, so each test asks for its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdkit.merging.method import load_method

GENERATOR = torch.Generator().manual_seed(0)
BASE, A, B, C = (torch.randn(12, 10, generator=GENERATOR) for _ in range(4))


def mecha(name: str) -> Any:
    """A merge method of sd-mecha as a function of tensors."""
    sd_mecha = pytest.importorskip("sd_mecha")
    return sd_mecha.extensions.merge_methods.resolve(name).__wrapped__


def near(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


SAME_AS_MECHA = [
    ("slerp", "slerp", 2, {"alpha": 0.3}),
    ("geometric-sum", "geometric_sum", 2, {"alpha": 0.3}),
    ("cosine-a", "add_cosine_a", 2, {"alpha": 0.3}),
    ("cosine-b", "add_cosine_b", 2, {"alpha": 0.3}),
    ("multiply-quotient", "multiply_quotient", 3, {"alpha": 0.7}),
]


@pytest.mark.parametrize(("ours", "theirs", "count", "values"), SAME_AS_MECHA)
def test_sd_mecha_agrees(ours: str, theirs: str, count: int, values: dict[str, float]) -> None:
    inputs = [A, B, C][:count]
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    near(load_method(ours)(*inputs, **values), mecha(theirs)(*inputs, **tensors))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("train-difference", "train_difference_mask"),
        ("add-opposite", "add_opposite_mask"),
        ("add-strict-opposite", "add_strict_opposite_mask"),
    ],
)
def test_sd_mecha_masks_agree(ours: str, theirs: str) -> None:
    mask = mecha(theirs)(A, B, C, alpha=torch.tensor(0.5))
    near(load_method(ours)(A, B, C, alpha=0.5), A + mask * (B - C))


def test_sd_mecha_ties_agrees() -> None:
    near(load_method("ties")(A, B, C, density=1.0, majority="count"), mecha("ties_sum")(A, B, C, k=1.0, vote_sgn=False))
    near(load_method("ties")(A, B, C, density=1.0, majority="sum"), mecha("ties_sum")(A, B, C, k=1.0, vote_sgn=True))


def test_sd_mecha_extended_ties_agrees() -> None:
    models = [model.double() for model in (A, B, C)]
    theirs = mecha("ties_sum_extended")(*models, k=1.0, vote_sgn=True, apply_median=True)
    near(load_method("ties-median")(*models, density=1.0), theirs)
    a, b = (model[:1].flatten() for model in (A, B))  # two models, one row: neighbours are all pairs
    theirs = mecha("ties_sum_extended")(a, b, k=1.0, vote_sgn=True)  # `apply_stock=False` is what applies it
    near(load_method("ties-stock")(a, b, density=1.0), theirs)


def test_sd_mecha_geometric_median_agrees() -> None:
    models = [model.double() for model in (A, B, C)]  # in float32 theirs stops at 1e-4
    near(load_method("geometric-median")(*models), mecha("geometric_median")(*models))


def test_sd_mecha_clamp_and_tensor_sum_agree() -> None:
    near(load_method("clamp")(A, B, C, stiffness=0.25), mecha("clamp")(A, B, C, stiffness=0.25))
    for width, offset in ((0.5, 0.0), (0.5, 0.75), (0.25, 0.25)):
        theirs = mecha("tensor_sum")(A.clone(), B.clone(), width=width, offset=offset)
        near(load_method("tensor-sum")(A, B, alpha=width, beta=offset), theirs)


def test_sd_mecha_perpendicular_component_agrees() -> None:
    near(load_method("add-perpendicular")(A, B, C, alpha=0.5), A + 0.5 * mecha("perpendicular_component")(A - C, B - C))


@pytest.mark.parametrize(("alignment", "alpha"), [(1.0, 0.0), (1.0, 0.3), (0.5, 0.0), (0.5, 0.3)])
def test_sd_mecha_rotate_agrees_on_tall_matrices(alignment: float, alpha: float) -> None:
    a, b = A.double(), B.double()
    given = {"alignment": alignment, "alpha": torch.tensor(alpha).double()}
    theirs = mecha("rotate")({"w": a}, {"w": b}, **given, key="w")
    near(load_method("rotate")(a, b, alignment=alignment, alpha=alpha), theirs)


def test_sd_mecha_kronecker_and_top_k_agree() -> None:
    pytest.importorskip("sd_mecha")
    from sd_mecha.extensions.builtin.merge_methods.kronecker import truncate_kronecker

    for ratio in (0.0, 0.3, 0.5, 1.0):
        theirs = truncate_kronecker.__wrapped__(A, kronecker_ratio=ratio, use_approximate_basis=False)
        near(load_method("truncate-kronecker")(A, ratio=ratio), theirs)
    for width, offset in ((1.0, 0.0), (0.5, 0.0), (0.5, 0.75)):
        theirs = mecha("top_k_tensor_sum")(A, B, width=width, offset=offset)
        near(load_method("top-k-tensor-sum")(A, B, alpha=width, beta=offset), theirs)


def test_sd_mecha_balance_exchanges_the_energies_that_ours_evens() -> None:
    pytest.importorskip("sd_mecha")
    from sd_mecha.extensions.builtin.merge_methods.balance_attention.algorithms import balance_head_energy

    q, k = balance_head_energy(A[:4].double(), B[:4].double())
    near(q @ q.T, (B[:4] @ B[:4].T).double(), 1e-3)
    near(q.T @ k, (A[:4].T @ B[:4]).double(), 1e-3)


def test_sd_mecha_model_stock_of_two_models_agrees() -> None:
    """With two models neighbours are all pairs; theirs works row by row, so one row is compared."""
    a, b = A[:1].flatten(), B[:1].flatten()
    near(load_method("model-stock")(a, b), mecha("model_stock")(a, b))


def kit(module: str) -> Any:
    return pytest.importorskip(f"mergekit.{module}")


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_mergekit_slerp_agrees(t: float) -> None:
    theirs = kit("merge_methods.slerp").slerp(torch.tensor([t]), A[None], B[None])[0]
    near(load_method("slerp")(A, B, alpha=t, norms="keep"), theirs)


def test_mergekit_nuslerp_agrees() -> None:
    theirs = kit("merge_methods.nuslerp").nuslerp(0.25, A, B, flatten=True)
    near(load_method("nuslerp")(A, B, weights=(3.0, 1.0)), theirs)


def test_mergekit_karcher_agrees() -> None:
    theirs = kit("merge_methods.karcher").karcher_merge_tensors([A, B, C], [1 / 3] * 3, max_iter=50, tol=1e-7)
    near(load_method("karcher")(A, B, C, iterations=50, tolerance=1e-7), theirs, 1e-4)


@pytest.mark.parametrize("density", [0.1, 0.35, 0.8])
def test_mergekit_trims_and_elects_alike(density: float) -> None:
    magnitude = kit("sparsify").magnitude
    get_mask = kit("merge_methods.generalized_task_arithmetic").get_mask
    weights = torch.tensor([1.0, 0.5, 2.0])[:, None, None]
    deltas = torch.stack([magnitude(model, density) for model in (A, B, C)]) * weights
    mask = get_mask(deltas, method="sum", mask_dtype=torch.float32)
    mass = (weights * mask).sum(0)
    expected = (deltas * mask).sum(0) / torch.where(mass == 0, 1.0, mass)
    near(load_method("ties")(A, B, C, density=density, weights=(1.0, 0.5, 2.0)), expected)


def test_mergekit_breadcrumbs_agree() -> None:
    outliers = kit("sparsify").magnitude_outliers
    near(load_method("breadcrumbs")(A, density=0.4, gamma=0.1), outliers(A, 0.4, gamma=0.1))


def test_mergekit_sce_weights_agree() -> None:
    sce = kit("merge_methods.sce")
    get_mask = kit("merge_methods.generalized_task_arithmetic").get_mask
    deltas = torch.stack([A, B, C])
    deltas = deltas * sce.sce_mask(deltas, 0.5)
    mask = get_mask(deltas, method="sum", mask_dtype=torch.float32)
    weights = sce.sce_weight(deltas)[:, None, None] * mask
    near(load_method("sce")(A, B, C, density=0.5), (deltas * weights).sum(0) / weights.sum(0).clamp(min=1e-6))


def test_mergekit_fusion_agrees() -> None:
    """Below a million numbers mergekit takes exact quartiles too."""
    fusion = kit("merge_methods.arcee_fusion")
    importance = fusion._compute_importance(B, A)
    mask, _ = fusion.DynamicThresholdFusion().compute_fusion_mask(importance)
    near(load_method("fusion")(A, B), A + (B - A) * mask)


def test_the_tangent_step_of_multi_slerp_is_zero() -> None:
    """mergekit's tangent vectors are weighted as the mean they are tangent to, so their sum vanishes."""
    kit("merge_methods.multislerp")
    units = torch.stack([model.flatten() / model.norm() for model in (A, B, C)]).double()
    weights = torch.tensor([[0.5], [0.3], [0.2]]).double()
    mean = (units * weights).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    assert float((tangents * weights).sum(0).norm()) < 1e-7
