"""Names that servers give to files, made safe to write to this disk."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from sdkit.core.errors import SdkitError

_LONGEST = 240  # bytes; file systems allow 255, and a partial file's name is longer
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_FORBIDDEN = frozenset('<>:"|?*\\')  # in names on Windows


def check_file_name(name: str) -> str:
    """A name without folders that every system can hold.

    Raises:
        SdkitError: it could lead elsewhere, deceive a terminal, or not be written.
    """
    name = unicodedata.normalize("NFC", name)
    bad = (
        name in ("", ".", "..")
        or "/" in name
        or not name.isprintable()
        or bool(_FORBIDDEN & set(name))
        or bool(_RESERVED.fullmatch(name))
        or name[-1] in ". "
        or len(name.encode(errors="replace")) > _LONGEST
    )
    if bad:
        raise SdkitError(f"the hub calls the file {ascii(name)[:120]}, which is no safe name", "choose one with -o")
    return name


def check_relative(path: str) -> str:
    """The path of a file within a model's folder, with ``/``.

    Raises:
        SdkitError: it is absolute, leads out of the folder, or holds a part that is no safe name.
    """
    return "/".join(check_file_name(part) for part in path.split("/"))


def below(folder: Path, relative: str) -> Path:
    """The place of a hub's file below a folder."""
    return folder.joinpath(*check_relative(relative).split("/"))


def clean_name(text: str) -> str:
    """The nearest safe name: what could not be written becomes ``_``."""
    text = unicodedata.normalize("NFC", text)
    kept = "".join("_" if not sign.isprintable() or sign in _FORBIDDEN or sign == "/" else sign for sign in text)
    kept = kept.encode(errors="replace")[:_LONGEST].decode(errors="ignore").strip(". ")
    return f"_{kept}" if _RESERVED.fullmatch(kept) or not kept else kept
