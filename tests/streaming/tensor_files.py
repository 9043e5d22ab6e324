"""Files of tensors, small changes of them, and streams that write them, for the tests of this floor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdkit.streaming import Output, OutputFile, Read, Rounding, Stream
from sdkit.streaming.expression import Context, Expression, common_unit, spans
from sdkit.streaming.scratch import Scratch
from sdkit.weights import DTYPES, Weights, open_weights


@contextmanager
def opened(path: Path, tensors: Mapping[str, torch.Tensor]) -> Iterator[Weights]:
    save_file(dict(tensors), path)
    with open_weights(path) as weights:
        yield weights


def read(weights: Weights, name: str) -> Read:
    return Read(weights, weights.tensors[name])


def evaluate(expression: Expression, target: str = "F32", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values, tile by tile as the engine takes them."""
    scratch = Scratch()
    tile = expression.bind(Context(scratch, dtype, DTYPES[target]))
    mark, parts = scratch.mark(), []
    for start, stop in spans(math.prod(expression.shape), common_unit([expression.unit])):
        part = tile(start, stop)
        assert part.shape == (stop - start,)
        parts.append(part.clone())
        scratch.release(mark)
    return torch.cat(parts).reshape(expression.shape) if parts else torch.empty(expression.shape)


def write(path: Path, outputs: Mapping[str, tuple[str, Expression]], **options: Any) -> dict[str, torch.Tensor]:
    """Stream expressions to a file, and read it with the library."""
    rounding = options.pop("rounding", Rounding())
    tensors = tuple(Output(name, DTYPES[dtype], source, rounding) for name, (dtype, source) in outputs.items())
    with Stream([OutputFile(path, tensors, {})], **options) as stream:
        stream.run()
        stream.commit()
    return load_file(path)


@dataclass(frozen=True)
class LowRank:
    """up @ down, [rows, columns]."""

    up: torch.Tensor
    down: torch.Tensor
    asked: list[torch.dtype] = field(default_factory=list, compare=False)

    @property
    def rows(self) -> int:
        return self.up.shape[0]

    def ready(self, dtype: torch.dtype) -> ReadyLowRank:
        self.asked.append(dtype)
        return ReadyLowRank(self.up.to(dtype), self.down.to(dtype))

    def exact(self) -> torch.Tensor:
        return self.up.double() @ self.down.double()


@dataclass(frozen=True)
class ReadyLowRank:
    up: torch.Tensor
    down: torch.Tensor

    def magnitude(self) -> float:
        return float(self.up.norm(dim=1).max() * self.down.norm(dim=0).max()) if self.up.numel() else 0.0

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        out.addmm_(self.up[start : start + len(out)], self.down)
