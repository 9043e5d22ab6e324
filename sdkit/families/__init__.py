"""What each model family looks like: names, blocks and detection, from headers alone. No torch."""

from sdkit.families.family import Model, Place
from sdkit.families.identify import FAMILIES, identify
from sdkit.families.reference import published, reference

__all__ = ["FAMILIES", "Model", "Place", "identify", "published", "reference"]
