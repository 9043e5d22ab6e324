"""Writing a planned checkpoint, and showing it to the proof before it has its name, where that is possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.plan import Plan, PlannedFile, target_file
from sdkit.conversion.proof import Proof, prove
from sdkit.jobs.converting.options import Controls
from sdkit.streaming import OutputFile, Stream
from sdkit.weights.atomic_folder import AtomicFolder

# What a folder says in its scheduler, and must not say twice: the scheduler may be changed.
SAID_BY_SCHEDULER = ("modelspec.prediction_type", "modelspec.architecture")


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """Writes a plan; what fails the proof gets no name, or loses it again.

    Attributes:
        chosen: what is converted.
        plan: how it is written.
        path: the file or folder.
        metadata: what every file says.
        controls: whether it is read back, and who is told.
    """

    chosen: Checkpoint
    plan: Plan
    path: Path
    metadata: Mapping[str, str]
    controls: Controls

    def write(self) -> Proof | None:
        """Write everything; what reading back has shown, None where that was not asked for."""
        self.controls.progress.start("converting", self.plan.nbytes)
        return self._write_folder() if self.plan.folder else self._write_file()

    def _write_folder(self) -> Proof | None:
        with AtomicFolder(self.path, overwrite=self.controls.force) as folder:
            for name, data in self.plan.side_files.items():
                (folder.work / name).parent.mkdir(parents=True, exist_ok=True)
                (folder.work / name).write_bytes(data)
            self._stream(folder.work, force=False)
            proof = self._proof(folder.work)
            folder.commit()
        return proof

    def _write_file(self) -> Proof | None:
        self._stream(self.path, force=self.controls.force)
        try:  # a file has its name before anybody can open it
            return self._proof(self.path)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def _stream(self, root: Path, *, force: bool) -> None:
        files = [OutputFile(target_file(root, file), file.tensors, self._said_by(file)) for file in self.plan.files]
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        advance = self.controls.progress.advance
        with Stream(files, overwrite=force, threads=self.controls.threads, advance=advance) as stream:
            stream.run()
            stream.commit()

    def _said_by(self, file: PlannedFile) -> dict[str, str]:
        said_elsewhere = SAID_BY_SCHEDULER if self.plan.folder else ()
        own = {key: text for key, text in self.metadata.items() if key not in said_elsewhere}
        return {**own, **file.metadata}

    def _proof(self, path: Path) -> Proof | None:
        if not self.controls.verify:
            return None
        progress = self.controls.progress
        progress.start("reading back", self.plan.nbytes)
        return prove(self.chosen, self.plan, path, progress.advance, threads=self.controls.threads)
