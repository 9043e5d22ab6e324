"""Reading models whole: their hashes, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.registry.facts import Facts, look_at, stamp_of
from sdkit.registry.registry import Registry, open_registry
from sdkit.registry.rows import File, Model
from sdkit.weights.content import hash_content


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
    found, unchanged = [], 0
    models = [registry.model(entry.id) for entry in registry.entries() if wanted is None or entry.id in wanted]
    for model in models:
        for file in model.files:
            one = _verify_file(registry, model, file, progress, again=again)
            unchanged += one is None
            found += [one] if one is not None else []
    return VerifyReport(tuple(found), unchanged)


def _verify_file(registry: Registry, model: Model, file: File, progress: Progress, *, again: bool) -> Verified | None:
    """What became of a file; None where it is known already."""
    path = Path(file.path)
    if not path.exists():
        registry.mark_missing([file.path])
        return Verified(file.path, model.entry.name, "missing")
    known = file.sha256 is not None or (path.is_dir() and model.content_id is not None)
    edited = stamp_of(path) != file.stamp
    if known and not edited and not again:
        return None
    try:
        facts = look_at(path)
        artifact, state = hash_registered(registry, facts, progress)
    except (SdkitError, OSError) as error:
        return Verified(file.path, model.entry.name, "damaged", reason=str(error))
    after = registry.model(artifact)
    if known and not edited and (digest := _digest(after, file.path)) != file.sha256:
        reason = f"its sha256 was {file.sha256} and is {digest}, but nobody seems to have written it: check the disk"
        return Verified(file.path, after.entry.name, "damaged", digest, reason)
    return Verified(
        file.path, after.entry.name, "edited" if edited and state == "verified" else state, _digest(after, file.path)
    )


def _digest(model: Model, path: str) -> str | None:
    return next((file.sha256 for file in model.files if file.path == path), None)


def hash_registered(registry: Registry, facts: Facts, progress: Progress) -> tuple[int, str]:
    """Read a registered file whole; returns its artifact, and whether that was ``verified``, ``united`` or ``parted``.

    Raises:
        SdkitError: it was written meanwhile.
    """
    content = hash_content(facts.path, progress)
    if stamp_of(facts.path) != facts.stamp:
        raise SdkitError(f"{facts.path}: was written while it was read", "verify it again when it is finished")
    before = registry.observe(facts)
    same = registry.artifact_of("content", content.content_id)
    artifact = registry.set_content(facts, content.content_id, content.sha256)
    if same not in (None, before):
        return artifact, "united"
    return artifact, "verified" if artifact == before else "parted"
