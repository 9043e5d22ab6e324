"""Hostile pickles: nothing that a file names ever runs, and any bytes at all give an SdkitError or a model."""

from __future__ import annotations

import json
import os
import pickletools
import struct
import subprocess
import sys
from pathlib import Path

import pickle_assembly as asm
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkit.core.errors import SdkitError
from sdkit.weights import open_weights
from sdkit.weights.header import DamagedFileError
from sdkit.weights.pickle import UnsafePickleError, open_pickle

HERE = Path(__file__).parent
COMMAND = asm.text("touch owned")

# What attacks call: shells, evaluators, importers, loaders of code, and the evasions found in the wild.
CALLS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("os", "popen"),
    ("os", "execl"),
    ("os", "remove"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "compile"),
    ("builtins", "open"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "breakpoint"),
    ("builtins", "map"),
    ("__builtin__", "eval"),
    ("__builtin__", "apply"),
    ("importlib", "import_module"),
    ("importlib", "reload"),
    ("runpy", "run_path"),
    ("runpy", "_run_code"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.jit", "CompilationUnit"),
    ("torch.utils.collect_env", "run"),
    ("torch.utils.data.datapipes.utils.decoder", "basichandlers"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("torch.nn", "modules.module.torch.hub.load"),
    ("torch.nn", "modules.module.subprocess.Popen"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("multiprocessing.util", "spawnv_passfds"),
    ("multiprocessing.connection", "Connection"),
    ("codecs", "open"),
    ("codecs", "decode"),
    ("webbrowser", "open"),
    ("pty", "spawn"),
    ("ctypes", "CDLL"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy", "load"),
    ("numpy", "os.system"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("pip._internal.cli.main", "main"),
    ("pip", "main"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("code", "InteractiveInterpreter"),
    ("pdb", "run"),
    ("timeit", "timeit"),
    ("cProfile", "run"),
    ("profile", "Profile.run"),
    ("bdb", "Bdb.run"),
    ("doctest", "debug_script"),
    ("ensurepip", "_run_pip"),
    ("idlelib.pyshell", "ModifiedInterpreter"),
    ("lib2to3.pgen2.pgen", "ParserGenerator"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("socket", "create_connection"),
    ("urllib.request", "urlopen"),
    ("shutil", "rmtree"),
    ("sys", "setprofile"),
    ("pickle", "loads"),
    ("joblib", "load"),
    ("transformers", "AutoModel.from_pretrained"),
    ("diffusers.utils.dynamic_modules_utils", "get_class_in_module"),
    ("pytorch_lightning", "os.system"),
    ("__main__", "Payload"),
    ("pathlib", "os.system"),
    ("typing", "sys.modules.get"),
    ("argparse", "FileType"),
]

OS_SYSTEM = asm.name("os", "system")


def dotted(module: str, name: str) -> str:
    return f"{module}.{name}".replace("__builtin__", "builtins")


def call_forms() -> dict[str, tuple[bytes, str]]:
    """One dangerous call in every way that pickle can spell a call: the opcodes, and the name that must be reported."""
    args = asm.tuple_of(COMMAND)
    computed = asm.text("os") + asm.text("system") + b"\x93"
    through_memo = asm.text("os") + b"q\x010" + asm.text("system") + b"q\x020" + b"h\x01h\x02\x93"
    benign = asm.name("pytorch_lightning", "Trainer")
    rebuilt = asm.call("torch._tensor", "_rebuild_from_type_v2", OS_SYSTEM, OS_SYSTEM, args, b"N")
    return {
        "reduce": (OS_SYSTEM + args + b"R", "os.system"),
        "newobj": (OS_SYSTEM + args + b"\x81", "os.system"),
        "newobj_ex": (OS_SYSTEM + args + b"}\x92", "os.system"),
        "inst": (b"(" + COMMAND + b"ios\nsystem\n", "os.system"),
        "obj": (b"(" + OS_SYSTEM + COMMAND + b"o", "os.system"),
        "stack_global": (computed + args + b"R", "os.system"),
        "memo": (through_memo + args + b"R", "os.system"),
        "reconstructor": (asm.call("copyreg", "_reconstructor", OS_SYSTEM, COMMAND, b"N"), "os.system"),
        "newobj_function": (asm.call("copyreg", "__newobj__", OS_SYSTEM, COMMAND), "os.system"),
        "rebuild_from_type": (rebuilt, "os.system"),
        "getitem": (asm.call("operator", "getitem", OS_SYSTEM, COMMAND), "operator.getitem"),
        "build_on_function": (OS_SYSTEM + b"}b", "os.system.__setstate__"),
        "call_of_object": (benign + b")R" + args + b"R", "the result of pytorch_lightning.Trainer"),
        "call_of_text": (COMMAND + args + b"R", "an object"),
        "discarded": (OS_SYSTEM + args + b"R0N", "os.system"),
        "as_key": (b"}(" + OS_SYSTEM + args + b"R" + b"Nu", "os.system"),
        "inside_tensor": (asm.tensor(held=OS_SYSTEM + args + b"R"), "os.system"),
        "inside_inert_state": (benign + b")\x81" + OS_SYSTEM + args + b"Rb", "os.system"),
    }


def malformed() -> dict[str, tuple[bytes, str]]:
    """Files that are refused without naming a call, with a piece of the reason."""
    deep = b"]" * 1_000 + b"a" * 999
    shared = b"]q\x000" + (b"](" + b"h\0" * 10 + b"eq\x000") * 30 + b"h\0"
    itself = b"]q\0(" + b"h\0" * 100 + b"e"
    pair = b"}q\0(" + asm.text("a") + b"h\0" + asm.text("b") + b"h\0u"
    nested_tuple = b")" + b"\x85" * 100_000
    copied = asm.text("x" * 100_000) + b"q\x000" + asm.text("latin1") + b"q\x010"
    copies = copied + asm.name("_codecs", "encode") + b"q\x020" + b"h\x02h\0h\x01\x86R0" * 2_000
    return {
        "deep": (deep, "nested"),
        "shared": (shared, "entries"),
        "itself": (itself, "nested"),
        "itself_in_dict": (pair, "nested"),
        "tuple_as_key": (b"}(" + nested_tuple + b"Nu", "key of an unexpected kind"),
        "huge_integer_as_key": (b"}(" + asm.number(2**61 - 1) + b"Nu", "key of an unexpected kind"),
        "list_as_key": (b"}(]Nu", "key of an unexpected kind"),
        "many_steps": (b"]0" * 1_100_000, "steps"),
        "many_dicts": (b"(" + b"}" * 1_990_000 + b"t" + b"]0" * 10_000, "steps"),
        "copies": (copies, "far more than its own size"),
        "long4": (b"\x8b" + struct.pack("<I", 2**31 - 1) + b"1", "a number of 2,147,483,647 bytes"),
        "long_text": (b"X" + struct.pack("<I", 2**32 - 1), "does not end"),
        "long_text8": (b"\x8d" + struct.pack("<Q", 2**64 - 1), "does not end"),
        "long_bytes": (b"\x8e" + struct.pack("<Q", 2**63), "does not end"),
        "extension1": (b"\x82\x01", "extension registry"),
        "extension2": (b"\x83\x01\x01", "extension registry"),
        "extension4": (b"\x84\x01\x01\x01\x01", "extension registry"),
        "next_buffer": (b"\x97", "no opcode that model files use"),
        "readonly_buffer": (b"N\x98", "no opcode that model files use"),
        "text_opcode": (b"S'rm'\n", "text opcode 'S'"),
        "text_persid": (b"Pstorage\n", "text opcode 'P'"),
        "persid_number": (b"K\x01Q", "no storage"),
        "persid_text": (asm.text("storage") + b"Q", "no storage"),
        "persid_other": (asm.tuple_of(asm.text("file"), asm.text("/etc/passwd")) + b"Q", "no storage"),
        "persid_type": (asm.storage(kind="Tensor"), "cannot read"),
        "persid_module": (asm.storage(kind="FloatStorage").replace(b"ctorch\n", b"cos\n"), "no known type"),
        "persid_size": (asm.storage(numel=-1), "impossible name or size"),
        "persid_two_types": (asm.storage() + b"0" + asm.storage(kind="HalfStorage"), "declared twice"),
        "global_computed": (b"K\x01K\x02\x93", "computes the name"),
        "global_long": (b"c" + b"a" * 10_000 + b"\nb\n", "damaged"),
        "build_on_list": (b"]}b", "sets attributes"),
        "build_on_tensor": (asm.tensor() + b"}b", "sets attributes"),
        "setitem_on_list": (b"](NNu", "no dictionary"),
        "append_to_dict": (b"}(Ne", "no list"),
        "reduce_without_tuple": (asm.name("collections", "OrderedDict") + b"NR", "no list of arguments"),
        "memo_missing": (b"h\x07", "damaged"),
        "underflow": (b"0" * 10, "damaged"),
        "below_mark": (b"N(\x85", "damaged"),
        "mark_missing": (b"t", "damaged"),
        "protocol_99": (b"\x80\x63N", "protocol 99"),
        "bad_utf8": (b"X\1\0\0\0\xff", "damaged"),
        "encode_with_codec": (asm.call("_codecs", "encode", COMMAND, asm.text("rot13")), "bytes are made"),
        "nested_file": (asm.call("torch.storage", "_load_from_bytes", b"C\x02N."), "one by one"),
        "sparse": (asm.call("torch._utils", "_rebuild_sparse_tensor", b"N"), "sparse"),
        "quantised": (asm.call("torch._utils", "_rebuild_qtensor", b"N"), "quantised"),
        "meta": (asm.call("torch._utils", "_rebuild_meta_tensor_no_storage", b"N"), "without data"),
        "conjugated": (
            asm.call(
                "torch._utils",
                "_rebuild_tensor_v2",
                asm.storage(),
                *(asm.number(0), asm.tuple_of(asm.number(4)), asm.tuple_of(asm.number(1)), b"\x89", b"}"),
                asm.dict_of({"conj": b"\x88"}),
            ),
            "pending conjugation",
        ),
        "packed_dtype": (
            asm.call(
                "torch._utils",
                "_rebuild_tensor_v3",
                asm.storage("1", 16, "UntypedStorage"),
                *(asm.number(0), asm.tuple_of(asm.number(4)), asm.tuple_of(asm.number(1)), b"\x89", b"}"),
                asm.name("torch", "float4_e2m1fn_x2"),
            ),
            "torch.float4_e2m1fn_x2, which sdkit cannot read",
        ),
        "parameter_of_nothing": (asm.call("torch._utils", "_rebuild_parameter", b"N", b"\x88", b"}"), "no tensor"),
        "beyond_storage": (asm.tensor((5,), (1,)), "outside its storage"),
        "offset_beyond": (asm.tensor(offset=1), "outside its storage"),
        "stride_beyond": (asm.tensor((2, 2), (3, 1)), "outside its storage"),
        "huge_stride": (asm.tensor((2, 2), (2**62, 1)), "outside its storage"),
        "huge_shape": (asm.tensor((2**62, 2**62), (2**62, 1)), "outside its storage"),
        "expanded": (asm.tensor((2**40,), (0,)), "repeats"),
        "negative_shape": (asm.tensor((-2, -2)), "impossible"),
        "negative_stride": (asm.tensor(strides=(-2, 1)), "impossible"),
        "negative_offset": (asm.tensor(offset=-1), "impossible"),
        "overlong_dimension": (asm.tensor((2**63,), (1,)), "impossible"),
        "many_dimensions": (asm.tensor((1,) * 33, (1,) * 33), "impossible"),
        "ragged": (asm.tensor((2, 2), (1,)), "impossible"),
        "nan_stride": (
            asm.call(
                "torch._utils",
                "_rebuild_tensor_v2",
                asm.storage(),
                *(asm.number(0), asm.tuple_of(asm.number(4)), asm.tuple_of(b"G" + struct.pack(">d", float("nan")))),
                *(b"\x89", b"}"),
            ),
            "impossible",
        ),
        "claims_more": (asm.tensor((8,), (1,), held=asm.storage("1", 8)), "claims 32 bytes and has 16"),
        "claims_terabytes": (
            asm.tensor((2**40,), (1,), held=asm.storage("1", 2**40)),
            "claims 4,398,046,511,104 bytes",
        ),
        "no_such_storage": (asm.tensor(held=asm.storage("7")), "no data for storage 7"),
        "storage_path": (asm.tensor(held=asm.storage("../version")), "no data for storage"),
        "view_beyond": (
            asm.tensor(held=asm.storage("0", 4, "FloatStorage", asm.tuple_of(b"N", b"K\x02", b"K\x04"))),
            "view",
        ),
        "control_characters": (b"}(" + asm.text("a\x1b[2J") + asm.tensor() + b"u", "control characters"),
        "surrogate": (b"}(" + asm.text("a\ud800") + asm.tensor() + b"u", "control characters"),
        "endless_name": (b"}(" + asm.text("a" * 2_000) + asm.tensor() + b"u", "2,007 characters long"),
        "same_name": (b"}(" + asm.text("1") + asm.tensor() + b"K\x01" + asm.tensor() + b"u", "two of its tensors"),
    }


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a separate, watched process says about every file of the corpus."""
    if sys.platform == "win32":
        pytest.skip("needs the resource module")
    folder = tmp_path_factory.mktemp("corpus")
    for index, (module, name) in enumerate(CALLS):
        body = asm.checkpoint(asm.call(module, name, COMMAND))
        (folder / f"call{index}.pt").write_bytes(asm.torch_zip(body))
        (folder / f"legacy{index}.pt").write_bytes(asm.torch_legacy(body))
    for form, (body, _) in (call_forms() | malformed()).items():
        (folder / f"{form}.pt").write_bytes(asm.torch_zip(asm.checkpoint(body)))
    (folder / "good.pt").write_bytes(asm.torch_zip(asm.checkpoint(COMMAND)))
    script = [sys.executable, str(HERE / "watched_reader.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    assert not (folder / "owned").exists()
    return report


def outcome(watched: dict[str, object], name: str) -> str:
    results = watched["results"]
    assert isinstance(results, dict)
    kind, _, reason = str(results[f"{name}.pt"]["outcome"]).partition(": ")
    return f"{kind}: {reason.partition('.pt: ')[2]}" if reason else kind


@pytest.mark.parametrize("index", range(len(CALLS)), ids=[dotted(*call) for call in CALLS])
def test_a_dangerous_call_is_refused_by_name(watched: dict[str, object], index: int) -> None:
    for kind in ("call", "legacy"):
        said = outcome(watched, f"{kind}{index}")
        assert said.startswith("UnsafePickleError") and f"would run `{dotted(*CALLS[index])}`" in said


@pytest.mark.parametrize("form", call_forms())
def test_a_dangerous_call_is_found_however_it_is_spelled(watched: dict[str, object], form: str) -> None:
    assert outcome(watched, form).startswith("UnsafePickleError")
    assert f"would run `{call_forms()[form][1]}`" in outcome(watched, form)


@pytest.mark.parametrize("form", malformed())
def test_a_malformed_pickle_is_refused_with_its_reason(watched: dict[str, object], form: str) -> None:
    assert outcome(watched, form).startswith("DamagedFileError")
    assert malformed()[form][1] in outcome(watched, form)


def test_reading_hostile_files_does_nothing_but_read_them(watched: dict[str, object]) -> None:
    assert outcome(watched, "good") == "opened"
    results = watched["results"]
    assert isinstance(results, dict) and len(results) > 200
    assert {name: result["events"] for name, result in results.items() if result["events"]} == {}
    assert any("pickle.find_class" in event for event in watched["control"])  # type: ignore[attr-defined]


def test_reading_hostile_files_takes_little_time_and_memory(watched: dict[str, object]) -> None:
    results = watched["results"]
    assert isinstance(results, dict)
    assert {name: result["seconds"] for name, result in results.items() if result["seconds"] > 20} == {}
    assert isinstance(watched["peak"], float) and watched["peak"] < 600


def test_a_name_that_is_not_called_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(asm.torch_zip(asm.checkpoint(OS_SYSTEM, b"}(" + asm.name("main", "ImageLogger") + b"Nu")))
    assert list(open_pickle(path).tensors) == ["weight"]


def test_the_error_says_what_would_run_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(asm.torch_zip(asm.checkpoint(asm.call("os", "system", COMMAND))))
    with pytest.raises(UnsafePickleError) as caught:
        open_weights(path)
    assert caught.value.call == "os.system" and caught.value.path == path
    assert "os.system" in caught.value.message and ".safetensors" in caught.value.hint


@pytest.mark.parametrize("make", [asm.torch_zip, asm.torch_legacy])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, make: object) -> None:
    whole = make(asm.checkpoint(asm.number(3)))  # type: ignore[operator]
    path = tmp_path / "cut.pt"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            open_pickle(path)
    path.write_bytes(whole)
    assert list(open_pickle(path).tensors) == ["weight"]


def read_whatever(path: Path, data: bytes) -> None:
    """Only an SdkitError may come out; what opens must lie within the file."""
    path.write_bytes(data)
    try:
        with open_pickle(path) as weights:
            for info in weights.tensors.values():
                assert len(weights.read(info)) == info.nbytes <= max(len(data), 1 << 20)
    except SdkitError:
        pass


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
flips = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4)


@fuzz
@given(changes=flips, kind=st.sampled_from(["zip", "legacy", "pickle within zip"]))
def test_flipped_bytes_never_crash_the_reader(tmp_path: Path, changes: list[tuple[int, int]], kind: str) -> None:
    pickled = asm.checkpoint(asm.list_of(asm.tensor((2,), (2,)), asm.number(5)))
    whole = {"zip": asm.torch_zip(pickled), "legacy": asm.torch_legacy(pickled)}.get(kind, pickled)
    data = bytearray(whole)
    for place, change in changes:
        data[place % len(data)] ^= change
    read_whatever(tmp_path / "flipped.pt", asm.torch_zip(bytes(data)) if whole is pickled else bytes(data))


PIECES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes),
    *(asm.text("weight"), asm.number(2**70), asm.storage(), asm.tensor(), asm.tuple_of(asm.number(2))),
    *(asm.name("collections", "OrderedDict"), asm.name("torch._utils", "_rebuild_parameter"), OS_SYSTEM),
    *(asm.name("numpy", "dtype"), asm.name("numpy.core.multiarray", "scalar"), asm.name("_codecs", "encode")),
    *(asm.name("torch._tensor", "_rebuild_from_type_v2"), asm.name("torch._utils", "_rebuild_tensor_v3")),
    *(b"q\0", b"h\0", b")R", b"}b", b"](e", b"}(u", b"\x85R"),
]


@settings(fuzz, max_examples=400)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=40), legacy=st.booleans())
def test_random_programs_never_crash_the_reader(tmp_path: Path, pieces: list[bytes], legacy: bool) -> None:
    pickled = asm.whole(b"".join(pieces))
    read_whatever(tmp_path / "random.pt", asm.torch_legacy(pickled) if legacy else asm.torch_zip(pickled))
