"""What is doubtful about a weight file, as far as its header and a few small tensors tell."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence

from sdkit.core.human import plural
from sdkit.families.assemble import BUFFER_SUFFIX, MARKERS
from sdkit.families.family import Model
from sdkit.formats.custom_diffusion import is_empty_entry
from sdkit.jobs.inspection import Share
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.metadata import public_metadata
from sdkit.weights.reader import Container

_NAMINGS = {
    "model.diffusion_model (LDM)": ("model.diffusion_model.",),
    "unet (diffusers)": ("unet/", "unet.down_blocks.", "down_blocks."),
    "lora_unet_input_blocks (sgm)": ("lora_unet_input_blocks_", "lora_unet_output_blocks_", "lora_unet_middle_block_"),
    "lora_unet_down_blocks (diffusers)": ("lora_unet_down_blocks_", "lora_unet_up_blocks_", "lora_unet_mid_block_"),
}
# Beside the weights in sound files: the noise schedule, and parts of OpenCLIP that no pipeline runs.
_HARMLESS = re.compile(
    r"(?:sqrt_(?:one_minus_|recip_|recipm1_)?|log_one_minus_)?alphas_cumprod(?:_prev)?|betas"
    r"|posterior_(?:variance|log_variance_clipped|mean_coef[12])|scale_factor|model\.model_sampling\..*"
    r"|.*\.(?:logit_scale|attn_mask)|cond_stage_model\.model\.(?:text_projection|transformer\.resblocks\.23\..*)"
)
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", ".absmax")
_ONLY_PICKLED = frozenset({"hypernetwork", "aesthetic", "inversion"})
_LONGEST_TABLE = 4096
_SHOWN_NAMES = 3


def checkpoint_problems(weights: Weights, model: Model, components: Iterable[Share]) -> Iterator[str]:
    """What is wrong with a model whose layout is known."""
    yield from model.faults
    strange = [name for name in model.unclaimed if not _HARMLESS.fullmatch(name)]
    if strange:
        yield f"no rule explains {counted(strange, 'tensor')}; a merge copies such tensors untouched"
    names = {*model.components}
    yield from (sentence for share in components if share.name in names for sentence in _mixed_types(share))
    yield from _position_ids(weights)


def file_problems(weights: Weights, kind: str) -> Iterator[str]:
    """What is doubtful about any weight file of a kind, see `Inspection.kind`."""
    empty = [
        name
        for name, info in weights.tensors.items()
        if info.numel == 0 and name not in MARKERS and not is_empty_entry(name, info)
    ]
    if empty:
        yield f"{counted(empty, 'tensor')} hold nothing and are no known markers"
    yield from _two_namings(weights)
    factors = [name for name in weights.tensors if name.endswith(_SCALES)]
    if factors:
        yield f"it is quantised, with {counted(factors, 'scale factor')} beside the weights"
    if _is_pickled(weights):
        way_on = "no program reads this kind from anything else, so know where it comes from"
        yield (
            "it is a pickled file, which runs code in programs that load it the usual way (sdkit does not): "
            f"{way_on if kind in _ONLY_PICKLED else 'convert it to safetensors'}"
        )


def file_notes(weights: Weights) -> Iterator[str]:
    """What else a person should know about any weight file."""
    _, private = public_metadata(weights.metadata)
    if private:
        yield f"its metadata tell of the training data, with paths and captions: {', '.join(private)}"
    left_out = getattr(weights, "left_out", 0)
    if left_out:
        yield f"beside the model its pickle holds {plural(left_out, 'tensor')} (a trainer's state)"


def counted(names: Sequence[str], noun: str) -> str:
    """``5 tensors (a, b, c, … 2 more)``."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = f", … {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{plural(len(names), noun)} ({shown}{more})"


def _mixed_types(share: Share) -> Iterator[str]:
    floats = {name: count for name, count in share.dtypes.items() if DTYPES[name].is_float}
    if len(floats) > 1:
        yield f"the {share.name} mixes element types: {', '.join(f'{count} {name}' for name, count in floats.items())}"


def _position_ids(weights: Weights) -> Iterator[str]:
    """``position_ids`` are 0, 1, 2, … as I64; programs that cast or average whole files break them."""
    for name, info in weights.tensors.items():
        if not name.endswith(BUFFER_SUFFIX):
            continue
        if info.dtype.name != "I64":
            yield f"{name} is stored as {info.dtype.name}; it should be I64"
        elif not _counts_up(weights, info):
            yield f"{name} does not count the positions 0, 1, 2, …"


def _counts_up(weights: Weights, info: TensorInfo) -> bool:
    table = weights.tensors.get(info.name.removesuffix("position_ids") + "position_embedding.weight")
    positions = table.shape[0] if table is not None and table.shape else 77
    if info.numel != positions or positions > _LONGEST_TABLE:
        return False
    return struct.unpack(f"<{positions}q", weights.read(info)) == tuple(range(positions))


def _two_namings(weights: Weights) -> Iterator[str]:
    names = weights.tensors
    spellings = [naming for naming, starts in _NAMINGS.items() if any(name.startswith(starts) for name in names)]
    if len(spellings) > 1:
        yield f"its names are of several namings: {' and '.join(spellings)}; readers may use one and drop the rest"


def _is_pickled(weights: Weights) -> bool:
    return weights.container is Container.PICKLE or any(
        file.suffix in {".bin", ".ckpt", ".pt"} for file in weights.files if weights.container is Container.FOLDER
    )
