"""Files that torch itself writes: every tensor comes out bit for bit, under a name that can be relied on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkit.weights import DTYPES, Weights, open_weights
from sdkit.weights.header import DamagedFileError
from sdkit.weights.pickle import PickleWeights, open_pickle
from sdkit.weights.reader import Container

FORMATS = [True, False]
# torch writes these in its new format alone.
ZIP_ONLY = {"U16", "U32", "U64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"}
KINDS = [name for name, dtype in DTYPES.items() if dtype.torch_name and dtype.itemsize]


@pytest.fixture(params=FORMATS, ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def saved(value: object) -> PickleWeights:
        path = tmp_path / "saved.pt"
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return open_pickle(path)

    return saved


def raw(tensor: torch.Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.view(tensor.shape).copy_(tensor.detach())
    return flat.view(torch.uint8).numpy().tobytes()


def same(weights: Weights, name: str, tensor: torch.Tensor) -> bool:
    info = weights.tensors[name]
    assert info.shape == tuple(tensor.shape) and info.dtype.torch_name == str(tensor.dtype).removeprefix("torch.")
    return weights.read(info) == raw(tensor)


@pytest.mark.parametrize(
    ("kind", "zipped"), [(kind, zipped) for kind in KINDS for zipped in FORMATS if zipped or kind not in ZIP_ONLY]
)
def test_every_dtype(tmp_path: Path, kind: str, zipped: bool) -> None:
    dtype = getattr(torch, DTYPES[kind].torch_name)
    data = torch.randint(0, 2, (6 * DTYPES[kind].itemsize,), dtype=torch.uint8).view(dtype).reshape(2, 3)
    torch.save({"a": data, "rest": data[1, 1:]}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with open_weights(tmp_path / "a.pt") as weights:
        assert weights.container == Container.PICKLE
        assert same(weights, "a", data) and same(weights, "rest", data[1, 1:])


def test_views_share_the_bytes_of_their_storage(save: Any) -> None:
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    views = {
        "base": base,
        "transposed": base.permute(3, 1, 0, 2),
        "sliced": base[:, 1:, ::2],
        "offset": base[1, 2],
        "expanded": base[0, 0, 0, :1].expand(3, 4),
        "reshaped": base.reshape(6, 20),
        "one_wide": base[:, :1].transpose(0, 1),
        "odd_stride_of_one": base.as_strided((1, 4, 1, 5), (7, 5, 3, 1)),
        "empty": base[:0],
        "scalar": base[1, 2, 3, 4],
    }
    weights = save(views)
    assert all(same(weights, name, view) for name, view in views.items())
    strided = {name for name, info in weights.tensors.items() if info.strides}
    assert strided == {"transposed", "sliced", "expanded", "one_wide"}
    assert weights.tensors["base"].offset == weights.tensors["reshaped"].offset
    assert weights.left_out == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_part_of_any_view(tmp_path: Path, data: st.DataObject, shape: list[int]) -> None:
    base = torch.arange(math.prod(shape), dtype=torch.int16).reshape(shape)
    view = base.permute(data.draw(st.permutations(range(len(shape)))))
    view = view[
        tuple(slice(data.draw(st.integers(0, size - 1)), None, data.draw(st.integers(1, 2))) for size in view.shape)
    ]
    torch.save([view, base], tmp_path / "v.pt")
    with open_pickle(tmp_path / "v.pt") as weights:
        whole = raw(view)
        start = data.draw(st.integers(0, len(whole)))
        part = bytearray(data.draw(st.integers(0, len(whole) - start)))
        weights.read_into(weights.tensors["0"], memoryview(part), start)
        assert part == whole[start : start + len(part)]


def test_parameters_and_tensors_with_attributes(save: Any) -> None:
    plain, marked, buffer = torch.nn.Parameter(torch.rand(2)), torch.nn.Parameter(torch.rand(3)), torch.rand(4)
    marked.note = "kept by torch"  # type: ignore[attr-defined]
    buffer.note = "kept by torch"  # type: ignore[attr-defined]
    weights = save({"plain": plain, "marked": marked, "buffer": buffer})
    assert same(weights, "plain", plain) and same(weights, "marked", marked) and same(weights, "buffer", buffer)


def test_a_whole_module(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module, tmp_path / "module.pt")
    with open_pickle(tmp_path / "module.pt") as weights:
        assert set(weights.tensors) == set(module.state_dict())
        assert all(same(weights, name, tensor) for name, tensor in module.state_dict().items())


def test_a_state_dict_with_its_metadata(save: Any) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    assert hasattr(state, "_metadata")
    weights = save(state)
    assert set(weights.tensors) == {"weight", "bias"} and weights.extra == {}


def lightning_checkpoint(monkeypatch: pytest.MonkeyPatch) -> dict[object, Any]:
    """What Lightning 1.4 saved in Stable Diffusion 1's days: classes as keys, numpy scalars, objects with state."""

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.monitor = "val/loss"
            self.best_k_models = {"a.ckpt": torch.tensor(0.5)}

    path = "pytorch_lightning.callbacks.model_checkpoint"
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", path):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = path, "ModelCheckpoint"
    sys.modules[path].ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    score = torch.tensor(0.25)
    return {
        "epoch": 6,
        "global_step": np.int64(470000),
        "lr": np.float64(1e-4),
        "half": np.float16(0.5),
        "flag": np.bool_(True),
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict({f"model.layer{i}.weight": torch.rand(2, 2).half() for i in range(4)}),
        "callbacks": {ModelCheckpoint: {"monitor": "val/loss", "best_model_score": score, "current_score": score}},
        "callback_objects": [ModelCheckpoint()],
        "optimizer_states": [
            {"state": {i: {"exp_avg": torch.rand(2), "step": 3} for i in range(9)}, "param_groups": []}
        ],
        "lr_schedulers": [defaultdict(list, {"base_lrs": [1e-4]}), Counter({"a": 2})],
        "random": (np.random.RandomState(0).get_state(), {1, 2}, frozenset({3}), bytearray(b"x"), 1j),
    }


