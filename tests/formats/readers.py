"""Readers of adapters that nobody here wrote, and the rules of those that cannot be installed.

Each takes a file and gives, for every module it would change, what it would do to the module's weight. diffusers, PEFT,
LyCORIS and loralib are the libraries themselves. Of the other programs the rules are written down here from their
documentation and the names they are known to look up: which names they make of a layer, and which roles they take.
What a reader does not know it leaves, and then the test fails: every tensor must have found its place.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from samples import LAYERS, Module, Tensors, base_weight, effect, flat

# Hub module → change, [rows, columns] in float64.
Changes = dict[str, torch.Tensor]
Reader = Callable[[Path, str], Changes]

_LORA = {"lora_up.weight", "lora_down.weight", "alpha"}
_WIDE = _LORA | {"lora_mid.weight", "diff", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "dora_scale"}
_WIDE |= {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "oft_blocks", "rescale"}
_WIDE |= {f"{side}{n}.weight" for side in "ab" for n in (1, 2)}
_LATER = ("flux2", "z-image")  # of these its names of diffusers' layers are not written down here
ROLES = {"a1111": _WIDE | {"weight", "on_input"}, "comfyui": _WIDE, "forge": _WIDE, "sd-scripts": _LORA}


def comfyui_names(module: Module, family: str) -> Iterator[str]:
    """ComfyUI: any layer of its model by its path, dotted or flat; then what diffusers calls it."""
    yield f"lora_unet_{flat(module.native)}"
    yield f"diffusion_model.{module.native}"
    if family in _LATER:
        return
    yield f"lycoris_{flat(module.name)}"
    if module.component == "unet":
        yield f"lora_unet_{flat(module.name)}"
    else:
        yield f"lora_transformer_{flat(module.name)}"
        yield f"transformer.{module.name}"


def forge_names(module: Module, family: str) -> Iterator[str]:
    """Forge's table is ComfyUI's of the time, for the models it knows."""
    if family in ("sd1", "sd2", "sdxl", "flux"):
        yield from comfyui_names(module, family)


def a1111_names(module: Module, family: str) -> Iterator[str]:
    """A1111: U-Nets alone, in diffusers' names; SDXL's also as its own code calls its layers."""
    if family in ("sd1", "sd2", "sdxl"):
        yield f"lora_unet_{flat(module.name)}"
    if family == "sdxl":
        yield f"lora_unet_{flat(module.native)}"


def sd_scripts_names(module: Module, family: str) -> Iterator[str]:
    """sd-scripts: diffusers' names for the U-Nets it takes from there, its own models' paths for all later ones."""
    yield f"lora_unet_{flat(module.name if family in ('sd1', 'sd2') else module.native)}"


NAMES = {"a1111": a1111_names, "comfyui": comfyui_names, "forge": forge_names, "sd-scripts": sd_scripts_names}


def by_rules(program: str) -> Reader:
    """The reader that a program's names and roles describe."""

    def read(path: Path, family: str) -> Changes:
        table = {
            name: module for group in LAYERS[family] for module in group for name in NAMES[program](module, family)
        }
        found: dict[Module, Tensors] = defaultdict(dict)
        for key, tensor in load_file(path).items():
            name = next(name for name in sorted(table, key=len, reverse=True) if key.startswith(f"{name}."))
            role = key.removeprefix(f"{name}.")
            assert role in ROLES[program], f"{program} does not know {role}"
            found[table[name]][role] = tensor
        return {module.hub: effect(parts, base_weight(module)) for module, parts in found.items()}

    return read


class Tree(torch.nn.Module):
    """A model of single layers, at the names that diffusers gives them."""

    def __init__(self, family: str, component: str) -> None:
        super().__init__()
        self.by_name: dict[str, Module] = {}
        for layer in dict.fromkeys(layer for group in LAYERS[family] for layer in group):
            if layer.component == component:
                self.by_name[layer.name] = layer
                self._grow(layer)

    def _grow(self, layer: Module) -> None:
        rows, columns, *kernel = layer.shape
        made = torch.nn.Conv2d(columns, rows, kernel[0]) if kernel else torch.nn.Linear(columns, rows)
        made.weight.data = base_weight(layer).float().reshape(layer.shape)
        *path, last = layer.name.split(".")
        parent: torch.nn.Module = self
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, made)


def _denoiser(family: str) -> str:
    return LAYERS[family][0][0].component


def lycoris(path: Path, family: str) -> Changes:
    """LyCORIS' own loaders: of kohya's files, and of its wrapper's."""
    from lycoris import create_lycoris_from_weights
    from lycoris.kohya import create_network_from_weights

    tree, tensors = Tree(family, _denoiser(family)), load_file(path)
    prefix = "lycoris" if next(iter(tensors)).startswith("lycoris_") else "lora_unet"
    if prefix == "lycoris":
        modules = create_lycoris_from_weights(1.0, "", tree, weights_sd=tensors)[0].loras
    else:
        modules = create_network_from_weights(1.0, "", None, None, tree, weights_sd=tensors)[0].unet_loras
    names = {f"{prefix}_{flat(name)}": layer for name, layer in tree.by_name.items()}
    assert {key.partition(".")[0] for key in tensors} == {module.lora_name for module in modules}
    return {names[module.lora_name].hub: _acting(module, names[module.lora_name]) for module in modules}


