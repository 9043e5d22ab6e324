"""What a picture was drawn with, as A1111's web UI writes it into PNG files, and back.

    a cat <lora:tabby:0.8>
    Negative prompt: a dog
    Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3, Size: 512x512, Model hash: …, Model: …, Clip skip: 2, …

The text stands in the chunk ``parameters``; hubs and web UIs read it from there. A value with a comma, a colon or a
line break is written as a JSON string.

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.generation.request import Request
from sdkit.generation.samplers import sampler_name

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "parameters"
_NEGATIVE = "Negative prompt: "
_FIELD = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NUMBERS = {
    "Steps": ("steps", int),
    "CFG scale": ("cfg", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
}
_FEW_FIELDS = 3  # a last line with fewer belongs to the prompt


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a picture was drawn with.

    Attributes:
        request: with nothing left open. Its prompt names the adapters.
        model: the base's name.
        model_hash: the first ten digits of its file's sha256 (AutoV2); empty for a folder.
        adapter_hashes: name in the prompt → AutoV3 of the file.
        inversion: the file's name of the inverted picture that was drawn again or edited; empty for none.
    """

    request: Request
    model: str = ""
    model_hash: str = ""
    adapter_hashes: Mapping[str, str] = field(default_factory=dict)
    inversion: str = ""

    def __str__(self) -> str:
        """As A1111 writes them."""
        request = self.request
        negative = f"\n{_NEGATIVE}{request.negative}" if request.negative else ""
        return f"{request.prompt}{negative}\n{', '.join(f'{key}: {value}' for key, value in self._fields())}"

    def _fields(self) -> list[tuple[str, str]]:
        request = self.request
        hashes = ", ".join(f"{name}: {digest}" for name, digest in self.adapter_hashes.items())
        written = {
            "Steps": request.steps,
            "Sampler": request.sampler,
            "CFG scale": f"{request.cfg:g}",
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": self.model_hash,
            "Model": self.model,
            "Clip skip": request.clip_skip if request.clip_skip > 1 else "",
            "Inversion": self.inversion,
            "RNG": "" if self.inversion else "CPU",
            "Lora hashes": hashes,
            "Version": f"sdkit {sdkit.__version__}",
        }
        return [(name, _quoted(str(value))) for name, value in written.items() if value != ""]


def png(picture: Image, parameters: str) -> bytes:
    """A picture as a PNG file that says what it was drawn with. Its bytes depend on the arguments alone."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, parameters)
    data = BytesIO()
    picture.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """The fields of `Request` a picture was drawn with, as far as it says.

    Raises:
        SdkitError: it is no picture, does not say, or names a sampler that is not known here.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path) as picture:
            picture.load()  # PNG files may have their text behind the pixels
            text = picture.info.get(CHUNK)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise SdkitError(f"{path}: is no picture that can be read: {error}") from None
    if not isinstance(text, str):
        raise SdkitError(f"{path}: does not say what it was drawn with", "only PNG files of web UIs and of sdkit do")
    return parse_parameters(text)


def parse_parameters(text: str) -> dict[str, Any]:
    """The fields of `Request` in a text of A1111's form. What is not among them is left out.

    Raises:
        SdkitError: a value is not what it should be, or the sampler is not known here.
    """
    *lines, last = text.strip().split("\n")
    if len(_FIELD.findall(last)) < _FEW_FIELDS:
        lines, last = [*lines, last], ""
    start = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE.strip())), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE.strip()).strip()
    settings: dict[str, Any] = {"prompt": "\n".join(lines[:start]).strip(), "negative": negative}
    found = {name: _unquoted(value) for name, value in _FIELD.findall(last)}
    try:
        settings |= _numbers(found)
    except ValueError:
        raise SdkitError(f"the settings {last[:80]!r} cannot be read", "give the options themselves") from None
    if "Sampler" in found:
        schedule = found.get("Schedule type", "")  # newer web UIs write it apart from the sampler
        settings["sampler"] = sampler_name(found["Sampler"] + (" Karras" if schedule == "Karras" else ""))
    assert settings.keys() <= {entry.name for entry in fields(Request)}
    return settings


def _numbers(found: Mapping[str, str]) -> dict[str, Any]:
    kinds = {
        "Steps": ("steps", int),
        "CFG scale": ("cfg", float),
        "Seed": ("seed", int),
        "Clip skip": ("clip_skip", int),
    }
    settings: dict[str, Any] = {key: kind(found[name]) for name, (key, kind) in kinds.items() if name in found}
    if "Size" in found:
        width, _, height = found["Size"].partition("x")
        settings |= {"width": int(width), "height": int(height)}
    return settings


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
