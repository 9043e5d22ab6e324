"""Finding the adapters that a prompt names."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.registry.names import resolve

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")


@dataclass(frozen=True, slots=True)
class Shelf:
    """The files a prompt may name by their names alone.

    Attributes:
        files: of weights, in order.
        place: where they are, in words.
    """

    files: tuple[Path, ...]
    place: str = "here"

    def find(self, name: str) -> Path:
        """The file a prompt calls `name`: a path, a file of the shelf (its suffix may lack), or a registered model.

        Raises:
            SdkitError: there is none (the hint names the nearest), or there are several.
        """
        if any(os.path.isfile(file) for file in (name, os.path.join(name, "adapter_config.json"))):
            return Path(name)
        matches = [file for file in self.files if name in (file.name, file.stem)]
        matches = matches or [file for file in self.files if name.lower() in (file.name.lower(), file.stem.lower())]
        registered = resolve(name) if not matches else Path(name)
        if registered != Path(name):
            return registered
        if not matches:
            near = difflib.get_close_matches(name, sorted({file.stem for file in self.files}), n=1)
            hint = f"did you mean {near[0]}?" if near else "name its folder with --adapters, or write its path"
            raise SdkitError(f"no adapter is called {name!r} {self.place}", hint)
        if len(matches) > 1:
            files = ", ".join(map(str, matches[:4]))
            raise SdkitError(f"several adapters are called {name!r}: {files}", "write the path instead")
        return matches[0]

    def named_in(self, text: str) -> list[Path]:
        """The files whose names stand in a text as words of their own, as embeddings do."""
        return [file for file in self.files if _whole(file.stem).search(text)]


def open_shelf(folder: Path | None) -> Shelf:
    """The files of the current folder, and those of `folder` with everything below it.

    Raises:
        SdkitError: there is no such folder.
    """
    here = list(_weights_in(Path()))
    if folder is None:
        return Shelf(tuple(here))
    if not folder.is_dir():
        raise SdkitError(f"{folder}: no such folder", "name the folder of your adapters with --adapters")
    below = [file for path in sorted(Path(path) for path, _, _ in os.walk(folder)) for file in _weights_in(path)]
    known = {file.resolve() for file in below}
    return Shelf((*below, *(file for file in here if file.resolve() not in known)), f"in {folder} or here")


def _weights_in(folder: Path) -> Iterator[Path]:
    yield from sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
