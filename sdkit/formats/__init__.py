"""File formats of adapters: one codec per file, found by its name, chosen by what a file's header shows."""

from __future__ import annotations

from functools import cache
from typing import cast

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError
from sdkit.core.plugins import Plugin, find_plugins
from sdkit.families.family import Model
from sdkit.formats._family import adapter_family
from sdkit.formats.codec import Codec, Verdict
from sdkit.weights import Weights

__all__ = ["Verdict", "adapter_family", "formats", "read_adapter", "recognise"]


def formats() -> dict[str, Plugin]:
    """The known formats by name: this package's, and those of the entry points ``sdkit.formats``."""
    return find_plugins(__name__, "sdkit.formats", skip=("codec",))


def recognise(weights: Weights) -> tuple[str | None, dict[str, Verdict]]:
    """Which format a file is in, and what every codec said about it.

    Returns:
        The name of the only codec that recognises the file, None when none does or several do; and each verdict.
    """
    verdicts = {name: codec.detect(weights) for name, codec in _codecs().items()}
    recognised = [name for name, verdict in verdicts.items() if verdict.recognised]
    return (recognised[0] if len(recognised) == 1 else None), verdicts


def read_adapter(weights: Weights, model: Model | None = None) -> Artifact:
    """The adapter in the internal form; only headers and scalars are read.

    Args:
        weights: the opened file or folder.
        model: the base it will be applied to; None to look at the file alone, with the file's own module names.

    Raises:
        SdkitError: no format fits (the hint lists each codec's reason), several do, or the file is broken.
    """
    name, verdicts = recognise(weights)
    if name is not None:
        return _codecs()[name].read(weights, model)
    several = [name for name, verdict in verdicts.items() if verdict.recognised]
    if several:
        raise SdkitError(
            f"{weights.path}: it mixes the formats {' and '.join(several)}",
            "split it into one file per format",
        )
    reasons = "; ".join(f"{name}: {verdict.reason}" for name, verdict in verdicts.items())
    raise SdkitError(f"{weights.path}: not an adapter in a known format", reasons)


@cache
def _codecs() -> dict[str, Codec]:
    """The imported codecs.

    Raises:
        SdkitError: a plugin cannot be imported, or is no codec.
    """
    codecs: dict[str, Codec] = {}
    for name, plugin in formats().items():
        module = plugin.load()
        if not hasattr(module, "detect") or not hasattr(module, "read"):
            raise SdkitError(f"the format {name} ({plugin.module}) lacks detect or read", "uninstall or repair it")
        codecs[name] = cast(Codec, module)
    return codecs
