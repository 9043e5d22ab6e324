"""Aesthetic gradients: for each prompt a copy of the text encoder takes a few steps towards pictures one likes.

The steps make the prompt's projected text more like the pictures' mean (they minimise the negative cosine, with Adam,
over all of the text encoder's weights); the denoiser then reads what the copy makes of the prompt, or a blend of that
and what the text encoder itself makes of it. Nothing is kept, and the text encoder is never changed: a prompt's copies
stand in for its weights only while the prompt is read. Negative prompts are read as ever.

Source: Gallego 2022, arXiv:2209.12330; the blend is that of the web UI's extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact, Steering
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.image_tower import pooled, unit
from sdkit.runtime.tokens import token_table, token_widths

if TYPE_CHECKING:
    import torch
    from torch import nn

# What changes the conditioning of a prompt: of its base, token ids, the pictures' size, the clip skip, and what it was.
Steer = Callable[[Backbone, Mapping[str, "torch.Tensor"], tuple[int, int], int, Cond], Cond]
Copies = Mapping[str, "torch.Tensor"]  # a text encoder's parameters, each [texts, …]

_NUMBERS_AT_ONCE = 1 << 28  # of parameters of all copies; each takes 16 bytes with its gradient and moments


@dataclass(frozen=True, slots=True)
class SteeringSettings:
    """How a text encoder is drawn towards pictures.

    Attributes:
        weight: share of the steered conditioning; the rest is the text encoder's own.
        steps: of Adam.
        lr: its learning rate.
        slerp: blend the two along the arc between them instead of the line.
    """

    weight: float = 1.0
    steps: int = 5
    lr: float = 1e-4
    slerp: bool = False


@dataclass(frozen=True, slots=True)
class Direction:
    """Where a text encoder is drawn.

    Attributes:
        vector: of length one, [d].
        projection: [d, width].
    """

    vector: torch.Tensor
    projection: torch.Tensor


@contextmanager
def steering(
    backbone: Backbone,
    artifact: Artifact,
    settings: SteeringSettings,
    projections: Sequence[torch.Tensor] = (),
) -> Iterator[None]:
    """Let an aesthetic embedding act on the prompts that are encoded while the context lasts.

    Without steps, or at a weight of 0, prompts are encoded to the base's own bits.

    Args:
        projections: [d, width] of CLIPs at hand, for files without a projection of their own.

    Raises:
        SdkitError: it was made for other text encoders.
    """
    directions = directions_of(artifact, backbone, projections)
    if not settings.steps or not settings.weight:
        yield
        return
    steer = _Steer(directions, settings)
    backbone.steers.append(steer)
    try:
        yield
    finally:
        backbone.steers.remove(steer)


@contextmanager
def inverting(
    backbone: Backbone, artifact: Artifact, weight: float, projections: Sequence[torch.Tensor] = ()
) -> Iterator[None]:
    """Let prompts end in what an aesthetic embedding's pictures show, while the context lasts (SD-IPC).

    Args:
        weight: share of the pictures in the vectors from the mark of the end on; 0 leaves the base's own bits.
        projections: see `steering`.

    Raises:
        SdkitError: it was made for another base, or for one whose denoiser does not read the text's last vectors.
    """
    directions = directions_of(artifact, backbone, projections)
    if len(backbone.text_encoders) > 1:
        raise SdkitError(
            f"{artifact.source.path}: the pictures of {backbone.model.family} are drawn from the last layer but one of "
            "the text encoders, from which no projection leads to pictures",
            "steer with it instead: <aesthetic:…>",
        )
    if not weight:
        yield
        return
    steer = _Inversion(directions["text_encoder"], weight)
    backbone.steers.append(steer)
    try:
        yield
    finally:
        backbone.steers.remove(steer)


def check_steering(artifact: Artifact, model: Model, projections: Sequence[torch.Tensor]) -> None:
    """Refuse an aesthetic embedding for other text encoders than a model's, from its header alone.

    Args:
        projections: see `steering`.

    Raises:
        SdkitError: it does not fit.
    """
    widths = token_widths(model)
    for part in artifact.steering:
        if part.component not in widths:
            raise SdkitError(
                f"{artifact.source.path}: is made for a {part.component}, which this {model.family} base lacks",
                "it was made for another model family",
            )
        if f"{part.component}.text_projection.weight" not in model.places:  # else the text encoder brings its own
            _projection(part, widths[part.component], projections, artifact)


def directions_of(
    artifact: Artifact, backbone: Backbone, projections: Sequence[torch.Tensor] = ()
) -> dict[str, Direction]:
    """Text encoder's component → where an aesthetic embedding draws it.

    Raises:
        SdkitError: the base has no such text encoder, or one of another width, or nothing projects its vectors.
    """
    check_steering(artifact, backbone.model, [*projections, *_towers(backbone)])
    found = {}
    for part in artifact.steering:
        width = token_table(backbone, part.component).weight.shape[1]
        inside = getattr(backbone.components[part.component], "text_projection", None)
        own = [inside.weight.float()] if inside is not None else []
        projection = _projection(part, width, [*own, *projections, *_towers(backbone)], artifact)
        vector = unit(part.vector.load().float().flatten().clone())
        if not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise SdkitError(f"{artifact.source.path}: its vector points nowhere", "make it again")
        found[part.component] = Direction(vector.to(backbone.device), projection.detach().to(backbone.device))
    return found


def _towers(backbone: Backbone) -> list[torch.Tensor]:
    return [tower.projection for tower in backbone.towers.values()]


def _projection(part: Steering, width: int, others: Sequence[torch.Tensor], artifact: Artifact) -> torch.Tensor:
    """What leads from a text encoder of a width to the vector: the file's projection, or a fitting one of others."""
    path = artifact.source.path
    if part.projection is not None:
        if part.projection.shape[1] != width:
            raise SdkitError(
                f"{path}: was made for a {part.component} of width {part.projection.shape[1]}, the base's has {width}",
                "it was made for another model family",
            )
        return part.projection.load().float().clone()  # in memory as torch allocates it: products round so
    fitting = next((one for one in others if tuple(one.shape) == (part.width, width)), None)
    if fitting is None:
        known = ", ".join(f"one from {one.shape[1]} to {one.shape[0]} is there" for one in others) or "there is none"
        raise SdkitError(
            f"{path}: a vector of {part.width} needs a projection from the {part.component}'s {width} numbers; {known}",
            "name the CLIP it was made with: --image-encoder FOLDER, for SD1 openai/clip-vit-large-patch14",
        )
    return fitting


