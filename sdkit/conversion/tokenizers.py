"""The tokenizers of a folder: a single file holds text encoders, and never the vocabularies they were trained with.

CLIP's comes with sdkit. T5's does not: it is named by a person, lies in the folder that is converted, or is a copy that
another program has left in the cache of Hugging Face. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.clip import TextLayout
from sdkit.families.describe import published_folder
from sdkit.families.t5 import T5Layout
from sdkit.families.tokenizers import is_clip, known_tokenizer
from sdkit.streaming.checkpoint import SIDE_FILES
from sdkit.weights.folder import read_json

# Published models that have T5's tokenizer, and the folder it lies in there.
T5_COPIES = (
    ("google/t5-v1_1-xxl", ""),
    ("black-forest-labs/FLUX.1-dev", "tokenizer_2"),
    ("black-forest-labs/FLUX.1-schnell", "tokenizer_2"),
    ("stabilityai/stable-diffusion-3-medium-diffusers", "tokenizer_3"),
    ("stabilityai/stable-diffusion-3.5-medium", "tokenizer_3"),
    ("stabilityai/stable-diffusion-3.5-large", "tokenizer_3"),
)
_T5_VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
_MARKS = ("special_tokens_map.json", "tokenizer_config.json")
_T5_ROWS = 32128  # of the published encoder's table; its tokenizer has 32100 tokens, 100 of which may be unsaid
_SPARE = 128  # so there may be so many rows that no token has
_MAX_BYTES = 32 << 20


def tokenizer_files(chosen: Checkpoint, given: Path | None, configs: Path | None) -> dict[str, bytes]:
    """A tokenizer for each text encoder, by path in the folder that is written.

    Args:
        chosen: what is written; a folder's own tokenizers are copied with its other files.
        given: a folder (or a pipeline's) with T5's tokenizer.
        configs: a pipeline folder whose tokenizers count instead of all others.

    Raises:
        SdkitError: a text encoder's tokenizer is nowhere.
        UsageError: `given` holds none, or is not needed.
    """
    if given is not None and not any(isinstance(layout, T5Layout) for layout in chosen.layouts.values()):
        raise UsageError("--tokenizer names T5's tokenizer, and there is no T5 here", "leave it out")
    files: dict[str, bytes] = {}
    for component, layout in chosen.layouts.items():
        if not isinstance(layout, (TextLayout, T5Layout)):
            continue
        folder = tokenizer_of(component)
        if configs is not None and (configs / folder).is_dir():
            found = dict(copied(configs / folder))
        elif isinstance(layout, T5Layout) and given is not None:
            found = _marks(chosen, component, layout) | _given(given, folder, layout)
        elif chosen.is_folder and (chosen.weights.path / folder).is_dir():
            continue
        elif isinstance(layout, T5Layout):
            found = _cached(chosen, component, layout)
        else:
            found = _clip(chosen, component, layout)
        files |= {f"{folder}/{name}": data for name, data in found.items()}
    return files


def tokenizer_of(component: str) -> str:
    """The folder of a text encoder's tokenizer."""
    return component.replace("text_encoder", "tokenizer")


def copied(root: Path) -> Iterator[tuple[str, bytes]]:
    """What a folder holds beside weights and the shards' indices."""
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and file.suffix in SIDE_FILES and not hidden and ".index." not in file.name:
            yield relative.as_posix(), file.read_bytes()


def _given(given: Path, folder: str, layout: T5Layout) -> dict[str, bytes]:
    """T5's tokenizer from where a person says it is."""
    root = given / folder if (given / folder).is_dir() else given
    found = {name: root / name for name in (*_T5_VOCABULARIES, *_MARKS) if (root / name).is_file()}
    if not found.keys() & set(_T5_VOCABULARIES):
        raise UsageError(
            f"{given}: holds no tokenizer of T5", "name the folder that has its tokenizer.json or spiece.model"
        )
    return _checked(found, layout)


def _cached(chosen: Checkpoint, component: str, layout: T5Layout) -> dict[str, bytes]:
    """T5's tokenizer from the cache that programs share, with the marks of the family's published one."""
    from huggingface_hub import try_to_load_from_cache

    for repository, inner in T5_COPIES:
        paths = {}
        for name in (*_T5_VOCABULARIES, *_MARKS):
            path = try_to_load_from_cache(repository, f"{inner}/{name}".lstrip("/"))
            if isinstance(path, str):
                paths[name] = Path(path)
        if paths.keys() & set(_T5_VOCABULARIES):
            return _marks(chosen, component, layout) | _checked(paths, layout)
    raise SdkitError(
        f"{chosen.weights.path}: its {component} is a T5, whose tokenizer no single file holds, and there is no copy "
        "in the cache of Hugging Face",
        f"--tokenizer FOLDER names one with tokenizer.json or spiece.model; `hf download {T5_COPIES[0][0]} "
        "spiece.model` brings it into the cache",
    )


def _checked(paths: Mapping[str, Path], layout: T5Layout) -> dict[str, bytes]:
    """The files, if their tokens are as many as the encoder has vectors for."""
    for name, path in paths.items():
        if path.stat().st_size > _MAX_BYTES:
            raise SdkitError(f"{path}: {path.stat().st_size:,} bytes are no tokenizer")
        count = _tokens(path) if name == "tokenizer.json" else layout.vocabulary
        if not layout.vocabulary - _SPARE <= count <= layout.vocabulary:
            raise SdkitError(
                f"{path}: has {count} tokens, and the text encoder {layout.vocabulary}", "it needs T5's own tokenizer"
            )
    return {name: path.read_bytes() for name, path in paths.items()}


def _tokens(path: Path) -> int:
    """How many ids a ``tokenizer.json`` gives."""
    fields = read_json(path)
    model, added = fields.get("model"), fields.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, (dict, list)):
        raise SdkitError(f"{path}: is no tokenizer of the tokenizers library: it has no vocabulary")
    ids = [entry.get("id") for entry in added or () if isinstance(entry, dict)]
    return max([len(vocabulary), *(number + 1 for number in ids if isinstance(number, int))])


def _clip(chosen: Checkpoint, component: str, layout: TextLayout) -> dict[str, bytes]:
    """A vocabulary that comes with sdkit; CLIP's with the marks of the family's published tokenizer."""
    known = known_tokenizer(layout.vocabulary)
    if known is None:
        raise SdkitError(
            f"{chosen.weights.path}: its {component} knows {layout.vocabulary} tokens, and no tokenizer sdkit has does",
            "--configs FOLDER takes tokenizers from a folder that has them",
        )
    return dict(copied(known)) | (_marks(chosen, component, layout) if is_clip(known) else {})


def _marks(chosen: Checkpoint, component: str, layout: TextLayout | T5Layout) -> dict[str, bytes]:
    """What the family's published tokenizer says of beginnings, ends and filling up; nothing of another vocabulary."""
    assert chosen.family is not None
    if isinstance(layout, T5Layout) and layout.vocabulary != _T5_ROWS:
        return {}
    encoder = next(encoder for encoder in chosen.family.text_encoders if encoder.component == component)
    published = published_folder(chosen.family, chosen.model.variant)
    folder = resources.files("sdkit").joinpath("assets", "families", *published.split("/"))
    return {name: folder.joinpath(tokenizer_of(encoder.published), name).read_bytes() for name in _MARKS}
