"""Every merge method against its formula, written out again in the plainest way."""

from __future__ import annotations

import math
import statistics
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdkit.core.errors import UsageError
from sdkit.merging.method import load_method, methods
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole

A = torch.tensor(
    [[1.0, -2.0, 0.5, 0.0], [0.25, 3.0, -1.0, 2.0], [-0.5, 0.75, 1.5, -3.0], [4.0, 0.125, -0.25, 1.0]]
).double()
B = torch.tensor(
    [[0.5, 2.0, 0.5, 1.0], [-0.75, 2.0, -2.0, 1.0], [0.5, 1.75, 1.0, -1.0], [3.0, 0.5, 0.25, -1.0]]
).double()
C = torch.tensor(
    [[0.0, 1.0, 0.5, -1.0], [0.5, 2.5, -1.5, 3.0], [0.5, 0.25, -1.0, -2.0], [2.0, -0.5, 0.25, 0.5]]
).double()
MODELS = {"a": A, "b": B, "c": C}


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


def sigmoid(t: float) -> float:
    return t * t * (3 - 2 * t)


def opposite(a: float, b: float, c: float) -> float:
    bottom = abs(a - b) + abs(a + b - 2 * c)
    return 2 * abs(a - b) / bottom if bottom else 0.0


def strict(a: float, b: float, c: float) -> float:
    largest = max(abs(a - c), abs(b - c))
    return 2 * max(0.0, (c - a) * (b - c) / largest**2) if largest else 0.0


def trained(a: float, b: float, c: float) -> float:
    bottom = abs(b - c) + abs(b - a)
    return sign(b - c) * abs(b - c) * (abs(b - a) / bottom if bottom else 0.0)


def similar(a: float, b: float, c: float, alpha: float, beta: float) -> float:
    largest = max(abs(a), abs(b))
    s = beta * (a * b / largest**2 + 1) / 2 if largest else 0.0
    return (1 - s) * (a + alpha * (b - c)) + s * ((1 - alpha / 2) * a + alpha / 2 * b)


def quotient(a: float, b: float, c: float, alpha: float) -> float:
    if 0.0 in (a, b, c):
        return a
    x, y = math.log(abs(a / c)), math.log(abs(b / c))
    largest = max(abs(x), abs(y))
    power = alpha * max(0.0, -x * y / largest**2) if largest else 0.0
    return (a * complex(b / c) ** power).real


NUMBER_BY_NUMBER = {
    "weighted-sum": ({"alpha": 0.3}, lambda a, b: 0.7 * a + 0.3 * b),
    "n-average": ({}, lambda a, b, c: statistics.fmean((a, b, c))),
    "linear": ({"weights": (0.5, 0.75, -0.25)}, lambda a, b, c: 0.5 * a + 0.75 * b - 0.25 * c),
    "sigmoid": ({"alpha": 0.3}, lambda a, b: a + sigmoid(0.3) * (b - a)),
    "inverse-sigmoid": ({"alpha": sigmoid(0.3)}, lambda a, b: a + 0.3 * (b - a)),
    "add-difference": ({"alpha": 0.7}, lambda a, b, c: a + 0.7 * (b - c)),
    "add-difference-clamped": ({"alpha": 0.7}, lambda a, b, c: max(min(a, b), min(max(a, b), a + 0.7 * (b - c)))),
    "triple-sum": ({"alpha": 0.2, "beta": 0.3}, lambda a, b, c: 0.5 * a + 0.2 * b + 0.3 * c),
    "sum-twice": ({"alpha": 0.2, "beta": 0.3}, lambda a, b, c: 0.7 * (0.8 * a + 0.2 * b) + 0.3 * c),
    "subtraction": ({"alpha": 0.5, "beta": 0.5}, lambda a, b: (a - 0.25 * b) / 0.75),
    "scale": ({"alpha": 1.5}, lambda a: 1.5 * a),
    "train-difference": ({"alpha": 0.5}, lambda a, b, c: a + 0.9 * trained(a, b, c)),
    "add-opposite": ({"alpha": 0.5}, lambda a, b, c: a + 0.5 * opposite(a, b, c) * (b - c)),
    "add-strict-opposite": ({"alpha": 0.5}, lambda a, b, c: a + 0.5 * strict(a, b, c) * (b - c)),
    "multiply-difference": (
        {"alpha": 0.3, "beta": 0.6},
        lambda a, b, c: c + sign(0.4 * a + 0.6 * b - c) * abs(a - c) ** 0.7 * abs(b - c) ** 0.3,
    ),
    "similarity-difference": ({"alpha": 0.5, "beta": 0.8}, lambda a, b, c: similar(a, b, c, 0.5, 0.8)),
    "geometric-sum": ({"alpha": 0.3}, lambda a, b: (complex(a) ** 0.7 * complex(b) ** 0.3).real),
    "multiply-quotient": ({"alpha": 0.5}, lambda a, b, c: quotient(a, b, c, 0.5)),
    "nearswap": ({"distance": 0.75}, lambda a, b: a + max(-0.75, min(0.75, b - a))),
    "clamp": ({}, lambda a, b, c: min(max(a, min(b, c)), max(b, c))),
}


