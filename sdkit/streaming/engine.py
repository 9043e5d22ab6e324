"""The engine: evaluates a plan tile by tile and writes it, in constant memory, with the same bytes on every run.

Every output byte has a fixed place, so the order in which workers finish does not matter. Unchanged bytes are copied
inside the kernel; that part starts at once, while torch is still being imported (1.2 of a small merge's 2 seconds).
Each worker computes whole tensors with one torch thread: the numbers never depend on how many workers there are.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Context, common_unit, spans, torch_dtype
from sdkit.streaming.plan import CopyRun, Output, OutputFile, copy_runs
from sdkit.streaming.scratch import Scratch
from sdkit.weights import positional
from sdkit.weights.header import DamagedFileError
from sdkit.weights.writer import SafetensorsWriter

COPY_PIECE_BYTES = 32 << 20
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
MAX_THREADS = 8  # beyond this the disk is the limit, and each worker costs memory

FULL_HINT = "free some space, or write to another disk with -o"

Advance = Callable[[int], None]


def default_threads() -> int:
    """One worker per core this process may use, within reason."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _container_cores(), MAX_THREADS))


def _container_cores() -> int:
    """The cores that a container's share of processor time amounts to (cgroup 2); plenty where there is no limit."""
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup, or the limit is "max"
        return MAX_THREADS


@dataclass(frozen=True, slots=True)
class _Compute:
    """One tensor to evaluate and write."""

    output: Output
    writer: SafetensorsWriter


@dataclass(frozen=True, slots=True)
class _Copy:
    """One run of bytes to copy."""

    run: CopyRun
    writer: SafetensorsWriter


Job = _Copy | _Compute
_Kind = TypeVar("_Kind", _Copy, _Compute)


class Stream:
    """The open output files of one plan. Use as a context manager: `run`, then `commit`.

    Args:
        files: what to write.
        overwrite: whether existing files may be replaced.
        threads: workers; all of them give the same bytes. Default: one per core.
        advance: called with the number of bytes just written, from any worker.
    """

    def __init__(
        self,
        files: Sequence[OutputFile],
        *,
        overwrite: bool = False,
        threads: int | None = None,
        advance: Advance | None = None,
    ) -> None:
        self.files = tuple(files)
        self.overwrite = overwrite
        self.threads = threads or default_threads()
        self._advance = advance or (lambda count: None)
        self._stack = ExitStack()
        self.writers: list[SafetensorsWriter] = []

    def __enter__(self) -> Stream:
        with self._stack as stack:  # closes what is open if one of several files cannot be made
            for file in self.files:
                writer = SafetensorsWriter(
                    file.path, file.layout(), file.metadata, overwrite=self.overwrite, header=file.header
                )
                self.writers.append(stack.enter_context(writer))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Write all tensors.

        Raises:
            SdkitError: the first error of any worker; nothing has been given a name then.
        """
        try:
            _Workers(self._jobs(), self.threads, self._advance).run()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            path = self.files[0].path
            raise SdkitError(f"{path}: the disk became full while it was written", FULL_HINT) from None

    def commit(self) -> None:
        """Flush and name the files."""
        for writer in self.writers:
            writer.commit()

    def _jobs(self) -> tuple[deque[_Copy], deque[_Compute]]:
        copies: deque[_Copy] = deque()
        computations: deque[_Compute] = deque()
        for file, writer in zip(self.files, self.writers, strict=True):
            copies.extend(_Copy(run, writer) for run in copy_runs(file, writer.offsets, COPY_PIECE_BYTES))
            computations.extend(_Compute(output, writer) for output in file.tensors if not output.pieces)
        return copies, computations


class _Workers:
    """Threads that take jobs from two queues until both are empty or one of them fails."""

    def __init__(self, jobs: tuple[deque[_Copy], deque[_Compute]], threads: int, advance: Advance) -> None:
        self._copies, self._computations = jobs
        self._advance = advance
        self._torch_ready = threading.Event()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=f"sdkit-{i}", daemon=True) for i in range(threads)]

    def run(self) -> None:
        with ExitStack() as cleanup:
            cleanup.callback(self._finish)
            for thread in self._threads:
                thread.start()
            if self._computations:
                import torch  # here, so that copying goes on meanwhile

                # The workers each ask for one thread, which torch remembers for the whole process.
                cleanup.callback(torch.set_num_threads, torch.get_num_threads())
                cleanup.callback(self._finish)  # first of all, so that no worker can ask again afterwards
            self._torch_ready.set()
            self._join()
        if self._error is not None:
            raise self._error

    def _finish(self) -> None:
        self._stop.set()
        self._torch_ready.set()
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)  # a timeout, so that Ctrl-C reaches the main thread

    def _work(self) -> None:
        worker = _Worker(self._advance, self._stop)
        try:
            while (job := self._next()) is not None and not self._stop.is_set():
                worker.copy(job) if isinstance(job, _Copy) else worker.compute(job)
        except BaseException as error:
            if self._error is None:
                self._error = error
            self._stop.set()

    def _next(self) -> Job | None:
        """Arithmetic first, copying while there is no torch yet: both cores stay busy to the end."""
        job: Job | None = _pop(self._computations) if self._torch_ready.is_set() else None
        if job is None:
            job = _pop(self._copies)
        if job is None:
            self._torch_ready.wait()
            job = _pop(self._computations)
        return job


def _pop(queue: deque[_Kind]) -> _Kind | None:
    try:
        return queue.popleft()
    except IndexError:  # another worker was quicker
        return None


class _Worker:
    """What one thread keeps between jobs: its scratch memory."""

    def __init__(self, advance: Advance, stop: threading.Event) -> None:
        self._scratch = Scratch()
        self._advance = advance
        self._stop = stop

    def copy(self, job: _Copy) -> None:
        run = job.run
        source = run.weights.descriptor(run.file)
        try:
            positional.copy(source, run.source, job.writer.descriptor, run.target, run.length)
        except EOFError as error:
            raise DamagedFileError(run.weights.files[run.file], str(error)) from None
        self._advance(run.length)

    def compute(self, job: _Compute) -> None:
        import torch

        torch.set_num_threads(1)  # OpenMP keeps this per thread
        output, itemsize = job.output, job.output.dtype.itemsize
        stored = torch_dtype(output.dtype)
        with torch.inference_mode():
            arithmetic = torch.float64 if output.dtype.name == "F64" else torch.float32
            tile = output.expression.bind(Context(self._scratch, arithmetic, output.dtype))
            mark = self._scratch.mark()
            for start, stop in spans(math.prod(output.shape), common_unit([output.expression.unit])):
                if self._stop.is_set():
                    return
                out = self._scratch.take(stop - start, stored)
                output.rounding.store(tile(start, stop), out.tensor, output.dtype, output.name, start)
                job.writer.write_tensor(output.name, out.memory, start * itemsize)
                self._scratch.release(mark)
                self._advance(len(out.memory))
        self._scratch.release()
