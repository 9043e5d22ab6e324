from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensor_files import LowRank, opened, read, write

from sdkit.core.errors import SdkitError
from sdkit.streaming import AddDelta, Addend, Map, Output, OutputFile, Read, Rounding, Stream, Transpose, engine
from sdkit.streaming import expression as expression_module
from sdkit.streaming.expression import Expression
from sdkit.streaming.rounding import OverflowToInfinity
from sdkit.weights import DTYPES, Weights, open_weights, positional
from sdkit.weights.header import DamagedFileError


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expression_module, "TILE_ELEMENTS", 1000)
    monkeypatch.setattr(engine, "COPY_PIECE_BYTES", 5000)


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Weights]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{index}": torch.randn(50, 40 + index, generator=generator).half() for index in range(12)}
    markers = {"position_ids": torch.arange(77).view(1, 77), "v_pred": torch.empty(0), "step": torch.tensor(7)}
    folder = tmp_path / "in"
    folder.mkdir()
    with opened(folder / "in.safetensors", {**tensors, **markers}) as weights:
        yield weights


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.safetensors"


def merged(weights: Weights) -> dict[str, tuple[str, Expression]]:
    """Every third tensor changed, one transposed, the others copied."""
    outputs: dict[str, tuple[str, Expression]] = {}
    for number, (name, info) in enumerate(weights.tensors.items()):
        source: Expression = read(weights, name)
        if name.startswith("w") and number % 3 == 0:
            generator = torch.Generator().manual_seed(number)
            up = torch.randn(info.shape[0], 4, generator=generator).double()
            down = torch.randn(4, info.shape[1], generator=generator).double()
            source = AddDelta(source, (Addend(LowRank(up, down)),))
        elif name == "w1":
            source = Transpose(source)
        outputs[name] = (info.dtype.name, source)
    return outputs


def slow(source: Read, calls: list[int], seconds: float = 0.002) -> Map:
    def wait(values: torch.Tensor) -> torch.Tensor:
        calls.append(values.numel())
        time.sleep(seconds)
        return values

    return Map(wait, (source,))


def assert_nothing_is_left(out: Path) -> None:
    assert list(out.parent.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sdkit-") and thread.is_alive()]


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_bytes_never_depend_on_the_number_of_threads(
    weights: Weights, out: Path, accelerated: bool, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positional, "ACCELERATED", accelerated)
    written = set()
    for threads in (1, 2, 5, 2):
        write(out, merged(weights), threads=threads, rounding=Rounding(seed), overwrite=True)
        written.add(out.read_bytes())
    assert len(written) == 1


def test_unchanged_tensors_keep_their_bytes(weights: Weights, out: Path) -> None:
    outputs = merged(weights)
    write(out, outputs)
    with open_weights(out) as result:
        same = {name for name in outputs if isinstance(outputs[name][1], Read)}
        assert {"position_ids", "v_pred", "step", "w2"} <= same
        for name, info in result.tensors.items():
            before = weights.tensors[name]
            assert (result.read(info) == weights.read(before)) == (name in same)
        assert result.tensors["v_pred"].shape == (0,)
        assert result.tensors["position_ids"].dtype is DTYPES["I64"]


def test_other_types_are_converted(weights: Weights, out: Path) -> None:
    outputs = {name: ("BF16", read(weights, name)) for name in ("w0", "v_pred")}
    outputs["scalar"] = ("F32", read(weights, "w3"))
    result = write(out, outputs)
    assert torch.equal(result["w0"], read(weights, "w0").load().bfloat16())
    assert torch.equal(result["scalar"], read(weights, "w3").load().float())
    assert result["v_pred"].dtype is torch.bfloat16


def test_float64_tensors_keep_their_precision(tmp_path: Path, out: Path) -> None:
    values = torch.randn(30, 50, dtype=torch.float64)
    with opened(tmp_path / "in.safetensors", {"w": values}) as weights:
        result = write(out, {"w": ("F64", Map(lambda v: v * 3, (read(weights, "w"),)))})
    assert torch.equal(result["w"], values * 3)


def test_every_byte_is_reported_once(weights: Weights, out: Path) -> None:
    done: list[int] = []
    outputs = merged(weights)
    write(out, outputs, advance=done.append)
    assert sum(done) == sum(info.nbytes for info in weights.tensors.values())


def test_an_overflow_names_the_tensor_and_leaves_nothing(weights: Weights, out: Path) -> None:
    huge = LowRank(torch.full((50, 1), 1e6).double(), torch.ones(1, 42).double())
    outputs = merged(weights) | {"w2": ("F16", AddDelta(read(weights, "w2"), (Addend(huge),)))}
    with pytest.raises(OverflowToInfinity, match="w2: 1e.06 does not fit F16"):
        write(out, outputs, threads=2)
    assert_nothing_is_left(out)


def test_nan_names_the_tensor_and_leaves_nothing(weights: Weights, out: Path) -> None:
    bad = LowRank(torch.full((50, 1), float("nan")).double(), torch.ones(1, 42).double())
    with pytest.raises(OverflowToInfinity, match="w2: the result is not a number"):
        write(out, {"w2": ("F16", AddDelta(read(weights, "w2"), (Addend(bad),)))})
    assert_nothing_is_left(out)


def test_an_error_in_one_worker_stops_the_others(weights: Weights, out: Path) -> None:
    calls: list[int] = []

    def fail(values: torch.Tensor) -> torch.Tensor:
        raise SdkitError("this one")

    outputs: dict[str, tuple[str, Expression]] = {"bad": ("F16", Map(fail, (read(weights, "w0"),)))}
    outputs |= {f"slow{i}": ("F16", slow(read(weights, "w1"), calls, 0.01)) for i in range(200)}
    with pytest.raises(SdkitError, match="this one"):
        write(out, outputs, threads=3)
    assert len(calls) < 20
    assert_nothing_is_left(out)


def test_the_old_file_survives_an_error(weights: Weights, out: Path) -> None:
    def fail(values: torch.Tensor) -> torch.Tensor:
        raise SdkitError("this one")

    out.write_bytes(b"old")
    with pytest.raises(SdkitError, match="this one"):
        write(out, {"bad": ("F16", Map(fail, (read(weights, "w0"),)))}, overwrite=True)
    assert out.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers Ctrl-C otherwise")
def test_an_interrupt_stops_everything_and_leaves_nothing(weights: Weights, out: Path) -> None:
    calls: list[int] = []
    sent: list[int] = []

    def interrupt(values: torch.Tensor) -> torch.Tensor:
        if not sent:
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return values

    outputs: dict[str, tuple[str, Expression]] = {"first": ("F16", Map(interrupt, (read(weights, "w0"),)))}
    outputs |= {f"slow{i}": ("F16", slow(read(weights, "w1"), calls, 0.01)) for i in range(500)}
    with pytest.raises(KeyboardInterrupt):
        write(out, outputs, threads=2)
    assert len(calls) < 300
    assert_nothing_is_left(out)


def test_a_source_that_became_shorter_is_an_error_naming_it(weights: Weights, out: Path) -> None:
    path = weights.files[0]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DamagedFileError, match="the file ends at byte") as caught:
        write(out, {name: (info.dtype.name, read(weights, name)) for name, info in weights.tensors.items()})
    assert caught.value.path == path
    assert_nothing_is_left(out)


