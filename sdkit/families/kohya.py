"""kohya's module names: the path with underscores for dots, which cannot be undone without the table made here."""

from __future__ import annotations

from collections.abc import Iterable

from sdkit.families.parameter import Parameter, is_module_weight, module_of


def flat_modules(component: str, prefix: str, parameters: Iterable[Parameter], *, ldm: bool = False) -> dict[str, str]:
    """Flattened name → hub module, for every linear layer, convolution and normalisation.

    Args:
        component: hub component (``unet``).
        prefix: kohya's prefix (``lora_unet``).
        parameters: the component's parameters.
        ldm: whether the names of the single file are used as well, as kohya does for SDXL.

    Raises:
        ValueError: two modules flatten to one name, so that the name would not say which is meant.
    """
    modules: dict[str, str] = {}
    for parameter in parameters:
        if not is_module_weight(parameter):
            continue
        module = module_of(parameter.hub)
        names = {module, module_of(parameter.ldm)} if ldm else {module}
        for name in names:
            flat = f"{prefix}_{name.replace('.', '_')}"
            if modules.setdefault(flat, f"{component}.{module}") != f"{component}.{module}":
                raise ValueError(f"{flat} could be {modules[flat]} or {component}.{module}")
    return modules
