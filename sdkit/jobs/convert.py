"""Converting a checkpoint into another layout, or an adapter into another format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sdkit.conversion.shards import check_variant, parse_size
from sdkit.core.errors import UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.jobs.converting.adapter import AdapterConversion, convert_adapter
from sdkit.jobs.converting.checkpoint import ConvertReport, convert_checkpoint
from sdkit.jobs.converting.options import AdapterOptions, CheckpointOptions, Controls
from sdkit.jobs.inputs import is_adapter
from sdkit.jobs.pull import local_path, optional_path
from sdkit.weights.dtypes import parse_dtype

PathLike = str | os.PathLike[str]


def convert(
    source: PathLike,
    to: str,
    output: PathLike | None = None,
    *,
    only: str | None = None,
    dtype: str | None = None,
    prune: bool = False,
    ema: bool = False,
    bake_vae: PathLike | None = None,
    parts: Sequence[PathLike] = (),
    prediction: str | None = None,
    family: str | None = None,
    configs: PathLike | None = None,
    tokenizer: PathLike | None = None,
    variant: str | None = None,
    shard_size: str | None = None,
    base: PathLike | None = None,
    network_alpha: float | None = None,
    rank: int | None = None,
    allow_lossy: bool = False,
    keep_training_metadata: bool = False,
    verify: bool = True,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertReport | AdapterConversion:
    """Write a checkpoint in another layout, or an adapter in another format, and prove that it is the same.

    Every weight of a checkpoint keeps its bits, unless `dtype` asks for others. An adapter's changes stay what they
    are, unless `allow_lossy` lets those that the format cannot hold become the nearest it can.

    Args:
        source: a safetensors file, a pickled checkpoint, a shard index, a diffusers folder or a component's; an
            adapter in any format. Like everything that names a file or folder to read: a path, the name of a
            registered model, a reference, or ``tiny`` for the base that comes with sdkit.
        to: a layout (``single``, ``diffusers``) or an adapter's format (``kohya``, ``peft``, ``diffusers``, …), or a
            program that reads it (``comfyui``, ``a1111``, ``invokeai``, …).
        output: the file or folder to write; default: the source's name in the current directory.
        only: one component: ``unet`` or ``transformer``, ``vae``, ``text_encoder``, ``text_encoder_2``, ….
        dtype: element type of all weights (``fp16``, ``bf16``, ``fp32``, …), of an adapter's factors and words;
            default: each keeps its own.
        prune: leave out what no pipeline reads: the EMA copy, schedule constants, what a trainer left; of an adapter
            what belongs to no module.
        ema: take the EMA copy of the U-Net in place of its weights.
        bake_vae: a file or folder whose autoencoder takes the place of the checkpoint's.
        parts: files with one component each (an autoencoder, a text encoder) to put into the checkpoint, in place of
            its own where it has one.
        prediction: ``epsilon`` or ``v_prediction``, where the checkpoint does not say so or says it wrongly.
        family: whose autoencoder it is, for one on its own; an adapter's, where its header does not tell.
        configs: a diffusers folder with the right configurations and tokenizers, where the checkpoint has none.
        tokenizer: a folder with T5's tokenizer, for a folder of SD3 or FLUX.1; default: a copy in the cache of Hugging
            Face.
        variant: what the names of a folder's weights say (``fp16``); their type is `dtype`'s to say.
        shard_size: the most a file of a folder holds (``10GB``); larger components are divided, with an index.
        base: for adapters: the model it was made for, if that has unusual sizes, or a change depends on its weights.
        network_alpha: for adapters: alpha, where the file does not state it.
        rank: for adapters: of what stands in for changes the format cannot hold; default: the smallest, up to 128,
            that is at most 0.1 % off.
        allow_lossy: for adapters: whether anything may stand in for such changes.
        keep_training_metadata: for adapters: keep captions, folders and paths among the metadata.
        verify: read the output back and compare every parameter, which reads both sides once more.
        force: replace an existing output.
        dry_run: stop before anything is written; every check has been made then.
        threads: workers; the bytes written never depend on it.
        progress: told about the bytes written.

    Returns:
        A report of what went in, what was dropped and why, and the proof.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and inputs are never touched.
    """
    element, shard_bytes = parse_dtype(dtype), parse_size(shard_size)
    check_variant(variant)
    controls = Controls(verify, force, dry_run, threads, progress or NoProgress())
    place = Path(output) if output is not None else None
    path = local_path(source, progress)  # all that can be wrong without it is known to be right
    if is_adapter(path):
        _check_unused(
            "a checkpoint",
            only=only,
            ema=ema,
            bake_vae=bake_vae,
            part=tuple(parts),
            prediction=prediction,
            configs=configs,
            tokenizer=tokenizer,
            variant=variant,
            shard_size=shard_size,
        )
        for_adapter = AdapterOptions(
            base=optional_path(base, progress),
            family=family,
            network_alpha=network_alpha,
            rank=rank,
            dtype=element,
            allow_lossy=allow_lossy,
            keep_training_metadata=keep_training_metadata,
            prune=prune,
        )
        return convert_adapter(path, to, place, for_adapter, controls)
    _check_unused(
        "an adapter",
        base=base,
        network_alpha=network_alpha,
        rank=rank,
        allow_lossy=allow_lossy,
        keep_training_metadata=keep_training_metadata,
    )
    for_checkpoint = CheckpointOptions(
        only=only.replace("-", "_") if only else None,
        dtype=element,
        prune=prune,
        ema=ema,
        bake_vae=optional_path(bake_vae, progress),
        parts=tuple(local_path(part, progress) for part in parts),
        prediction=prediction,
        family=family,
        configs=optional_path(configs, progress),
        tokenizer=optional_path(tokenizer, progress),
        variant=variant,
        shard_bytes=shard_bytes,
    )
    return convert_checkpoint(path, to, place, for_checkpoint, controls)


def _check_unused(what: str, **options: object) -> None:
    """Refuse options that would do nothing."""
    given = [name for name, value in options.items() if value not in (None, False, ())]
    if given:
        raise UsageError(f"{given[0].replace('_', '-')} concerns {what}, which this is not", "leave it out")
