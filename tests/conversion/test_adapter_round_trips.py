"""Adapters of any ranks, alphas, types and modules, through every format that holds them, and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import models
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import sdkit
from sdkit.adapters.compare import relative_error
from sdkit.formats import described, formats, read_adapter
from sdkit.jobs.merge_checks import known_model
from sdkit.weights import open_weights

# These have tests of their own: the first needs every layer, the second lies within bases, the third is of one component.
NARROW = ("cloneofsimo", "lidb", "kohya:wrapper")
FORMATS = [
    f"{format.name}:{dialect.name}" if dialect.name else format.name
    for format in map(described, formats().values())
    if "lora" in format.holds
    for dialect in format.dialects
]
FORMATS = [name for name in FORMATS if name not in NARROW]
MODULES = models.sd1_modules()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(models.sd1(), tmp_path_factory.mktemp("base") / "base.safetensors")


adapters = st.dictionaries(
    st.sampled_from(sorted(MODULES)),
    st.tuples(st.integers(1, 5), st.sampled_from([None, 0.1, 1.0, 3.0, 64.0]), st.integers(0, 99)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(adapters, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.sampled_from(FORMATS))
def test_there_and_back(
    base: Path, parts: dict[str, tuple[int, float | None, int]], dtype: torch.dtype, to: str
) -> None:
    tensors: models.Tensors = {}
    for name, (rank, alpha, seed) in parts.items():
        made = models.kohya_lora({name: MODULES[name]}, rank=rank, alpha=alpha, seed=seed)
        tensors |= {key: tensor if key.endswith("alpha") else tensor.to(dtype) for key, tensor in made.items()}
    with tempfile.TemporaryDirectory() as folder:
        source = models.save(tensors, Path(folder, "a.safetensors"))
        there = sdkit.convert(source, to, Path(folder, "there"), base=base)
        back = sdkit.convert(there.output, "kohya", Path(folder, "back.safetensors"), base=base)
        after = load_file(back.output)
        assert {key for key in after if not key.endswith("alpha")} == {
            key for key in tensors if not key.endswith("alpha")
        }
        assert all(torch.equal(after[key], tensor) for key, tensor in tensors.items() if not key.endswith("alpha"))
        for name in parts:
            assert torch.allclose(models.delta(after, name), models.delta(tensors, name), rtol=1e-7, atol=0)
        assert there.proof.changes == len(parts) and there.proof.error < 1e-7


def test_the_comparison_finds_what_is_wrong(tmp_path: Path, base: Path) -> None:
    """One number of one factor, or one alpha, in a file that is otherwise the same."""
    tensors = models.kohya_lora(dict(list(MODULES.items())[:2]))
    names = [name.partition(".")[0] for name in tensors if name.endswith("alpha")]
    other = {key: tensor.clone() for key, tensor in tensors.items()}
    other[f"{names[0]}.lora_up.weight"].view(-1)[3] *= 1.001
    other[f"{names[1]}.alpha"] *= 1.5
    paths = [models.save(one, tmp_path / f"{index}.safetensors") for index, one in enumerate((tensors, other))]
    with open_weights(base) as weights:
        model = known_model(weights)
    one, two = (read_adapter(open_weights(path), model).deltas for path in paths)
    for target, name in zip(one, names, strict=True):
        before, after = models.delta(tensors, name), models.delta(other, name)
        wanted = float((before - after).norm() / before.norm())
        assert relative_error(one[target], two[target]) == pytest.approx(wanted, rel=1e-6)
        assert relative_error(one[target], one[target]) == 0.0
