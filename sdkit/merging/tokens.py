"""Tokens an adapter brings along: no weight change, so they are saved beside the merged model, ready to load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdkit.adapters.artifact import TokenRows
from sdkit.formats.textual_inversion import plain_name
from sdkit.weights.writer import SafetensorsWriter


def token_paths(tokens: Iterable[TokenRows], output: Path) -> list[tuple[Path, tuple[TokenRows, ...]]]:
    """Where each token goes: ``OUTPUT.TOKEN.safetensors``; the rows of one token for two text encoders share a file."""
    groups: dict[str, list[TokenRows]] = {}
    for rows in tokens:
        groups.setdefault(rows.token, []).append(rows)
    stem = output.name.removesuffix(".safetensors")
    taken: set[str] = set()
    paths = []
    for token, group in groups.items():
        name = plain_name(token)
        while name in taken:  # two tokens that differ only in signs no file name may have
            name += "_"
        taken.add(name)
        paths.append((output.with_name(f"{stem}.{name}.safetensors"), tuple(group)))
    return paths


def save_tokens(group: tuple[TokenRows, ...], path: Path, *, overwrite: bool) -> SafetensorsWriter:
    """Write one token's rows; the caller commits.

    A token of one text encoder is saved as diffusers does (``{token: rows}``, which the web UIs read too), one of
    SDXL's two encoders as they both do (``clip_l`` and ``clip_g``).
    """
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    keys = [rows.token if len(group) == 1 else names[rows.component] for rows in group]
    layout = [(key, rows.info.dtype, rows.info.shape) for key, rows in zip(keys, group, strict=True)]
    writer = SafetensorsWriter(path, layout, {"format": "pt"}, overwrite=overwrite)
    for key, rows in zip(keys, group, strict=True):
        writer.write_tensor(key, rows.weights.read(rows.info))
    return writer
