"""What a checkpoint holds beside weights: kept under its name, laid beside a folder, or dropped, with the reason.

A folder has no place for a single file's schedule constants, flags and unused layers. They go to a file beside the
components, ``leftovers.safetensors``, which nothing but the way back reads: so the way there and back loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.core.errors import SdkitError
from sdkit.families.assemble import BUFFER_SUFFIX, EMA_PREFIX, MARKERS
from sdkit.families.parts import Part
from sdkit.streaming.quantised import is_quantisation
from sdkit.weights import TensorInfo

LEFTOVERS = "leftovers.safetensors"
# Parts of a single file that its layout knows and a pipeline does not use: constants of the noise schedule, the
# losses an autoencoder was trained with, OpenCLIP's temperature and mask, the layers behind the last one read, FLUX.1's
# unread projection of the pooled text, and T5's table of tokens under its second name.
_KNOWN = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|denoiser\.sigmas|first_stage_model\.loss\..+"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.(model\.(logit_scale|attn_mask|text_projection"
    r"|transformer\.resblocks\.\d+\..+)|logit_scale)"
    r"|model\.model_sampling\.\w+|(text_encoders\.\w+\.(transformer\.)?)?(logit_scale|text_projection\.weight"
    r"|encoder\.embed_tokens\.weight))"
)
Fate = tuple[str, str]  # what becomes of a tensor, and why
KEPT, BESIDE, DROPPED, STRANGE = "kept", "beside", "dropped", "strange"


@dataclass(frozen=True, slots=True)
class Dropped:
    """Tensors that are not written, and why.

    Attributes:
        reason: one clause.
        names: their names in the source.
        bytes: what they take there.
    """

    reason: str
    names: tuple[str, ...]
    bytes: int


@dataclass(slots=True)
class Rest:
    """Everything but the converted weights.

    Attributes:
        kept: goes into the output under its own name.
        beside: goes beside the components of a folder.
        positions: position ids, by the name they get.
        dropped: what is not written.
    """

    kept: list[TensorInfo] = field(default_factory=list)
    beside: list[TensorInfo] = field(default_factory=list)
    positions: dict[str, TensorInfo] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


def sort_rest(
    whole: Checkpoint, chosen: Checkpoint, target: dict[str, Part], fate: Callable[[str], Fate], *, prune: bool
) -> Rest:
    """Say what becomes of each tensor that holds none of the chosen parameters.

    Args:
        whole: the checkpoint as it was opened.
        chosen: what of it is converted, perhaps with another autoencoder or its EMA copy.
        target: the components as the output names them.
        fate: what the output's layout does with a tensor of this name.
        prune: drop everything that no pipeline reads.

    Raises:
        SdkitError: there are tensors that no rule explains, and they would be lost.
    """
    components = {where.place.key: hub.partition(".")[0] for hub, where in whole.located.items()}
    used, positions = chosen.used, _positions(chosen, target)

    def decide(name: str, info: TensorInfo) -> Fate:
        if name in components:
            return DROPPED, _unchosen(components[name], chosen)
        if is_quantisation(name):
            return DROPPED, "scales, worked into the weights they belong to"
        if name.endswith(BUFFER_SUFFIX):
            return _position_fate(info, positions)
        if len(chosen.parts) < len(whole.parts):
            return DROPPED, "not asked for"
        what, why = fate(name)
        if prune and what != DROPPED and not _is_read(name, what, chosen):
            return DROPPED, "pruned: no pipeline reads them"
        return what, why

    rest, reasons, strange = Rest(), dict[str, list[TensorInfo]](), list[str]()
    for name, info in chosen.weights.tensors.items():
        if name in used:
            continue
        what, why = decide(name, info)
        if what == KEPT and name in positions:
            rest.positions[positions[name]] = info
        elif what == KEPT:
            rest.kept.append(info)
        elif what == BESIDE:
            rest.beside.append(info)
        elif what == STRANGE:
            strange.append(name)
        else:
            reasons.setdefault(why, []).append(info)
    _check_explained(chosen, strange)
    rest.dropped = [_dropped(why, infos) for why, infos in reasons.items()]
    return rest


def _is_read(name: str, fate: str, checkpoint: Checkpoint) -> bool:
    """Whether some pipeline reads it: markers, and a folder's other components."""
    return name in MARKERS or (fate == KEPT and checkpoint.is_folder)


def _unchosen(component: str, chosen: Checkpoint) -> str:
    if component not in chosen.parts:
        return "not asked for"
    if component == "unet":
        return "the EMA copy takes their place"
    return f"another {'autoencoder' if component == 'vae' else component} takes their place"


def _positions(chosen: Checkpoint, target: dict[str, Part]) -> dict[str, str]:
    """Where position ids lie in the source → where they lie in the output, for the text encoders of both."""
    hub = "text_model.embeddings.token_embedding.weight"
    names = {}
    for component, part in target.items():
        where = chosen.located.get(f"{component}.{hub}")
        if where is None or part.naming != "hf":
            continue
        row = next(row for row in part.parameters() if row.hub == hub)
        source, written = where.place.key, part.key(row)
        names[source.replace("token_embedding.weight", "position_ids")] = written.replace(
            "token_embedding.weight", "position_ids"
        )
    return names


def _position_fate(info: TensorInfo, positions: dict[str, str]) -> Fate:
    if info.name not in positions:
        return DROPPED, "position ids that the output's layout numbers by itself"
    if info.dtype.is_float:
        return DROPPED, "position ids that are no integers; every reader numbers the positions by itself"
    return KEPT, ""


def _check_explained(checkpoint: Checkpoint, strange: Sequence[str]) -> None:
    if strange:
        raise SdkitError(
            f"{checkpoint.weights.path}: {len(strange)} tensors belong to nothing {checkpoint.title()} has, "
            f"and would be lost (the first is {strange[0]})",
            "--prune leaves them out",
        )


def _dropped(reason: str, infos: Iterable[TensorInfo]) -> Dropped:
    infos = list(infos)
    return Dropped(reason, tuple(info.name for info in infos), sum(info.nbytes for info in infos))


def single_to_folder(name: str) -> Fate:
    """What a folder does with a single file's tensor."""
    if name.startswith(EMA_PREFIX):
        return DROPPED, "the EMA copy, which a folder has no place for (--ema takes it in place of the weights)"
    if _KNOWN.fullmatch(name) or name in MARKERS:
        return BESIDE, ""
    return STRANGE, ""


def folder_to_single(checkpoint: Checkpoint) -> Callable[[str], Fate]:
    """What a single file does with a folder's tensor."""
    folders = {key.partition("/")[0] for key in checkpoint.used}

    def fate(name: str) -> Fate:
        folder, _, inner = name.partition("/")
        if inner and folder not in folders:
            return DROPPED, f"the {folder}, which a single file has no place for"
        return STRANGE, ""

    return fate


def as_it_is(name: str) -> Fate:
    """The same layout keeps everything."""
    return KEPT, ""
