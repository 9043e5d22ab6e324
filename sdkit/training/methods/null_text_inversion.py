"""Invert one picture, so that it can be drawn again and edited by another prompt.

Null-text inversion (arXiv:2211.09794), or with ``mode=npi`` its baseline that costs nothing (arXiv:2305.16807). What is
written is no adapter for other pictures, but this picture's way out of noise; `sdkit generate --inversion` follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.trajectory import About, Trajectory
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import read_adapter, write_adapter
from sdkit.runtime.losses import psnr
from sdkit.runtime.tokens import token_ids, token_widths
from sdkit.training.data import Dataset, read_dataset, read_picture
from sdkit.training.identifier import base_tokenizer
from sdkit.training.method import Method, Result, Size, Verdict
from sdkit.training.options import TrainOptions, always, fixed, option
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.inversion import NullTexts
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.objectives.null_text import NullTextSolver
    from sdkit.training.plan import Base
    from sdkit.training.trainable import Trainable

MODES = ("null-text", "npi")
LARGER = 5  # times the learning rate that is worth a try where it does not get far: small texts need more
FAR = 3.0  # decibels behind the autoencoder alone, from which on a picture counts as not inverted


@dataclass(frozen=True)
class Options(TrainOptions):
    """Of an inversion."""

    prompt: str = option("", "what the picture shows [default: its caption]")
    mode: str = option("null-text", "null-text, or npi: the prompt in the place of the empty text, at no cost")
    steps: int = option(50, "steps of DDIM, each with an empty text of its own", minimum=1)
    guidance: float = option(7.5, "guidance w the picture is drawn again with; edits usually take the same", minimum=0)
    tries: int = option(10, "steps of Adam for each empty text, at most", minimum=0)
    lr: float = option(1e-2, "learning rate of the first step; the last has half of it", minimum=0.0)
    tolerance: float = option(1e-5, "loss of the first step that is good enough; the last may have 99 times", minimum=0)
    init: str = option(
        "", "begin with the empty texts of this file (tries=0 takes them)", names_file=always, names_model=True
    )
    precision: str = option("fp32", "fp32, bf16 or fp16; guidance multiplies what rounding leaves")
    save_every: int = option(
        1, "steps between saved states; 0 saves only the last", minimum=0, late=True, without_effect=True
    )
    save_dtype: str = option("fp32", "fp32, fp16 or bf16, of the empty texts")

    # One picture, one problem after the other, nothing by chance: the rest of what a run may be asked has no meaning.
    epochs: float | None = fixed(None)
    seed: int = fixed(0)
    batch: int = fixed(1)
    accumulate: int = fixed(1)
    optimizer: str = fixed("sgd")  # of the loop, which has nothing to do
    weight_decay: float = fixed(0.0)
    schedule: str = fixed("constant")
    warmup: int = fixed(0)
    max_grad_norm: float = fixed(0.0)
    ema: float | None = fixed(None)
    caption: str = fixed("")
    flip: bool = fixed(False)
    strict: bool = fixed(True)
    validation: str = fixed("")
    validate_every: int = fixed(0)
    sample: str = fixed("")
    sample_negative: str = fixed("")
    sample_every: int = fixed(0)
    sample_steps: int = fixed(20)
    sample_cfg: float = fixed(7.0)
    sample_seed: int = fixed(0)

    @property
    def rows(self) -> int:
        """Empty texts in the file."""
        return 1 if self.mode == "npi" else self.steps


def _dataset(data: Path, options: Options) -> Dataset:
    """The one picture."""
    if not data.is_dir():
        return read_picture(data, caption=options.prompt, background=options.background)
    dataset = read_dataset(data, caption=options.prompt, background=options.background, strict=True)
    if len(dataset.samples) != 1:
        raise SdkitError(f"{data}: holds {len(dataset.samples)} pictures, one is inverted", "name its file with --data")
    (sample,) = dataset.samples
    return replace(dataset, samples=(replace(sample, caption=options.prompt or sample.caption),))


def _size(model: Model, options: Options) -> Size:
    if options.mode not in MODES:
        raise UsageError(f"mode={options.mode}: unknown", nearest_hint(options.mode, MODES))
    if options.mode == "npi" and options.init:
        raise UsageError("init= does not go with mode=npi, which looks for nothing", "leave one of them out")
    tokens, width, pooled = _shape(model)
    if options.init_file is not None:
        _check_begin(_begun(options.init_file, model), options, (tokens, width))
    count = options.rows * (tokens * width + pooled)
    item = parse_precision(options.save_dtype).itemsize
    return Size(count, options.rows, count * item + (1 << 12))


def _shape(model: Model) -> tuple[int, int, int]:
    """Tokens and width of what cross-attention reads, and width of the pooled text, 0 where there is none."""
    positions = model.places["text_encoder.text_model.embeddings.position_embedding.weight"]
    pooled = model.places.get("text_encoder_2.text_projection.weight")
    return positions.shape[0], sum(token_widths(model).values()), pooled.shape[0] if pooled else 0


def _begun(file: Path, model: Model) -> tuple[Artifact, Trajectory]:
    """What ``init=`` holds. Its file must stay open for it to be read."""
    with open_weights(file) as weights:
        artifact = read_adapter(weights, model)
    if artifact.trajectory is None:
        raise SdkitError(f"{file}: is no inversion to begin with, but a {artifact.kind}", "leave init= out")
    return artifact, artifact.trajectory


def _check_begin(found: tuple[Artifact, Trajectory], options: Options, text: tuple[int, int]) -> None:
    artifact, trajectory = found
    rows, _, *shape = trajectory.uncond.shape
    if tuple(shape) != text:
        wanted = f"{text[0]} tokens {text[1]} wide"
        raise SdkitError(
            f"{artifact.source.path}: its texts have {shape[0]} tokens {shape[1]} wide, this base reads {wanted}",
            "it was made for another base",
        )
    if rows not in (1, options.steps):
        raise UsageError(f"{artifact.source.path}: has texts for {rows} steps", f"use steps={rows}")


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    (sample,) = dataset.samples
    config = base.configs["text_encoder"]
    room = int(config["max_position_embeddings"]) - 2
    count = len(token_ids(base_tokenizer(base.path, config), {}, sample.caption))
    if count > room:
        raise UsageError(
            f"the prompt has {count} tokens, the text encoder of this base reads {room}", "shorten it with prompt="
        )
    return [f"prompt: {sample.caption}"] if sample.source == "file names" else []


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.training.trainables.null_text import NullText

    start = _start(backbone) if options.init_file is None else _start_of_file(options.init_file, backbone)
    rows = options.rows if len(start.context) == 1 else 1
    tensors = [None if part is None else part.repeat(rows, *[1] * (part.ndim - 1)) for part in _parts(start)]
    assert tensors[0] is not None
    return [NullText(replace(start, context=tensors[0], pooled=tensors[1]))]


def _parts(texts: NullTexts) -> tuple[torch.Tensor, torch.Tensor | None]:
    return texts.context, texts.pooled


def _start(backbone: Backbone) -> NullTexts:
    """The empty text, as one row."""
    import torch

    from sdkit.runtime.guidance import unconditional
    from sdkit.runtime.inversion import NullTexts

    with torch.no_grad():
        empty = unconditional(backbone.encode_text(backbone.tokenize([""]), (0, 0)))
    pooled = empty.added.get("text_embeds")
    return NullTexts(empty.context[None], None if pooled is None else pooled[None])


def _start_of_file(file: Path, backbone: Backbone) -> NullTexts:
    from sdkit.runtime.inversion import NullTexts

    with open_weights(file) as weights:
        trajectory = read_adapter(weights, backbone.model).trajectory
        assert trajectory is not None
        pooled = trajectory.pooled.load().clone() if trajectory.pooled else _start(backbone).pooled
        return NullTexts(trajectory.uncond.load().clone(), pooled)


def _objective(options: Options) -> NullTextSolver:
    from sdkit.training.objectives.null_text import NullTextSolver, Search

    search = Search(options.tries, options.lr, options.tolerance) if options.mode == "null-text" else None
    return NullTextSolver(options.steps, options.guidance, search, warm=not options.init)


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    write_adapter(_artifact(result), result.backbone.model, path, metadata, format="inversion", overwrite=True)


def _artifact(result: Result[Options]) -> Artifact:
    from sdkit.runtime.precision import save_type
    from sdkit.runtime.tensors import in_memory
    from sdkit.streaming.expression import Read

    solver, texts = _solver(result), _texts(result)
    dtype = save_type(result.options.save_dtype)
    tensors = {"latents": solver.noise, "uncond": texts.context.to(dtype)}
    if texts.pooled is not None:
        tensors["pooled"] = texts.pooled.to(dtype)
    held = in_memory("the inverted picture", tensors)
    reads: dict[str, Any] = {name: Read(held, info) for name, info in held.tensors.items()}
    trajectory = Trajectory(**reads, about=_about(result))
    return Artifact(held, "trained", kind="inversion", trajectory=trajectory)


def _about(result: Result[Options]) -> About:
    backbone, options, sample = result.backbone, result.options, result.feed.samples[0]
    limit, reached = _reached(result)
    return About(
        base=backbone.base_id,
        base_name=backbone.base_name,
        prompt=sample.caption,
        picture=sample.id,
        steps=options.steps,
        guidance=options.guidance,
        prediction=backbone.schedule.prediction,
        mode=options.mode,
        psnr=round(_psnr(result, reached), 2),
        psnr_limit=round(_psnr(result, limit), 2),
    )


def _verdict(result: Result[Options]) -> Verdict:
    """The picture, what the autoencoder leaves of it, and what is drawn again without and with this inversion."""
    limit, reached = _reached(result)
    plain = _drawn_plainly(result)
    figures = [_psnr(result, pixels) for pixels in (limit, plain, reached)]
    names = ("autoencoder alone", "DDIM inversion", result.options.mode)
    labels = [f"{name}: {figure:.1f} dB" for name, figure in zip(names, figures, strict=True)]
    w = result.options.guidance
    notes = [f"drawn again with guidance {w:g}: {labels[2]}; plain {labels[1]}; {labels[0]}, which is the limit"]
    if figures[0] - figures[2] > FAR:
        search = f"lr={LARGER * result.options.lr:g}, more tries=, " if result.options.mode == "null-text" else ""
        notes.append(
            f"this picture cannot be inverted well: {figures[0] - figures[2]:.1f} dB are missing; "
            f"{search}less guidance= or a prompt that says better what it shows may help"
        )
    shown = zip(("the picture", *labels), (next(result.feed.all_pixels()), limit, plain, reached), strict=True)
    return Verdict(tuple(notes), {label: pixels[0].cpu() for label, pixels in shown})


def _reached(result: Result[Options]) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture through the autoencoder alone, and as it has been drawn again, [1, 3, h, w]."""
    backbone = result.backbone
    clean = backbone.encode_image(next(result.feed.all_pixels())).mean
    return backbone.decode(clean), backbone.decode(_solver(result).latents)


