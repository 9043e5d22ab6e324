"""What a person may choose of a conversion: what changes the result (recipes tell all of it), and how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdkit.conversion.plan import Settings
from sdkit.core.progress import NoProgress, Progress
from sdkit.weights import DType


@dataclass(frozen=True, slots=True)
class CheckpointOptions(Settings):
    """What changes the bytes a checkpoint becomes: what a layout is planned by, and what is put in beforehand.

    Attributes:
        ema: take the EMA copy of the U-Net in place of its weights.
        bake_vae: a file or folder whose autoencoder takes the place of the checkpoint's.
        parts: files with one component each to put in.
        family: whose autoencoder it is, for one on its own.
    """

    ema: bool = False
    bake_vae: Path | None = None
    parts: tuple[Path, ...] = ()
    family: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What changes the bytes an adapter becomes.

    Attributes:
        base: the model the adapter was made for: names modules of unusual sizes, and works out relative changes.
        family: the adapter's, where its header does not tell.
        network_alpha: alpha of the modules whose alpha the file does not state.
        rank: of approximations, see `Fitting`.
        dtype: element type of all tensors; None to keep each one's.
        allow_lossy: whether changes the format cannot hold may become the nearest it can.
        keep_training_metadata: whether captions, folders and paths stay among the metadata.
        prune: leave out what belongs to no module.
    """

    base: Path | None = None
    family: str | None = None
    network_alpha: float | None = None
    rank: int | None = None
    allow_lossy: bool = False
    keep_training_metadata: bool = False
    prune: bool = False
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Controls:
    """How a conversion is carried out; the bytes written never depend on it.

    Attributes:
        verify: read the output back and compare.
        force: replace an existing output.
        dry_run: stop before anything is written.
        threads: workers.
        progress: told about the bytes written.
    """

    verify: bool = True
    force: bool = False
    dry_run: bool = False
    threads: int | None = None
    progress: Progress = NoProgress()
