"""A folder of pictures with captions, audited whole before anything is trained.

Pictures lie in the folder itself, in kohya's ``10_name class`` folders (repeats and caption), or where
``metadata.jsonl`` says. A picture's caption is, in this order: its entry in ``metadata.jsonl``, the ``.txt`` or
``.caption`` file beside it, kohya's folder name, the caption given for pictures that have none, and its own file name
where that is made of words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.training.buckets import Size
from sdkit.training.images import SUFFIXES, BrokenPictureError, check_background, open_picture
from sdkit.training.masks import check_mask, find_mask, is_mask, mask_folder

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"
_CAPTION_KEYS = ("text", "caption", "prompt")
_KOHYA = re.compile(r"(\d{1,4})_(.+)")
_CAMERA = re.compile(
    r"(?:img|dsc[nf]?|image|photo|pic|picture|pxl|screenshot|download|file|untitled|frame|sample)\b", re.I
)
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture to train on.

    Attributes:
        id: names the picture by content: the same wherever the folder lies, and whatever else is in it.
        path: the file.
        caption: what it shows.
        source: where the caption came from.
        size: width and height, upright.
        repeats: how often it is shown in an epoch.
        prior: whether it shows the class and not the subject (prior preservation).
        templates: captions of which each showing takes one instead; `caption` is among them.
        mask: the file that says which parts of it count (see `masks`); None when all of it does.
        mask_id: names the mask by content, where it has a file of its own.
        subject: which of several subjects it shows; empty where there is one.
    """

    id: str
    path: Path
    caption: str
    source: str
    size: Size
    repeats: int = 1
    prior: bool = False
    templates: tuple[str, ...] = ()
    mask: Path | None = None
    mask_id: str = ""
    subject: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions it may be shown with."""
        return self.templates or (self.caption,)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a folder holds.

    Attributes:
        samples: the usable pictures, sorted by path.
        quarantined: file name → why it cannot be used.
        notes: facts a person should see.
    """

    samples: tuple[Sample, ...]
    quarantined: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def caption_sources(self) -> dict[str, int]:
        """How many captions came from where."""
        return dict(Counter(sample.source for sample in self.samples).most_common())

    @property
    def id(self) -> str:
        """Names the pictures and captions by content."""
        lines = sorted(
            "\0".join(
                [sample.id, sample.caption, f"{sample.repeats}{sample.mask_id}", *sample.templates, *_named(sample)]
            )
            for sample in self.samples
        )
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _named(sample: Sample) -> tuple[str, ...]:
    return ("subject", sample.subject) if sample.subject else ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture file and what its place says about it."""

    path: Path
    repeats: int = 1
    folder_caption: str = ""


def read_dataset(
    folder: Path, *, caption: str = "", background: str = "white", strict: bool = False, mask: str = ""
) -> Dataset:
    """Audit a folder: find the pictures, decode every one, and give each its caption.

    Args:
        folder: the folder.
        caption: for pictures that have none.
        background: what transparent pixels show.
        strict: whether a damaged picture is an error.
        mask: where masks are, see `masks`; empty for none.

    Raises:
        SdkitError: no picture is there (or only one level deeper), a caption has no picture, a picture has no caption,
            every picture is damaged, or a mask is unusable.
    """
    check_background(background)
    masks = mask_folder(folder, mask) if folder.is_dir() else None
    listed = _listed_captions(folder)
    found = _find(folder, listed)
    _check_captions_match(folder, found)
    decoded = _decode(found, background)
    quarantined = {entry.path.name: reason for entry, reason in decoded if isinstance(reason, str)}
    if quarantined and (strict or len(quarantined) == len(found)):
        name, reason = next(iter(quarantined.items()))
        raise SdkitError(f"{folder}: {len(quarantined)} of {len(found)} pictures cannot be decoded: {name} ({reason})")
    samples = [
        Sample(*_identity(entry.path), *_caption(entry, listed, caption), size, entry.repeats)
        for entry, size in decoded
        if not isinstance(size, str)
    ]
    _check_all_captioned(folder, samples)
    samples = [_masked(sample, mask, masks) for sample in samples]
    notes = [*_notes(folder, found, listed, masks), *_mask_notes(folder, samples, mask)]
    return Dataset(tuple(distinct(samples)), quarantined, tuple(notes))


def read_picture(path: Path, *, caption: str = "", background: str = "white") -> Dataset:
    """A single picture.

    Args:
        path: the file.
        caption: what it shows, whatever stands beside it; empty to look there, and at its name.
        background: what transparent pixels show.

    Raises:
        SdkitError: it is no picture, is damaged, or nothing says what it shows.
    """
    check_background(background)
    if not path.is_file():
        raise SdkitError(f"{path}: no such file", "--data names a picture, or a folder that holds one")
    size = open_picture(path, background).size
    text, source = (caption, "prompt=") if caption else _caption(_Found(path), _listed_captions(path.parent), "")
    if not source:
        raise SdkitError(f"{path}: nothing says what it shows", 'say it with prompt="…"')
    return Dataset((Sample(*_identity(path), text, source, size),), {})


def _masked(sample: Sample, choice: str, folder: Path | None) -> Sample:
    mask = find_mask(sample.path, choice, folder)
    if mask is None:
        return sample
    check_mask(sample.path, mask, sample.size)
    return replace(sample, mask=mask, mask_id="" if mask == sample.path else _digest(mask))


def _mask_notes(folder: Path, samples: list[Sample], choice: str) -> Iterator[str]:
    if not choice:
        pictures = _pictures(folder)
        unused = len(pictures) - len(_unmasking(pictures))
        if unused:
            yield f"{unused} masks are not used; mask=files uses them"
        return
    without = sum(sample.mask is None for sample in samples)
    if without:
        yield f"{without} pictures have no mask: all of them counts"


def split_dataset(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The pictures to train on, and those held out: about `share` of them, at least one, never all.

    Which they are depends on the pictures' contents alone; copies of a picture stay together. Of several subjects whole
    ones are held out, by their names.

    Raises:
        SdkitError: there are no two different pictures.
    """
    contents = sorted({_kept_together(sample) for sample in dataset.samples}, key=_scattered)
    if len(contents) < 2:
        raise SdkitError("one picture cannot be trained on and held out", "name a folder of others with validation=")
    count = min(max(1, round(share * len(contents))), len(contents) - 1)
    chosen = frozenset(contents[:count])
    train = tuple(sample for sample in dataset.samples if _kept_together(sample) not in chosen)
    held_out = tuple(sample for sample in dataset.samples if _kept_together(sample) in chosen)
    note = f"{len(held_out)} of {len(dataset.samples)} pictures are held out"
    return replace(dataset, samples=train, notes=(*dataset.notes, note)), Dataset(held_out, {})


