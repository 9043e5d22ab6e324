"""The programs that read and write adapters, by the names people call them."""

from __future__ import annotations

# Name → what people also call it.
PROGRAMS = {
    "a1111": ("automatic1111", "webui"),
    "comfyui": ("comfy",),
    "diffusers": (),
    "forge": ("webui-forge",),
    "invokeai": ("invoke",),
    "lora-diffusion": (),
    "loralib": (),
    "lycoris": ("lycoris-lora",),
    "onetrainer": (),
    "peft": (),
    "sd-next": ("sdnext",),
    "sd-scripts": ("kohya-ss",),
}

_COMMON = frozenset({"lora", "locon", "tucker", "loha", "lokr", "full", "dora"})
# What of a file it reads a program applies: kinds of change; those not named here apply every kind.
APPLIED = {
    "comfyui": _COMMON | {"glora", "oft", "boft"},
    "diffusers": frozenset({"lora", "locon"}),
    "forge": _COMMON | {"glora", "oft", "boft"},
    "invokeai": _COMMON | {"ia3"},
    "onetrainer": frozenset({"lora", "locon", "loha", "dora"}),
    "sd-scripts": frozenset({"lora", "locon"}),
}


def canonical_program(name: str) -> str:
    """The name used here of a program, whatever it was called; any other word as it is."""
    return next((program for program, others in PROGRAMS.items() if name in others), name)