def test_a_torch_that_cannot_be_imported_is_an_error_and_leaves_nothing(
    weights: Weights, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="torch"):
        write(out, merged(weights), threads=3)
    assert_nothing_is_left(out)


def test_threads_that_cannot_be_started_are_an_error_and_leave_nothing(
    weights: Weights, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        write(out, merged(weights), threads=3)
    assert_nothing_is_left(out)


@pytest.mark.parametrize("fails", [False, True])
def test_torch_has_its_threads_back_afterwards(weights: Weights, out: Path, fails: bool) -> None:
    def work(values: torch.Tensor) -> torch.Tensor:
        if fails:
            raise SdkitError("this one")
        return values

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        outputs: dict[str, tuple[str, Expression]] = {"w": ("F16", Map(work, (read(weights, "w0"),)))}
        if fails:
            with pytest.raises(SdkitError):
                write(out, outputs, threads=2)
        else:
            write(out, outputs, threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_copying_alone_never_imports_torch(weights: Weights, out: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from sdkit.streaming import Output, OutputFile, Read, Stream
from sdkit.weights import open_weights
with open_weights({str(weights.path)!r}) as weights:
    tensors = tuple(Output(name, info.dtype, Read(weights, info)) for name, info in weights.tensors.items())
    with Stream([OutputFile(Path({str(out)!r}), tensors, {{}})]) as stream:
        stream.run()
        stream.commit()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with open_weights(out) as result:
        assert all(result.read(result.tensors[name]) == weights.read(info) for name, info in weights.tensors.items())


def test_several_files_are_all_written_or_none_is_begun(weights: Weights, out: Path) -> None:
    def file(path: Path) -> OutputFile:
        return OutputFile(path, (Output("w0", DTYPES["F16"], read(weights, "w0")),), {})

    second = out.with_name("second.safetensors")
    second.write_bytes(b"old")
    with pytest.raises(SdkitError, match="already exists"), Stream([file(out), file(second)]):
        pass
    assert list(out.parent.iterdir()) == [second]
    second.unlink()
    with Stream([file(out), file(second)]) as stream:
        stream.run()
        stream.commit()
    assert out.read_bytes() == second.read_bytes()


def test_threads_follow_the_cores_and_the_share_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(engine, "CPU_LIMIT", limit)
    assert engine.default_threads() == 6
    for text, threads in (("max 100000\n", 6), ("250000 100000\n", 3), ("10000 100000\n", 1), ("", 6)):
        limit.write_text(text)
        assert engine.default_threads() == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert engine.default_threads() == engine.MAX_THREADS
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert engine.default_threads() == 1


MEMORY = """
import resource, struct, sys
from pathlib import Path
import torch
from sdkit.streaming import AddDelta, Addend, Output, OutputFile, Read, Stream
from sdkit.weights import DTYPES, open_weights
from sdkit.weights.header import build_header
sys.path.insert(0, sys.argv[2])
from tensor_files import LowRank

folder = Path(sys.argv[1])
layout = [("changed", DTYPES["F16"], (10_000, 10_000)), ("kept", DTYPES["F16"], (10_000, 10_000))]
header = build_header(layout, {})
with open(folder / "in.safetensors", "wb") as file:  # 400 MB of zeros, which take no room
    file.write(header)
    file.truncate(len(header) + 400_000_000)
change = LowRank(torch.ones(10_000, 4).double() * 1e-3, torch.ones(4, 10_000).double())
torch.ones(64, 64).double() @ torch.ones(64, 64).double()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_weights(folder / "in.safetensors") as weights:
    changed, kept = (Read(weights, info) for info in weights.tensors.values())
    outputs = (
        Output("changed", DTYPES["F16"], AddDelta(changed, (Addend(change),))), Output("kept", DTYPES["F16"], kept)
    )
    with Stream([OutputFile(folder / "out.safetensors", outputs, {})], threads=2) as stream:
        stream.run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40
