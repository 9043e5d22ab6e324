"""The weights that `push` publishes: as they are or in the formats asked for, without this person's paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.conversion.plan import load_target
from sdkit.core.errors import SdkitError
from sdkit.core.progress import Progress
from sdkit.formats import format_for
from sdkit.hubs.hub import Upload
from sdkit.hubs.names import clean_name
from sdkit.jobs.record import unrecorded
from sdkit.registry.facts import Facts
from sdkit.weights import open_weights
from sdkit.weights.retag import with_metadata

if TYPE_CHECKING:
    from sdkit.jobs.converting.adapter import AdapterConversion
    from sdkit.jobs.converting.checkpoint import ConvertReport

_CARD = "README.md"
_CAPTIONS = "ss_tag_frequency"
_PATH = re.compile(r"(?i)(/home/|/users/|/root/|/mnt/|/workspace|/content/|[a-z]:\\+\w|file://)")


def weights_to_publish(
    facts: Facts, name: str, to: Sequence[str], work: Path, progress: Progress
) -> tuple[list[Upload], tuple[str, ...]]:
    """The weights in every form asked for, and what was done to them, a note each.

    Args:
        facts: of the model.
        name: what the files are called.
        to: formats; none for the model as it is.
        work: an empty folder for what is made on the way.
        progress: told about the bytes.

    Raises:
        SdkitError: it cannot be converted, or the result is not the same.
    """
    if not to:
        source, notes = _without_paths(facts.path, work, progress)
        return list(_uploads(source, clean_name(name))), notes
    forms = list(dict.fromkeys(to))
    endings = [_ending(form, facts) for form in forms]  # every form is known before one is made
    uploads: list[Upload] = []
    told: list[str] = []
    for form, ending in zip(forms, endings, strict=True):
        made, remarks = _converted(facts, form, f"{clean_name(name)}{ending}", work / clean_name(form), progress)
        told += [f"{form}: {note}" for note in remarks]
        alone = len(forms) == 1
        stem = clean_name(name) if alone else f"{clean_name(name)}-{clean_name(form)}"
        for path in made:
            inside = "" if alone or path.is_file() else f"{clean_name(form)}/"
            # Words that the form has no place for lie in files of their own beside it.
            called = stem if path == made[0] else f"{stem}{path.stem.removeprefix(clean_name(name))}"
            uploads += [replace(one, name=f"{inside}{one.name}") for one in _uploads(path, called)]
    return uploads, tuple(told)


def _converted(
    facts: Facts, form: str, file_name: str, folder: Path, progress: Progress
) -> tuple[list[Path], list[str]]:
    """What a model becomes in a form, the main file or folder first, and what to say of it."""
    from sdkit.jobs.convert import convert

    folder.mkdir()
    try:
        with unrecorded():  # these files are gone when the push is done
            report = convert(facts.path, form, folder / file_name, progress=progress)
    except SdkitError as error:
        if "--" not in error.hint:
            raise
        raise SdkitError(error.message, f"`sdkit convert` takes options, push what it writes: {error.hint}") from None
    made, notes = _without_paths(Path(report.output), folder / "public", progress)
    return [made, *map(Path, getattr(report, "saved", ()))], [*_proven(report), *notes]


def _proven(report: ConvertReport | AdapterConversion) -> Iterator[str]:
    """What reading back has shown, and what the form has no place for."""
    from sdkit.jobs.converting.adapter import AdapterConversion

    if isinstance(report, AdapterConversion):
        proof = report.proof
        if proof is not None and proof.changes:
            rest = f", the others within {proof.error:.1g}" if proof.exact < proof.changes else ""
            yield f"{proof.exact} of {proof.changes} changes read back number by number{rest}"
        if report.left_out:
            yield f"left out of its header, for it tells of the training data: {', '.join(report.left_out)}"
    elif report.proof is not None:
        yield f"{report.proof.parameters} parameters read back {'bit by bit' if report.proof.exact else 'rounded'}"


def _ending(form: str, facts: Facts) -> str:
    """Of the file that a form is written as; empty for a folder.

    Raises:
        UsageError: there is no such form.
        SdkitError: it holds no such model.
    """
    if facts.kind in ("checkpoint", "component"):
        return "" if load_target(form)[0] == "diffusers" else ".safetensors"
    return format_for(form, facts.kind)[1].suffix


def _uploads(path: Path, stem: str) -> Iterator[Upload]:
    """A file under the model's name, or all files of a folder."""
    if path.is_file():
        yield Upload(f"{stem}{path.suffix.lower()}", path)
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts) and relative.name != _CARD:
            yield Upload(relative.as_posix(), file)


def _without_paths(path: Path, work: Path, progress: Progress) -> tuple[Path, tuple[str, ...]]:
    """The file, or a copy without those entries of its header that tell of this or another person's folders."""
    if path.is_dir() or path.suffix.lower() != ".safetensors":
        return path, ()
    with open_weights(path) as weights:
        metadata = dict(weights.metadata)
    notes = []
    if _CAPTIONS in metadata:
        notes.append(f"its header holds the words of the captions ({_CAPTIONS}), which web UIs show")
    private = sorted(key for key, value in metadata.items() if _PATH.search(value) and not key.startswith("sdkit."))
    if not private:
        return path, tuple(notes)
    kept = {key: value for key, value in metadata.items() if key not in private}
    notes.append(f"left out of its header, for they hold paths: {', '.join(private)}")
    work.mkdir(exist_ok=True)
    return with_metadata(path, work / path.name, kept, progress), tuple(notes)
