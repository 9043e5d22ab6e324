"""Reading models whole: their hashes, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.jobs.models.reading import Whole, read_all, read_whole
from sdkit.registry.facts import Facts, stamp_of
from sdkit.registry.registry import Registry, open_registry
from sdkit.registry.rows import File, Model


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of one file.

    Attributes:
        path: the file.
        name: of its model.
        state: ``verified``, ``united`` (its tensors are those of a model that is known already), ``parted`` (they are
            not those it was taken for), ``edited`` (it was written since it was registered), ``missing``, ``damaged``.
        sha256: of the file.
        reason: why it is damaged.
    """

    path: str
    name: str
    state: str
    sha256: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VerifyReport(Report):
    """What verifying found.

    Attributes:
        files: one by one.
        unchanged: files whose hashes are known and that nobody has written since.
    """

    files: tuple[Verified, ...]
    unchanged: int


def verify_models(names: Sequence[str] = (), *, again: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Read files whole: their hashes become known, equal models become one, damage and loss come out.

    Args:
        names: of models; without any, all.
        again: also files that were verified before and have not been written since.
        progress: told about the bytes read.
    """
    with open_registry() as registry:
        wanted = {registry.find(name).id for name in names} if names else None
        return verify(registry, wanted, progress or NoProgress(), again=again)


def verify(registry: Registry, wanted: set[int] | None, progress: Progress, *, again: bool = False) -> VerifyReport:
    """Verify the files of the artifacts `wanted`; of all where that is None."""
    models = [registry.model(entry.id) for entry in registry.entries() if wanted is None or entry.id in wanted]
    files = [(model, file) for model in models for file in model.files]
    gone = [(model, file) for model, file in files if not Path(file.path).exists()]
    registry.mark_missing([file.path for _, file in gone])
    doubtful = [pair for pair in files if pair not in gone and (again or not _is_known(*pair))]
    found = [Verified(file.path, model.entry.name, "missing") for model, file in gone]
    read = read_all([Path(file.path) for _, file in doubtful], progress)
    for (model, file), whole in zip(doubtful, read, strict=True):
        found.append(_verified(registry, model, file, whole))
    return VerifyReport(tuple(found), len(files) - len(found))


def _is_known(model: Model, file: File) -> bool:
    """Whether a file was read whole before, and nobody has written it since."""
    path = Path(file.path)
    return _is_hashed(model, file) and stamp_of(path) == file.stamp


def _is_hashed(model: Model, file: File) -> bool:
    return file.sha256 is not None or (Path(file.path).is_dir() and model.content_id is not None)


def _verified(registry: Registry, model: Model, file: File, whole: Whole | SdkitError | OSError) -> Verified:
    """What became of a file, now that it was read."""
    if not isinstance(whole, Whole):
        return Verified(file.path, model.entry.name, "damaged", reason=str(whole))
    edited = whole.facts.stamp != file.stamp
    artifact, state = register_whole(registry, whole)
    after = registry.model(artifact)
    digest = next((one.sha256 for one in after.files if one.path == file.path), None)
    if _is_hashed(model, file) and not edited and digest != file.sha256:
        reason = f"its sha256 was {file.sha256} and is {digest}, but nobody seems to have written it: check the disk"
        return Verified(file.path, after.entry.name, "damaged", digest, reason)
    return Verified(file.path, after.entry.name, "edited" if edited and state == "verified" else state, digest)


def hash_registered(registry: Registry, facts: Facts, progress: Progress) -> tuple[int, str]:
    """Read a model whole and register it, see `register_whole`.

    Raises:
        SdkitError: it was written meanwhile.
    """
    return register_whole(registry, read_whole(facts, progress))


def register_whole(registry: Registry, whole: Whole) -> tuple[int, str]:
    """Register what was read; returns its artifact, and whether it was ``verified``, ``united`` or ``parted``."""
    before = registry.observe(whole.facts)
    same = registry.artifact_of("content", whole.content.content_id)
    artifact = registry.set_content(whole.facts, whole.content.content_id, whole.content.sha256)
    if same not in (None, before):
        return artifact, "united"
    return artifact, "verified" if artifact == before else "parted"
