"""What the restricted pickle reader builds in place of real objects: records that hold facts and can do nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.weights.dtypes import DType

MAX_SHOWN = 100


class PickleError(Exception):
    """A reason why a pickled file is not read, before its path is known."""


class UnsafeCallError(PickleError):
    """The pickle asks for a call that no model file needs.

    Attributes:
        call: the dotted name of what would be called.
    """

    def __init__(self, call: str) -> None:
        super().__init__(f"it would run `{shown(call)}`")
        self.call = call


def shown(text: str) -> str:
    """Text from a hostile file, made fit to print: short, ASCII, no control characters."""
    return ascii(text[:MAX_SHOWN])[1:-1]


@dataclass(frozen=True, slots=True)
class Global:
    """A name of a module's attribute. It is never imported and never called."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """The name as people write it: ``collections.OrderedDict``."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Instance:
    """An object of a class that sdkit does not build: the class's name and whatever the pickle put into the object.

    Attributes:
        of: the class.
        args: what its constructor would have been given.
        state: what its attributes would have been set from.
        items: entries, if the pickle filled it like a dictionary.
        elements: entries, if the pickle filled it like a list.
    """

    of: Global
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] | None = None
    elements: list[object] | None = None


@dataclass(eq=False, slots=True)
class NumpyDType:
    """The type of a numpy scalar: its code without byte order (``f8``), and the order (``<``, ``>``, ``|``)."""

    code: str
    order: str = "<"


@dataclass(eq=False, slots=True)
class Storage:
    """The bytes one or several tensors look into.

    Attributes:
        key: its name in the file.
        dtype: what the elements are; None for an untyped storage, whose tensors bring their own types.
        numel: number of elements (of bytes, when untyped).
        start: first element within the storage of that key; only files from before 2018 have such views.
    """

    key: str
    dtype: DType | None
    numel: int
    start: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize if self.dtype else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.itemsize


@dataclass(eq=False, slots=True)
class Tensor:
    """A view of a storage, already checked to lie within the size that the storage claims.

    Attributes:
        storage: where the elements are.
        dtype: what they are.
        offset: first element, counted in elements of `dtype` from the start of the storage.
        shape: dimensions.
        strides: steps in elements; None when the elements lie in row-major order.
    """

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
