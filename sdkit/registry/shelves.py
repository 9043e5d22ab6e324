"""Where other programs look for models: the folders below each one's root, by kind of model.

a1111      https://github.com/AUTOMATIC1111/stable-diffusion-webui (modules/paths_internal.py, extensions)
forge      the same folders, and text encoders of their own
comfyui    https://github.com/comfyanonymous/ComfyUI (folder_paths.py), and what its extra_model_paths.yaml names
invokeai   models/BASE/TYPE, or autoimport/TYPE where that folder is there
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError, UsageError
from sdkit.registry.comfyui import extra_folders

_WEBUI = {
    "checkpoint": ("models/Stable-diffusion",),
    "lora": ("models/Lora", "models/LyCORIS"),
    "textual-inversion": ("embeddings",),
    "hypernetwork": ("models/hypernetworks",),
    "component": ("models/VAE",),
    "aesthetic": ("extensions/stable-diffusion-webui-aesthetic-gradients/aesthetic_embeddings",),
}
_COMFY = {
    "checkpoint": ("models/checkpoints",),
    "lora": ("models/loras",),
    "textual-inversion": ("models/embeddings",),
    "hypernetwork": ("models/hypernetworks",),
    "component": (
        "models/vae",
        "models/diffusion_models",
        "models/unet",
        "models/text_encoders",
        "models/clip",
        "models/diffusers",
    ),
}
_INVOKE_TYPES = {"checkpoint": "main", "lora": "lora", "textual-inversion": "embedding", "component": "vae"}
_INVOKE_BASES = {"sd1": "sd-1", "sd2": "sd-2", "sdxl": "sdxl", "sdxl-refiner": "sdxl-refiner"}


@dataclass(frozen=True, slots=True)
class Program:
    """A program that people load models into.

    Attributes:
        name: as the command line writes it.
        title: as people write it.
        folders: kind → folders below the root; the first is where a new file goes.
        loads: kind → formats it loads; an empty set is any. Hypernetworks are loaded and do nothing in Forge.
        signs: what lies below its root, one set of them for certain.
    """

    name: str
    title: str
    folders: Mapping[str, tuple[str, ...]]
    loads: Mapping[str, frozenset[str]]
    signs: tuple[tuple[str, ...], ...]


_SINGLE_FILE = frozenset({"ldm"})
_LORAS = frozenset({"kohya", "diffusers"})
_ANY: frozenset[str] = frozenset()

PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program(
            "forge",
            "Forge",
            {**_WEBUI, "component": ("models/VAE", "models/text_encoder")},
            {"checkpoint": _SINGLE_FILE, "lora": _LORAS, "textual-inversion": _ANY},
            (("models/Stable-diffusion", "modules_forge"), ("models/Stable-diffusion", "backend")),
        ),
        Program(
            "a1111",
            "A1111's web UI",
            _WEBUI,
            {
                "checkpoint": _SINGLE_FILE,
                "lora": frozenset({"kohya"}),
                "textual-inversion": _ANY,
                "hypernetwork": _ANY,
                "aesthetic": _ANY,
            },
            (("models/Stable-diffusion",),),
        ),
        Program(
            "comfyui",
            "ComfyUI",
            _COMFY,
            {"checkpoint": _SINGLE_FILE, "lora": _LORAS, "textual-inversion": _ANY, "hypernetwork": _ANY},
            (("models/checkpoints", "models/loras"), ("models/checkpoints", "custom_nodes")),
        ),
        Program(
            "invokeai",
            "InvokeAI",
            {},
            {"checkpoint": frozenset({"ldm", "diffusers"}), "lora": _LORAS | {"peft"}, "textual-inversion": _ANY},
            (("invokeai.yaml",), ("databases/invokeai.db",)),
        ),
    )
}
_DIFFUSERS = {
    "checkpoint": frozenset({"ldm", "diffusers"}),
    "lora": frozenset({"kohya", "diffusers", "peft"}),
    "textual-inversion": _ANY,
    "custom-diffusion": _ANY,
}
_SDKIT = {kind: _ANY for kind in ("checkpoint", "lora", "textual-inversion", "hypernetwork")}


def loaded_by(kind: str, format: str, *, is_folder: bool) -> list[str]:
    """The programs that load such a model, as people write them."""
    able = [program.title for program in PROGRAMS.values() if _loads(program.loads, kind, format)]
    if is_folder:
        able = [title for title in able if title == PROGRAMS["invokeai"].title]
    return [
        *(["sdkit"] if _loads(_SDKIT, kind, format) else []),
        *able,
        *(["diffusers"] if _loads(_DIFFUSERS, kind, format) else []),
    ]


def find_program(root: Path) -> Program | None:
    """The program whose root a folder is."""
    for program in PROGRAMS.values():
        if any(all((root / sign).exists() for sign in signs) for signs in program.signs):
            return program
    return None


def shelves(program: Program, root: Path) -> list[Path]:
    """The folders that hold a program's models: those below its root, and those its configuration names.

    Raises:
        SdkitError: that configuration is broken.
    """
    names = [folder for names in program.folders.values() for folder in names] or ["models", "autoimport"]
    folders = [root / name for name in names]
    if program.name == "comfyui":
        folders += extra_folders(root, {name.rpartition("/")[2] for name in names})
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def place_for(program: Program, root: Path, kind: str, family: str, format: str) -> Path:
    """The folder below `root` in which a program looks for such a model.

    Raises:
        SdkitError: it does not load that kind, or not in that format.
    """
    if not _loads(program.loads, kind, format):
        what = f"{kind}s" if kind in _kinds(program) else f"{kind or 'unknown'} files"
        ways = f" in the format {format}" if kind in program.loads and format else ""
        raise SdkitError(f"{program.title} loads no {what}{ways}", "`sdkit models show NAME` says what does load it")
    if program.name != "invokeai":
        return root / program.folders[kind][0]
    if (root / "autoimport").is_dir():
        return root / "autoimport" / _INVOKE_TYPES[kind]
    return root / "models" / _INVOKE_BASES.get(family, "any") / _INVOKE_TYPES[kind]


def program_named(name: str) -> Program:
    """The program of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROGRAMS:
        raise UsageError(f"unknown program {name!r}", f"there are: {', '.join(sorted(PROGRAMS))}")
    return PROGRAMS[name]


def _kinds(program: Program) -> Mapping[str, object]:
    return program.folders or _INVOKE_TYPES


def _loads(table: Mapping[str, frozenset[str]], kind: str, format: str) -> bool:
    return kind in table and (not table[kind] or format in table[kind])