def _kept_together(sample: Sample) -> str:
    return sample.subject or sample.id.partition("+")[0]


def _scattered(content: str) -> str:
    """A digest, because nothing says that the ids themselves have no order."""
    return hashlib.blake2b(f"held out\0{content}".encode(), digest_size=16).hexdigest()


def joined_datasets(parts: Sequence[Dataset]) -> Dataset:
    """Several folders' pictures as one; a picture that is in two of them has an id in each."""
    return Dataset(
        tuple(distinct(sample for part in parts for sample in part.samples)),
        {name: reason for part in parts for name, reason in part.quarantined.items()},
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def prior_sample(path: Path, caption: str) -> Sample:
    """A picture of the class.

    Raises:
        SdkitError: it cannot be decoded.
    """
    return Sample(*_identity(path), caption, "class=", open_picture(path).size, prior=True)


def _find(folder: Path, listed: dict[Path, str]) -> list[_Found]:
    if not folder.is_dir():
        raise SdkitError(f"{folder}: no such folder", "--data names a folder of pictures")
    found = {path: _Found(path) for path in [*_unmasking(_pictures(folder)), *listed]}
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        match = _KOHYA.fullmatch(place.name)
        if match:
            found |= {path: _Found(path, int(match[1]), match[2]) for path in _unmasking(_pictures(place))}
    if not found:
        raise _nothing_found(folder)
    return [found[path] for path in sorted(found)]


def _pictures(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file())


def _unmasking(pictures: list[Path]) -> list[Path]:
    """Those that are no masks of others."""
    known = set(pictures)
    return [path for path in pictures if not is_mask(path, known)]


def _nothing_found(folder: Path) -> SdkitError:
    deeper = [place for place in sorted(folder.iterdir()) if place.is_dir() and _pictures(place)]
    if deeper:
        count = len(_pictures(deeper[0]))
        return SdkitError(
            f"{folder}: no pictures here, but {count} one level deeper, in {deeper[0].name}",
            f"--data {deeper[0]}",
        )
    return SdkitError(f"{folder}: no pictures in this folder", f"looked for {', '.join(SUFFIXES)}")


def _listed_captions(folder: Path) -> dict[Path, str]:
    """What ``metadata.jsonl`` says: picture → caption.

    Raises:
        SdkitError: a line is no such entry, or names a picture that is not there.
    """
    file = folder / METADATA
    if not file.is_file():
        return {}
    captions = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        name, caption = _entry(file, number, line)
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SdkitError(f"{file}:{number}: {name[:80]!r} lies outside the folder")
        if not path.is_file():
            raise SdkitError(
                f"{file}:{number}: there is no picture {name[:80]!r}", "correct file_name, or drop the line"
            )
        captions[path] = caption
    return captions


def _entry(file: Path, number: int, line: str) -> tuple[str, str]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
        raise SdkitError(f"{file}:{number}: no JSON object with a file_name")
    caption = next((fields[key] for key in _CAPTION_KEYS if isinstance(fields.get(key), str)), None)
    if caption is None:
        raise SdkitError(f"{file}:{number}: no caption", f"one of the fields {', '.join(_CAPTION_KEYS)} should hold it")
    return fields["file_name"], caption.strip()


def _check_captions_match(folder: Path, found: list[_Found]) -> None:
    stems = {entry.path.with_suffix("") for entry in found} | {entry.path for entry in found}
    places = {entry.path.parent for entry in found}
    orphans = [
        file
        for place in sorted(places)
        for file in sorted(place.iterdir())
        if file.suffix in CAPTION_SUFFIXES and not file.name.startswith(".") and file.with_suffix("") not in stems
    ]
    if orphans:
        names = ", ".join(file.name for file in orphans[:3]) + (", …" if len(orphans) > 3 else "")
        raise SdkitError(
            f"{folder}: {len(orphans)} captions have no picture: {names}",
            "a caption is called like its picture: dog.txt beside dog.png",
        )


def _decode(found: list[_Found], background: str) -> list[tuple[_Found, Size | str]]:
    def look(entry: _Found) -> Size | str:
        try:
            return open_picture(entry.path, background).size
        except BrokenPictureError as error:
            return error.message.partition("cannot be decoded: ")[2]

    with ThreadPoolExecutor(4) as pool:
        return list(zip(found, pool.map(look, found), strict=True))


def _identity(path: Path) -> tuple[str, Path]:
    return _digest(path), path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _caption(entry: _Found, listed: dict[Path, str], default: str) -> tuple[str, str]:
    """(caption, where it came from); empty when there is none."""
    if entry.path in listed:
        return listed[entry.path], METADATA
    for file in _caption_files(entry.path):
        if file.is_file():
            return file.read_text(encoding="utf-8-sig", errors="replace").strip(), f"{file.suffix} files"
    if entry.folder_caption:
        return entry.folder_caption, "folder names"
    if default:
        return default, "caption="
    words = re.sub(r"[\s_-]+", " ", re.sub(r"\s*\(\d+\)$|[_-]?\d+$", "", entry.path.stem)).strip()
    if _WORD.search(words) and not _CAMERA.match(words):
        return words, "file names"
    return "", ""


def _caption_files(path: Path) -> Iterator[Path]:
    for suffix in CAPTION_SUFFIXES:
        yield path.with_suffix(suffix)
        yield path.with_name(path.name + suffix)


def _check_all_captioned(folder: Path, samples: list[Sample]) -> None:
    missing = [sample.path.name for sample in samples if not sample.source]
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise SdkitError(
            f"{folder}: {len(missing)} of {len(samples)} pictures have no caption: {names}",
            'write NAME.txt beside each, or give all of them one with caption="a photo of …"',
        )


def distinct(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Equal pictures get ids of their own, so that they get noise of their own."""
    seen: Counter[str] = Counter()
    for sample in samples:
        content = sample.id.partition("+")[0]
        seen[content] += 1
        yield sample if seen[content] == 1 else replace(sample, id=f"{content}+{seen[content] - 1}")


def _notes(folder: Path, found: list[_Found], listed: dict[Path, str], masks: Path | None) -> Iterator[str]:
    used = {entry.path.parent for entry in found} | ({masks} if masks is not None else set())
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        unused = [] if place in used else _pictures(place)
        if unused:
            yield f"{len(unused)} pictures in {place.name} are not used"
    if listed:
        rest = sum(1 for entry in found if entry.path not in listed)
        if rest:
            yield f"{rest} pictures are not in {METADATA}"
