"""A new base out of configurations: a diffusers folder with random weights, to be trained from nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import hub_name
from sdkit.runtime.load import build_component
from sdkit.runtime.precision import save_type
from sdkit.runtime.tensors import write_tensors
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.folder import read_json

if TYPE_CHECKING:
    from torch import nn

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_SIDE_FILES = {".json", ".txt", ".md"}


def create_base(configs: Path, path: Path, *, seed: int = 0, dtype: str = "fp32", overwrite: bool = False) -> int:
    """Write a pipeline folder with the configurations and tokenizer of `configs` and random weights.

    Args:
        configs: a diffusers folder without weights (weights that are there are not looked at).
        path: the folder to write.
        seed: the weights follow from it (and from the versions of torch, diffusers and transformers).
        dtype: of the weights, by its short name.

    Returns:
        The number of parameters.

    Raises:
        SdkitError: `configs` is no such folder, a component cannot be built, or `path` cannot be written.
    """
    components = list(_components(configs))
    stored = save_type(dtype)
    count = 0
    with AtomicFolder(path, overwrite=overwrite) as folder:
        for file in sorted(configs.rglob("*")):
            if file.is_file() and file.suffix in _SIDE_FILES and not file.name.endswith(".index.json"):
                target = folder.work / file.relative_to(configs)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        for number, name in enumerate(components):
            module = _random(name, configs, seed + number)
            tensors = {hub_name(name, key): value.to(stored) for key, value in module.named_parameters()}
            count += sum(tensor.numel() for tensor in tensors.values())
            write_tensors(folder.work / name / f"{_STEMS.get(name, 'model')}.safetensors", tensors, {"format": "pt"})
        folder.commit()
    return count


def _components(configs: Path) -> Iterator[str]:
    if not (configs / "model_index.json").is_file():
        raise SdkitError(f"{configs}: no model_index.json", "name a folder of configurations as diffusers writes it")
    index = read_json(configs / "model_index.json")
    for name in sorted(index):
        if name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            yield name


def _random(name: str, configs: Path, seed: int) -> nn.Module:
    """A component with the weights its library begins with."""
    import torch

    config = read_json(configs / name / "config.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_component(name, config, empty=False)
