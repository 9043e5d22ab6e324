from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import entry, floats, raw_file

from sdkit.core.errors import SdkitError
from sdkit.weights import DTYPES, Weights, open_weights
from sdkit.weights.dtypes import decode_scalar
from sdkit.weights.header import DamagedFileError
from sdkit.weights.memory import MemoryWeights
from sdkit.weights.reader import Container, raw_header


def test_a_file_gives_its_tensors_in_file_order(tmp_path: Path) -> None:
    path = raw_file(
        tmp_path / "a.safetensors",
        {"z": entry("F32", [1], 0, 4), "__metadata__": {"format": "pt"}, "a": entry("U8", [2, 2], 4, 8)},
        struct.pack("<f", 1.5) + b"\1\2\3\4",
    )
    with open_weights(path) as weights:
        assert (weights.container, weights.path, weights.files) == (Container.SAFETENSORS, path, (path,))
        assert list(weights.tensors) == ["z", "a"]
        assert weights.metadata == {"format": "pt"} == weights.file_metadata[0]
        assert weights.read(weights.tensors["a"]) == b"\1\2\3\4"
        buffer = bytearray(2)
        weights.read_into(weights.tensors["a"], memoryview(buffer), 1)
        assert buffer == b"\2\3"
        assert weights.stored_name(weights.tensors["z"]) == "z"
        assert raw_header(weights) == path.read_bytes()[:-8]


def test_names_are_searched_for_texts(tmp_path: Path) -> None:
    path = raw_file(
        tmp_path / "a.safetensors", {"unet.a": entry("U8", [1], 0, 1), "b:up": entry("U8", [1], 1, 2)}, b"12"
    )
    with open_weights(path) as weights:
        assert weights.mentions("none", ":up")
        assert weights.mentions("et.a")
        assert not weights.mentions("lora", "unet.ab")
        assert not weights.mentions()


@settings(deadline=None)
@given(st.lists(st.text("ab._1", min_size=1), min_size=1, unique=True), st.text("ab._1", min_size=1, max_size=4))
def test_a_text_is_mentioned_where_it_stands_in_a_name(names: list[str], text: str) -> None:
    weights = MemoryWeights("x", {name: (DTYPES["F32"], (0,), b"") for name in names}, {})
    assert weights.mentions(text) == any(text in name for name in names)


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path) -> None:
    path = floats(tmp_path / "model.ckpt", a=[1.0])
    assert open_weights(path).container is Container.SAFETENSORS


def one(dtype: str, data: bytes, path: Path) -> Weights:
    return open_weights(raw_file(path / "one.safetensors", {"alpha": entry(dtype, [], 0, len(data))}, data))


@pytest.mark.parametrize(
    ("dtype", "data", "value"),
    [
        ("F16", struct.pack("<e", 0.5), 0.5),
        ("BF16", b"\x80\x3f", 1.0),
        ("F32", struct.pack("<f", -8.0), -8.0),
        ("F64", struct.pack("<d", 0.1), 0.1),
        ("U8", b"\x07", 7.0),
        ("I8", b"\xff", -1.0),
        ("U16", b"\xff\xff", 65535.0),
        ("I16", b"\xfe\xff", -2.0),
        ("U32", b"\1\0\0\0", 1.0),
        ("I32", b"\xff\xff\xff\xff", -1.0),
        ("U64", b"\2" + b"\0" * 7, 2.0),
        ("I64", b"\4" + b"\0" * 7, 4.0),
        ("BOOL", b"\1", 1.0),
    ],
)
def test_scalars_are_read_without_torch(dtype: str, data: bytes, value: float, tmp_path: Path) -> None:
    with one(dtype, data, tmp_path) as weights:
        assert weights.scalar("alpha") == value


def test_a_scalar_may_have_one_dimension(tmp_path: Path) -> None:
    with open_weights(floats(tmp_path / "a.safetensors", alpha=[4.0])) as weights:
        assert weights.scalar("alpha") == 4.0


@pytest.mark.parametrize("values", [[], [1.0, 2.0]])
def test_more_or_fewer_numbers_are_no_scalar(values: list[float], tmp_path: Path) -> None:
    with open_weights(floats(tmp_path / "a.safetensors", alpha=values)) as weights:
        with pytest.raises(DamagedFileError, match="alpha should hold one number"):
            weights.scalar("alpha")


def test_a_scalar_of_a_strange_type_is_refused(tmp_path: Path) -> None:
    with one("F8_E4M3", b"\0", tmp_path) as weights, pytest.raises(DamagedFileError, match="F8_E4M3 cannot be read"):
        weights.scalar("alpha")
    with pytest.raises(ValueError, match="C64"):
        decode_scalar(DTYPES["C64"], b"\0" * 8)


def test_a_file_that_became_shorter_is_an_error_naming_the_tensor(tmp_path: Path) -> None:
    path = floats(tmp_path / "a.safetensors", a=[1.0], b=[2.0])
    with open_weights(path) as weights:
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(DamagedFileError, match="b: the file ends at byte"):
            weights.read(weights.tensors["b"])
        assert weights.read(weights.tensors["a"])


def test_closed_weights_open_again_when_read(tmp_path: Path) -> None:
    weights = open_weights(floats(tmp_path / "a.safetensors", a=[1.0]))
    weights.read(weights.tensors["a"])
    weights.close()
    assert weights.scalar("a") == 1.0
    weights.close()


def test_a_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    floats(tmp_path / "dreamshaper_8.safetensors", a=[1.0])
    (tmp_path / "stable-diffusion").mkdir()
    with pytest.raises(SdkitError, match="no such file or folder") as caught:
        open_weights(tmp_path / "dreamshaper8.safetensors")
    assert caught.value.hint == f"did you mean {tmp_path / 'dreamshaper_8.safetensors'}?"
    with pytest.raises(SdkitError) as caught:
        open_weights(tmp_path / "stable_diffusion")
    assert caught.value.hint == f"did you mean {tmp_path / 'stable-diffusion'}?"
    with pytest.raises(SdkitError) as caught:
        open_weights(tmp_path / "something else")
    assert caught.value.hint == ""
    with pytest.raises(SdkitError) as caught:
        open_weights(tmp_path / "fox.safetensors")  # nothing in common but the suffix
    assert caught.value.hint == ""
    with pytest.raises(SdkitError) as caught:
        open_weights(tmp_path / "dreamshaper_8")
    assert caught.value.hint == f"did you mean {tmp_path / 'dreamshaper_8.safetensors'}?"
    with pytest.raises(SdkitError, match="no such file") as caught:
        open_weights(tmp_path / "missing" / "a.safetensors")
    assert caught.value.hint == f"the folder {tmp_path / 'missing'} does not exist either"


def test_a_missing_index_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="no such file or folder"):
        open_weights(tmp_path / "model.safetensors.index.json")


def test_gguf_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\0" * 100)
    with pytest.raises(SdkitError, match="GGUF") as caught:
        open_weights(tmp_path / "a.gguf")
    assert "unquantised" in caught.value.hint


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_length_spelled_like_a_pickle(sparse: Callable[..., Path], protocol: int) -> None:
    size = 0x80 + (protocol << 8)
    filler = size - len(sparse({"a": ("F32", [1])}, {"x": ""}).read_bytes()) + 8 + 4
    path = sparse({"a": ("F32", [1])}, {"x": "x" * filler})
    assert path.read_bytes()[:8] == bytes([0x80, protocol, 0, 0, 0, 0, 0, 0])
    assert list(open_weights(path).tensors) == ["a"]
