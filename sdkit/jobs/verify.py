"""Looking through files or a folder full of downloads: what is damaged, mislabelled, unsafe, or there twice."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.formats import adapter_family, claimed_family, recognise
from sdkit.jobs.inspect_problems import counted
from sdkit.jobs.pull import local_path
from sdkit.streaming.expression import torch_dtype
from sdkit.weights import TensorInfo, Weights, open_weights
from sdkit.weights.content import Content, hash_content
from sdkit.weights.hashes import legacy_hash
from sdkit.weights.metadata import STALE_KEYS
from sdkit.weights.reader import Container

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_LARGEST_SIDECAR = 4 << 20
_SHA256 = re.compile(r"\b[0-9a-fA-F]{64}\b")
# What a download that went wrong begins with, and what that means.
_NO_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was never downloaded"),
    (b"<!doctype html", "a web page: the download asked for a login, or failed"),
    (b"<html", "a web page: the download asked for a login, or failed"),
    (b"<?xml", "an error message of a server in place of the file"),
    (b'{"error', "an error message of a server in place of the file"),
    (b'{"message', "an error message of a server in place of the file"),
)


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file.

    Attributes:
        path: the file.
        what: its kind or format and its family, as far as it could be told.
        size: bytes.
        sha256: of the file; empty where it could not be read.
        problems: what is wrong with it, one sentence each.
        warnings: what a person should know.
        content_id: names its tensors; empty where they could not be read.
    """

    path: str
    what: str
    size: int
    sha256: str = ""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class VerifyReport(Report):
    """What was found.

    Attributes:
        files: one by one, in the order of their paths.
        duplicates: groups of files whose tensors are the same, whatever they are called and their metadata say.
    """

    files: tuple[CheckedFile, ...]
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def bad(self) -> int:
        """How many files have problems."""
        return sum(bool(file.problems) for file in self.files)


def verify(paths: Sequence[Path | str], progress: Progress | None = None) -> VerifyReport:
    """Read files whole, and say what is wrong with them. Nothing in them is ever run, and nothing is changed.

    Args:
        paths: weight files (paths, names, references), and folders in which all are looked for.
        progress: told about the bytes read.

    Raises:
        UsageError: there is nothing to look at.
    """
    files = list(_found([local_path(path) for path in paths]))
    if not files:
        raise UsageError(f"no weight file in {', '.join(map(str, paths))}", f"looked for {', '.join(SUFFIXES)}")
    checked = [_check(file, progress or NoProgress()) for file in files]
    same: dict[str, list[str]] = defaultdict(list)
    for one in checked:
        if one.content_id:
            same[one.content_id].append(one.path)
    groups = tuple(tuple(group) for group in same.values() if len(group) > 1)
    return VerifyReport(tuple(_with_twins(checked, groups)), groups)