def _acting(module: Any, layer: Module) -> torch.Tensor:
    """What a module of LyCORIS does while a picture is made; its `get_merged_weight` scales LoHas and LoKrs twice."""
    if len(layer.shape) > 2:
        merged = module.get_merged_weight(1)[0]
    else:
        wrapped = module.org_module[0]
        module.apply_to()
        with torch.no_grad():
            merged = (wrapped(torch.eye(layer.shape[1])) - wrapped(torch.zeros(1, layer.shape[1]))).T
    return merged.detach().double().reshape(layer.shape[0], -1) - base_weight(layer)


def peft(path: Path, family: str) -> Changes:
    """PEFT's own model, merged."""
    from peft import PeftModel

    tree = Tree(family, _denoiser(family))
    before = {name: tree.get_submodule(name).bias.detach().clone() for name in tree.by_name}
    adapted = PeftModel.from_pretrained(tree, path)
    merged = adapted.merge_and_unload().state_dict()
    found = {}
    for name, layer in tree.by_name.items():
        change = merged[f"{name}.weight"].double().reshape(layer.shape[0], -1) - base_weight(layer)
        if change.abs().max() > 1e-6:
            found[layer.hub] = change
        bias = (merged[f"{name}.bias"] - before[name]).double()
        if bias.abs().max() > 1e-6:
            found[f"{layer.hub}.bias"] = bias
    return found


def diffusers(path: Path, family: str) -> Changes:
    """diffusers' own loader, up to the factors it hands to PEFT, which are multiplied here as PEFT does it."""
    from diffusers import loaders
    from diffusers.utils import convert_unet_state_dict_to_peft

    name = {"sd3": "SD3LoraLoaderMixin", "flux": "FluxLoraLoaderMixin", "flux2": "Flux2LoraLoaderMixin"}
    name["z-image"] = "ZImageLoraLoaderMixin"
    name |= {family: "StableDiffusionLoraLoaderMixin" for family in ("sd1", "sd2")}
    loader = getattr(loaders, name.get(family, "StableDiffusionXLLoraLoaderMixin"))
    more = {} if _denoiser(family) == "transformer" else {"unet_config": _UNetConfig()}
    state, *alphas = _pair(loader.lora_state_dict(str(path), **more))
    peft_alphas = convert_unet_state_dict_to_peft(alphas[0]) if alphas and alphas[0] else {}
    with safe_open(path, "pt") as file:
        settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    sides: dict[str, Tensors] = defaultdict(dict)
    for key, tensor in convert_unet_state_dict_to_peft(state).items():
        module, _, side = key.rpartition(".lora_")
        assert side in ("A.weight", "B.weight", "B.bias", "magnitude_vector"), key
        sides[module][side.removesuffix(".weight")] = tensor.double()
    stated = {key.removesuffix(".alpha").partition(".lora_A")[0]: value for key, value in peft_alphas.items()}
    layers = {layer.hub: layer for group in LAYERS[family] for layer in group}
    found = {}
    for module, parts in sides.items():
        rank = len(parts["A"])
        scale = float(stated.get(module, settings.get(f"{module.partition('.')[0]}.lora_alpha", rank))) / rank
        found[module] = parts["B"].flatten(1) @ parts["A"].flatten(1) * scale
        if "magnitude_vector" in parts:
            weight = base_weight(layers[module])
            moved = weight + found[module]
            found[module] = moved * parts["magnitude_vector"].reshape(-1, 1) / moved.norm(dim=1, keepdim=True) - weight
        if "B.bias" in parts:
            found[f"{module}.bias"] = parts["B.bias"] * scale
    return found


class _UNetConfig:
    """What of a U-Net's configuration diffusers looks at to find the blocks of SDXL."""

    layers_per_block = 2


def _pair(loaded: object) -> tuple:
    return loaded if isinstance(loaded, tuple) else (loaded,)


def loralib(path: Path, family: str) -> Changes:
    """loralib's own layers, merged; alpha is what one makes them with."""
    from loralib import Linear

    tensors, found = load_file(path), {}
    for layer in {layer for group in LAYERS[family] for layer in group if f"{layer.name}.lora_A" in tensors}:
        made = Linear(layer.shape[1], layer.shape[0], r=2, lora_alpha=2)
        made.weight.data = base_weight(layer).float()
        state = {side: tensors.pop(f"{layer.name}.{side}") for side in ("lora_A", "lora_B")}
        made.load_state_dict(state, strict=False)
        made.eval()  # merges
        found[layer.hub] = made.weight.detach().double() - base_weight(layer)
    assert not tensors
    return found


# Program → how it takes a file of weight changes.
READERS: dict[str, Reader] = {"diffusers": diffusers, "loralib": loralib, "lycoris": lycoris, "peft": peft}
READERS |= {program: by_rules(program) for program in NAMES}
