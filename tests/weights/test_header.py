from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from weight_files import entry, raw_file

from sdkit.core.errors import SdkitError
from sdkit.weights import DTYPES, DType, open_weights
from sdkit.weights.header import MAX_HEADER_BYTES, DamagedFileError, build_header, parse_header, read_header

Layout = list[tuple[str, DType, tuple[int, ...]]]

WHOLE_BYTES = [dtype for dtype in DTYPES.values() if dtype.bits % 8 == 0]
TORCH_TYPES = [dtype for dtype in WHOLE_BYTES if hasattr(torch, dtype.torch_name)]

names = st.text(st.characters(categories=["L", "N", "P"], include_characters=" "), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
layouts = st.lists(
    st.tuples(names, st.sampled_from(WHOLE_BYTES), st.lists(st.integers(0, 5), max_size=4).map(tuple)),
    max_size=6,
    unique_by=lambda item: item[0],
)


def data_size(layout: Layout) -> int:
    return sum(dtype.nbytes(math.prod(shape)) for _, dtype, shape in layout)


@settings(deadline=None)
@given(
    layouts,
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])), max_size=4
    ),
)
def test_a_built_header_parses_to_what_went_in(layout: Layout, metadata: dict[str, str]) -> None:
    header = build_header(layout, metadata)
    parsed = parse_header(header[8:], len(header) + data_size(layout))
    assert {name: (info.dtype, info.shape) for name, info in parsed.tensors.items()} == {
        name: (dtype, shape) for name, dtype, shape in layout
    }
    assert parsed.metadata == metadata
    assert parsed.data_start == len(header)
    assert len(header) % 8 == 0


def test_the_bytes_do_not_depend_on_the_order_of_metadata() -> None:
    layout: Layout = [("a", DTYPES["F16"], (2,))]
    assert build_header(layout, {"x": "1", "b": "2"}) == build_header(layout, {"b": "2", "x": "1"})


def test_a_header_can_be_padded_to_a_given_size() -> None:
    header = build_header([("a", DTYPES["F16"], (2,))], {}, size=512)
    assert len(header) == 512
    assert list(parse_header(header[8:], 516).tensors) == ["a"]


def test_two_tensors_of_one_name_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="two tensors are named a"):
        build_header([("a", DTYPES["F16"], ()), ("a", DTYPES["F32"], ())], {})


def test_no_tensor_can_take_the_name_of_the_metadata() -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        build_header([("__metadata__", DTYPES["F16"], ())], {})


def test_a_header_above_the_limit_is_not_written() -> None:
    with pytest.raises(SdkitError, match="readers accept"):
        build_header([], {"a": "x" * MAX_HEADER_BYTES})


def random_tensor(dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    raw = torch.randint(0, 2 if dtype.name == "BOOL" else 256, (dtype.nbytes(math.prod(shape)),), dtype=torch.uint8)
    return raw.view(getattr(torch, dtype.torch_name)).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (0,), (2, 0, 3)]


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {f"{dtype.name}.{shape}": random_tensor(dtype, shape) for dtype in TORCH_TYPES for shape in SHAPES}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    with open_weights(tmp_path / "a.safetensors") as weights:
        assert set(weights.tensors) == set(tensors)
        assert weights.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            info = weights.tensors[name]
            assert (info.dtype.torch_name, info.shape) == (
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
            )
            assert weights.read(info) == raw_bytes(tensor)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = {f"{dtype.name}.{shape}": random_tensor(dtype, shape) for dtype in TORCH_TYPES for shape in SHAPES}
    layout = [(name, DTYPES[name.split(".")[0]], tuple(tensor.shape)) for name, tensor in tensors.items()]
    data = b"".join(raw_bytes(tensor) for tensor in tensors.values())
    path = tmp_path / "a.safetensors"
    path.write_bytes(build_header(layout, {"who": "us"}) + data)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"who": "us"}
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert raw_bytes(read) == raw_bytes(tensor)


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [4], 8, 16)}


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


