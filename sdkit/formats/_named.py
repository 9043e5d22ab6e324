"""Files whose keys are a module's name, a dot, and one of kohya's and LyCORIS' roles: read and written alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.delta import Delta
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import _lycoris_write
from sdkit.formats._lycoris import changes
from sdkit.formats._write import Content
from sdkit.formats.textual_inversion import BUNDLE, add_bundled
from sdkit.weights import TensorInfo, Weights


def read_named(
    weights: Weights,
    model: Model | None,
    format: str,
    split: Callable[[str], tuple[str, str] | None],
    hub_of: Callable[[str], str | None],
) -> Artifact:
    """The adapter in a file.

    Args:
        split: a tensor's name → (module as the file spells it, role); None for a tensor of another kind.
        hub_of: a module as the file spells it → the hub's; None where the model has no such module.
    """
    builder = ArtifactBuilder(weights, model, format)
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        parts = split(name)
        if parts is not None:
            modules[parts[0]][parts[1]] = info
        elif name.startswith(BUNDLE):
            add_bundled(builder, name, info)
        else:
            builder.leave(name)
    for spelled, found in modules.items():
        module = hub_of(spelled)
        for parameter, delta in changes(builder, spelled, found, hub=module):
            builder.add(module, spelled, delta, parameter, stated="alpha" in found)
    return builder.build()


def named_contents(
    deltas: Iterable[tuple[Target, Delta]], names: Mapping[str, str], model: Model | None, where: str
) -> dict[str, Content]:
    """What a file holds of changes.

    Args:
        names: hub module → its name in the file.
        where: the format, for messages.

    Raises:
        SdkitError: a module has no name there, or a change no roles.
    """
    contents: dict[str, Content] = {}
    for target, delta in deltas:
        if target.module not in names:
            raise SdkitError(f"{target.module} has no name in {where}", "write it as peft or diffusers")
        contents |= _lycoris_write.contents(target, delta, names[target.module], model)
    return contents
