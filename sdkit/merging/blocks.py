"""Strength per block, in every notation the web UIs use.

Blocks are named as there: ``IN00``…, ``M00`` (also ``MID``), ``OUT00``…, and ``BASE`` for everything outside the UNet's
blocks (the text encoders). A list of numbers gives BASE first, then either every block (26 numbers for SD1 and SD2, 20
for SDXL) or only the blocks with attention, which are all a plain LoRA changes (17 and 12). One number less than every
block leaves BASE out (25 and 19); one more ends with the autoencoder, ``VAE``, as some SDXL lists do (27 and 21).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence

from sdkit.core.errors import UsageError
from sdkit.families.family import Model

BASE = "BASE"
VAE = "VAE"
BlockSpec = str | Sequence[float] | Mapping[str, float]


def block_strengths(spec: BlockSpec | None, model: Model) -> dict[str, float]:
    """Block name → factor, for every block of `model`; 1.0 where `spec` says nothing.

    Args:
        spec: ``"IN04=0.5,OUT*=0.2"`` (later rules win), a list of numbers or a mapping, or JSON of either.
        model: the model whose blocks are meant.

    Raises:
        UsageError: a rule names no block of the model, or the list has the wrong length.
    """
    named = given_blocks(spec, model)
    if named.get(VAE):
        raise UsageError("--blocks: adapters change nothing in the autoencoder", "leave VAE out")
    return dict.fromkeys(block_order(model), 1.0) | {name: value for name, value in named.items() if name != VAE}


def given_blocks(spec: BlockSpec | None, model: Model) -> dict[str, float]:
    """Block name → number, only for the blocks `spec` names.

    Args:
        spec: as for `block_strengths`.
        model: the model whose blocks are meant.

    Raises:
        UsageError: a rule names no block of the model, or the list has the wrong length.
    """
    parsed = _parse(spec) if isinstance(spec, str) else spec
    if parsed is None:
        return {}
    if isinstance(parsed, Mapping):
        names = [*block_order(model), VAE]
        return {name: _number(value) for pattern, value in parsed.items() for name in _matching(pattern, names)}
    return _from_list([_number(value) for value in parsed], model)


def block_order(model: Model) -> list[str]:
    """BASE, then the model's blocks from input to output."""
    stages = {"IN": 0, "M": 1, "OUT": 2}
    blocks = set(model.block_names.values()) - {BASE}
    return [BASE, *sorted(blocks, key=lambda name: (stages.get(name.rstrip("0123456789"), 3), name))]


def attention_blocks(model: Model) -> list[str]:
    """BASE, then only the blocks with attention."""
    found = {model.block_of(name) for name in model.places if name.startswith("unet.") and ".attentions." in name}
    return [BASE, *(name for name in block_order(model) if name in found - {BASE})]


def _from_list(values: list[float], model: Model) -> dict[str, float]:
    every, attention = block_order(model), attention_blocks(model)
    for names in (every, attention, every[1:], [*every, VAE]):
        if len(values) == len(names):
            return dict(zip(names, values, strict=True))
    raise UsageError(
        f"--blocks has {len(values)} numbers; a {model.family} model takes {len(attention)} (blocks with attention) "
        f"or {len(every)} (all blocks)",
        f"the order is {', '.join(every)}",
    )


def _matching(pattern: str, names: list[str]) -> list[str]:
    wanted = "M00" if pattern.upper() == "MID" else pattern.upper()
    found = [name for name in names if fnmatch.fnmatchcase(name, wanted)]
    if not found:
        raise UsageError(f"--blocks: no block is called {pattern!r}", f"this model has {', '.join(names)}")
    return found


def _parse(text: str) -> Mapping[str, float] | Sequence[float]:
    """Rules, numbers or JSON; which one shows in the text."""
    if text.lstrip().startswith(("{", "[")):
        return _parse_json(text)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("--blocks is empty", "write for example --blocks 'IN04=0.5,OUT*=0.2'")
    if all("=" in part for part in parts):
        pairs = (part.rpartition("=") for part in parts)
        return {name.strip(): _number(value) for name, _, value in pairs}
    return [_number(part) for part in parts]


def _parse_json(text: str) -> Mapping[str, float] | Sequence[float]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--blocks is no valid JSON: {error}") from None
    if not isinstance(value, (dict, list)):
        raise UsageError("--blocks must be a JSON object or list")
    return value


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is, float decides
    except (TypeError, ValueError):
        hint = "write for example --blocks 'IN04=0.5,OUT*=0.2'"
        raise UsageError(f"--blocks: {value!r} is not a number", hint) from None
    if number != number or number in (float("inf"), float("-inf")):
        raise UsageError(f"--blocks: {value!r} is not a finite number")
    return number