LIES: dict[str, tuple[dict[str, Any] | str | bytes, int, str]] = {
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "'b' overlaps"),
    "same bytes twice": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, 8, "overlaps"),
    "hole": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, 20, "hole of 4 bytes before tensor 'b'"),
    "hole at the start": ({"a": entry("F32", [2], 8, 16)}, 16, "hole of 8 bytes"),
    "an empty tensor elsewhere": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [0], 4, 4)}, 8, "overlap"),
    "truncated data": (GOOD, 15, "truncated: the tensors need"),
    "no data": (GOOD, 0, "truncated"),
    "trailing bytes": (GOOD, 17, "1 bytes follow the last tensor"),
    "unknown dtype": (changed("a", dtype="F7"), 16, "unknown dtype 'F7'"),
    "dtype a list": (changed("a", dtype=["F32"]), 16, "unknown dtype"),
    "negative dimension": (changed("a", shape=[-2]), 16, r"impossible shape \[-2\]"),
    "dimension true": (changed("a", shape=[2, True]), 16, "impossible shape"),
    "dimension 2.0": (changed("a", shape=[2.0]), 16, "impossible shape"),
    "dimension a string": (changed("a", shape=["2"]), 16, "impossible shape"),
    "shape a number": (changed("a", shape=2), 16, "impossible shape"),
    "shape a string": (changed("a", shape="\x1b[31m"), 16, "impossible shape"),
    "shape nothing": (changed("a", shape=None), 16, "impossible shape"),
    "a huge dimension": (changed("a", shape=[2**63]), 16, "impossible shape"),
    "dimensions whose product is huge": (changed("a", shape=[2**32, 2**32]), 16, "impossible shape"),
    "huge dimensions beside a zero": ({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}, 0, "impossible shape"),
    "large dimensions": (changed("a", shape=[2**40]), 16, "claims 8 bytes"),
    "33 dimensions": (changed("a", shape=[1] * 33), 16, "impossible shape"),
    "offsets reversed": (changed("a", data_offsets=[8, 0]), 16, "impossible offsets"),
    "offsets negative": (changed("a", data_offsets=[-8, 0]), 16, "impossible offsets"),
    "offsets true": (changed("a", data_offsets=[False, 8]), 16, "impossible offsets"),
    "three offsets": (changed("a", data_offsets=[0, 4, 8]), 16, "impossible offsets"),
    "wrong size for the shape": (changed("a", shape=[3]), 16, r"claims 8 bytes, F32 \[3\] needs 12"),
    "half a byte": ({"a": entry("F4", [3], 0, 2)}, 2, "3 elements of F4 do not fill whole bytes"),
    "a field too many": (changed("a", strides=[1]), 16, "exactly dtype, shape and data_offsets"),
    "true after an equal shape": (
        {"a": entry("U8", [1], 0, 1), "b": {"dtype": "U8", "shape": [True], "data_offsets": [1, 2]}},
        2,
        r"'b' has the impossible shape \[True\]",
    ),
    "1.0 after an equal shape": (
        {"a": entry("U8", [1], 0, 1), "b": {"dtype": "U8", "shape": [1.0], "data_offsets": [1, 2]}},
        2,
        r"'b' has the impossible shape \[1.0\]",
    ),
    "a field too few": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "exactly dtype, shape and data_offsets"),
    "an entry that is no table": ({"a": [1]}, 0, "exactly dtype, shape and data_offsets"),
    "metadata a list": ({**GOOD, "__metadata__": []}, 16, "not a table of strings"),
    "metadata nothing": ({**GOOD, "__metadata__": None}, 16, "not a table of strings"),
    "metadata with a number": ({**GOOD, "__metadata__": {"epochs": 3}}, 16, "not a table of strings"),
    "half a character in the metadata": ('{"__metadata__":{"a":"\\ud800"}}', 0, "not Unicode"),
    "duplicate tensor": ('{"a":%s,"a":%s}' % ((json.dumps(GOOD["a"]),) * 2), 8, "key 'a' twice"),
    "duplicate field": ('{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "'dtype' twice"),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', 0, "'__metadata__' twice"),
    "duplicate key in the metadata": ('{"__metadata__":{"k":"1","k":"2"}}', 0, "'k' twice"),
    "duplicate spelled in another way": ('{"a":%s,"\\u0061":%s}' % ((json.dumps(GOOD["a"]),) * 2), 8, "key 'a' twice"),
    "duplicate with spaces before the colon": ('{"a"  :%s,"a"\t:%s}' % ((json.dumps(GOOD["a"]),) * 2), 8, "'a' twice"),
    # As many colons as the lost entry had, which the text does not show as colons, or shows in strings.
    "duplicate beside escaped colons": (
        '{"a":%s,"a":%s,"__metadata__":{"k":"%s"}}' % (*((json.dumps(GOOD["a"]),) * 2), r"\u003a\u003A" * 2),
        8,
        "'a' twice",
    ),
    "duplicate beside colons": (
        '{"a":%s,"a":%s,"__metadata__":{"k:":"::::"}}' % ((json.dumps(GOOD["a"]),) * 2),
        8,
        "'a' twice",
    ),
    "NaN": ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8, "the number NaN"),
    "Infinity": ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,-Infinity]}}', 8, "the number -Infinity"),
    "1e400": ('{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}}', 8, "impossible shape"),
    "a number of 5000 digits": ('{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % ("9" * 5000), 8, "JSON"),
    "not an object": (b"[]", 0, "does not begin with"),
    "a space in front": (b" {}", 0, "does not begin with"),
    "an empty header": (b"", 0, "does not begin with"),
    "two objects": (b"{}{}", 0, "not JSON"),
    "an open object": (b'{"a":', 0, "not JSON"),
    "a NUL at the end": (b"{}\0", 0, "not JSON"),
    "bad UTF-8": (b'{"\xff":1}', 0, "not UTF-8"),
    "deep nesting": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 0, "nested too deeply"),
    "nesting that just parses": (changed("a", shape=json.loads("[" * 400 + "]" * 400)), 16, "impossible shape"),
    "a name with ANSI codes": ({"a\x1b[31m": entry("F32", [2], 0, 8)}, 8, r"control characters"),
    "a name with a newline": ({"a\nb": entry("F32", [2], 0, 8)}, 8, "control characters"),
    "a name that turns the text around": ({"a\u202eb": entry("F32", [2], 0, 8)}, 8, "control characters"),
    "a name with half a character": ({"\ud800": entry("F32", [2], 0, 8)}, 8, "control characters"),
    "a very long name": ({"a" * 2000: entry("F32", [2], 0, 8)}, 8, "2,000 characters long"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_with_their_reason(lie: str, tmp_path: Path) -> None:
    header, size, reason = LIES[lie]
    path = raw_file(tmp_path / "lie.safetensors", header, b"\0" * size)
    with pytest.raises(DamagedFileError, match=reason) as caught:
        open_weights(path)
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable(), "nothing in the file may reach the terminal as control characters"
    assert caught.value.hint


@pytest.mark.parametrize("text", ["unet:0:up", '"', "\\", '\\"a":', "\\u003a", "ä"])
def test_colons_and_quotes_in_strings_are_no_duplicates(text: str, tmp_path: Path) -> None:
    fields = {"__metadata__": {text: f"{text}:{text}"}, f"x{text}": GOOD["a"], f"y{text}": GOOD["b"]}
    for spelled in (json.dumps(fields), json.dumps(fields, ensure_ascii=False, separators=(", ", " : "))):
        header = read_header(raw_file(tmp_path / "colons.safetensors", spelled, b"\0" * 16))
        assert list(header.tensors) == [f"x{text}", f"y{text}"]


def test_the_table_of_lies_starts_from_a_good_file(tmp_path: Path) -> None:
    header = read_header(raw_file(tmp_path / "good.safetensors", GOOD, b"\0" * 16))
    assert list(header.tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "only 0 bytes long"),
        (b"1234567", "only 7 bytes long"),
        (struct.pack("<Q", 10 * 2**30) + b"{}", "would be 10,737,418,240 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "would be"),
        (struct.pack("<Q", 3) + b"{}", "truncated: the header alone needs 11 bytes, the file has 10"),
        (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "not a safetensors file"),
        (bytes(range(256)) * 20, "not a safetensors file"),
    ],
    ids=["empty", "seven bytes", "10 GB", "2^64", "longer than the file", "a web page", "an LFS pointer", "garbage"],
)
def test_what_is_no_safetensors_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=reason):
        open_weights(path)


def test_many_keys_before_a_duplicate_are_found_quickly(tmp_path: Path) -> None:
    keys = ",".join(f'"k{index}":0' for index in range(100_000))
    path = raw_file(tmp_path / "many.safetensors", "{" + keys + ',"k99999":0}')
    with pytest.raises(DamagedFileError, match="'k99999' twice"):
        open_weights(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_raises_nothing_but_sdkit_errors(tmp_path: Path, data: st.DataObject) -> None:
    layout: Layout = [
        ("unet.weight", DTYPES["F16"], (4, 4)),
        ("alpha", DTYPES["F32"], ()),
        ("ids", DTYPES["I64"], (3,)),
    ]
    header = build_header(layout, {"format": "pt", "note": "é"})
    content = bytearray(header + bytes(60))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with open_weights(path) as weights:
            for info in weights.tensors.values():
                assert len(weights.read(info)) == info.nbytes
    except SdkitError as error:
        assert error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2_000_000


def test_reading_a_header_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "good.safetensors", GOOD, b"\0" * 16)
    code = (
        "import sys; from sdkit.weights import open_weights; "
        f"print(len(open_weights({str(path)!r}).tensors), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
