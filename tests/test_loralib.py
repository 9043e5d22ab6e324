"""sdkit.loralib beside the package loralib, and beside formulas written out."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sdkit.loralib as lora
from sdkit.core.errors import UsageError

# How each layer is made, and what it is given.
LAYERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], Any]] = {
    "linear": ("Linear", (6, 5), {"r": 2, "lora_alpha": 3}, (4, 6)),
    "linear, plain": ("Linear", (6, 5), {}, (4, 6)),
    "linear, dropout": ("Linear", (6, 5), {"r": 2, "lora_dropout": 0.5}, (4, 6)),
    "linear, turned": ("Linear", (6, 5), {"r": 2, "fan_in_fan_out": True, "bias": False}, (2, 4, 6)),
    "merged": ("MergedLinear", (6, 12), {"r": 2, "lora_alpha": 3, "enable_lora": [True, False, True]}, (2, 4, 6)),
    "merged, turned": ("MergedLinear", (6, 12), {"r": 2, "enable_lora": [False, True], "fan_in_fan_out": True}, (4, 6)),
    "embedding": ("Embedding", (9, 4), {"r": 2, "padding_idx": 1}, 9),
    "conv2d": ("Conv2d", (4, 6, 3), {"r": 2, "lora_alpha": 4, "stride": 2, "padding": 1}, (2, 4, 8, 8)),
    "conv2d, groups": ("Conv2d", (4, 6, 3), {"r": 2, "groups": 2, "padding_mode": "reflect"}, (2, 4, 8, 8)),
}


def made(library: Any, name: str) -> nn.Module:
    kind, sizes, options, _ = LAYERS[name]
    torch.manual_seed(0)
    layer: nn.Module = getattr(library, kind)(*sizes, **options)
    for key, parameter in layer.named_parameters():
        if key.startswith("lora_"):  # one of the two begins at zero, which would hide everything
            torch.manual_seed(1 if key == "lora_A" else 2)
            parameter.data.normal_()
    return layer


def given(name: str) -> torch.Tensor:
    shape = LAYERS[name][3]
    torch.manual_seed(5)
    return torch.randint(shape, (3, 4)) if isinstance(shape, int) else torch.randn(shape)


def result(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of a loss, in the midst of training."""
    torch.manual_seed(7)  # for dropout
    layer.zero_grad()
    out = layer(x)
    (out.square().sum() + out.sum()).backward()
    gradients = {key.removeprefix("conv."): p.grad for key, p in layer.named_parameters() if p.grad is not None}
    return out.detach(), gradients


def evaluated(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    layer.eval()  # loralib's returns nothing
    out: torch.Tensor = layer(x)
    return out


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("loralib", reason="the package loralib, of the dev extra, is not installed")


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_seed_gives_loralib_s_outputs_and_gradients(name: str, theirs: Any) -> None:
    ours, original = made(lora, name).double(), made(theirs, name).double()  # so that any order of sums is the same
    x = given(name)
    x = x.double() if x.is_floating_point() else x
    (out, gradients), (wanted, wanted_gradients) = result(ours, x), result(original, x)
    torch.testing.assert_close(out, wanted)
    assert gradients.keys() == wanted_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[key])
    torch.testing.assert_close(evaluated(ours, x), evaluated(original, x))


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_layer_is_loralib_s_number_for_number(name: str, theirs: Any) -> None:
    kind, sizes, options, _ = LAYERS[name]
    states = []
    for library in (lora, theirs):
        torch.manual_seed(3)
        states.append(getattr(library, kind)(*sizes, **options).state_dict())
        states[-1]["next"] = torch.rand(1)
    original = {key.removeprefix("conv."): value for key, value in states[1].items()}
    assert states[0].keys() == original.keys()
    assert all(torch.equal(states[0][key], original[key]) for key in original)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "linear, plain"])
