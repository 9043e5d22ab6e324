"""What was measured: a file with a JSON object a line, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.measure import run
from benchmarks.methods.one import Line, Order


class Results:
    """The lines of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_unfinished()
        self._lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]

    def _drop_unfinished(self) -> None:
        """A line that was being written when the power went has no end."""
        contents = self._path.read_bytes() if self._path.exists() else b""
        self._path.write_bytes(contents[: contents.rfind(b"\n") + 1])

    def of(self, order: Order) -> Line | None:
        """What an order led to; None where it has not been carried out."""
        said = order.said
        return next((line for line in self._lines if all(line.get(key) == said[key] for key in said)), None)

    def add(self, line: Line) -> None:
        """Keep one more."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._lines.append(line)


def carry_out(
    orders: Iterable[Order], results: Results, command: list[str], workers: int
) -> Iterator[tuple[Order, Line]]:
    """Have processes carry out what has not been done; what they say is kept at once.

    Args:
        command: what runs an order; the order itself comes behind.
        workers: processes at a time.
    """
    missing = [order for order in orders if results.of(order) is None]
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_measured, command, order): order for order in missing}
        try:
            for future in as_completed(waiting):
                line = future.result()
                results.add(line)
                yield waiting[future], line
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _measured(command: list[str], order: Order) -> Line:
    done = run([*command, json.dumps({**order.said, "base": order.base, "data": order.data, "out": order.out})])
    line: dict[str, Any] = json.loads(done.stdout)
    return line
