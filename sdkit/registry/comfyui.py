"""ComfyUI's ``extra_model_paths.yaml``: folders of models elsewhere, often those of another program.

    SECTION:
        base_path: /home/me/a1111
        checkpoints: models/Stable-diffusion
        loras: |
            models/Lora
            models/LyCORIS

Source: load_extra_path_config in https://github.com/comfyanonymous/ComfyUI (utils/extra_config.py)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from sdkit.core.errors import SdkitError

NAME = "extra_model_paths.yaml"
_LARGEST = 1 << 20  # bytes; real ones are some lines


def extra_folders(root: Path, kinds: Collection[str]) -> list[Path]:
    """The folders that the file in ComfyUI's own folder names for these kinds (``checkpoints``, ``loras``, …).

    Raises:
        SdkitError: the file is none that ComfyUI could read.
    """
    path = root / NAME
    if not path.is_file():
        return []
    sections = _read(path)
    return list(dict.fromkeys(folder for section in sections for folder in _folders(section, path, kinds)))


def _read(path: Path) -> list[dict[object, object]]:
    import yaml

    try:
        if path.stat().st_size > _LARGEST:
            raise SdkitError(f"{path}: is too large for a list of folders", "mend it, or scan the folders by name")
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SdkitError(f"{path}: no YAML: {reason}", "mend it, or scan the folders by name") from None
    return [section for section in table.values() if isinstance(section, dict)] if isinstance(table, dict) else []


def _folders(section: dict[object, object], path: Path, kinds: Collection[str]) -> Iterator[Path]:
    given = section.get("base_path")
    base = path.parent / os.path.expandvars(os.path.expanduser(given)) if isinstance(given, str) else path.parent
    for kind, lines in section.items():
        if kind in kinds and isinstance(lines, str):
            yield from (Path(os.path.abspath(base / line.strip())) for line in lines.split("\n") if line.strip())