def test_files_go_both_ways(name: str, theirs: Any, tmp_path: Path) -> None:
    kind, sizes, options, _ = LAYERS[name]
    x, path = given(name), tmp_path / "lora.pt"
    for source, target in ((lora, theirs), (theirs, lora)):
        written = made(source, name)
        torch.save(source.lora_state_dict(written), path)
        torch.manual_seed(0)
        read = getattr(target, kind)(*sizes, **options)
        report = read.load_state_dict(torch.load(path, weights_only=True), strict=False)
        assert not report.unexpected_keys
        torch.testing.assert_close(evaluated(read, x), evaluated(written, x))


def test_a_whole_checkpoint_of_loralib_s_convolution_loads(theirs: Any) -> None:
    original = made(theirs, "conv2d")
    ours = lora.Conv2d(4, 6, 3, r=2, lora_alpha=4, stride=2, padding=1)
    ours.load_state_dict(original.state_dict())
    x = given("conv2d")
    torch.testing.assert_close(ours(x), original(x))


def factors(layer: Any) -> Any:
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    return layer


@pytest.mark.parametrize("kernel", [3, "rectangle"])
@pytest.mark.parametrize(("dimensions", "groups"), [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)])
def test_convolutions_of_every_dimension(dimensions: int, groups: int, kernel: Any) -> None:
    kernel = (2, 3, 1)[:dimensions] if kernel == "rectangle" else kernel
    torch.manual_seed(0)
    ours, plain = getattr(lora, f"Conv{dimensions}d"), getattr(nn, f"Conv{dimensions}d")
    layer = factors(ours(4, 6, kernel, r=2, lora_alpha=5, groups=groups))
    x = torch.randn(2, 4, *[5] * dimensions)
    reference = plain(4, 6, kernel, groups=groups)
    product = layer.lora_B.double() @ layer.lora_A.double() * 5 / 2
    reference.weight.data = (layer.weight.double() + product.reshape(layer.weight.shape)).float()
    reference.bias.data = layer.bias.data
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer.eval()(x), reference(x))


def test_a_convolution_drops_what_its_factors_read() -> None:
    layer = factors(lora.Conv2d(3, 4, 3, r=2, lora_dropout=0.5))
    x = torch.randn(1, 3, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_the_formula_of_merged_layers() -> None:
    layer = factors(lora.MergedLinear(6, 9, r=2, lora_alpha=4, enable_lora=[True, False, True]))
    x = torch.randn(5, 6)
    parts = [F.linear(x, layer.weight[3 * n : 3 * n + 3], layer.bias[3 * n : 3 * n + 3]) for n in range(3)]
    parts[0] = parts[0] + 2 * x @ layer.lora_A[:2].T @ layer.lora_B[:3].T
    parts[2] = parts[2] + 2 * x @ layer.lora_A[2:].T @ layer.lora_B[3:].T
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))
    torch.testing.assert_close(layer.eval()(x), torch.cat(parts, 1))


def test_merged_layers_none_of_which_has_a_lora_are_a_linear_layer() -> None:
    layer = lora.MergedLinear(6, 9, r=2, enable_lora=[False, False, False])
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.eval()(x), layer(x)) and layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "linear, turned", "merged", "embedding", "conv2d"])
def test_unmerging_gives_back_every_bit(name: str, dtype: torch.dtype) -> None:
    layer: Any = made(lora, name).to(dtype)
    before = layer.weight.clone()
    for _ in range(20):
        assert layer.eval() is layer and layer.merged
        assert not torch.equal(layer.weight, before)
        layer.train()
        assert torch.equal(layer.weight, before) and layer.weight.stride() == before.stride()


def test_moving_and_copying_a_merged_layer_takes_the_original_along() -> None:
    layer: Any = made(lora, "linear")
    before = layer.weight.clone()
    moved = copy.deepcopy(layer.eval()).double().train()
    assert moved.weight.dtype == torch.float64 and torch.equal(moved.weight, before.double())


