"""The programs that read and write adapters: what people call them, and what of an adapter each applies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """What is known of a program's reader.

    Attributes:
        also: what people also call it.
        applies: the kinds of change it applies, of a file that it reads; None for every kind. A DoRA whose lengths
            belong to the input features is ``dora-in``.
        families: the model families it applies adapters to; None for all.
        alters: kinds of change that it applies by another formula than those who train them, so that pictures differ.
    """

    also: tuple[str, ...] = ()
    applies: frozenset[str] | None = None
    families: frozenset[str] | None = None
    alters: frozenset[str] = frozenset()


_COMMON = frozenset({"lora", "locon", "tucker", "loha", "lokr", "full", "bias"})
_DORA = frozenset({"dora", "dora-in"})  # by output features, and by input features as LyCORIS had them first
_PLAIN = frozenset({"lora", "locon"})
_UNETS = frozenset({"sd1", "sd2", "sdxl"})
# A1111 takes every DoRA's lengths for those of input features: those of [out, 1] it spreads over the wrong axis.
# ComfyUI and Forge see which they are, but divide a DoRA of output features by the norms of W, not of W + ΔW.
_OWN_DORA = frozenset({"dora"})
PROGRAMS = {
    "a1111": Program(
        ("automatic1111", "webui"), _COMMON | {"dora-in", "glora", "ia3", "oft", "boft"}, _UNETS, _OWN_DORA
    ),
    "comfyui": Program(("comfy",), _COMMON | {"dora-in", "glora", "oft", "boft", "replacement"}, alters=_OWN_DORA),
    "diffusers": Program((), _PLAIN | {"dora", "bias", "replacement"}),
    "forge": Program(("webui-forge",), _COMMON | {"dora-in", "glora", "oft", "boft"}, _UNETS | {"flux"}, _OWN_DORA),
    "invokeai": Program(("invoke",), _COMMON | {"dora-in", "ia3"}, _UNETS | {"flux"}),
    "lora-diffusion": Program(),
    "loralib": Program(),
    "lycoris": Program(("lycoris-lora",), _COMMON | {"dora", "glora", "oft", "boft"}),
    "onetrainer": Program((), _PLAIN | _DORA | {"loha", "oftv2"}),
    "peft": Program(),
    "sd-next": Program(("sdnext",)),
    "sd-scripts": Program(("kohya-ss",), _PLAIN, _UNETS | {"sd3", "flux"}),
}


def canonical_program(name: str) -> str:
    """The name used here of a program, whatever it was called; any other word as it is."""
    return next((program for program, facts in PROGRAMS.items() if name in facts.also), name)


def objection(
    program: str,
    kinds: frozenset[str],
    family: str,
    families: tuple[str, ...] | None,
    leaves: frozenset[str] = frozenset(),
) -> str:
    """Why a program that reads a format would not apply all of a file as it was meant; empty where it would.

    Args:
        kinds: kinds of change in the file.
        family: the file's; empty or ``unknown`` where nothing tells it.
        families: those it reads in this format, where they are known to be fewer than it knows.
        leaves: kinds that it leaves out of this format alone.
    """
    facts = PROGRAMS.get(program, Program())
    known = families if families is not None else facts.families
    if family and family != "unknown" and known is not None and family not in known:
        return f"it takes no adapters of {family} in this format" if families else f"it does not know {family}"
    if kinds & facts.alters:
        return f"it applies {', '.join(sorted(kinds & facts.alters))} by a formula of its own, so pictures differ"
    missing = sorted(kinds & leaves | (kinds - facts.applies if facts.applies is not None else frozenset()))
    return f"it leaves out {', '.join(missing)}" if missing else ""