def _found(paths: Iterable[Path]) -> Iterator[Path]:
    """The weight files, each once."""
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        inside = (
            sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        for file in inside:
            if file.is_file() and file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _with_twins(checked: Iterable[CheckedFile], groups: Iterable[Sequence[str]]) -> Iterator[CheckedFile]:
    twins = {path: [other for other in group if other != path] for group in groups for path in group}
    for one in checked:
        more = (f"its tensors are those of {', '.join(twins[one.path])}",) if one.path in twins else ()
        yield replace(one, warnings=(*one.warnings, *more))


def _check(path: Path, progress: Progress) -> CheckedFile:
    """One file, whatever is wrong with it."""
    size = path.stat().st_size
    no_weights = _no_weights(path)
    if no_weights:
        return CheckedFile(str(path), "no weights", size, problems=(f"is {no_weights}",))
    try:
        with open_weights(path) as weights:
            with open_weights(_described_by(path)) as whole:
                what, problems, warnings = _header(whole)
            numbers = _Numbers()
            stated = any(weights.metadata.get(key) for key in STALE_KEYS)
            content = hash_content(path, progress, look=numbers.take, data=stated)
            problems += [*numbers.problems(weights), *_stated_hashes(weights, content)]
    except (SdkitError, OSError) as error:
        message = (error.message if isinstance(error, SdkitError) else str(error)).removeprefix(f"{path}: ")
        return CheckedFile(str(path), "unreadable", size, problems=(message,))
    return CheckedFile(
        str(path), what, size, content.sha256 or "", tuple(problems), tuple(warnings), content.content_id
    )


def _no_weights(path: Path) -> str:
    with open(path, "rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        return "empty"
    return next((meaning for sign, meaning in _NO_WEIGHTS if start.startswith(sign)), "")


def _described_by(path: Path) -> Path:
    """What tells what a file is: PEFT's say it in a configuration beside them, so the folder does."""
    return path.parent if path.stem == "adapter_model" and (path.parent / "adapter_config.json").is_file() else path


def _header(weights: Weights) -> tuple[str, list[str], list[str]]:
    """What it is, and what its header shows to be wrong or doubtful."""
    problems: list[str] = []
    warnings: list[str] = []
    model = identify(weights)
    format, _ = recognise(weights) if not model.places else (None, {})
    shown = adapter_family(weights)[0] if format else model.family if model.family != "unknown" else None
    what = " ".join(filter(None, [format or ("checkpoint" if model.places else "unknown"), shown]))
    problems += model.faults if model.places else ()
    claimed = claimed_family(weights)
    if claimed and shown and claimed != shown and not shown.startswith(claimed):
        problems.append(f"is mislabelled: its metadata say {claimed}, its tensors are {shown}'s")
    pickled = weights.container is Container.PICKLE
    if weights.container is not Container.FOLDER and pickled == (weights.path.suffix in (".safetensors", ".sft")):
        problems.append(f"is mislabelled: a {weights.container} called {weights.path.suffix}")
    if pickled:
        warnings.append("is a pickle: it can hold code, which sdkit does not run; others may")
    if what == "unknown" and _is_state(weights.path):
        return "state of a training run", problems, warnings
    if what == "unknown":
        warnings.append("nothing explains its tensors; `sdkit inspect` gives the reasons")
    return what, problems, warnings


def _is_state(path: Path) -> bool:
    """Whether it is what a training run resumes from (see `sdkit.training.state`), which is no model."""
    beside = (path.parent / "COMPLETE", path.parent / "state.json")
    return path.name == "tensors.safetensors" and all(file.is_file() for file in beside)


class _Numbers:
    """Looks for NaN and infinity in the bytes of tensors as they come by."""

    def __init__(self) -> None:
        self._bad: set[str] = set()
        self._cut = bytearray()  # the begun number at the end of the piece before

    def take(self, info: TensorInfo, piece: memoryview, done: bool) -> None:
        import torch

        size = info.dtype.itemsize
        if not info.dtype.is_float or not info.dtype.torch_name or not size:
            return
        held = self._cut + piece
        whole = len(held) // size * size
        self._cut = bytearray() if done else held[whole:]
        if not whole:
            return
        numbers = torch.frombuffer(held[:whole], dtype=torch.uint8).view(torch_dtype(info.dtype)).float()
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(numbers)):
            self._bad.add(info.name)

    def problems(self, weights: Weights) -> Iterator[str]:
        bad = [name for name in weights.tensors if name in self._bad]
        if bad:
            yield f"holds NaN or infinity in {counted(bad, 'tensor')}"


def _stated_hashes(weights: Weights, content: Content) -> Iterator[str]:
    """Hashes in the header and beside the file, by which web UIs and hubs name it."""
    if content.data_sha256 is not None:
        true = {
            "sshs_model_hash": content.data_sha256,
            "sshs_legacy_hash": legacy_hash(weights.path),
            "modelspec.hash_sha256": content.data_sha256,
        }
        for key in sorted(STALE_KEYS):
            text = weights.metadata.get(key)
            if text and true[key] is not None and text.lower().removeprefix("0x") != true[key]:
                yield f"its metadata say {key} = {text[:70]}, which is another file's"
    for name, digest in _beside(weights.path):
        if content.sha256 and digest.lower() != content.sha256:
            yield f"{name} says its sha256 is {digest.lower()}, but it is {content.sha256}"


def _beside(path: Path) -> Iterator[tuple[str, str]]:
    """The sha256 that files beside a model state of it: (file, hash)."""
    for place in (path.with_name(f"{path.name}.sha256"), path.with_suffix(".sha256")):
        match = _SHA256.search(_text(place))
        if match:
            yield place.name, match[0]
    for place in (path.with_suffix(".civitai.info"), path.with_suffix(".metadata.json")):
        for digest in _said_of(_text(place), path.name):
            yield place.name, digest


def _said_of(text: str, name: str) -> Iterator[str]:
    """The hash of the file called `name` in a model version as Civitai gives it, or a manager's own note of one."""
    try:
        table = json.loads(text) if text else None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        return
    files = table.get("files")
    listed = files if isinstance(files, list) else []
    entries = [entry for entry in listed if isinstance(entry, dict) and entry.get("name") == name]
    found = [entry["hashes"].get("SHA256") for entry in entries if isinstance(entry.get("hashes"), dict)]
    yield from (value for value in (*found, table.get("sha256")) if isinstance(value, str) and _SHA256.fullmatch(value))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size <= _LARGEST_SIDECAR else ""
    except OSError:
        return ""
