"""Looking at many files: headers are taken apart in Python, which one process does on one core alone.

So a scan of hundreds of new files starts helpers. They are plain child processes that talk over pipes, and not
`multiprocessing`'s, which would run the script of whoever called sdkit a second time.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from sdkit.core.errors import SdkitError
from sdkit.registry.facts import Facts, look_at

_CHUNK = 50  # files: some tenths of a second of work
_FEWEST = 4 * _CHUNK  # below, starting helpers takes longer than they save
_MOST_HELPERS = 8
_RARELY = 200_000  # objects that came and have not gone; a header makes thousands


@dataclass(frozen=True, slots=True)
class Looked:
    """What became of one file: its facts, or why there are none."""

    path: Path
    facts: Facts | None
    reason: str = ""


def look_at_all(paths: Sequence[Path], helpers: int | None = None) -> Iterator[Looked]:
    """Look at files, in order.

    Args:
        helpers: how many processes help; by default as many as are worth it.
    """
    helpers = _worth(len(paths)) if helpers is None else helpers
    if not helpers:
        yield from map(_look, paths)
        return
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ExitStack() as stack:
        idle: SimpleQueue[_Helper] = SimpleQueue()
        for _ in range(helpers):
            idle.put(stack.enter_context(closing(_Helper())))
        pool = stack.enter_context(ThreadPoolExecutor(helpers))
        stack.callback(pool.shutdown, cancel_futures=True)  # where nobody wants the rest

        def ask(chunk: Sequence[Path]) -> list[Looked]:
            helper = idle.get()
            try:
                return helper.ask(chunk)
            finally:
                idle.put(helper)

        for looked in pool.map(ask, chunks):
            yield from looked


def _worth(files: int) -> int:
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 0 if files < _FEWEST or available < 2 else min(available, _MOST_HELPERS, files // _CHUNK)


def _look(path: Path) -> Looked:
    try:
        return Looked(path, look_at(path))
    except SdkitError as error:
        return Looked(path, None, error.message)
    except OSError as error:
        return Looked(path, None, error.strerror or str(error))


class _Helper:
    """A process that looks at files for this one."""

    def __init__(self) -> None:
        places = os.pathsep.join(place or os.getcwd() for place in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sdkit.registry.looking import help_others; help_others()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": places},
        )

    def ask(self, paths: Iterable[Path]) -> list[Looked]:
        """Look at some files."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(list(paths), self._process.stdin)
            self._process.stdin.flush()
            answer: list[Looked] = pickle.load(self._process.stdout)  # of our own child, never of a model
            return answer
        except (OSError, EOFError):  # somebody has ended it
            return [_look(path) for path in paths]

    def close(self) -> None:
        """Let it end."""
        with contextlib.suppress(OSError):
            self._process.communicate()


def help_others() -> None:
    """What a helper does, until nobody asks any more."""
    # All of a file's objects go when it has been looked at, so searching them for cycles would be a tenth of the work.
    gc.set_threshold(_RARELY)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the one who asks was interrupted too, and says so
        while True:
            paths = pickle.load(sys.stdin.buffer)
            pickle.dump([_look(path) for path in paths], sys.stdout.buffer)
            sys.stdout.flush()
