"""A transformer's modules as single files name them: several layers of diffusers' may be one, one below the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sdkit.families.family import Stack
from sdkit.families.parameter import Parameter, is_module_weight, module_of


def stacks(component: str, parameters: Iterable[Parameter]) -> dict[str, Stack]:
    """The modules of the single file that are no module of diffusers', with the component in front."""
    members: dict[str, list[tuple[str, int]]] = defaultdict(list)
    swapped: set[str] = set()
    for row in parameters:
        if is_module_weight(row) and _is_stack(row):
            name = _named(component, row)
            members[name].append((f"{component}.{module_of(row.hub)}", row.shape[0]))
            swapped.update({name} if row.swapped else ())
    return {name: Stack(tuple(found), name in swapped) for name, found in members.items()}


def single_file_modules(component: str, parameters: Iterable[Parameter]) -> dict[str, str]:
    """Module in the single file → the hub module it is, or its stack."""
    return {module_of(row.ldm): _named(component, row) for row in parameters if is_module_weight(row)}


def _is_stack(row: Parameter) -> bool:
    return row.rows is not None or row.swapped


def _named(component: str, row: Parameter) -> str:
    return f"{component}.{module_of(row.ldm if _is_stack(row) else row.hub)}"
