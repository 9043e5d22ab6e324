"""CLIP's image side of a text encoder: pictures and prompts as vectors of one space (CLIP, arXiv:2103.00020).

No base needs it to draw, so checkpoints come without it. It is found in one of three places:

- a base with a folder ``image_encoder`` as `sdkit train image-encoder` writes it, such as ``tiny``;
- such a folder alone, which belongs to the text encoder it was trained beside;
- a ``CLIPModel`` of transformers: its folder, or its safetensors file with ``config.json`` beside. SD1's text encoder
  is that of openai/clip-vit-large-patch14; SDXL's second is that of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.families.bases import resolve_base
from sdkit.runtime.backbone import Backbone, hub_name
from sdkit.runtime.load import (
    base_configs,
    build_component,
    fill_buffers,
    load_component,
    load_tokenizer,
    padding,
    tokenizer_in,
)
from sdkit.runtime.tensors import read_tensors, write_tensors
from sdkit.runtime.tokens import marked_ids, token_ids
from sdkit.streaming.expression import Read
from sdkit.weights import Weights, open_weights
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.folder import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLDER = "image_encoder"  # in a base, as diffusers calls the component
TEXT_SIDE = "text_projection.safetensors"  # beside the image encoder's own weights
PROJECTION, SCALE = "text_projection.weight", "logit_scale"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the colours CLIP was trained on, in 0 … 1
STD = (0.26862954, 0.26130258, 0.27577711)
_HINT = "name CLIP's with image_encoder=, for SD1 openai/clip-vit-large-patch14, pulled or downloaded"


@dataclass(frozen=True, slots=True)
class ImageTower:
    """Both sides of a CLIP, on one device and in float32.

    Attributes:
        vision: the image encoder with its projection.
        text: the text encoder that the image encoder was trained beside; never the one of a base that is in training.
        tokenizer: the text encoder's.
        projection: from the text encoder's vectors to the common space, [d, width].
        logit_scale: logarithm of what cosines are multiplied with in CLIP's own loss.
    """

    vision: Any
    text: Any
    tokenizer: Any
    projection: nn.Parameter
    logit_scale: nn.Parameter

    @property
    def width(self) -> int:
        """Of the common space."""
        return int(self.projection.shape[0])

    @property
    def side(self) -> int:
        """Of the square it sees, in pixels."""
        return int(self.vision.config.image_size)

    def to(self, device: torch.device) -> None:
        """Move it."""
        for module in (self.vision, self.text):
            module.to(device)
        for parameter in (self.projection, self.logit_scale):
            parameter.data = parameter.data.to(device)

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, d] of pictures [n, 3, h, w] in −1 … 1."""
        import torch

        with torch.no_grad():
            return unit(self.image_features(pixels))

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [n, d] of prompts, read by the tower's own text encoder; what it cannot read is cut."""
        import torch

        with torch.no_grad():
            return unit(self.project(*self.read(prompts)))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The vectors before they are brought to length one, [n, d]; gradients flow."""
        seen = as_clip_sees(pixels.to(self.projection.device), self.side)
        features: torch.Tensor = self.vision(pixel_values=seen).image_embeds
        return features

    def read(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The text encoder's last vectors [n, length, width] of prompts, and their token ids [n, length]."""
        import torch

        length = int(self.text.config.max_position_embeddings)
        rows = [marked_ids(self.tokenizer, token_ids(self.tokenizer, {}, text), length) for text in prompts]
        ids = torch.tensor(rows, device=self.projection.device)
        return self.text(ids).last_hidden_state, ids

    def project(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of texts: what stands at the mark of the end, projected."""
        return pooled(hidden, ids, int(self.tokenizer.eos_token_id)) @ self.projection.T


def text_features(backbone: Backbone, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Features [n, d] of texts as the base itself reads them, installed words included; gradients flow.

    Returns:
        By text encoder, those with a tower.
    """
    ids, found = backbone.tokenize(texts), {}
    for name, tower in backbone.towers.items():
        encoder: Any = backbone.components[name]
        rows = ids[name].to(backbone.device)
        found[name] = tower.project(encoder(rows).last_hidden_state.float(), rows)
    return found


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """The vectors of a last dimension at length one."""
    from torch.nn import functional as F

    return F.normalize(vectors, dim=-1)


def pooled(hidden: torch.Tensor, ids: torch.Tensor, end: int) -> torch.Tensor:
    """The vectors [n, width] where the mark of the end stands first, of `hidden` [n, length, width]."""
    import torch

    places = (ids == end).int().argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), places]