def test_a_checkpoint_is_the_same_whether_training_or_not() -> None:
    model = nn.Sequential(made(lora, "linear"), nn.ReLU())
    training = {key: value.clone() for key, value in model.state_dict().items()}
    evaluating = model.eval().state_dict()
    assert list(training) == ["0.weight", "0.bias", "0.lora_A", "0.lora_B"] == list(evaluating)
    assert all(torch.equal(training[key], evaluating[key]) for key in training)


def test_factors_loaded_into_a_merged_layer_count_at_once() -> None:
    x = given("linear")
    source: Any = made(lora, "linear")
    wanted = source(x)
    layer = made(lora, "linear")
    layer.lora_A.data.zero_()  # type: ignore[operator, union-attr]
    layer.eval().load_state_dict(lora.lora_state_dict(source), strict=False)
    torch.testing.assert_close(layer(x), wanted)
    layer.train()
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("training", [True, False])
def test_merged_weights_are_for_the_plain_model(training: bool) -> None:
    model = nn.Sequential(made(lora, "linear"), nn.ReLU())
    model.train(training)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    plain.load_state_dict(lora.merged_state_dict(model))
    torch.testing.assert_close(plain(given("linear")), model(given("linear")))


def test_layers_that_do_not_merge() -> None:
    layer = factors(lora.Linear(4, 3, r=1, merge_weights=False)).eval()
    x = torch.randn(2, 4)
    assert not layer.merged
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + layer.lora_B @ layer.lora_A, layer.bias))


class Model(nn.Module):
    """A model with a module that is only called like a LoRA."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.lora_encoder = nn.Linear(3, 3)
        self.query = library.Linear(3, 3, r=1)
        self.plain = library.Linear(3, 3, r=0)
        self.norm = nn.LayerNorm(3)


@pytest.mark.parametrize(
    ("bias", "wanted"),
    [
        ("none", {"query.lora_A", "query.lora_B"}),
        ("lora_only", {"query.lora_A", "query.lora_B", "query.bias"}),
        (
            "all",
            {"query.lora_A", "query.lora_B", "query.bias", "lora_encoder.bias", "plain.bias", "norm.bias"},
        ),
    ],
)
def test_what_trains_is_what_is_saved(bias: str, wanted: set[str]) -> None:
    model = Model(lora)
    lora.mark_only_lora_as_trainable(model, bias)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    assert set(lora.lora_state_dict(model, bias)) == wanted


def test_loralib_s_own_layers_are_found_too(theirs: Any) -> None:
    model = Model(theirs)
    assert set(lora.lora_state_dict(model)) == {"query.lora_A", "query.lora_B"}


def test_what_cannot_be_is_named() -> None:
    model = Model(lora)
    for call in (lora.mark_only_lora_as_trainable, lora.lora_state_dict):
        with pytest.raises(UsageError, match="bias=some: unknown"):
            call(model, "some")
    with pytest.raises(UsageError, match="10 outputs cannot be divided among 3 layers"):
        lora.MergedLinear(4, 10, r=1, enable_lora=[True, False, True])
    with pytest.raises(UsageError, match="r=-1"):
        lora.Linear(4, 4, r=-1)
    with pytest.raises(UsageError, match="max_norm"):
        lora.Embedding(4, 4, r=1, max_norm=1.0)


def test_a_step_trains_the_factors_alone() -> None:
    model = nn.Sequential(lora.Linear(4, 8, r=2), nn.ReLU(), lora.Linear(8, 1, r=2))
    lora.mark_only_lora_as_trainable(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B"}


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "loralib.md").read_text(encoding="utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "loralib.md", "exec"), {})
    assert set(torch.load("lora.pt", weights_only=True)) == {"0.lora_A", "0.lora_B"}
    nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)).load_state_dict(
        torch.load("merged.pt", weights_only=True)
    )


def test_it_needs_nothing_of_diffusion() -> None:
    program = """
import sys
import sdkit.loralib
print([name for name in ("diffusers", "transformers", "sdkit.runtime", "sdkit.families") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
