"""The programs that read and write adapters, by the names people call them."""

from __future__ import annotations

# Name → what people also call it.
PROGRAMS = {
    "a1111": ("automatic1111", "webui"),
    "comfyui": ("comfy",),
    "diffusers": (),
    "forge": ("webui-forge",),
    "invokeai": ("invoke",),
    "lycoris": ("lycoris-lora",),
    "onetrainer": (),
    "peft": (),
    "sd-next": ("sdnext",),
    "sd-scripts": ("kohya-ss",),
}


def canonical_program(name: str) -> str:
    """The name used here of a program, whatever it was called; any other word as it is."""
    return next((program for program, others in PROGRAMS.items() if name in others), name)