def as_clip_sees(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [n, 3, h, w] in −1 … 1 as CLIP's image side takes them: a square in the colours it was trained on."""
    import torch

    mean, std = (torch.tensor(numbers, device=pixels.device)[:, None, None] for numbers in (MEAN, STD))
    return ((fitted(pixels.float(), side) + 1) / 2 - mean) / std


def fitted(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures [n, 3, h, w] as CLIP is shown them: the shorter side scaled to `side`, and the middle square cut out."""
    from torch.nn import functional as F

    height, width = pixels.shape[-2:]
    if (height, width) == (side, side):
        return pixels
    scale = side / min(height, width)
    size = (max(side, int(height * scale)), max(side, int(width * scale)))  # rounded down, as transformers does
    scaled = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled[..., top : top + side, left : left + side]


def load_tower(source: Path | str, base: Path | str | None = None) -> ImageTower | None:
    """The tower of a base, or one that lies alone.

    Args:
        source: see the module.
        base: the base that an image encoder's folder belongs to.

    Returns:
        None where `source` is a base without one.

    Raises:
        SdkitError: `source` is something else, or damaged.
    """
    path = resolve_base(source)
    if (path / "model_index.json").is_file():
        return _trained_beside(path / FOLDER, path) if (path / FOLDER / TEXT_SIDE).is_file() else None
    if (path / TEXT_SIDE).is_file():
        if base is None:
            raise SdkitError(f"{path}: is half of a tower; the other is the text encoder of its base", "name the base")
        return _trained_beside(path, resolve_base(base))
    return _clip_model(path)


def load_image_side(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """A CLIP's image encoder alone, without the projection to the common space, frozen and in float32.

    Args:
        folder: of a ``CLIPModel``, a ``CLIPVisionModel`` or an image encoder.
        config: of its image side.

    Raises:
        SdkitError: the folder's weights are not that.
    """
    module: Any = build_component("image_encoder", config)
    with open_weights(folder) as weights:
        # A CLIPVisionModel that transformers 5 saves has nothing in front of its names.
        front = "vision_model." if any(name.startswith("vision_model.") for name in weights.tensors) else ""
        _fill(module.vision_model, weights, lambda key: f"{front}{key}")
    side: nn.Module = module.vision_model.requires_grad_(False).eval()
    return side


def new_tower(backbone: Backbone, config: Mapping[str, Any], seed: int) -> ImageTower:
    """A tower to be trained beside a base's text encoder, as its library and CLIP begin: a scale of 1 / 0.07.

    Args:
        config: of the image encoder.
        seed: its weights follow from it.
    """
    import torch

    text: Any = backbone.components["text_encoder"]
    width = int(text.config.hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = build_component("image_encoder", config, empty=False)
        projection = torch.randn(int(config["projection_dim"]), width) * width**-0.5
    scale = torch.tensor(1 / 0.07).log()
    return _tower(vision, text, backbone.tokenizers["text_encoder"], projection, scale, Path("image_encoder"))


def save_tower(
    tower: ImageTower, config: Mapping[str, Any], path: Path, metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Write an image encoder's folder, which transformers and diffusers load, the text's projection beside.

    Raises:
        SdkitError: `path` cannot be written, or does not read back as it was meant.
    """
    vision = {hub_name("image_encoder", name): value.to(dtype) for name, value in tower.vision.named_parameters()}
    text = {PROJECTION: tower.projection.to(dtype), SCALE: tower.logit_scale.to(dtype)}
    with AtomicFolder(path, overwrite=True) as folder:
        write_tensors(folder.work / "model.safetensors", vision, {"format": "pt", **metadata})
        write_tensors(folder.work / TEXT_SIDE, text, {"format": "pt", **metadata})
        for name, fields in (("config.json", config), ("preprocessor_config.json", _preprocessor(tower.side))):
            (folder.work / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        folder.commit()
    for file, tensors in (("model.safetensors", vision), (TEXT_SIDE, text)):
        _check_written(path / file, tensors)


def _preprocessor(side: int) -> dict[str, Any]:
    """What transformers' image processor is told, to prepare pictures as `ImageTower.image_features` does."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": MEAN,
        "image_std": STD,
    }


def _check_written(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    import torch

    read = read_tensors(path)
    wrong = next((name for name, value in tensors.items() if not torch.equal(read[name], value.cpu())), None)
    if wrong is not None:
        raise SdkitError(f"{path}: {wrong} does not read back as it was written", "please report this")


def text_projections(image_encoder: str, base: Path) -> list[torch.Tensor]:
    """The texts' projections [d, width] of what an option ``image_encoder`` names, or a base's own; no more is read.

    Raises:
        SdkitError: what is named is no image encoder.
    """
    found = []
    for source in _sources(image_encoder, base):
        path = resolve_base(source)
        side = next((file for file in (path / FOLDER / TEXT_SIDE, path / TEXT_SIDE) if file.is_file()), path)
        if side == path and (path / "model_index.json").is_file():
            if image_encoder:
                raise SdkitError(f"{source}: this base has no image encoder", _HINT)
            continue
        if side == path and not image_encoder:  # a base in a single file
            continue
        if not side.exists():
            raise SdkitError(f"{source}: no such file or folder", _HINT)
        with open_weights(side) as weights:
            found.append(_load(weights, PROJECTION))
    return found


def _sources(image_encoder: str, base: Path | None) -> list[str | Path]:
    named = [word.strip() for word in image_encoder.split(",") if word.strip()]
    return [word if word == "tiny" else Path(word) for word in named] or ([base] if base else [])


@dataclass(frozen=True, slots=True)
class TowerConfigs:
    """The configurations of a tower's two sides; the text's is empty where it is the base's own text encoder."""

    source: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]


def tower_configs(image_encoder: str, base: Path) -> list[TowerConfigs]:
    """What an option ``image_encoder`` names, or a base's own, from configurations alone.

    Raises:
        SdkitError: there is no image encoder.
    """
    found = []
    for source in _sources(image_encoder, base):
        path = resolve_base(source)
        folder = path / FOLDER if (path / "model_index.json").is_file() else path
        if (folder / TEXT_SIDE).is_file():
            text = {} if folder == path else read_json(path / "text_encoder" / "config.json")
            found.append(TowerConfigs(str(source), read_json(folder / "config.json"), text))
        elif folder != path or (not image_encoder and path.is_file()):
            raise SdkitError(f"{source}: this base has no image encoder", _HINT)
        else:
            config = read_config(path)
            vision = {**config["vision_config"], "projection_dim": config.get("projection_dim", 512)}
            found.append(TowerConfigs(str(source), vision, config["text_config"]))
    return found


def check_towers(image_encoder: str, base: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an image encoder of another text encoder than a base's, and a base's lack of one, from configurations.

    Raises:
        SdkitError: see `tower_configs`; or it stands beside another text encoder.
    """
    shapes = {name: _shape(config) for name, config in configs.items() if name.startswith("text_encoder")}
    taken: list[str] = []
    for tower in tower_configs(image_encoder, base):
        taken.append(_beside(_shape(tower.text or configs["text_encoder"]), shapes, taken, tower.source, base.name))


def give_towers(backbone: Backbone, image_encoder: str) -> None:
    """Give a base its towers, as an option ``image_encoder`` names them (several with commas between), or its own.

    Raises:
        SdkitError: there is none, or one that was made for other text encoders than the base's.
    """
    base = backbone.base_path
    for source in _sources(image_encoder, base):
        tower = load_tower(source, base)
        if tower is None:
            raise SdkitError(f"{source}: this base has no image encoder", _HINT)
        encoders: dict[str, Any] = {name: backbone.components[name] for name in backbone.text_encoders}
        shapes = {name: _shape(encoder.config.to_dict()) for name, encoder in encoders.items()}
        own = _shape(tower.text.config.to_dict())
        backbone.towers[_beside(own, shapes, backbone.towers, str(source), backbone.base_name)] = tower
    for tower in backbone.towers.values():
        tower.to(backbone.device)


def _beside(
    own: tuple[int, int], shapes: Mapping[str, tuple[int, int]], taken: Collection[str], source: str, base: str
) -> str:
    """The base's text encoder that a tower stands beside: as deep and as wide as the tower's own."""
    free = next((name for name, shape in shapes.items() if shape == own and name not in taken), None)
    if free is None:
        said = " and ".join(f"{layers} layers of {width} ({name})" for name, (layers, width) in shapes.items())
        raise SdkitError(
            f"{source}: its text encoder has {own[0]} layers of {own[1]}, {base} has {said}",
            "name the CLIP whose text encoder the base has with image_encoder=",
        )
    return free


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
    return int(config.get("num_hidden_layers", 12)), int(config.get("hidden_size", 512))


def _trained_beside(folder: Path, base: Path) -> ImageTower:
    """The tower of `sdkit train image-encoder`'s folder and a base's text encoder."""
    with open_weights(base) as weights:
        model = identify(weights)
        configs = base_configs(weights, model)
        text: Any = load_component("text_encoder", configs, weights, model)
        vocabulary = int(configs["text_encoder"]["vocab_size"])
        tokenizer = load_tokenizer(weights, "text_encoder", vocabulary, padding(model.family, "text_encoder"))
    with open_weights(folder) as weights, open_weights(folder / TEXT_SIDE) as side:
        vision = _filled("image_encoder", read_json(folder / "config.json"), weights)
        return _tower(vision, text, tokenizer, _load(side, PROJECTION), _load(side, SCALE), folder)


def _clip_model(path: Path) -> ImageTower:
    """The tower of a ``CLIPModel``."""
    config = read_config(path)
    texts, visions = dict(config["text_config"]), dict(config["vision_config"])
    for part in (texts, visions):
        part["projection_dim"] = config.get("projection_dim", 512)
    with open_weights(path) as weights:
        vision, text = _filled("image_encoder", visions, weights), _filled("text_encoder", texts, weights)
        folder = path if path.is_dir() else path.parent
        tokenizer = tokenizer_in(folder) or load_tokenizer(weights, "text_encoder", int(text.config.vocab_size))
        return _tower(vision, text, tokenizer, _load(weights, PROJECTION), _load(weights, SCALE), path)


def read_config(path: Path) -> Mapping[str, Any]:
    """The configuration of a ``CLIPModel``'s folder or file.

    Raises:
        SdkitError: there is none, or it is of something else.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not path.exists():
        raise SdkitError(f"{path}: no such file or folder", _HINT)
    config = read_json(file) if file.is_file() else {}
    if not all(isinstance(config.get(key), dict) for key in ("text_config", "vision_config")):
        raise SdkitError(
            f"{path}: is no image encoder: {file.name} beside it is missing, or not that of a CLIPModel", _HINT
        )
    return config


def _tower(
    vision: Any, text: Any, tokenizer: Any, projection: torch.Tensor, scale: torch.Tensor, path: Path
) -> ImageTower:
    from torch import nn

    wanted = (int(vision.config.projection_dim), int(text.config.hidden_size))
    if tuple(projection.shape) != wanted:
        raise SdkitError(f"{path}: {PROJECTION} is {list(projection.shape)}, its two sides need {list(wanted)}")
    for module in (vision, text):
        module.requires_grad_(False).eval()
    parameters = (nn.Parameter(tensor, requires_grad=False) for tensor in (projection, scale.reshape(())))
    return ImageTower(vision, text, tokenizer, *parameters)


def _filled(name: str, config: Mapping[str, Any], weights: Weights) -> Any:
    """A module of a configuration with the weights of a file, whose names are those transformers publishes."""
    module: Any = build_component(name, config)
    _fill(module, weights, lambda key: hub_name(name, key))
    return module


def _fill(module: Any, weights: Weights, named: Callable[[str], str]) -> None:
    """Give an empty module the weights of a file; `named` says how a parameter is called there."""
    state = {}
    for key, parameter in module.named_parameters():
        tensor = _load(weights, named(key))
        if tensor.shape != parameter.shape:
            raise SdkitError(
                f"{weights.path}: {key} has the shape {list(tensor.shape)}, its configuration asks for "
                f"{list(parameter.shape)}"
            )
        state[key] = tensor
    module.load_state_dict(state, strict=False, assign=True)
    fill_buffers(module)


def _load(weights: Weights, name: str) -> torch.Tensor:
    """A tensor in float32, in memory as torch allocates it."""
    if name not in weights.tensors:
        raise SdkitError(f"{weights.path}: is no image encoder: it lacks {name}", _HINT)
    return Read(weights, weights.tensors[name]).load().float().clone()
