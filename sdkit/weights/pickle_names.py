"""How the tensors and values inside a pickled object get their names.

- A path of dictionary keys is joined by dots, list positions count as ``0``, ``1``, …, whole-number keys as digits:
  a hypernetwork's ``{768: (k, v)}`` gives ``768.0.linear.0.weight``, a flat list of tensors gives ``0``, ``1``, ``2``.
- A bare tensor is called ``tensor``.
- One container is unwrapped: of a checkpoint ``{"state_dict": …, "epoch": …}`` the names are those inside
  ``state_dict`` (or ``module``, ``model``), if it holds most of the tensors that are not a trainer's own bookkeeping.
  The tensors beside it (optimizer moments, a callback's best score) are no part of the model and get no name.
- A placeholder of a torch module (an old embedding's ParameterDict) counts as the dictionary of its parameters, buffers
  and submodules; any other placeholder is opaque, except for entries the pickle put into it like a dictionary or list.
"""

from __future__ import annotations

from collections.abc import Iterator

from sdkit.weights.header import check_name
from sdkit.weights.pickle_records import Global, Instance, PickleError, Tensor, shown

CONTAINERS = ("state_dict", "module", "model")
BOOKKEEPING = frozenset({"callbacks", "loops", "lr_schedulers", "optimizer", "optimizer_states", "optimizers"})
BARE_TENSOR = "tensor"

# A shared object is visited once per path, so that a few bytes of pickle can describe endlessly many paths.
MAX_DEPTH = 64
MAX_VISITS = 1_000_000
MAX_EXTRA_VALUES = 10_000
MAX_EXTRA_TEXT = 65_536

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def name_tensors(root: object) -> dict[str, Tensor]:
    """The tensors of the model within `root`, by the names explained above.

    Raises:
        PickleError: two tensors would get one name, a key cannot be part of a name, or the nesting has no end.
    """
    found = list(_walk(root))
    if len(found) == 1 and found[0][0] == ():
        return {BARE_TENSOR: found[0][1]}
    container = _container(found)
    named: dict[str, Tensor] = {}
    for path, tensor in found:
        if container and path[0] != container:
            continue
        name = ".".join(path[1:] if container else path) or BARE_TENSOR
        check_name(name)
        if name in named:
            raise PickleError(f"two of its tensors would be named {shown(name)}")
        named[name] = tensor
    return named


def plain_values(root: object) -> dict[str, Plain]:
    """What `root` holds beside tensors: numbers, strings, and lists and dictionaries of them, under their own keys.

    Placeholders, bytes and enormous texts are left out, and with them lists that would lose an element; so are
    dictionaries without plain values, and whatever comes after the first ten thousand values.
    """
    if type(root) is not dict:
        return {}
    return _plain_dict(root, iter(range(MAX_EXTRA_VALUES)), 0)


def _container(found: list[tuple[tuple[str, ...], Tensor]]) -> str | None:
    total = sum(path[0] not in BOOKKEEPING for path, _ in found)
    for name in CONTAINERS:
        if 2 * sum(path[0] == name and len(path) > 1 for path, _ in found) > total:
            return name
    return None


def _walk(root: object) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor with the path that leads to it, in the order of the file."""
    stack: list[tuple[tuple[str, ...], object]] = [((), root)]
    visits = 0
    while stack:
        path, value = stack.pop()
        if type(value) is Tensor:
            yield path, value
            continue
        children = _children(value)
        visits += len(children)
        if visits > MAX_VISITS:
            raise PickleError(f"its objects lead to more than {MAX_VISITS:,} entries")
        if children and len(path) == MAX_DEPTH:
            raise PickleError(f"its objects are nested more than {MAX_DEPTH} deep, or in themselves")
        stack.extend(((*path, key_text(key)), child) for key, child in reversed(children))


def _children(value: object) -> list[tuple[object, object]]:
    # Only what can hold tensors: names are not made for a million plain numbers.
    if type(value) is Instance:
        value = _module_entries(value) or value.items or value.elements
    if type(value) is dict:
        entries = list(value.items())
    elif isinstance(value, (list, tuple)):
        entries = list(enumerate(value))
    else:
        return []
    return [(key, child) for key, child in entries if type(child) in (Tensor, Instance, dict, list, tuple)]


def _module_entries(module: Instance) -> dict[object, object]:
    state = module.state
    if type(state) is not dict or type(state.get("_parameters")) is not dict:
        return {}
    entries: dict[object, object] = {}
    for part in ("_parameters", "_buffers", "_modules"):
        held = state.get(part)
        entries.update(held if type(held) is dict else {})
    return entries


def key_text(key: object) -> str:
    """A dictionary key as part of a name."""
    if isinstance(key, (str, int, float)):
        return str(key)
    if type(key) is bytes:
        return key.decode("latin-1")
    if type(key) is Global:
        return key.dotted
    return key.of.dotted if type(key) is Instance else type(key).__name__


class _NotPlainError(Exception):
    """The value has no plain form."""


class _EnoughError(_NotPlainError):
    """There have been so many values that no more are taken."""


def _plain(value: object, budget: Iterator[int], depth: int) -> Plain:
    if next(budget, None) is None:
        raise _EnoughError
    if depth > MAX_DEPTH:
        raise _NotPlainError
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if type(value) is str and len(value) <= MAX_EXTRA_TEXT:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, budget, depth + 1) for item in value]
    if type(value) is dict:
        entries = _plain_dict(value, budget, depth)
        if entries:
            return entries
    raise _NotPlainError


def _plain_dict(entries: dict[object, object], budget: Iterator[int], depth: int) -> dict[str, Plain]:
    result: dict[str, Plain] = {}
    for key, value in entries.items():
        try:
            result[key_text(key)] = _plain(value, budget, depth + 1)
        except _EnoughError:
            break
        except _NotPlainError:
            continue
    return result