def test_a_lightning_checkpoint_that_weights_only_refuses(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = lightning_checkpoint(monkeypatch)
    weights = save(checkpoint)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        torch.load(weights.path, weights_only=True)
    assert set(weights.tensors) == set(checkpoint["state_dict"])
    assert all(same(weights, name, tensor) for name, tensor in checkpoint["state_dict"].items())
    assert weights.left_out == 9 + 1 + 1  # optimizer moments, the callback's score, the object's score
    facts = {"epoch": 6, "global_step": 470000, "lr": 1e-4, "half": 0.5, "flag": True}
    assert {key: weights.extra[key] for key in facts} == facts
    assert weights.metadata["pytorch-lightning_version"] == "1.4.2"
    assert weights.extra["lr_schedulers"] == [{"base_lrs": [1e-4]}, {"a": 2}]
    callback = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert weights.extra["callbacks"] == {callback: {"monitor": "val/loss"}}
    assert "random" not in weights.extra and "callback_objects" not in weights.extra


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_with_binary_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    checkpoint = lightning_checkpoint(monkeypatch)
    torch.save(checkpoint, tmp_path / "p.ckpt", pickle_protocol=protocol)
    with open_pickle(tmp_path / "p.ckpt") as weights:
        assert set(weights.tensors) == set(checkpoint["state_dict"]) and weights.extra["global_step"] == 470000


@pytest.mark.parametrize("container", ["state_dict", "module", "model"])
def test_one_container_is_unwrapped(save: Any, container: str) -> None:
    inner = {"unet.a": torch.rand(1), "unet.b": torch.rand(1)}
    assert set(save({container: inner, "step": 3}).tensors) == {"unet.a", "unet.b"}
    assert set(save({container: {"model": inner}}).tensors) == {"model.unet.a", "model.unet.b"}
    more = {"other": {str(i): torch.rand(1) for i in range(2)}, container: inner}
    assert set(save(more).tensors) == {f"{container}.unet.a", f"{container}.unet.b", "other.0", "other.1"}
    assert set(save({container: torch.rand(1)}).tensors) == {container}


def test_an_old_embedding_of_the_web_ui(save: Any) -> None:
    vectors = torch.rand(2, 768)
    embedding = {
        "string_to_token": {"*": 265},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)}),
        "name": "my-style",
        "step": 999,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": None,
    }
    weights = save(embedding)
    assert list(weights.tensors) == ["string_to_param.*"] and same(weights, "string_to_param.*", vectors)
    assert weights.extra == {key: value for key, value in embedding.items() if key != "string_to_param"}
    assert weights.metadata == {"name": "my-style", "step": "999", "sd_checkpoint": "7460a6fa"}