class _Steer:
    """One aesthetic embedding at work; a prompt drawn several times is steered once."""

    def __init__(self, directions: Mapping[str, Direction], settings: SteeringSettings) -> None:
        self._directions = directions
        self._settings = settings
        self._known: dict[tuple[Any, ...], Cond] = {}

    def __call__(
        self, backbone: Backbone, ids: Mapping[str, torch.Tensor], size: tuple[int, int], clip_skip: int, cond: Cond
    ) -> Cond:
        """The conditioning of texts, drawn towards the pictures, each text on its own."""
        key = (size, clip_skip, *(tuple(rows.flatten().tolist()) for rows in ids.values()))
        if key not in self._known:
            steered = steered_text(backbone, ids, size, self._directions, self._settings, clip_skip=clip_skip)
            self._known[key] = blended(cond, steered, self._settings)
        return self._known[key]


class _Inversion:
    """Puts into the mark of the end, and all behind it, the nearest vectors that project to where the pictures lie.

    With x = own + W⁺ (s · vector − W own) and s = ‖W own‖, W x is the pictures' vector, as long as the text's own;
    where W can be inverted, x is W⁻¹ of that (SD-IPC; Ding et al. 2023, arXiv:2305.12716). What W does not see stays.
    """

    def __init__(self, direction: Direction, weight: float) -> None:
        import torch

        self._direction = direction
        self._weight = weight
        self._inverse = torch.linalg.pinv(direction.projection.double()).float()

    def __call__(
        self, backbone: Backbone, ids: Mapping[str, torch.Tensor], size: tuple[int, int], clip_skip: int, cond: Cond
    ) -> Cond:
        """The conditioning of one text, ending in the pictures."""
        if clip_skip != 1:
            raise SdkitError(f"clip skip {clip_skip}: pictures are put behind the last layer only", "leave it at 1")
        ends = ids["text_encoder"].to(cond.context.device) == backbone.tokenizers["text_encoder"].eos_token_id
        behind = ends.cumsum(-1) > 0
        projection, context = self._direction.projection, cond.context.float()
        own = pooled(context, ids["text_encoder"].to(context.device), backbone.tokenizers["text_encoder"].eos_token_id)
        seen = own @ projection.T
        wanted = self._direction.vector * seen.norm(dim=-1, keepdim=True)
        pictures = own + (wanted - seen) @ self._inverse.T
        mixed = _line(context, pictures[:, None].expand_as(context), self._weight)
        return Cond(mixed.to(cond.context.dtype).where(behind[..., None], cond.context), cond.added)


