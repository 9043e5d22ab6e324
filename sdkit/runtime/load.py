"""Loading a base from local files: a diffusers folder, or a single file of a recognised family.

The family's rules say where each parameter lies; the modules are built from configurations, empty, and filled from
there. So every container and naming takes one path, and no pickle is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.core.hashing import quick_id
from sdkit.core.plugins import find_plugins
from sdkit.families import identify
from sdkit.families.configs import stated_configs
from sdkit.families.describe import describe, published_folder
from sdkit.families.family import Model, Place
from sdkit.families.identify import FAMILIES
from sdkit.families.reference import published_config
from sdkit.families.spell import layouts_in
from sdkit.families.tokenizers import is_clip, known_tokenizer
from sdkit.runtime.backbone import Backbone, hub_name
from sdkit.runtime.schedule import noise_schedule
from sdkit.streaming.expression import Read
from sdkit.weights import Weights, open_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

Configs = Mapping[str, Mapping[str, Any]]


def load_backbone(
    source: Path | str | Weights,
    *,
    prediction: str | None = None,
    zero_terminal_snr: bool = False,
    text_only: bool = False,
) -> Backbone:
    """Load a base, on the CPU and in float32.

    Args:
        source: a diffusers folder or a single checkpoint file, or weights that are open or computed (they stay open).
        prediction: ``epsilon`` or ``v_prediction``, where the base does not say or says it wrongly.
        zero_terminal_snr: rescale its schedule so that the last timestep holds no signal, as it may be already.
        text_only: load the text encoders alone, where nothing is drawn.

    Raises:
        SdkitError: it is no base of a family that can be run, a component is missing, or its weights do not fit its
            configuration.
    """
    with nullcontext(source) if isinstance(source, Weights) else open_weights(source) as weights:
        model = identify(weights)
        kind = backbone_class(weights.path, model)
        configs = base_configs(weights, model)
        names = [name for name in component_names(model) if not text_only or name.startswith("text_encoder")]
        components = {name: load_component(name, configs, weights, model) for name in names}
        schedule = noise_schedule(
            configs["scheduler"],
            prediction or model.prediction,
            zero_terminal_snr=zero_terminal_snr or "ztsnr" in model.markers,
        )
        tokenizers = {
            name: load_tokenizer(weights, name, int(configs[name]["vocab_size"]), padding(model.family, name))
            for name in components
            if name.startswith("text_encoder")
        }
        return kind(model, components, tokenizers, schedule, quick_id(*weights.files), weights.path.name, weights.path)


def backbone_class(path: Path, model: Model) -> type[Backbone]:
    """The class that runs a model's family: ``BACKBONE`` of the module whose ``FAMILIES`` names it.

    Raises:
        SdkitError: no class does.
    """
    if "unet" not in model.components:
        reasons = "; ".join(model.reasons) or "no rule matches its keys"
        raise SdkitError(f"{path}: not a base model: {reasons}", f"`sdkit inspect {path}` shows what it is")
    modules = [plugin.load() for plugin in find_plugins("sdkit.runtime.backbones").values()]
    for module in modules:
        if model.family in module.FAMILIES:
            kind: type[Backbone] = module.BACKBONE
            return kind
    known = ", ".join(family for module in modules for family in module.FAMILIES)
    raise SdkitError(f"{path}: models of the family {model.family} cannot be trained yet", f"use a base of {known}")


def component_names(model: Model) -> list[str]:
    """The components that are loaded: those the family's rules know, without a safety checker.

    Raises:
        SdkitError: the base lacks one that training needs.
    """
    names = ["unet", "vae", *(name for name in model.components if name.startswith("text_encoder"))]
    family = next(family for family in FAMILIES if family.name == model.family)
    needed = ("unet", "vae", *(encoder.component for encoder in family.text_encoders))
    missing = [name for name in needed if name not in model.components]
    if missing:
        raise SdkitError(f"the base lacks its {' and its '.join(missing)}", "use a complete pipeline or checkpoint")
    return names


def base_configs(weights: Weights, model: Model) -> Configs:
    """The configurations of a base: its own, or those that its header and its family's published ones give.

    Raises:
        SdkitError: a single file says nothing, and its shapes do not say enough.
    """
    stated = stated_configs(weights)
    if stated:
        return {"scheduler": {}, **stated}
    family = next((family for family in FAMILIES if family.name == model.family), None)
    if family is None:
        raise SdkitError(f"{weights.path}: no configuration is known for {model.family} {model.variant}")
    configs, _ = describe(family, model.variant, layouts_in(weights, family))
    return {**configs, "scheduler": published_config(published_folder(family, model.variant), "scheduler")}


def build_component(name: str, config: Mapping[str, Any], *, empty: bool = True) -> nn.Module:
    """A module of a component's configuration: empty (its tensors have shapes and no memory), or as it begins.

    Raises:
        SdkitError: the configuration is not one of these classes.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta" if empty else "cpu"):
            if name.startswith("text_encoder"):
                projects = "CLIPTextModelWithProjection" in config.get("architectures", ())
                text_class = CLIPTextModelWithProjection if projects else CLIPTextModel
                return text_class(CLIPTextConfig.from_dict(dict(plain)))  # type: ignore[no-any-return]
            if name == "image_encoder":
                return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(plain)))  # type: ignore[no-any-return]
            image_class = UNet2DConditionModel if name == "unet" else AutoencoderKL
            return image_class.from_config(plain)  # type: ignore[no-any-return]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SdkitError(f"the configuration of the base's {name} cannot be built: {error}") from None


