"""What a name in a pickle means to the restricted reader: a short list of builders, inert classes, and refusals.

Nothing here imports or calls what a file names. A call in a pickle ends in one of three ways:

- The name is in `BUILDERS` (about 40 names in all: torch's rebuild functions, dictionaries, numpy scalars): a record
  of ours is made.
- It is a class of a library that genuine checkpoints mention (`INERT_PACKAGES`: Lightning's callbacks, OmegaConf's
  configurations, …): an `Instance` is made that remembers the state and does nothing.
- Anything else would run code when read the usual way. It could not do so here, but such a file is either an attack or
  of a kind we know nothing about, so it is refused by name rather than quietly merged and passed on.

The last rule is a courtesy, not the protection: the protection is that no name is ever looked up.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TypeGuard

from sdkit.weights.dtypes import BY_TORCH_NAME, DTYPES, DType
from sdkit.weights.header import MAX_DIMENSIONS
from sdkit.weights.pickle_records import (
    Global,
    Instance,
    NumpyDType,
    PickleError,
    Storage,
    Tensor,
    UnsafeCallError,
    shown,
)

# A stride of zero repeats elements: a few bytes can claim terabytes. Real expanded tensors are position tables.
MAX_EXPANDED_BYTES = 1 << 20
MAX_COUNT = 2**63

INERT_PACKAGES = (
    "accelerate",
    "addict",
    "datetime",
    "decimal",
    "diffusers",
    "easydict",
    "fractions",
    "ldm",
    "lightning",
    "lightning_fabric",
    "ml_collections",
    "omegaconf",
    "pathlib",
    "peft",
    "pytorch_lightning",
    "sgm",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "transformers",
    "typing",
    "uuid",
    "yacs",
)

# Lower-case names that make a plain object (classes of the standard library, constructors of numpy).
INERT_CALLS = {
    *(f"builtins.{name}" for name in ("bytearray", "bytes", "complex", "object", "range", "slice")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "numeric._frombuffer")
    ),
    *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("bit_generator", "generator", "randomstate")),
    "argparse.Namespace",
    "collections.deque",
    "torch.device",
    "torch.serialization._get_layout",
    "types.SimpleNamespace",
    "yacs.config.CfgNode",
}

UNREADABLE_TENSORS = {
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of a special device",
    "_rebuild_device_tensor_from_numpy": "a tensor of a special device",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta device)",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_wrapper_subclass": "a tensor without data (wrapper subclass)",
    "_rebuild_xla_tensor": "a tensor of a special device",
}

STORAGE_DTYPES: dict[str, DType | None] = {
    "BFloat16Storage": DTYPES["BF16"],
    "BoolStorage": DTYPES["BOOL"],
    "ByteStorage": DTYPES["U8"],
    "CharStorage": DTYPES["I8"],
    "ComplexFloatStorage": DTYPES["C64"],
    "DoubleStorage": DTYPES["F64"],
    "FloatStorage": DTYPES["F32"],
    "HalfStorage": DTYPES["F16"],
    "IntStorage": DTYPES["I32"],
    "LongStorage": DTYPES["I64"],
    "ShortStorage": DTYPES["I16"],
    "UntypedStorage": None,
}
STORAGE_MODULES = {"torch", "torch.cuda", "torch.storage"}

_NUMPY_STRUCT = {
    "b1": "?",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}

Args = tuple[object, ...]


def call(callee: object, args: object) -> object:
    """What calling `callee` yields: a record.

    Raises:
        UnsafeCallError: the call would run code that no model file needs.
        PickleError: the arguments make no sense, or make something that cannot be read.
    """
    if type(callee) is not Global:
        raise UnsafeCallError(f"the result of {callee.of.dotted}" if type(callee) is Instance else "an object")
    if type(args) is not tuple:
        raise PickleError(f"{shown(callee.dotted)} is given no list of arguments")
    builder = BUILDERS.get(callee.dotted)
    if builder:
        return builder(args)
    if is_inert(callee):
        return Instance(callee, args)
    raise UnsafeCallError(callee.dotted)


def is_inert(callee: Global) -> bool:
    """Whether the name is of a class whose objects may appear in a genuine file as placeholders.

    Classes are told from functions by their capital letter, in every part of a dotted name, so that neither
    ``transformers.utils.hub.cached_file`` nor ``numpy.os.system`` passes.
    """
    if callee.dotted in INERT_CALLS:
        return True
    package = any(callee.module == name or callee.module.startswith(name + ".") for name in INERT_PACKAGES)
    return package and all(part.lstrip("_")[:1].isupper() for part in callee.name.split("."))


class StorageTable:
    """The storages a pickle names by persistent identifiers.

    Attributes:
        roots: key → storage, as declared; the container says later where its bytes are.
    """

    def __init__(self) -> None:
        self.roots: dict[str, Storage] = {}

    def find(self, pid: object) -> object:
        """The record for a persistent identifier ``("storage", type, key, location, numel[, view])``."""
        if type(pid) is not tuple or not pid:
            raise PickleError("it refers to an outside object that is no storage")
        if pid[0] == "module" and len(pid) == 4 and type(pid[1]) is Global:  # a class with its source code beside it
            return pid[1]
        if pid[0] != "storage" or len(pid) not in (5, 6):
            raise PickleError("it refers to an outside object that is no storage")
        _, kind, key, _, numel = pid[:5]
        if type(key) is not str or not _is_count(numel):
            raise PickleError("a storage has an impossible name or size")
        storage = self._root(Storage(key, storage_dtype(kind), numel))
        return _storage_view(storage, pid[5]) if len(pid) == 6 and pid[5] is not None else storage

    def _root(self, storage: Storage) -> Storage:
        known = self.roots.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise PickleError(f"storage {shown(storage.key)} is declared twice, differently")
        return known


def storage_dtype(kind: object) -> DType | None:
    """The element type of a storage class; None when it is untyped."""
    if type(kind) is not Global or kind.module not in STORAGE_MODULES:
        raise PickleError("a storage has no known type")
    if kind.name not in STORAGE_DTYPES:
        raise PickleError(f"it holds a {shown(kind.dotted)}, which sdkit cannot read")
    return STORAGE_DTYPES[kind.name]


def _storage_view(root: Storage, view: object) -> Storage:
    if type(view) is not tuple or len(view) != 3 or not _are_counts(view[1:]):
        raise PickleError(f"the view of storage {shown(root.key)} is malformed")
    _, offset, numel = view
    if offset + numel > root.numel:
        raise PickleError(f"a view lies outside storage {shown(root.key)}")
    return Storage(root.key, root.dtype, numel, offset)


def make_tensor(storage: object, dtype: object, place: Args, metadata: object) -> Tensor:
    """The record of a tensor, after checking that it lies within its storage.

    Args:
        storage: the storage.
        dtype: what its elements are, if the storage does not say.
        place: offset, shape and strides, in elements.
        metadata: flags such as a pending conjugation.
    """
    if type(storage) is not Storage:
        raise PickleError("a tensor has no storage")
    kind = storage.dtype or _torch_dtype(dtype)
    offset, shape, strides = place
    if not _is_count(offset) or not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        raise PickleError("a tensor has an impossible offset, shape or stride")
    if type(metadata) is dict and any(metadata.values()):
        raise PickleError("it holds a tensor with a pending conjugation or negation")
    numel = math.prod(shape)
    if numel == 0:
        return Tensor(storage, kind, 0, tuple(shape), None)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * kind.itemsize > storage.nbytes:
        raise PickleError(f"a tensor of shape {shown(str(list(shape)))} lies outside its storage {shown(storage.key)}")
    if numel * kind.itemsize > max(storage.nbytes, MAX_EXPANDED_BYTES):
        raise PickleError(
            f"a tensor of shape {shown(str(list(shape)))} repeats the {storage.nbytes:,} bytes of its storage"
        )
    return Tensor(storage, kind, offset, tuple(shape), None if _is_row_major(shape, strides) else tuple(strides))


def _torch_dtype(dtype: object) -> DType:
    known = BY_TORCH_NAME.get(dtype.name) if type(dtype) is Global and dtype.module == "torch" else None
    if known is None or not known.itemsize:
        name = dtype.dotted if type(dtype) is Global else "no known type"
        raise PickleError(f"it holds a tensor of {shown(name)}, which sdkit cannot read")
    return known


def _is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_COUNT


def _are_counts(values: object) -> TypeGuard[Sequence[int]]:
    return isinstance(values, (tuple, list)) and len(values) <= MAX_DIMENSIONS and all(map(_is_count, values))


def _rebuild_tensor(args: Args) -> Tensor:
    # (storage, offset, size, stride[, requires_grad, hooks[, metadata]])
    return make_tensor(args[0], None, args[1:4], args[6] if len(args) > 6 else None)


def _rebuild_tensor_v3(args: Args) -> Tensor:
    # (storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])
    return make_tensor(args[0], args[6], args[1:4], args[7] if len(args) > 7 else None)


def _rebuild_parameter(args: Args) -> object:
    if type(args[0]) is not Tensor:
        raise PickleError("a parameter holds no tensor")
    return args[0]


def _rebuild_from_type(args: Args) -> object:
    # (rebuild function, class, its arguments, attributes): a tensor with attributes of its own, which are left out.
    rebuild, _, inner, _ = args
    if type(rebuild) is not Global or not rebuild.dotted.startswith(("torch._utils._rebuild_", "torch.nn.parameter.")):
        raise UnsafeCallError(rebuild.dotted if type(rebuild) is Global else "an object")
    return call(rebuild, inner)


def _unreadable(what: str) -> Callable[[Args], object]:
    def refuse(args: Args) -> object:
        raise PickleError(f"it holds {what}, which sdkit cannot read")

    return refuse


def _first(args: Args) -> object:
    # A set becomes the list it is made from, torch.Size the tuple: shared, so that repeating the call costs nothing.
    return args[0] if args else []


def _dictionary(args: Args) -> object:
    entries = args[0] if args else {}
    if type(entries) is dict:
        return entries if args else {}
    if type(entries) is not list:
        raise PickleError("a dictionary is made from something that holds no pairs")
    result: dict[object, object] = {}
    for key, value in entries:
        result[check_key(key)] = value
    return result


def check_key(key: object) -> object:
    """A dictionary key, unless it could make the dictionary slow or overflow the stack.

    Tuples hash by recursion without a limit, and huge integers can be chosen so that all hash alike.
    """
    if type(key) in (tuple, list, dict) or (type(key) is int and abs(key) >= 2**60):
        raise PickleError(f"a dictionary has a key of an unexpected kind ({type(key).__name__})")
    return key


def _default_dictionary(args: Args) -> object:
    return _dictionary(args[1:])


def _encode(args: Args) -> object:
    # Protocol 2 has no bytes: Python 3 writes them as text to be encoded.
    text, encoding = args if len(args) == 2 else (*args, "utf-8")
    if type(text) is not str or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise PickleError("bytes are made from something that is no text")
    return text.encode(encoding)


def _numpy_dtype(args: Args) -> object:
    if not args or type(args[0]) is not str:
        raise PickleError("a numpy type has no name")
    return NumpyDType(args[0].lstrip("<>=|"), ">" if args[0].startswith(">") else "<")


def _numpy_scalar(args: Args) -> object:
    dtype, data = args
    if type(dtype) is not NumpyDType or dtype.code not in _NUMPY_STRUCT:
        return Instance(Global("numpy", "generic"), args)
    raw = data.encode("latin-1") if type(data) is str else data
    if type(raw) is not bytes:
        raise PickleError("a numpy number holds no bytes")
    (value,) = struct.unpack((">" if dtype.order == ">" else "<") + _NUMPY_STRUCT[dtype.code], raw)
    return value


def _new_object(args: Args) -> object:
    # copyreg's (class, base class, base value) and (class, *arguments): objects of the oldest protocols.
    return call(args[0], args[1:])


def _subscript(args: Args) -> object:
    # typing.Dict[str, int] pickles itself as operator.getitem(typing.Dict, …).
    if len(args) != 2 or type(args[0]) is not Global or args[0].module != "typing":
        raise UnsafeCallError("operator.getitem")
    return Instance(args[0], args[1:])


BUILDERS: dict[str, Callable[[Args], object]] = {
    "_codecs.encode": _encode,
    "builtins.frozenset": _first,
    "builtins.set": _first,
    "collections.Counter": _dictionary,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "copyreg.__newobj__": _new_object,
    "copyreg._reconstructor": _new_object,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _numpy_dtype,
    "operator.getitem": _subscript,
    "torch.Size": _first,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch.nn.parameter.Buffer": _rebuild_parameter,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.storage._load_from_bytes": _unreadable("tensors pickled one by one, without torch.save"),
    **{f"torch._utils.{name}": _unreadable(what) for name, what in UNREADABLE_TENSORS.items()},
}