def steered_text(
    backbone: Backbone,
    ids: Mapping[str, torch.Tensor],
    size: tuple[int, int],
    directions: Mapping[str, Direction],
    settings: SteeringSettings,
    *,
    clip_skip: int = 1,
) -> Cond:
    """Conditioning of texts, each read by copies of the text encoders that were drawn towards `directions` for it.

    Args:
        ids: [texts, length] by text encoder, as `Backbone.tokenize` gives them.
        size: of the pictures.
    """
    import torch

    encoders = {name: backbone.components[name] for name in directions}
    numbers = sum(parameter.numel() for encoder in encoders.values() for parameter in encoder.parameters())
    group = max(1, _NUMBERS_AT_ONCE // numbers)
    count = len(next(iter(ids.values())))
    parts = []
    for start in range(0, count, group):
        rows = {name: part[start : start + group].to(backbone.device) for name, part in ids.items()}
        copies = {
            name: drawn(encoders[name], rows[name], direction, backbone.tokenizers[name].eos_token_id, settings)[0]
            for name, direction in directions.items()
        }
        for place in range(len(next(iter(rows.values())))):
            with _standing_in(encoders, {name: {k: v[place] for k, v in own.items()} for name, own in copies.items()}):
                one = {name: part[place : place + 1] for name, part in rows.items()}
                with torch.no_grad():
                    parts.append(backbone.encode_text(one, size, clip_skip=clip_skip))
    return Cond.join(parts)


def drawn(
    encoder: nn.Module, ids: torch.Tensor, direction: Direction, end: int, settings: SteeringSettings
) -> tuple[Copies, list[torch.Tensor]]:
    """Copies of a text encoder's parameters [texts, …], each trained for its own text, and the cosines on the way.

    The texts are trained at once, each with its own weights and moments, in float32.

    Args:
        ids: [texts, length].
        end: id of the mark of the end.

    Returns:
        The copies, and before each step the cosines [texts].
    """
    import torch
    from torch.func import functional_call, grad_and_value, vmap
    from torch.nn.attention import SDPBackend, sdpa_kernel

    copies = {
        name: parameter.detach().float().expand(len(ids), *parameter.shape).clone()
        for name, parameter in encoder.named_parameters()
    }

    def loss(parameters: Copies, row: torch.Tensor) -> torch.Tensor:
        hidden = functional_call(encoder, dict(parameters), (row[None],)).last_hidden_state
        features = pooled(hidden, row[None], end) @ direction.projection.T
        return -(unit(features) @ direction.vector)[0]

    optimizer = torch.optim.Adam(copies.values(), lr=settings.lr)
    cosines = []
    for _ in range(settings.steps):
        # Of the kinds of attention, only the plain one is computed for all texts at once.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(ids.device.type, enabled=False):
            gradients, losses = vmap(grad_and_value(loss))(copies, ids)
        cosines.append(-losses.detach())
        for name, copy in copies.items():
            copy.grad = gradients[name]
        optimizer.step()
    return copies, cosines


def blended(plain: Cond, steered: Cond, settings: SteeringSettings) -> Cond:
    """`settings.weight` of the steered conditioning and the rest of the plain one, in every part that text makes."""
    mix = _arc if settings.slerp else _line
    names = ("text_embeds",)
    added = {
        name: mix(value, steered.added[name], settings.weight) if name in names else value
        for name, value in plain.added.items()
    }
    return Cond(mix(plain.context, steered.context, settings.weight), added)


def _line(one: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    return other if weight == 1 else one * (1 - weight) + other * weight


def _arc(one: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    """Spherical interpolation of the last dimension's vectors (Shoemake 1985); nearly parallel ones along the line."""
    import torch

    a, b = one.float(), other.float()
    angle = torch.acos((unit(a) * unit(b)).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    arc = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / sine.clamp(min=1e-6)
    return torch.where(sine > 1e-3, arc, _line(a, b, weight)).to(one.dtype)


@contextmanager
def _standing_in(encoders: Mapping[str, nn.Module], copies: Mapping[str, Copies]) -> Iterator[None]:
    """Put copies in the places of text encoders' parameters while the context lasts; then the very same are back."""
    from torch import nn

    originals = {name: dict(encoder.named_parameters()) for name, encoder in encoders.items()}
    try:
        for name, own in copies.items():
            for key, value in own.items():
                dtype = originals[name][key].dtype
                _put(encoders[name], key, nn.Parameter(value.to(dtype), requires_grad=False))
        yield
    finally:
        for name, own in originals.items():
            for key, parameter in own.items():
                _put(encoders[name], key, parameter)


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, last = name.rpartition(".")
    setattr(root.get_submodule(module), last, parameter)
