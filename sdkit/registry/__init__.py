"""The registry: which models there are, where their files lie, and what was made from what. No torch."""

from sdkit.registry.registry import Registry, is_on, open_registry

__all__ = ["Registry", "is_on", "open_registry"]
