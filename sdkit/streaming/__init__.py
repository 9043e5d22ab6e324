"""Lazy tensors and the one engine that streams them to disk: merge, blend, convert, extract and unmerge all use it."""

from sdkit.streaming.add_delta import AddDelta, Addend
from sdkit.streaming.engine import Stream
from sdkit.streaming.expression import Cat, Map, Read, Reduce, Reshape, Slice, Transpose
from sdkit.streaming.plan import Output, OutputFile
from sdkit.streaming.rounding import Rounding

__all__ = [
    "AddDelta",
    "Addend",
    "Cat",
    "Map",
    "Output",
    "OutputFile",
    "Read",
    "Reduce",
    "Reshape",
    "Rounding",
    "Slice",
    "Stream",
    "Transpose",
]
