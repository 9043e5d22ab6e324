"""Writing a base whose weights were trained, in the container it came in, and checking what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.families.configs import CONFIG_KEY, stated_configs
from sdkit.families.family import Model
from sdkit.families.sampling import FLAGS, flag_tensors, raised_flags, scheduler_config
from sdkit.runtime.schedule import NoiseSchedule
from sdkit.runtime.tensors import in_memory
from sdkit.streaming import Output, Read
from sdkit.streaming.checkpoint import checkpoint_stream, is_folder
from sdkit.streaming.expression import Cat
from sdkit.weights import DType, Weights, open_weights
from sdkit.weights.dtypes import parse_precision
from sdkit.weights.metadata import STALE_KEYS

if TYPE_CHECKING:
    import torch


def save_base(
    base: Path,
    trained: Mapping[str, torch.Tensor],
    path: Path,
    metadata: Mapping[str, str],
    *,
    dtype: str = "keep",
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    schedule: NoiseSchedule | None = None,
) -> None:
    """Write the base at `base` with other weights. Everything else of it is copied.

    Args:
        trained: hub parameter → its values.
        path: the file or folder to write; one that is there is replaced.
        metadata: added to that of every file.
        dtype: of all weights, by its short name; ``keep`` leaves each its own.
        configs: component → settings of its configuration that change (a folder's).
        schedule: what it was trained with, from now on said by the scheduler's configuration and the markers of a
            single file; None leaves what is said of it.

    Raises:
        SdkitError: `path` cannot be written, or does not read back as it was meant.
    """
    stored = parse_precision(dtype) if dtype != "keep" else None
    with open_weights(base) as weights:
        model = identify(weights)
        changed = _stored_tensors(weights, model, trained)
        held = in_memory("the trained weights", changed)
        outputs = [
            # A bare Read of the stored type would be copied from its file, and these tensors have none.
            Output(info.name, _type(info.dtype, stored), Cat((Read(held, held.tensors[info.name]),)))
            if info.name in changed
            else Output(info.name, _type(info.dtype, stored), Read(weights, info))
            for info in weights.tensors.values()
        ]
        files = _side_files(weights, configs or {})
        stated = _scheduler(weights, schedule) if schedule is not None else {}
        if is_folder(weights):
            files |= _scheduler_files(weights, stated)
        else:  # a folder's files keep what each of them says
            metadata = {**{key: value for key, value in weights.metadata.items() if key not in STALE_KEYS}, **metadata}
            metadata |= _with_scheduler(weights, stated)
            outputs = _flagged(outputs, model, schedule) if schedule is not None else outputs
        with checkpoint_stream(weights, outputs, path, metadata, overwrite=True, side_files=files) as stream:
            stream.run()
    _verify(path, changed)


def _type(own: DType, chosen: DType | None) -> DType:
    return chosen if chosen is not None and own.is_float else own


def _stored_tensors(weights: Weights, model: Model, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors that change, whole, in the checkpoint's own shapes."""
    import torch

    changed: dict[str, torch.Tensor] = {}
    for hub, value in trained.items():
        place = model.places[hub]
        info = weights.tensors[place.key]
        whole = changed.get(place.key)
        if whole is None:
            whole = torch.empty(info.shape)
            if place.rows is not None:  # the tensor holds other parameters too
                whole.copy_(Read(weights, info).load())
            changed[place.key] = whole
        part = value.detach().cpu().float()
        rows = whole[slice(*place.rows)] if place.rows else whole
        rows.copy_((part.t() if place.transposed else part).reshape(rows.shape))
    return changed


def _side_files(weights: Weights, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    if configs and not is_folder(weights):
        raise SdkitError(f"{weights.path}: a single file has no configurations to change", "use a diffusers folder")
    return {
        f"{component}/config.json": _json_file({**weights.configs[component], **settings})
        for component, settings in configs.items()
    }


def _json_file(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode() + b"\n"


def _scheduler(weights: Weights, schedule: NoiseSchedule) -> dict[str, Any]:
    """The scheduler's configuration as the schedule has it; empty where the base says nothing of one."""
    config = stated_configs(weights).get("scheduler")
    if not config:
        return {}
    return scheduler_config(config, schedule.prediction, zero_snr=schedule.zero_terminal_snr)


def _scheduler_files(weights: Weights, scheduler: Mapping[str, Any]) -> dict[str, bytes]:
    """A folder's files that say how it is sampled: its index names the scheduler's class too."""
    if not scheduler:
        return {}
    files = {"scheduler/scheduler_config.json": _json_file(scheduler)}
    index = weights.configs.get("model_index", {})
    entry = ["diffusers", scheduler.get("_class_name")]
    if "scheduler" in index and index["scheduler"] != entry and entry[1]:
        files["model_index.json"] = _json_file({**index, "scheduler": entry})
    return files


def _with_scheduler(weights: Weights, scheduler: Mapping[str, Any]) -> dict[str, str]:
    """The configurations among a single file's metadata, with this one of the scheduler."""
    if not scheduler:
        return {}
    configs = {**stated_configs(weights), "scheduler": dict(scheduler)}
    return {CONFIG_KEY: json.dumps(configs, sort_keys=True, separators=(",", ":"))}


def _flagged(outputs: list[Output], model: Model, schedule: NoiseSchedule) -> list[Output]:
    """The tensors of a single file with the markers of its schedule, and no others."""
    names = raised_flags(model.family, schedule.prediction, zero_snr=schedule.zero_terminal_snr)
    kept = [output for output in outputs if output.name not in FLAGS or output.name in names]
    flags = flag_tensors([name for name in names if all(output.name != name for output in kept)])
    return kept + [Output(name, info.dtype, Read(flags, info)) for name, info in flags.tensors.items()]


def _verify(path: Path, changed: Mapping[str, torch.Tensor]) -> None:
    import torch

    with open_weights(path) as written:
        for name, value in changed.items():
            read = Read(written, written.tensors[name]).load()
            if not torch.equal(read, value.to(read.dtype)):
                raise SdkitError(f"{path}: {name} does not read back as it was written", "please report this")
