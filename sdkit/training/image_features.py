"""What a hypernetwork sees of a picture: a grid of the autoencoder's latents, or the tokens of a CLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.bases import resolve_base
from sdkit.weights.folder import read_json

if TYPE_CHECKING:
    import torch

ENCODERS = ("vae", "clip")
GRID = 8  # patches of latents along a side


def latent_patches(latents: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] as tokens [n, 64, c·p·p] of 8 × 8 patches; other sizes are scaled to the nearest that divides."""
    from torch.nn import functional as F

    patch = max(1, round(latents.shape[-1] / GRID))
    if latents.shape[-2:] != (GRID * patch, GRID * patch):
        latents = F.interpolate(latents, size=(GRID * patch, GRID * patch), mode="bilinear", antialias=True)
    return F.unfold(latents, patch, stride=patch).mT


def latent_tokens(channels: int, side: int) -> tuple[int, int]:
    """How many tokens, and how wide, `latent_patches` makes of squares with such a side."""
    return GRID * GRID, channels * max(1, round(side / GRID)) ** 2


def clip_folder(clip: str) -> Path:
    """Where the image tower lies that ``clip=`` names: a folder, or that of a base with one of its own."""
    named = resolve_base(clip)
    own = named / "image_encoder"
    return own if own.is_dir() else named


def clip_config(clip: str) -> Mapping[str, Any]:
    """The vision part of a CLIP's configuration.

    Raises:
        SdkitError: no CLIP with an image tower lies there.
    """
    path = clip_folder(clip) / "config.json"
    if not clip or not path.is_file():
        raise UsageError(
            f"clip={clip}: no folder with a CLIP" if clip else "encoder=clip needs clip=, a folder with a CLIP",
            "a download of openai/clip-vit-large-patch14, for example; or leave encoder= out",
        )
    fields = read_json(path)
    vision = fields.get("vision_config", fields)
    if not all(isinstance(vision.get(key), int) for key in ("image_size", "patch_size", "hidden_size")):
        raise SdkitError(f"{clip}: its config.json describes no image tower", "name a CLIPModel or CLIPVisionModel")
    return dict(vision)


def clip_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many tokens, and how wide, a CLIP makes of a picture."""
    return (config["image_size"] // config["patch_size"]) ** 2 + 1, config["hidden_size"]


class ClipFeatures:
    """The image tower of a CLIP, frozen.

    Args:
        clip: see `clip_folder`; as transformers saves it.
    """

    def __init__(self, clip: str) -> None:
        from sdkit.runtime.image_tower import load_image_side
        from sdkit.runtime.tensors import tensor_bytes

        config = clip_config(clip)
        self._side = int(config["image_size"])
        self._model: Any = load_image_side(clip_folder(clip), config)
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in self._model.named_parameters():
            digest.update(name.encode())
            digest.update(tensor_bytes(parameter))
        self.id = digest.hexdigest()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens [n, tokens, width] of pictures [n, 3, h, w] in −1 … 1."""
        import torch

        from sdkit.runtime.image_tower import as_clip_sees

        self._model.to(pixels.device)
        with torch.no_grad():
            found: torch.Tensor = self._model(as_clip_sees(pixels, self._side)).last_hidden_state
        return found.float()
