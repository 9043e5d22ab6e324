"""Hubs: where models come from and go to. One file each, chosen by how a reference is written."""

from __future__ import annotations

import re
from functools import cache
from typing import cast

from sdkit.core.errors import UsageError
from sdkit.core.plugins import Plugin, choose, find_plugins
from sdkit.hubs.hub import Hub

_HELPERS = ("hub", "http", "download", "names", "remote", "searching")
# Two letters at least: ``C:`` is a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LAST = "https"  # takes the addresses that no hub knows as its own


@cache
def hubs() -> dict[str, Plugin]:
    """The known hubs by name: this package's, and those of the entry points ``sdkit.hubs``."""
    return find_plugins(__name__, "sdkit.hubs", skip=_HELPERS)


def is_reference(text: str) -> bool:
    """Whether a text is written like something that lies on a hub."""
    return hub_name(text) is not None


def hub_name(text: str) -> str | None:
    """The hub a text is a reference to; None where it is none."""
    if not _SCHEME.match(text):
        return None
    names = sorted(hubs(), key=lambda name: name == _LAST)
    return next((name for name in names if hub_module(name).claims(text)), None)


def load_hub(reference: str) -> tuple[str, Hub]:
    """The hub of a reference, and its name.

    Raises:
        UsageError: no hub knows such references.
    """
    name = hub_name(reference)
    if name is None:
        raise UsageError(f"{reference}: no hub knows this", "write hf:org/repo or https://…")
    return name, hub_module(name)


@cache
def hub_module(name: str) -> Hub:
    """The hub called `name`."""
    return cast(Hub, choose(name, hubs(), "hub").load())
