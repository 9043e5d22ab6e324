"""An interpreter of pickle's opcodes that builds inert records, in place of Python's `pickle` module.

Pickle is a little stack language whose GLOBAL opcodes name anything importable and whose REDUCE opcodes call it, which
is why reading a pickle runs the code of whoever wrote it. This machine knows the same language, but a name stays a
`Global` and a call goes to `pickle_globals.call`, which only makes records. Opcodes that model files do not need (the
text protocol's numbers and strings, the extension registry, out-of-band buffers) are refused.

Everything is bounded: the bytes, the number of opcodes, the size of a number, and what calls may copy, so that a small
file cannot make the reader slow or large.

The language: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from sdkit.weights.pickle_globals import StorageTable, call, check_key
from sdkit.weights.pickle_records import Global, Instance, NumpyDType, PickleError, Tensor, UnsafeCallError

# The pickle of a checkpoint with 3,000 tensors and Lightning's state is under 2 MB and 300,000 opcodes.
MAX_PICKLE_BYTES = 32 << 20
MAX_OPCODES = 2_000_000
MAX_NUMBER_BYTES = 255
MAX_GLOBAL_LENGTH = 512
MAX_PROTOCOL = 5

_PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error)


class Machine:
    """Runs one pickle.

    Args:
        data: the bytes.
        position: where the pickle begins.
        storages: receives the storages that it names.

    Attributes:
        position: after `run`, the byte behind the pickle's STOP.
        tensors: every tensor it built, whether or not the result leads to it.
    """

    def __init__(self, data: bytes, position: int, storages: StorageTable) -> None:
        self.data = data
        self.position = position
        self.storages = storages
        self.tensors: set[Tensor] = set()
        self._stack: list[object] = []
        self._outer: list[list[object]] = []  # the stacks below each MARK, out of reach until it is closed
        self._memo: dict[int, object] = {}
        self._copied = 0

    def run(self) -> object:
        """The object that the pickle describes, made of plain values and records.

        Raises:
            UnsafeCallError: it would run code that no model file needs.
            PickleError: it is damaged, too large, or not a pickle of a model.
        """
        try:
            return self._run()
        except _MALFORMED:
            raise PickleError(f"its pickle is damaged near byte {self.position:,}") from None

    def _run(self) -> object:
        data, table = self.data, _OPCODES
        for _ in range(MAX_OPCODES):
            if self.position >= len(data):
                raise PickleError(f"its pickle does not end within {self.position:,} bytes")
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self._stack.pop()
            operation = table.get(code)
            if operation is None:
                raise PickleError(_refusal(code, self.position - 1))
            operation(self)
        raise PickleError(f"its pickle has more than {MAX_OPCODES:,} steps")

    # Reading arguments

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise PickleError(f"its pickle does not end within {len(self.data):,} bytes")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + MAX_GLOBAL_LENGTH)
        line = self.data[self.position : end]
        self.position = end + 1
        return line.decode("utf-8")

    # The stack

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[object]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _pop(self) -> None:
        # Python's own reader lets POP remove an empty MARK, and its writer uses that for recursive tuples.
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    # Memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # Values

    def _number(self, size: int) -> None:
        if size > MAX_NUMBER_BYTES:
            raise PickleError(f"its pickle holds a number of {size:,} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def _text(self, size: int) -> None:
        self._stack.append(self._take(size).decode("utf-8", "surrogatepass"))

    def _python2_string(self, size: int) -> None:
        # Python 2 did not tell text from bytes: ASCII is text here, the rest (a numpy number) stays bytes.
        raw = self._take(size)
        self._stack.append(raw.decode("ascii") if raw.isascii() else raw)

    # Containers

    def _append(self, values: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is Instance:
            target.elements = target.elements or []
            target = target.elements
        if type(target) is not list:
            raise PickleError("it appends to something that is no list")
        target.extend(values)

    def _set(self, pairs: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is Instance:
            target.items = target.items or {}
            target = target.items
        if type(target) is not dict or len(pairs) % 2:
            raise PickleError("it sets an entry of something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[check_key(key)] = value

    def _append_one(self) -> None:
        value = self._stack.pop()
        self._append([value])

    def _set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _new_dict(self, pairs: list[object]) -> None:
        self._stack.append({})
        self._set(pairs)

    # Names, calls, outside objects

    def _global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > MAX_GLOBAL_LENGTH:
            raise PickleError("it computes the name of something to import")
        self._stack.append(Global(_PYTHON2_MODULES.get(module, module), name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _call(self, callee: object, args: object) -> None:
        # Builders may copy an argument, which the memo can hand to a million calls.
        sizes = (len(arg) for arg in args if isinstance(arg, (str, bytes, list, dict))) if type(args) is tuple else ()
        self._copied += sum(sizes)
        if self._copied > MAX_PICKLE_BYTES:
            raise PickleError("its pickle unpacks to far more than its own size")
        result = call(callee, args)
        if type(result) is Tensor:
            self.tensors.add(result)
        self._stack.append(result)

    def _reduce(self) -> None:
        args, callee = self._stack.pop(), self._stack.pop()
        self._call(callee, args)

    def _new_object_ex(self) -> None:
        keywords, args, callee = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._call(callee, (*_arguments(args), keywords))

    def _inst(self) -> None:
        self._global(self._line(), self._line())
        callee = self._stack.pop()
        self._call(callee, tuple(self._pop_mark()))

    def _obj(self) -> None:
        callee, *args = self._pop_mark()
        self._call(callee, tuple(args))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is Instance:
            target.state = state
        elif type(target) is NumpyDType:
            target.order = str(_arguments(state)[1])
        elif type(target) is Global:
            raise UnsafeCallError(f"{target.dotted}.__setstate__")
        elif type(target) is not dict:  # an OrderedDict's attributes (a state dict's _metadata) say nothing we need
            raise PickleError("it sets attributes of something that has none")

    def _outside(self) -> None:
        self._stack.append(self.storages.find(self._stack.pop()))

    def _protocol(self) -> None:
        protocol = self._unsigned(1)
        if protocol > MAX_PROTOCOL:
            raise PickleError(f"its pickle is of protocol {protocol}, which does not exist yet")


def _arguments(value: object) -> tuple[object, ...]:
    if type(value) is not tuple:
        raise TypeError
    return value


def _refusal(code: int, position: int) -> str:
    if code in b"\x82\x83\x84":
        return "its pickle names code by a number of the extension registry"
    if code in b"ILFSVgpP":
        return f"its pickle uses the text opcode {chr(code)!r}, which no model file needs"
    return f"its pickle is damaged: byte {position:,} ({code:#04x}) is no opcode that model files use"


def _constant(make: Callable[[], object]) -> Callable[[Machine], None]:
    return lambda machine: machine._push(make())


_STOP = ord(".")

_OPCODES: dict[int, Callable[[Machine], object]] = {
    opcode[0]: operation
    for opcode, operation in {
        b"\x80": Machine._protocol,
        b"\x95": lambda m: m._take(8),  # FRAME: a hint for reading ahead
        b"(": Machine._mark,
        b"0": Machine._pop,
        b"1": Machine._pop_mark,
        b"2": Machine._duplicate,
        # memo
        b"q": lambda m: m._put(m._unsigned(1)),
        b"r": lambda m: m._put(m._unsigned(4)),
        b"\x94": lambda m: m._put(len(m._memo)),
        b"h": lambda m: m._get(m._unsigned(1)),
        b"j": lambda m: m._get(m._unsigned(4)),
        # values
        b"N": _constant(lambda: None),
        b"\x88": _constant(lambda: True),
        b"\x89": _constant(lambda: False),
        b"J": lambda m: m._number(4),
        b"K": lambda m: m._push(m._unsigned(1)),
        b"M": lambda m: m._push(m._unsigned(2)),
        b"\x8a": lambda m: m._number(m._unsigned(1)),
        b"\x8b": lambda m: m._number(m._unsigned(4)),
        b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
        b"X": lambda m: m._text(m._unsigned(4)),
        b"\x8c": lambda m: m._text(m._unsigned(1)),
        b"\x8d": lambda m: m._text(m._unsigned(8)),
        b"B": lambda m: m._push(m._take(m._unsigned(4))),
        b"C": lambda m: m._push(m._take(m._unsigned(1))),
        b"\x8e": lambda m: m._push(m._take(m._unsigned(8))),
        b"\x96": lambda m: m._push(m._take(m._unsigned(8))),
        b"T": lambda m: m._python2_string(m._unsigned(4)),
        b"U": lambda m: m._python2_string(m._unsigned(1)),
        # containers; a set is a list here, because nothing needs its hashing
        b")": _constant(tuple),
        b"]": _constant(list),
        b"}": _constant(dict),
        b"\x8f": _constant(list),
        b"\x85": lambda m: m._tuple(1),
        b"\x86": lambda m: m._tuple(2),
        b"\x87": lambda m: m._tuple(3),
        b"t": lambda m: m._push(tuple(m._pop_mark())),
        b"l": lambda m: m._push(m._pop_mark()),
        b"\x91": lambda m: m._push(m._pop_mark()),
        b"d": lambda m: m._new_dict(m._pop_mark()),
        b"a": Machine._append_one,
        b"e": lambda m: m._append(m._pop_mark()),
        b"\x90": lambda m: m._append(m._pop_mark()),
        b"s": Machine._set_one,
        b"u": lambda m: m._set(m._pop_mark()),
        # names, calls, outside objects
        b"c": lambda m: m._global(m._line(), m._line()),
        b"\x93": Machine._stack_global,
        b"R": Machine._reduce,
        b"\x81": Machine._reduce,  # NEWOBJ: class, arguments
        b"\x92": Machine._new_object_ex,
        b"i": Machine._inst,
        b"o": Machine._obj,
        b"b": Machine._build,
        b"Q": Machine._outside,
    }.items()
}