@pytest.mark.parametrize("name", NUMBER_BY_NUMBER)
def test_a_method_that_looks_at_single_numbers_follows_its_formula(name: str) -> None:
    values, formula = NUMBER_BY_NUMBER[name]
    inputs = [A, B, C][: formula.__code__.co_argcount]
    expected = torch.tensor([[formula(*(float(m[i, j]) for m in inputs)) for j in range(4)] for i in range(4)])
    torch.testing.assert_close(load_method(name)(*inputs, **values), expected.double(), rtol=1e-6, atol=1e-6)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.acos((unit(x) * unit(y)).sum())


def close(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_slerp() -> None:
    omega = angle(A, B)
    one, other = torch.sin(0.7 * omega) / torch.sin(omega), torch.sin(0.3 * omega) / torch.sin(omega)
    close(load_method("slerp")(A, B, alpha=0.3, norms="keep"), one * A + other * B)
    on_sphere = one * unit(A) + other * unit(B)
    close(load_method("slerp")(A, B, alpha=0.3), on_sphere * (0.7 * A.norm() + 0.3 * B.norm()))
    close(load_method("nuslerp")(A, B, weights=(1.4, 0.6)), one * A + other * B)


@pytest.mark.parametrize("other", [A, -A, 0 * A, 2 * A])
def test_slerp_of_parallel_models_is_a_weighted_sum(other: torch.Tensor) -> None:
    close(load_method("slerp")(A, other, alpha=0.25), 0.75 * A + 0.25 * other)


def test_multi_slerp_and_karcher() -> None:
    lengths = (A.norm() + B.norm() + C.norm()) / 3
    direction = unit(unit(A) + unit(B) + unit(C))
    close(load_method("multi-slerp")(A, B, C), direction * lengths)
    mean = unit(load_method("karcher")(A, B, C, iterations=200, tolerance=1e-14))
    # At the Karcher mean the tangent vectors to all models cancel.
    pulls = [angle(mean, m) * unit(unit(m) - (unit(m) * mean).sum() * mean) for m in (A, B, C)]
    assert float(sum(pulls).norm()) < 1e-9
    halfway = load_method("slerp")(A, B, alpha=0.5)
    torch.testing.assert_close(load_method("karcher")(A, B), halfway, rtol=1e-6, atol=1e-6)


def test_model_stock_takes_all_pairs() -> None:
    cosines = [torch.cos(angle(x, y)) for x, y in ((A, B), (A, C), (B, C))]
    mean = sum(cosines) / 3
    close(load_method("model-stock")(A, B, C), 3 * mean / (1 + 2 * mean) * (A + B + C) / 3)


def test_geometric_median_is_the_point_where_the_pulls_cancel() -> None:
    found = load_method("geometric-median")(A, B, C, iterations=2000, tolerance=0.0)
    assert float(sum(unit(found - m) for m in (A, B, C)).norm()) < 1e-5
    outlier = load_method("geometric-median")(A, A + 0.01, A - 0.01, A + 1000)
    assert float((outlier - A).abs().max()) < 0.05


def test_add_perpendicular() -> None:
    a, b = A - C, B - C
    close(load_method("add-perpendicular")(A, B, C, alpha=0.5), A + 0.5 * (b - a * (a * b).sum() / (a * a).sum()))


def test_euclidean_difference() -> None:
    a, b = A - C, B - C
    root = (0.7 * unit(a) ** 2 + 0.3 * unit(b) ** 2).sqrt()
    signed = torch.copysign(root, 0.7 * a + 0.3 * b)
    expected = C + unit(signed) * (0.7 * A + 0.3 * B - C).norm()
    close(load_method("euclidean-difference")(A, B, C, alpha=0.3), expected)
    same = load_method("euclidean-difference")(C, B, C, alpha=0.3)
    assert float((same - C).norm() - (0.7 * C + 0.3 * B - C).norm()) == pytest.approx(0, abs=1e-9)


def test_task_arithmetic() -> None:
    close(load_method("task-arithmetic")(A, B, alpha=0.5, weights=(1.0, 3.0)), 0.5 * (A + 3 * B))
    close(load_method("task-arithmetic")(A, B, alpha=0.5, weights=(1.0, 3.0), normalize=True), (A + 3 * B) / 8)


D1 = torch.tensor([[4.0, -1.0], [0.5, 2.0]])
D2 = torch.tensor([[-1.0, -3.0], [0.25, 2.5]])


def test_ties_by_hand() -> None:
    # Half of four numbers: D1 keeps 4 and 2, D2 keeps -3 and 2.5.
    expected = torch.tensor([[4.0, -3.0], [0.0, 2.25]])
    close(load_method("ties")(D1, D2, density=0.5), expected)
    close(load_method("ties")(D1, D2, density=0.5, alpha=0.5), expected / 2)
    # Untrimmed, the sum elects + - + +; by count the first is a draw, which keeps nothing.
    close(load_method("ties")(D1, D2, density=1.0), torch.tensor([[4.0, -2.0], [0.375, 2.25]]))
    close(load_method("ties")(D1, D2, density=1.0, majority="count"), torch.tensor([[0.0, -2.0], [0.375, 2.25]]))
    # A negative weight turns a model's sign round.
    close(load_method("ties")(D1, D2, density=1.0, weights=(1.0, -1.0)), torch.tensor([[5.0, -3.0], [0.5, 2.5]]))


def test_nuslerp_rows_goes_along_each_rows_own_arc() -> None:
    other = B.clone()
    other[3] = 2 * A[3]  # the same direction: a straight line
    result = load_method("nuslerp-rows")(A, other, weights=(3.0, 1.0))
    for row, (a, b) in enumerate(zip(A[:3].tolist(), B[:3].tolist(), strict=True)):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        angle = math.acos(dot / math.hypot(*a) / math.hypot(*b))
        one, two = math.sin(0.75 * angle) / math.sin(angle), math.sin(0.25 * angle) / math.sin(angle)
        expected = [one * x + two * y for x, y in zip(a, b, strict=True)]
        torch.testing.assert_close(result[row], torch.tensor(expected).double())
    torch.testing.assert_close(result[3], 1.25 * A[3])


def left_by_ties(density: float) -> list[torch.Tensor]:
    """What TIES leaves of A, B and C, by loops."""
    kept = []
    for model in (A, B, C):
        cut = sorted(model.abs().flatten().tolist(), reverse=True)[int(density * 16) - 1]
        kept.append(torch.where(model.abs() >= cut, model, 0.0))
    total = kept[0] + kept[1] + kept[2]
    elected = torch.where(total >= 0, 1.0, -1.0)
    return [torch.where(model.sign() == elected, model, 0.0) for model in kept]


def test_ties_stock_shortens_the_mean_by_the_angles() -> None:
    left = left_by_ties(0.5)
    cosines = [
        float((x * y).sum() / x.norm() / y.norm()) for x, y in ((left[0], left[1]), (left[0], left[2]), left[1:])
    ]
    mean = sum(cosines) / 3
    count = sum((x != 0).double() for x in left).clamp(min=1)
    expected = 3 * mean / (1 + 2 * mean) * sum(left) / count
    torch.testing.assert_close(load_method("ties-stock")(A, B, C, density=0.5), expected)


def test_ties_median_is_the_median_of_what_is_left() -> None:
    found = load_method("ties-median")(A, B, C, density=0.5, alpha=2.0, iterations=10_000) / 2
    pulls = [(found - x) / (found - x).norm() for x in left_by_ties(0.5)]
    assert float(sum(pulls).norm()) < 1e-4  # type: ignore[union-attr]


def test_breadcrumbs_by_hand() -> None:
    delta = torch.arange(1.0, 21.0)
    kept = load_method("breadcrumbs")(delta, density=0.5, gamma=0.1)
    assert kept.nonzero().flatten().tolist() == list(range(8, 18))  # 19 and 20 are too large, 1 to 8 too small
    close(load_method("breadcrumbs-ties")(D1, D2, density=1.0), load_method("ties")(D1, D2, density=1.0))


def test_breadcrumbs_keep_small_tensors() -> None:
    """mergekit once cut `indices[n_bottom:-0]`, which is empty, so tensors below 1/gamma elements were zeroed."""
    kept = load_method("breadcrumbs")(torch.tensor([1.0, 2.0, 3.0, 4.0]), density=0.5, gamma=0.01)
    assert kept.tolist() == [0.0, 0.0, 3.0, 4.0]


def test_dare_keeps_the_mean_and_the_asked_for_share() -> None:
    delta = torch.ones(200_000)
    for name in ("dare-linear", "dare-ties", "dropout"):
        result = load_method(name)(delta, density=0.25, where=Where(1, "w", (200_000,)))
        assert set(result.unique().tolist()) == {0.0, 4.0}
        assert float(result.mean()) == pytest.approx(1.0, abs=0.02)


def test_draws_depend_on_seed_name_and_model_only() -> None:
    delta = torch.ones(1000)
    draw = lambda where: load_method("dare-linear")(delta, where=where)  # noqa: E731
    first = draw(Where(1, "w", (1000,)))
    assert torch.equal(first, draw(Where(1, "w", (1000,))))
    assert not torch.equal(first, draw(Where(2, "w", (1000,))))
    assert not torch.equal(first, draw(Where(1, "v", (1000,))))
    both = load_method("dare-linear")(delta, delta, where=Where(1, "w", (1000,)))
    assert 2.0 in both.tolist() and 4.0 in both.tolist()  # each model has its own mask


def test_della_keeps_large_changes_more_often() -> None:
    delta = torch.cat([torch.full((500,), 0.1), torch.full((500,), 1.0)]).repeat(100, 1)
    delta = delta + torch.linspace(0, 0.01, 1000)
    result = load_method("della-linear")(delta, density=0.5, epsilon=0.4, where=Where(0, "w", (100, 1000)))
    small, large = (result[:, :500] != 0).float().mean(), (result[:, 500:] != 0).float().mean()
    assert float(small) == pytest.approx(0.3, abs=0.02) and float(large) == pytest.approx(0.7, abs=0.02)
    assert float(result.mean()) == pytest.approx(float(delta.mean()), rel=0.03)
    with pytest.raises(UsageError, match="leaves the range"):
        load_method("della")(delta, density=0.1, epsilon=0.15)


def test_sce_by_hand() -> None:
    weights = torch.tensor([D1.square().mean(), D2.square().mean()])
    w1, w2 = (weights / weights.sum()).tolist()
    expected = torch.tensor([[4.0, -w1 - 3 * w2], [0.5 * w1 + 0.25 * w2, 2 * w1 + 2.5 * w2]])
    torch.testing.assert_close(load_method("sce")(D1, D2), expected)
    only = load_method("sce")(D1, D2, density=0.5)  # the two places where the models differ most
    assert only[1].tolist() == [0.0, 0.0] and float(only[0, 0]) == 4.0


def test_fusion_takes_the_important_changes() -> None:
    p, q = B.softmax(-1) + 1e-8, A.softmax(-1) + 1e-8
    importance = (B - A).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    cut = ordered[7] + 1.5 * (ordered[11] - ordered[3])
    close(load_method("fusion")(A, B), torch.where(importance >= cut, B, A))
    assert torch.equal(load_method("fusion")(A, A), A)


@pytest.mark.parametrize(("name", "whole"), [("cosine-a", 0), ("cosine-b", 1)])
def test_cosine(name: str, whole: int) -> None:
    cosine = torch.nn.functional.cosine_similarity(A, B, 0)
    if whole:
        cosine = (cosine + (unit(A) * unit(B)).sum()) / 2
    close(load_method(name)(A, B, alpha=0.2), A.lerp(B, (1 - (cosine - 0.2).clamp(0, 1)).expand(4, 4)))
    vector = torch.nn.functional.cosine_similarity(A[0], B[0], 0)
    close(load_method(name)(A[0], B[0], alpha=0.0), A[0].lerp(B[0], 1 - vector.clamp(0, 1)))


def test_tensor_sum_takes_rows_round_the_end() -> None:
    method = load_method("tensor-sum")
    assert torch.equal(method(A, B, alpha=0.5, beta=0.25), torch.stack([A[0], B[1], B[2], A[3]]))
    assert torch.equal(method(A, B, alpha=0.5, beta=0.75), torch.stack([B[0], A[1], A[2], B[3]]))


def test_tensor_sum_takes_columns_of_wide_tensors() -> None:
    method, a, b = load_method("tensor-sum"), torch.zeros(2, 128, 3), torch.ones(2, 128, 3)
    out = method(a, b, alpha=0.25, beta=0.5, axis="columns")
    assert out[:, 64:96].eq(1).all() and out.sum() == 2 * 32 * 3
    assert torch.equal(method(A, B, alpha=0.5, axis="columns"), method(A, B, alpha=0.5))  # 4 columns are few


def test_top_k_tensor_sum_by_hand() -> None:
    a, b = torch.tensor([1.0, -4.0, 3.0, 2.0]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    method = load_method("top-k-tensor-sum")
    assert method(a, b).tolist() == [3.0, 2.0, 1.0, -4.0]  # A's numbers, falling as B does
    assert method(a, b, alpha=0.5).tolist() == [1.0, 2.0, 1.0, 2.0]  # only those whose dealt number is at most 2
    assert method(a, b, alpha=0.5, beta=0.75).tolist() == [1.0, -4.0, 3.0, -4.0]  # the largest only


def test_distribution_crossover() -> None:
    method = load_method("distribution-crossover")
    mixed = method(A, B, C, alpha=0.5)
    order = C.flatten().argsort(stable=True)
    a, b, out = (torch.fft.rfft(values.flatten()[order]) for values in (A, B, mixed))
    torch.testing.assert_close(out[:5], a[:5])  # 0 to 8 sixteenths: the lower half is A's
    torch.testing.assert_close(out[5:], b[5:])
    close(method(A, B, C, alpha=0.25, tilt=1.0), A.lerp(B, 0.25))


def test_ram_by_hand() -> None:
    one, other = torch.tensor([4.0, 0.0, 2.0, 1e-7]), torch.tensor([2.0, 3.0, 0.0, 0.0])
    assert load_method("ram")(one, other).tolist() == [3.0, 3.0, 2.0, 0.0]
    assert load_method("ram")(one, other, unique=1.5, alpha=2.0).tolist() == [6.0, 9.0, 6.0, 0.0]


def test_truncate_kronecker() -> None:
    method = load_method("truncate-kronecker")
    one, other = A[:2, :2], B[:3, :4]
    product = torch.kron(one, other)  # [6, 8]
    shapes = {ratio: method(product, ratio=ratio) for ratio in (0.0, 0.25, 0.5, 1.0)}
    assert all(float((kept - product).norm()) < float(product.norm()) for kept in shapes.values())
    close(shapes[0.0], product)  # all numbers in W₂: the matrix itself
    small = torch.kron(A[:2, :4], B[:3, :2])
    close(method(small, ratio=0.5), small)  # 8 and 6 numbers are the most equal sizes
    conv = torch.einsum("ab,cdk->acbdk", A[:2, :3], B.reshape(2, 2, 4)).reshape(4, 6, 2, 2)
    close(method(conv, ratio=0.39), conv)  # 6 and 16 numbers
    large = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    blocks = large.reshape(10, 20, 20, 10).transpose(1, 2).reshape(200, 200)  # W₁ is 10 × 20
    best = torch.linalg.svdvals(blocks)[1:].norm()
    assert float((method(large) - large).norm()) == pytest.approx(float(best), rel=1e-4)


def test_rotate_finds_a_rotation() -> None:
    q = torch.linalg.qr(C).Q
    turned = A @ q
    method = load_method("rotate")
    torch.testing.assert_close(method(A, turned, centring=0.0), turned)
    centred = (A - A.mean(0)) @ q + B.mean(0)
    torch.testing.assert_close(method(A, centred), centred)  # means are B's then
    close(method(A, B, alpha=0.0, alignment=0.0), A)
    close(method(A, B, alpha=1.0, alignment=1.0), B)
    close(method(A[0], B[0], alpha=0.25), A[0].lerp(B[0], 0.25))


def test_half_a_rotation_twice_is_the_rotation() -> None:
    angle = torch.tensor(2.0).double()
    plane = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    q = torch.block_diag(plane, -torch.eye(2).double())  # a plane turned by 2 radians, another by half a turn
    half = load_method("rotate")(A, A @ q, alignment=0.5, centring=0.0)
    turn = torch.stack(
        [torch.stack([(angle / 2).cos(), (angle / 2).sin()]), torch.stack([-(angle / 2).sin(), (angle / 2).cos()])]
    )
    torch.testing.assert_close(half[:, :2], A[:, :2] @ turn)
    again = load_method("rotate")(half, A @ q, alignment=1.0, centring=0.0)
    torch.testing.assert_close(again, A @ q)
    torch.testing.assert_close(half @ half.t(), A @ A.t())  # a rotation keeps every length and angle
    near, far = (half - A).norm(), (A @ q - A).norm()
    assert 0.5 * far < near < 0.8 * far  # the chord of half the angle


@pytest.mark.parametrize("alignment", [1.0, 0.4])
def test_rotating_a_wide_matrix_keeps_its_lengths(alignment: float) -> None:
    """sd-mecha's transform of matrices with fewer rows than columns is no rotation and changes them."""
    generator = torch.Generator().manual_seed(0)
    wide, other = (torch.randn(3, 11, generator=generator).double() for _ in range(2))
    out = load_method("rotate")(wide, other, alignment=alignment, centring=0.0)
    torch.testing.assert_close(out @ out.t(), wide @ wide.t())
    best = torch.linalg.svdvals(wide.t() @ other).sum()  # the largest inner product that a rotation can reach
    reached = float((out * other).sum())
    assert reached == pytest.approx(float(best)) if alignment == 1.0 else float((wide * other).sum()) < reached < best


def test_balance_attention_keeps_the_product_and_evens_the_energies() -> None:
    names = [f"text_encoder.text_model.encoder.layers.0.self_attn.{side}" for side in ("q_proj", "k_proj", "v_proj")]
    names.append("text_encoder.text_model.encoder.layers.0.self_attn.out_proj")
    weights = dict(zip(names, (A, 5 * B, C, 0.1 * A + B), strict=True))
    biases = dict(zip(names, (A[0], B[1], C[2], A[3]), strict=True))
    parameters = {**{f"{n}.weight": w for n, w in weights.items()}, **{f"{n}.bias": b for n, b in biases.items()}}
    whole = Whole.of([parameters])
    method = load_method("balance-attention")
    out = {name: method(w, where=Where(0, name, tuple(w.shape)), whole=whole) for name, w in parameters.items()}
    both = {n: torch.cat([out[f"{n}.weight"], out[f"{n}.bias"][:, None]], 1) for n in names}
    q, k, v = (both[n] for n in names[:3])
    before = [torch.cat([weights[n], biases[n][:, None]], 1) for n in names[:3]]
    torch.testing.assert_close(q.t() @ k, before[0].t() @ before[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q @ q.t(), k @ k.t(), rtol=1e-3, atol=1e-3)
    to_out = out[f"{names[3]}.weight"]
    torch.testing.assert_close(to_out @ v, weights[names[3]] @ before[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_out.t() @ to_out, v @ v.t(), rtol=1e-3, atol=1e-3)
    assert torch.equal(out[f"{names[3]}.bias"], A[3])


def test_adjust_changes_the_ends_of_the_unet() -> None:
    adjust = load_method("adjust")

    def at(name: str, values: torch.Tensor, **amounts: float) -> list[float]:
        return adjust(values, where=Where(0, name, tuple(values.shape)), **amounts).tolist()

    ones = torch.ones(4)
    assert at("unet.conv_in.weight", ones, detail_in=2.0) == pytest.approx([0.98] * 4)
    assert at("unet.conv_in.bias", ones, detail_in=2.0) == pytest.approx([1.04] * 4)
    assert at("unet.conv_norm_out.bias", ones, detail_out=-1.0) == pytest.approx([0.98] * 4)
    assert at("unet.conv_out.weight", ones, smoothness=1.0) == pytest.approx([0.99] * 4)
    assert at("unet.conv_out.bias", 0 * ones, contrast=1.0, red=0.5) == pytest.approx([0.02, 0.01, 0.01, 0.0])
    assert at("unet.mid_block.resnets.0.conv1.weight", ones, detail_in=2.0, contrast=3.0) == [1.0] * 4


@pytest.mark.parametrize(("name", "averaged"), [("cosine-a", False), ("cosine-b", True)])
def test_cosines_stretched_over_the_model(name: str, averaged: bool) -> None:
    """supermerger's two passes, written out: all columns' cosines, trimmed, give the range."""
    models = [{"x": A, "y": B[:3]}, {"x": B, "y": (C + B)[:3]}]
    cosine, every = torch.nn.functional.cosine_similarity, []
    for key in ("x", "y"):
        each = cosine(models[0][key], models[1][key], 0)
        tensor = cosine(models[0][key].flatten(), models[1][key].flatten(), 0)
        every += ((each + tensor) / 2 if averaged else each).tolist()
    every = sorted(every)[1:]  # a hundredth of 8 numbers, at the midpoint of the two lowest; then of the two highest
    every = every[:-1]
    each = cosine(A, B, 0)
    unit_columns = (A / A.norm(dim=0)).flatten(), (B / B.norm(dim=0)).flatten()
    tensor = cosine(A.flatten(), B.flatten(), 0) if averaged else cosine(*unit_columns, 0)
    k = (((each + tensor) / 2 - every[0]) / (every[-1] - every[0]) - 0.2).clamp(0, 1)
    whole = Whole.of(models)
    out = load_method(name)(A, B, whole=whole, where=Where(0, "x", (4, 4)), alpha=0.2, scale="model")
    torch.testing.assert_close(out, k * A + (1 - k) * B, rtol=1e-5, atol=1e-5)


def test_extract() -> None:
    cosine = torch.nn.functional.cosine_similarity(A, B, 1)[:, None]
    d = ((cosine + 1) / 2) ** 2
    close(load_method("extract")(A, B, alpha=0.25, beta=0.0, gamma=2.0), A.lerp(B, 0.25) * d)
    close(load_method("extract")(A, B, alpha=0.25, beta=1.0, gamma=2.0), A.lerp(B, 0.25) * (1 - d))


def test_truncate_rank() -> None:
    assert torch.linalg.matrix_rank(load_method("truncate-rank")(A, rank=2)) == 2
    close(load_method("truncate-rank")(A, rank=4), A)
    best = float(torch.linalg.svdvals(A)[2:].norm())
    assert float((load_method("truncate-rank")(A, rank=2) - A).norm()) == pytest.approx(best)


def test_crossover() -> None:
    method = load_method("crossover")
    assert torch.equal(method(A, B, alpha=0.0), A) and torch.equal(method(A, B, alpha=1.0), B)
    close(method(A, B, alpha=0.25, tilt=1.0), A.lerp(B, 0.25))
    constant = A - A.mean()
    close(method(A, B, alpha=0.9).mean(), A.mean())  # the lowest frequency is A's
    close(method(constant, B, alpha=0.5) + method(A - constant, 0 * B, alpha=0.5), method(A, B, alpha=0.5))


def test_smooth_add() -> None:
    def mirrored(i: int) -> int:
        return min(max(i, 0), 3)  # one step beyond the end is the end itself again

    difference = B - C
    medians = torch.tensor(
        [
            [
                statistics.median(
                    float(difference[mirrored(i + u), mirrored(j + v)]) for u, v in product((-1, 0, 1), repeat=2)
                )
                for j in range(4)
            ]
            for i in range(4)
        ]
    ).double()
    method = load_method("smooth-add")
    close(method(A, B, C, alpha=0.5, sigma=0.0), A + 0.5 * medians)
    smooth = method(A, B, C) - A
    assert float(smooth.mean()) == pytest.approx(float(medians.mean()))  # mirrored ends keep the mean
    assert float(smooth.std()) < float(medians.std())


def test_plus_random_leaves_output_projections_alone() -> None:
    method = load_method("plus-random")
    assert torch.equal(method(A, alpha=1.0, where=Where(0, "unet.x.attn1.to_out.0.weight", (4, 4))), A)
    noise = method(torch.zeros(100_000), alpha=0.5, where=Where(0, "unet.conv_in.weight", (100_000,)))
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02) and abs(float(noise.mean())) < 0.01


def test_weights_must_sum_to_one() -> None:
    with pytest.raises(UsageError, match="sum to 3, not 1"):
        load_method("linear")(A, B, weights=(2.0, 1.0))
    close(load_method("linear")(A, B, weights=(2.0, 1.0), normalize=True), (2 * A + B) / 3)
    with pytest.raises(UsageError, match="2 weights for 3 models"):
        load_method("linear")(A, B, C, weights=(0.5, 0.5))


numbers = st.floats(-8, 8, width=32)
tensors = st.lists(numbers, min_size=6, max_size=6).map(lambda values: torch.tensor(values).view(2, 3).double())
AT_ZERO = ["weighted-sum", "sigmoid", "inverse-sigmoid", "slerp", "geometric-sum", "tensor-sum", "crossover"]


@pytest.mark.parametrize("name", AT_ZERO)
@settings(max_examples=25, deadline=None)
@given(a=tensors, b=tensors)
def test_at_zero_it_is_a_and_at_one_it_is_b(name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(load_method(name)(a, b, alpha=0.0), a, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(load_method(name)(a, b, alpha=1.0), b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["weighted-sum", "sigmoid", "inverse-sigmoid", "slerp", "geometric-sum"])
@settings(max_examples=25, deadline=None)
@given(a=tensors, b=tensors, alpha=st.integers(1, 15).map(lambda n: n / 16))
def test_exchanging_the_models_reverses_alpha(name: str, a: torch.Tensor, b: torch.Tensor, alpha: float) -> None:
    method = load_method(name)
    torch.testing.assert_close(method(a, b, alpha=alpha), method(b, a, alpha=1 - alpha), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["n-average", "linear", "multi-slerp", "geometric-median", "ties", "model-stock", "sce"]
)
@settings(max_examples=25, deadline=None)
@given(a=tensors, b=tensors, c=tensors)
def test_the_order_of_models_does_not_matter(name: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    method = load_method(name)
    torch.testing.assert_close(method(a, b, c), method(c, a, b), rtol=1e-5, atol=1e-5)


SCALES = ["weighted-sum", "add-difference", "train-difference", "slerp", "add-opposite", "multi-slerp", "ties", "clamp"]


@pytest.mark.parametrize("name", SCALES)
@settings(max_examples=25, deadline=None)
@given(a=tensors, b=tensors, c=tensors)
def test_twice_the_models_is_twice_the_result(name: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    method = load_method(name)
    models = [a, b, c][: 3 if method.variadic else len(method.models)]
    doubled = method(*(2 * model for model in models))
    torch.testing.assert_close(doubled, 2 * method(*models), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(methods()))
def test_equal_models_stay_as_they_are(name: str) -> None:
    """Blending a model with itself is that model, except for the methods made to change it."""
    method = load_method(name)
    if name in {
        "extract",
        "scale",
        "plus-random",
        "truncate-rank",
        "truncate-kronecker",
        "dare-linear",
        "dare-ties",
        "della",
        "della-linear",
    }:
        pytest.skip("changes a single model on purpose")
    models = [A] * (3 if method.variadic else len(method.models))
    values: dict[str, object] = {
        "task-arithmetic": {"normalize": True},
        "breadcrumbs": {"weights": (0.5, 0.25, 0.25)},
    }.get(name, {})
    values = values | ({"density": 1.0} if "density" in method.parameters else {})
    close(method(*models, **values), A)