def test_a_hypernetwork(save: Any) -> None:
    layers = {"linear.0.weight": torch.rand(4, 2), "linear.0.bias": torch.rand(4)}
    weights = save(
        {768: (layers, layers), 320: (layers, layers), "name": "h", "layer_structure": [1, 2, 1], "up": None}
    )
    assert set(weights.tensors) == {f"{width}.{i}.{name}" for width in (768, 320) for i in (0, 1) for name in layers}
    assert weights.extra == {"name": "h", "layer_structure": [1, 2, 1], "up": None}


def test_custom_diffusion(save: Any) -> None:
    weights = save(
        {"unet": {"attn2.to_k.weight": torch.rand(2)}, "modifier_token": {"<new1>": torch.rand(768)}, "none": {}}
    )
    assert set(weights.tensors) == {"unet.attn2.to_k.weight", "modifier_token.<new1>"} and weights.extra == {}


def test_flat_lists_and_bare_tensors(save: Any) -> None:
    pairs = [torch.rand(4, 1), torch.rand(1, 4)] * 6
    weights = save(pairs)
    assert list(weights.tensors) == sorted(map(str, range(12)), key=lambda name: weights.tensors[name].offset)
    assert all(same(weights, str(index), tensor) for index, tensor in enumerate(pairs))
    bare = torch.rand(768)
    assert same(save(bare), "tensor", bare)


def test_real_aesthetic_embeddings() -> None:
    if "SDKIT_TEST_DATA" not in os.environ:
        pytest.skip("SDKIT_TEST_DATA names no folder with the real files")
    paths = sorted(Path(os.environ["SDKIT_TEST_DATA"], "data/adapters/aesthetic-embedding").glob("*.pt"))
    assert paths
    for path in paths:
        with open_weights(path) as weights:
            assert same(weights, "tensor", torch.load(path, map_location="cpu", weights_only=True))


def test_files_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with open_pickle(tmp_path / "a.pt") as weights:
        assert same(weights, "a", torch.ones(3))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised|QInt8Storage"),
        (torch.ones(2, device="meta"), "without data"),
        (torch.ones(2, dtype=torch.complex128), "ComplexDoubleStorage"),
        (torch.ones(2, dtype=torch.complex64).conj(), "pending conjugation"),
        (np.ones(3), "holds no tensors"),
    ],
    ids=["sparse", "quantised", "meta", "complex128", "conjugate", "numpy"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_read_are_no_silence(tmp_path: Path, value: object, reason: str) -> None:
    torch.save({"a": value}, tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match=reason):
        open_pickle(tmp_path / "a.pt")


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    torch.save({"a": torch.rand(64, 64).T}, tmp_path / "a.pt")
    weights = open_pickle(tmp_path / "a.pt")
    os.truncate(tmp_path / "a.pt", 4096)
    with pytest.raises(DamagedFileError, match="a: the file ends"):
        weights.read(weights.tensors["a"])
    weights.close()


def test_torch_and_numpy_are_not_needed(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6).reshape(2, 3).T, "step": np.int64(3)}, tmp_path / "a.pt")
    script = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from sdkit.weights import open_weights\n"
        f"weights = open_weights({str(tmp_path / 'a.pt')!r})\n"
        "print(list(memoryview(weights.read(weights.tensors['a'])).cast('q')), weights.extra)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == "[0, 3, 1, 4, 2, 5] {'step': 3}", done.stderr
