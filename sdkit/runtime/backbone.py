"""A model brought to life: its components, and the few verbs that training, sampling and losses need of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.runtime.schedule import NoiseSchedule
from sdkit.runtime.tokens import installed_words, marked_ids, token_ids

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from sdkit.runtime.image_tower import ImageTower
    from sdkit.runtime.steering import Steer

TEXT_MODEL = "text_model."  # transformers 5 leaves it out of a text encoder's names; hub names always have it


@dataclass(frozen=True, slots=True)
class Latents:
    """The autoencoder's posterior of pictures, in the denoiser's scale.

    Attributes:
        mean: [b, c, h, w].
        std: [b, c, h, w].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """A draw from the posterior, given standard normal `noise`."""
        return self.mean + self.std * noise

    @staticmethod
    def join(parts: Sequence[Latents]) -> Latents:
        """Several batches as one."""
        import torch

        return Latents(torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts]))


@dataclass(frozen=True, slots=True)
class Cond:
    """What a denoiser is told about the picture.

    Attributes:
        context: text as cross-attention reads it, [b, tokens, width].
        added: further inputs of a family by their names in its denoiser (SDXL's pooled text and sizes).
    """

    context: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def join(parts: Sequence[Cond]) -> Cond:
        """Several batches as one."""
        import torch

        added = {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added}
        return Cond(torch.cat([part.context for part in parts]), added)


