"""The element types a safetensors file may hold, described without torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sdkit.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: as safetensors writes it, for example ``F16``.
        bits: size of one element; the packed types have fewer than eight.
        torch_name: the attribute of ``torch`` with the same layout; empty where torch has none.
        is_float: whether the numbers are floating-point, so that weights of this type can be merged.
    """

    name: str
    bits: int
    torch_name: str
    is_float: bool = True

    def nbytes(self, count: int) -> int:
        """Bytes that `count` elements take; raises ValueError when they do not fill whole bytes."""
        whole, rest = divmod(count * self.bits, 8)
        if rest:
            raise ValueError(f"{count} elements of {self.name} do not fill whole bytes")
        return whole

    @property
    def itemsize(self) -> int:
        """Bytes of one element; zero for the packed types below one byte."""
        return self.bits // 8


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 8, "bool", is_float=False),
        DType("U8", 8, "uint8", is_float=False),
        DType("I8", 8, "int8", is_float=False),
        DType("U16", 16, "uint16", is_float=False),
        DType("I16", 16, "int16", is_float=False),
        DType("U32", 32, "uint32", is_float=False),
        DType("I32", 32, "int32", is_float=False),
        DType("U64", 64, "uint64", is_float=False),
        DType("I64", 64, "int64", is_float=False),
        DType("F16", 16, "float16"),
        DType("BF16", 16, "bfloat16"),
        DType("F32", 32, "float32"),
        DType("F64", 64, "float64"),
        DType("F8_E4M3", 8, "float8_e4m3fn"),
        DType("F8_E5M2", 8, "float8_e5m2"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, "float8_e8m0fnu", is_float=False),  # an exponent: a scale of other numbers, not a weight
        DType("F6_E2M3", 6, "", is_float=False),
        DType("F6_E3M2", 6, "", is_float=False),
        DType("F4", 4, "float4_e2m1fn_x2", is_float=False),
        DType("C64", 64, "complex64", is_float=False),
    )
}

BY_TORCH_NAME: dict[str, DType] = {dtype.torch_name: dtype for dtype in DTYPES.values() if dtype.torch_name}

_STRUCT_CODES = {
    "F16": "<e",
    "F32": "<f",
    "F64": "<d",
    "U8": "<B",
    "I8": "<b",
    "U16": "<H",
    "I16": "<h",
    "U32": "<I",
    "I32": "<i",
    "U64": "<Q",
    "I64": "<q",
    "BOOL": "<?",
}


def decode_scalar(dtype: DType, data: bytes) -> float:
    """The value of one element, read without torch (a LoRA's `alpha` is such a scalar).

    Raises:
        ValueError: the type has no scalar reading here (the packed, 8-bit and complex types).
    """
    if dtype.name == "BF16":  # bfloat16 is the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype.name not in _STRUCT_CODES:
        raise ValueError(f"a scalar of type {dtype.name} cannot be read")
    return float(struct.unpack(_STRUCT_CODES[dtype.name], data)[0])


# The names people use for element types, and safetensors' own.
FLOAT_NAMES = {
    "fp16": "F16",
    "float16": "F16",
    "bf16": "BF16",
    "bfloat16": "BF16",
    "fp32": "F32",
    "float32": "F32",
    "fp64": "F64",
    "float64": "F64",
    "fp8": "F8_E4M3",
    "fp8_e4m3": "F8_E4M3",
    "fp8_e5m2": "F8_E5M2",
}


def parse_dtype(name: str | None) -> DType | None:
    """An element type by any of its names.

    Raises:
        UsageError: there is no such floating-point type.
    """
    if name is None or name.lower() == "keep":
        return None
    dtype = DTYPES.get(FLOAT_NAMES.get(name.lower(), name.upper()))
    if dtype is None or not dtype.is_float:
        raise UsageError(f"unknown dtype {name!r}", "use one of fp16, bf16, fp32, fp8_e4m3, fp8_e5m2")
    return dtype


PRECISIONS = ("fp32", "fp16", "bf16")


def parse_precision(name: str) -> DType:
    """An element type that models are computed and trained in, by its short name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise UsageError(f"unknown number format {name!r}", f"use {', '.join(PRECISIONS)}")
    return DTYPES[FLOAT_NAMES[name]]