def fill_buffers(module: nn.Module) -> None:
    """Give the buffers that no file holds their values: positions are 0, 1, 2, …"""
    import torch

    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        parent, _, last = name.rpartition(".")
        if last != "position_ids":
            raise SdkitError(f"nothing says what the buffer {name} of {type(module).__name__} should hold")
        positions = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
        module.get_submodule(parent).register_buffer(last, positions, persistent=False)


def load_component(name: str, configs: Configs, weights: Weights, model: Model) -> nn.Module:
    """One component of a base, on the CPU and in float32.

    Raises:
        SdkitError: it is not there, or its weights do not fit its configuration.
    """
    if name not in configs:
        raise SdkitError(f"{weights.path}: {name}/config.json is missing", "download the folder again")
    module = build_component(name, configs[name])
    state = {}
    for key, parameter in module.named_parameters():
        place = model.places.get(f"{name}.{hub_name(name, key)}")
        if place is None:
            raise SdkitError(f"{weights.path}: lacks the weight {name}.{key} its configuration asks for")
        tensor = read_place(weights, place)
        if tensor.numel() != parameter.numel() or tuple(tensor.shape[:2]) != tuple(parameter.shape[:2]):
            raise SdkitError(
                f"{weights.path}: {place.key} has the shape {list(tensor.shape)}, "
                f"its configuration asks for {list(parameter.shape)}",
                "`sdkit convert FOLDER --to single` writes a single file that says its configurations",
            )
        state[key] = tensor.reshape(parameter.shape)
    module.load_state_dict(state, strict=False, assign=True)
    fill_buffers(module)
    return module


def read_place(weights: Weights, place: Place) -> torch.Tensor:
    """One parameter in float32, in memory as torch allocates it (see `read_tensors` for why)."""
    import torch

    tensor = Read(weights, weights.tensors[place.key]).load()
    if place.rows is not None:
        tensor = tensor[slice(*place.rows)]
    if place.transposed:
        tensor = tensor.t()
    return torch.empty(tuple(tensor.shape), dtype=torch.float32).copy_(tensor)


def padding(family: str, component: str) -> str:
    """What a family's text encoder is given behind the end of a text, where no tokenizer says it: OpenCLIP's read 0."""
    return "!" if family == "sd2" or component == "text_encoder_2" else "<|endoftext|>"


def load_tokenizer(weights: Weights, component: str, vocabulary: int, padding: str = "<|endoftext|>") -> Any:
    """The tokenizer beside a folder's text encoder; for a single file, or a folder without, the known one of its size.

    Args:
        vocabulary: number of tokens the text encoder knows.
        padding: what CLIP's own fills up with.

    Raises:
        SdkitError: there is none, and the text encoder has another vocabulary than CLIP's.
    """
    from transformers import CLIPTokenizer

    own = tokenizer_in(weights.path / component.replace("text_encoder", "tokenizer"))
    if own is not None:
        return own
    known = known_tokenizer(vocabulary)
    if known is None:
        raise SdkitError(
            f"{weights.path}: its text encoder knows {vocabulary} tokens, and no tokenizer that sdkit has does",
            "a base with a tokenizer of its own must be a diffusers folder, with tokenizer.json or vocab.json",
        )
    marks = {"pad_token": padding} if is_clip(known) else {}
    return CLIPTokenizer.from_pretrained(known, local_files_only=True, **marks)


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer whose files lie in a folder; None where there is none."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if (folder / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return None