@dataclass(frozen=True, slots=True)
class Frame:
    """How a picture was brought to its size, for families that are told. All are pixels, width or left first.

    Attributes:
        original: the picture's own size.
        corner: the upper left corner of what is shown, in the scaled picture.
        size: what is shown.
    """

    original: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Frame:
        """Of a picture that is as it was."""
        return cls(size, (0, 0), size)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Original height and width, top and left, height and width, as SDXL reads them."""
        return tuple(number for pair in (self.original, self.corner, self.size) for number in reversed(pair))


class Backbone(ABC):
    """A loaded base. One subclass per family says how text becomes conditioning and how the denoiser is called.

    Attributes:
        model: what the header said.
        components: hub component → module.
        tokenizers: text encoder's component → tokenizer.
        schedule: the noise schedule.
        base_id: the base's quick id.
        base_name: the base's file or folder name.
        base_path: where it lies; None where it lies nowhere.
        towers: text encoder's component → CLIP's image side of it, where a method has asked for one.
        steers: what changes how prompts are encoded at the moment, in the order it was installed.
        device: where the components are.
        dtype: their floating-point type.
    """

    def __init__(
        self,
        model: Model,
        components: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        schedule: NoiseSchedule,
        base_id: str = "",
        base_name: str = "",
        base_path: Path | None = None,
    ) -> None:
        import torch

        self.model = model
        self.components = dict(components)
        self.tokenizers = dict(tokenizers)
        self.schedule = schedule
        self.base_id = base_id
        self.base_name = base_name
        self.base_path = base_path
        self.towers: dict[str, ImageTower] = {}
        self.steers: list[Steer] = []
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        for component in self.components.values():
            component.requires_grad_(False).eval()

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.components["unet"]

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.components["vae"]

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The components that read text."""
        return tuple(name for name in self.components if name.startswith("text_encoder"))

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Move all components; the autoencoder stays in float32, because float16 overflows in SDXL's."""
        import torch

        for name, component in self.components.items():  # diffusers' own `to` warns of what does not concern us
            torch.nn.Module.to(component, device=device, dtype=torch.float32 if name == "vae" else dtype)
        for tower in self.towers.values():
            tower.to(device)
        self.schedule = self.schedule.to(device)
        self.device, self.dtype = device, dtype
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """While the context lasts nothing is dropped out, whatever trains in the model."""
        training = [module for _, module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def compile(self, component: str) -> None:
        """Let torch compile a component when it is first called; its names and weights stay as they are."""
        module = self.components[component]
        for part in (module.encoder, module.decoder) if component == "vae" else (module,):
            part.compile()  # type: ignore[union-attr]

    def content_id(self, component: str) -> str:
        """Names the weights of a component by content (and the tokenizer, of a text encoder)."""
        import hashlib

        from sdkit.runtime.tensors import tensor_bytes

        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in self.components[component].named_parameters():
            digest.update(name.encode())
            digest.update(tensor_bytes(parameter.cpu()))
        if component in self.tokenizers:
            tokenizer = self.tokenizers[component]
            digest.update(repr((sorted(tokenizer.get_vocab().items()), tokenizer.pad_token_id)).encode())
        return digest.hexdigest()

    # Modules by hub name

    def module(self, hub: str) -> nn.Module:
        """The module with a hub name (``unet.mid_block.attentions.0.proj_in``).

        Raises:
            SdkitError: the base has no such module.
        """
        component, name = self._split(hub)
        try:
            return component.get_submodule(name)
        except AttributeError:
            raise SdkitError(f"the base {self.base_name} has no module {hub}") from None

    def replace(self, hub: str, module: nn.Module) -> None:
        """Put another module in the place of one."""
        component, name = self._split(hub)
        parent, _, last = name.rpartition(".")
        setattr(component.get_submodule(parent), last, module)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module with its hub name."""
        for component, root in self.components.items():
            for name, module in root.named_modules():
                yield f"{component}.{hub_name(component, name)}", module

    def _split(self, hub: str) -> tuple[nn.Module, str]:
        component, _, name = hub.partition(".")
        root = self.components.get(component)
        if root is None:
            raise SdkitError(f"the base {self.base_name} has no component {component} (for {hub})")
        if component.startswith("text_encoder") and not hasattr(root, TEXT_MODEL.rstrip(".")):
            name = name.removeprefix(TEXT_MODEL)
        return root, name

    # Pictures

    @property
    def pixels_per_latent(self) -> int:
        """Width of a latent's pixel in pixels of the picture."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_step(self) -> int:
        """A picture's sides must be multiples of this, so that the denoiser can halve them at each level."""
        return self.pixels_per_latent << (len(self.unet.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    def encode_image(self, pixels: torch.Tensor) -> Latents:
        """The posterior of pictures [b, 3, h, w] in −1…1, as float32."""
        import torch

        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        shift = self.vae.config.get("shift_factor") or 0.0
        scale = self.vae.config.scaling_factor
        return Latents((posterior.mean - shift) * scale, posterior.std * scale)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [b, 3, h, w] in −1…1 from latents in the denoiser's scale."""
        import torch

        with torch.no_grad():
            return self.decoded(latents)

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, with gradients."""
        shift = self.vae.config.get("shift_factor") or 0.0
        pictures: torch.Tensor = self.vae.decode(latents.float() / self.vae.config.scaling_factor + shift).sample
        return pictures

    # Text

    def token_ids(self, component: str, text: str) -> list[int]:
        """A text encoder's ids of a text of any length, without marks of start and end.

        Words installed with `sdkit.runtime.tokens.spliced` have negative ids.
        """
        return token_ids(self.tokenizers[component], installed_words(self, component), text)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Token ids [b, length] by text encoder, marked, and padded and cut to the text encoder's length."""
        import torch

        ids = {}
        for component in self.text_encoders:
            encoder: Any = self.components[component]
            length = encoder.config.max_position_embeddings
            rows = [marked_ids(self.tokenizers[component], self.token_ids(component, text), length) for text in texts]
            ids[component] = torch.tensor(rows)
        return ids

    # What families differ in

    @abstractmethod
    def encode_text(self, ids: Mapping[str, torch.Tensor], size: tuple[int, int], *, clip_skip: int = 1) -> Cond:
        """Conditioning from token ids; gradients flow if the text encoder has any.

        Args:
            ids: as `tokenize` gives them.
            size: width and height of the pictures, for families that are told.
            clip_skip: the layer that is read, counted from the end: 1 is the last.
        """

    def framed(self, cond: Cond, frames: Sequence[Frame]) -> Cond:
        """Conditioning of pictures cut in these ways, one for each of the batch. Most families are not told."""
        return cond

    @abstractmethod
    def denoise(self, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond) -> torch.Tensor:
        """The denoiser's prediction for `noised` [b, c, h, w] at `timesteps` [b]."""


def hub_name(component: str, name: str) -> str:
    """The hub's name of a module or parameter within a component, from transformers' or diffusers' own."""
    inside = component.startswith("text_encoder") and name and not name.startswith((TEXT_MODEL, "text_projection"))
    return f"{TEXT_MODEL}{name}" if inside and name != TEXT_MODEL.rstrip(".") else name