def _drawn_plainly(result: Result[Options]) -> torch.Tensor:
    """What the empty prompt makes of the same noise: DDIM inversion by itself."""
    from sdkit.runtime.ddim import Ddim
    from sdkit.runtime.inversion import replay
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.objectives.null_text import whole

    backbone, options, solver = result.backbone, result.options, _solver(result)
    cond = whole(backbone, result.feed.batch(0, StepRNG(0)))
    empty, ddim = _start(backbone), Ddim(backbone.schedule, options.steps)
    latents = replay(backbone, ddim, solver.noise, cond, lambda step: empty.at(step, cond), options.guidance)
    return backbone.decode(latents)


def _psnr(result: Result[Options], pixels: torch.Tensor) -> float:
    """Of a picture, beside the run's, in decibels; what lies beyond black and white is cut off, as in a file."""
    wanted = next(result.feed.all_pixels()).to(pixels.device)
    return psnr(float((pixels.clamp(-1, 1) - wanted).square().mean()))


def _solver(result: Result[Options]) -> NullTextSolver:
    from sdkit.training.objectives.null_text import NullTextSolver

    assert isinstance(result.solver, NullTextSolver)
    return result.solver


def _texts(result: Result[Options]) -> NullTexts:
    from sdkit.training.trainables.null_text import NullText

    (rows,) = result.trained
    assert isinstance(rows, NullText)
    return rows.texts


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=_objective,
    save=_save,
    modelspec="null-text-inversion",
    rounds=lambda options: max(1, options.tries if options.mode == "null-text" else 1),
    dataset=_dataset,
    notes=_notes,
    verdict=_verdict,
)
