"""Tensors under other names: renamed, divided, put together, transposed, as expressions over the files they lie in.

Where the bytes stay as they are (everywhere but in a transposed projection, and where the type changes) the engine
copies them, halves in another order too, so what is written is bit for bit what was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdkit.conversion.checkpoint import Located
from sdkit.core.errors import SdkitError
from sdkit.families.spell import Spelling
from sdkit.streaming import Cat, Output, Read, Reshape, Transpose
from sdkit.streaming.expression import Expression, reshaped, rows_of
from sdkit.streaming.quantised import Times, quantisation_scale
from sdkit.weights import DTYPES, DType


def converted(located: Mapping[str, Located], spellings: Iterable[Spelling], dtype: DType | None) -> list[Output]:
    """The tensors that hold the parameters under their new names, in the order of `spellings`.

    Args:
        dtype: element type of all; None leaves each its own.

    Raises:
        SdkitError: scaled fp8 weights are to stay what they are: only their own layout has a place for the scales.
    """
    _check_scales(located.values(), dtype)
    by_key: dict[str, list[Spelling]] = {}
    for spelling in spellings:
        by_key.setdefault(spelling.key, []).append(spelling)
    return [_output(key, group, [located[one.hub] for one in group], dtype) for key, group in by_key.items()]


def _check_scales(located: Iterable[Located], dtype: DType | None) -> None:
    if dtype is not None and dtype.itemsize > 1:
        return
    for source in located:
        if quantisation_scale(source.weights, source.place.key) != 1.0:
            raise SdkitError(
                f"{source.weights.path}: holds fp8 weights with scales beside them, which its own layout alone has a "
                "place for",
                "--dtype bf16 (or fp16, fp32) works them out",
            )


def _output(key: str, group: list[Spelling], sources: list[Located], dtype: DType | None) -> Output:
    stored = dtype or _common_type([source.weights.tensors[source.place.key].dtype for source in sources])
    if _is_stored_alike(group, sources):
        first = sources[0]
        whole = Read(first.weights, first.weights.tensors[first.place.key])
        return Output(key, stored, whole if group[0].rows else _in_shape(whole, group[0].shape))
    pieces = tuple(_piece(one, source) for one, source in zip(group, sources, strict=True))
    return Output(key, stored, Cat(pieces) if group[0].rows else pieces[0])


def _common_type(types: list[DType]) -> DType:
    """Their type; where parts of one tensor have several, the one that holds the values of all exactly."""
    return types[0] if len(set(types)) == 1 else DTYPES["F64" if DTYPES["F64"] in types else "F32"]


def _is_stored_alike(group: list[Spelling], sources: list[Located]) -> bool:
    """Whether one tensor holds the same parameters in the same way already."""
    first = sources[0]
    if quantisation_scale(first.weights, first.place.key) != 1.0:
        return False
    return len({(id(source.weights), source.place.key) for source in sources}) == 1 and all(
        (one.rows, one.transposed, one.swapped) == (source.place.rows, source.place.transposed, source.place.swapped)
        for one, source in zip(group, sources, strict=True)
    )


def _piece(spelling: Spelling, source: Located) -> Expression:
    place = source.place
    read = Read(source.weights, source.weights.tensors[place.key])
    stored = rows_of(read, *place.rows) if place.rows else read
    if place.swapped != spelling.swapped:
        rows = place.shape[0]
        stored = Cat((rows_of(read, rows // 2, rows), rows_of(read, 0, rows // 2)))
    if place.transposed != spelling.transposed:
        stored = Transpose(stored)
    scale = quantisation_scale(source.weights, place.key)
    if scale != 1.0:
        stored = Times(stored, scale)
    return _in_shape(stored, spelling.shape)


def _in_shape(expression: Expression, shape: tuple[int, ...]) -> Expression:
    """The same elements in row-major order under another shape."""
    if expression.shape == shape:
        return expression
    if isinstance(expression, Read) and expression.info.strides is None:
        return reshaped(expression, shape)
    return Reshape(expression, shape)
