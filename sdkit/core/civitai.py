"""What Civitai calls things, and its descriptions of models read with care: sidecars hold them, and its API gives them.

Every value may come from a stranger: each is checked, none is believed about a file's content.
Source: https://developer.civitai.com (the REST API), seen 2025.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

# Family → its names, the one for new models first.
BASE_MODELS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("SD 1.5", "SD 1.4", "SD 1.5 LCM", "SD 1.5 Hyper"),
    "sd2": ("SD 2.1", "SD 2.1 768", "SD 2.0", "SD 2.0 768", "SD 2.1 Unclip"),
    "sdxl": (
        "SDXL 1.0",
        "SDXL 0.9",
        "SDXL 1.0 LCM",
        "SDXL Turbo",
        "SDXL Lightning",
        "SDXL Hyper",
        "Pony",
        "Illustrious",
        "NoobAI",
    ),
}
# Kind → its types of models, the one for new models first.
TYPES: Mapping[str, tuple[str, ...]] = {
    "checkpoint": ("Checkpoint",),
    "lora": ("LORA", "LoCon", "DoRA"),
    "textual-inversion": ("TextualInversion",),
    "hypernetwork": ("Hypernetwork",),
    "aesthetic": ("AestheticGradient",),
    "component": ("VAE",),
}
_LONGEST = 4000
_TAG = re.compile(r"<[^>]*>")


def kind_of(type: object) -> str:
    """The kind that one of its types of models is; the type in small letters where it is none of sdkit's."""
    text = str(type)
    return next((kind for kind, types in TYPES.items() if text in types), text.lower()[:40])


def family_of(base_model: object) -> str:
    """The family of one of its base models; ``unknown`` for others."""
    return next((family for family, names in BASE_MODELS.items() if base_model in names), "unknown")


def plain_text(value: object) -> str:
    """A description without its HTML; empty where it is no text."""
    if not isinstance(value, str):
        return ""
    lines = html.unescape(_TAG.sub(" ", re.sub(r"</(p|li|h\d)>|<br\s*/?>", "\n", value))).splitlines()
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())[:_LONGEST]


def trained_words(version: Mapping[str, Any]) -> list[str]:
    """The words that call a version up; some makers put several into one, divided by commas."""
    words = version.get("trainedWords")
    given = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    return list(dict.fromkeys(part.strip() for word in given for part in word.split(",") if part.strip()))


def terms(*tables: object) -> str:
    """What its four switches say may be done, from the first table that has them; empty where none has."""
    for table in tables:
        if isinstance(table, dict) and table.keys() & {"allowDerivatives", "allowCommercialUse"}:
            return _terms(table)
    return ""


def _terms(table: Mapping[str, Any]) -> str:
    given = table.get("allowCommercialUse") or []
    # Some answers hold a list, others PostgreSQL's spelling of one: {Image,Rent}.
    uses = given.strip("{}").split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    words = [use for use in uses if isinstance(use, str) and use]
    parts = [
        f"commercial use: {', '.join(words) or 'none'}",
        f"derivatives: {'yes' if table.get('allowDerivatives') else 'no'}",
        f"credit: {'optional' if table.get('allowNoCredit') else 'needed'}",
        *(["the same terms for what is made from it"] if table.get("allowDifferentLicense") is False else []),
    ]
    return "Civitai; " + "; ".join(parts)


def page(model: object, version: object) -> str:
    """The page of a version."""
    return f"https://civitai.com/models/{model}?modelVersionId={version}"
