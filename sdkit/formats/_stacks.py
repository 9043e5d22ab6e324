"""An adapter's changes as the modules of single files have them, where several layers are one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.stacked import joined, swapped
from sdkit.families.family import Model


def single_file_changes(artifact: Artifact, model: Model | None) -> Iterator[tuple[Target, Delta]]:
    """Every change, with those of stacked layers as one of their stack.

    Raises:
        SdkitError: changes of one stack have no common form.
    """
    stacks = model.stacks if model is not None else {}
    stack_of = {module: name for name, stack in stacks.items() for module, _ in stack.members}
    groups: dict[Target, dict[str, Delta]] = defaultdict(dict)
    for target, delta in artifact.deltas.items():
        if target.module in stack_of:
            groups[Target(stack_of[target.module], target.parameter)][target.module] = delta
        else:
            yield target, delta
    for target, found in groups.items():
        stack = stacks[target.module]
        if stack.swapped:
            yield target, swapped(next(iter(found.values())), target.name)
        else:
            yield target, joined([(rows, found.get(module)) for module, rows in stack.members], target.name)
