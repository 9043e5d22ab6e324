"""Blending checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.formats import recognise
from sdkit.jobs.inputs import (
    Computable,
    ModelInput,
    Target,
    Unwritten,
    as_target,
    input_files,
    input_stack,
    label,
    notes_of,
    open_input,
    parent_of,
    with_earlier_steps,
)
from sdkit.jobs.merge_checks import check_is_not_input, check_not_rounded
from sdkit.jobs.record import recorded
from sdkit.merging.align import Source, structural
from sdkit.merging.blend import Ema, Missing, Plan, Policy, plan_blend
from sdkit.merging.blocks import VAE, BlockSpec, given_blocks
from sdkit.merging.method import Method, Value, load_method
from sdkit.merging.settings import Rule, Settings, parse_rule
from sdkit.streaming import Rounding
from sdkit.streaming.checkpoint import check_output, checkpoint_stream
from sdkit.streaming.lazy import LazyWeights, leaves
from sdkit.weights import Weights
from sdkit.weights.dtypes import parse_dtype
from sdkit.weights.metadata import merged_metadata
from sdkit.weights.reader import Container

PathLike = str | os.PathLike[str]
WEIGHTS = "weights"
COARSE = {"BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, slots=True)
class BlendReport(Report):
    """What a blend did, or with `dry_run` would do.

    Attributes:
        output: the file or folder.
        method: the merge method.
        family: of all models.
        parameters: the method's options, defaults included.
        models: names of the models in order, the base last.
        blended: tensors computed.
        copied: tensors whose bytes are copied from A.
        missing: weights of A another model lacks.
        extra: weights of other models A lacks; they are not in the output.
        dropped: tensors of averaged copies left out.
        bytes: size of the output on the disk; in a dry run that of its tensors, which is a little less.
        parents: the inputs, by name and quick id.
        warnings: what a person should see.
        seconds: wall time.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    output: str
    method: str
    family: str
    parameters: dict[str, Value]
    models: tuple[str, ...]
    blended: int
    copied: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    dropped: int
    bytes: int
    parents: tuple[dict[str, object], ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Request:
    """The options of one blend, checked."""

    models: tuple[ModelInput, ...]
    base: ModelInput | None
    vae: ModelInput | None
    output: Target
    method: Method
    values: dict[str, Value]
    blocks: BlockSpec | None
    rules: tuple[Rule, ...]
    factors: dict[str, float] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    force: bool = False


def blend(
    models: Sequence[ModelInput | tuple[ModelInput, float]],
    output: PathLike | Unwritten,
    *,
    method: str = "weighted_sum",
    base: ModelInput | None = None,
    parameters: Mapping[str, Value] | None = None,
    blocks: BlockSpec | None = None,
    rules: Sequence[str] = (),
    unet_alpha: float = 1.0,
    te_alpha: float = 1.0,
    vae: ModelInput | None = None,
    blend_vae: bool = False,
    missing: str = "error",
    ema: str = "drop",
    allow_prediction_mix: bool = False,
    dtype: str | None = None,
    stochastic: int | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Value,
) -> BlendReport:
    """Blend checkpoints of one family by a merge method, in one pass (or two) and constant memory.

    Results are computed in float32 or float64 and rounded once to A's element type. Tensors that come out as one of the
    inputs keep its bytes.

    Args:
        models: the models in the method's order, A first; ``(path, weight)`` for methods with weights. Opened weights,
            what `sdkit.open` gives, and sums of that may stand for a path, here and elsewhere.
        output: the file (where A is a folder: the folder) to write.
        method: name of the merge method; `sdkit blend --list` shows them.
        base: what differences are taken from.
        parameters: the method's options, as further keywords are too: ``alpha=0.7``; several numbers in a tuple are a
            gradient from the input to the output of each component.
        blocks: alpha per block, see `sdkit.merging.blocks`.
        rules: ``REGEX=0.3`` or ``REGEX=beta:0.3``, in order; later ones win.
        unet_alpha: multiplies alpha in the UNet.
        te_alpha: multiplies alpha in the text encoders.
        vae: a file whose autoencoder goes into the output.
        blend_vae: blend the autoencoders too; default: A's is kept.
        missing: weights some model lacks: ``error``, ``from-a`` or ``skip``.
        ema: averaged copies inside the files: ``drop``, ``keep`` (blended too) or ``use`` in place of the weights.
        allow_prediction_mix: mix models that predict the noise with models that predict the velocity.
        dtype: element type of all floating-point tensors of the output; default: each keeps A's.
        stochastic: a seed; round at random in proportion, not to the nearest.
        seed: of methods that draw random numbers.
        force: replace an existing output.
        dry_run: stop before anything is written; every check has been made then.
        threads: workers; the bytes written never depend on it. Default: one per core.
        progress: told about the bytes written.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and inputs are never touched.
    """
    chosen = load_method(method)
    pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in models]
    given = _with_weights({**(parameters or {}), **options}, [weight for _, weight in pairs], chosen)
    policy = Policy(
        missing=_choice(missing, "missing", get_args(Missing)),  # type: ignore[arg-type]
        ema=_choice(ema, "ema", get_args(Ema)),  # type: ignore[arg-type]
        blend_vae=blend_vae,
        allow_prediction_mix=allow_prediction_mix,
        dtype=parse_dtype(dtype),
        rounding=Rounding(stochastic),
        seed=seed,
    )
    if vae is not None and blend_vae:
        raise UsageError("--vae replaces the autoencoder and --blend-vae blends it", "leave out one of the two")
    chosen.check_models(len(pairs), base is not None)
    factors = {name: value for name, value in (("unet", unet_alpha), ("te", te_alpha)) if value != 1.0}
    request = _Request(
        models=tuple(model for model, _ in pairs),
        base=base,
        vae=vae,
        output=as_target(output),
        method=chosen,
        values=chosen.check_values(given),
        blocks=blocks,
        rules=tuple(parse_rule(rule) for rule in rules),
        factors=factors,
        policy=policy,
        force=force,
    )
    with input_stack(request.output) as stack:
        job = _Blend(request, stack, progress or NoProgress(), threads)
        report = job.run(dry_run=dry_run)
        computed = [weights for weights in job.weights if isinstance(weights, LazyWeights)]
        named = [given for given in (*request.models, base, vae) if not isinstance(given, Computable)]
        return recorded(report, [*named, *computed])


class _Blend:
    """One blend, from opened inputs to the report."""

    def __init__(self, request: _Request, stack: ExitStack, progress: Progress, threads: int | None) -> None:
        self._began = time.perf_counter()
        self._request, self._progress, self._threads = request, progress, threads
        given = request.models if request.base is None else (*request.models, request.base)
        sources = open_models(given, stack, base=request.base is not None, use_ema=request.policy.ema == "use")
        self._base = sources.pop() if request.base is not None else None
        self._sources = sources
        self._vae = self._open_vae(stack, request.vae) if request.vae is not None else None
        if isinstance(request.output, Path):
            check_is_not_input(request.output, input_files(self.weights))
            check_output(self._a.weights, request.output, overwrite=request.force)

    @property
    def _a(self) -> Source:
        return self._sources[0]

    @property
    def weights(self) -> list[Weights]:
        """Every input: the models, the base, the autoencoder."""
        everyone = (*self._sources, self._base, self._vae)
        return [source.weights for source in everyone if source is not None]

    def run(self, *, dry_run: bool) -> BlendReport:
        request = self._request
        blocks = given_blocks(request.blocks, self._a.model)
        if blocks.get(VAE) and not request.policy.blend_vae:
            raise UsageError("--blocks gives VAE a number, but the autoencoder is A's", "add --blend-vae")
        settings = Settings(request.method, request.values, blocks, request.rules, request.factors)
        plan = plan_blend(self._sources, self._base, request.method, settings, request.policy, self._vae)
        parents = tuple(self._parents())
        recipe = with_earlier_steps(self._recipe(parents, blocks), self.weights)
        if isinstance(request.output, Unwritten):
            request.output.model = self._lazy(plan, recipe, request.output.name)
            return self._report(plan, parents, dry_run=True)
        if not dry_run:
            self._write(plan, merged_metadata(self._kept_metadata(), recipe, checkpoint=True), request.output)
        return self._report(plan, parents, dry_run=dry_run)

    def _lazy(self, plan: Plan, recipe: Mapping[str, object], name: str) -> LazyWeights:
        check_not_rounded(self._request.policy.rounding, name)
        files, warnings = leaves(self.weights), tuple(self._warnings(plan))
        return LazyWeights(name, self._a.weights, plan.outputs, self._kept_metadata(), recipe, files, warnings)

    def _open_vae(self, stack: ExitStack, path: ModelInput) -> Source:
        weights = open_input(stack, path, "VAE")
        return Source(weights, identify(weights), "VAE")

    def _write(self, plan: Plan, metadata: Mapping[str, str], path: Path) -> None:
        self._progress.start("blending", sum(output.nbytes for output in plan.outputs))
        with checkpoint_stream(
            self._a.weights,
            plan.outputs,
            path,
            metadata,
            overwrite=self._request.force,
            threads=self._threads,
            advance=self._progress.advance,
        ) as stream:
            stream.run()

    def _kept_metadata(self) -> Mapping[str, str]:
        """What A says about itself; a pickle has no metadata, only its maker's variables, paths among them."""
        return {"format": "pt"} if self._a.weights.container is Container.PICKLE else self._a.weights.metadata

    def _parents(self) -> Iterable[dict[str, object]]:
        for source in (*self._sources, self._base, self._vae):
            if source is not None:
                yield parent_of(source.weights, role=source.role)

    def _recipe(self, parents: Sequence[Mapping[str, object]], blocks: Mapping[str, float]) -> dict[str, object]:
        """Everything that decides the output's bytes, as it is written into the metadata."""
        request, policy = self._request, self._request.policy
        options: dict[str, object] = {
            "blocks": dict(blocks),
            "rules": [f"{rule.pattern.pattern}={rule.parameter}:{rule.value!r}" for rule in request.rules],
            "factors": request.factors,
            "blend_vae": policy.blend_vae,
            "missing": None if policy.missing == "error" else policy.missing,
            "ema": None if policy.ema == "drop" else policy.ema,
            "allow_prediction_mix": policy.allow_prediction_mix,
            "dtype": policy.dtype.name if policy.dtype else None,
            "seed": policy.seed,
        }
        chosen = {name: value for name, value in options.items() if value}
        if policy.rounding.seed is not None:
            chosen["stochastic"] = policy.rounding.seed
        parameters = {key: list(v) if isinstance(v, tuple) else v for key, v in request.values.items()}
        return {
            "verb": "blend",
            "method": request.method.name,
            "parameters": parameters,
            "parents": list(parents),
            **chosen,
        }

    def _report(self, plan: Plan, parents: tuple[dict[str, object], ...], *, dry_run: bool) -> BlendReport:
        request = self._request
        return BlendReport(
            output=request.output.name if isinstance(request.output, Unwritten) else str(request.output),
            method=request.method.name,
            family=self._a.model.family,
            parameters=request.values,
            models=tuple(label(weights) for weights in self.weights),
            blended=plan.blended,
            copied=plan.copied,
            missing=tuple(plan.missing),
            extra=tuple(plan.extra),
            dropped=len(plan.dropped),
            bytes=sum(output.nbytes for output in plan.outputs) if dry_run else written_bytes(str(request.output)),
            parents=parents,
            warnings=tuple(self._warnings(plan)),
            seconds=time.perf_counter() - self._began,
            peak_memory_mib=peak_memory_mib(),
            dry_run=dry_run,
        )

    def _warnings(self, plan: Plan) -> Iterable[str]:
        yield from notes_of(self.weights)
        coarse = sum(output.dtype.name in COARSE and output.copied is None for output in plan.outputs)
        written = isinstance(self._request.output, Path)
        if coarse and written and self._request.policy.rounding.seed is None:
            yield f"{coarse} blended tensors have a coarse type, which drops small changes; --stochastic keeps them"
        if plan.missing:
            action = "left out" if self._request.policy.missing == "skip" else "taken from A"
            yield f"{len(plan.missing)} weights that another model lacks are {action}"
        if plan.extra:
            yield f"{len(plan.extra)} weights of other models that A lacks are left out"
        if plan.dropped:
            yield f"{len(plan.dropped)} tensors of averaged copies (EMA) are left out; --ema keep blends them too"
        if plan.repaired:
            yield f"the position counter {plan.repaired[0]} was damaged and is counted anew"
        if self._a.model.family == "unknown":
            yield "no family sdkit knows: tensors are matched by their names alone"


def open_models(
    models: Sequence[ModelInput], stack: ExitStack, *, base: bool = False, use_ema: bool = False
) -> list[Source]:
    """Open checkpoints that are calculated with; those of no known family are matched by their keys.

    Args:
        models: in order, A first.
        stack: closes what is opened here.
        base: whether the last one is what differences are taken from.
        use_ema: whether averaged copies stand in for the weights.

    Raises:
        SdkitError: one cannot be read, or is an adapter.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    roles = [letters[index] if index < len(letters) else f"model {index + 1}" for index in range(len(models))]
    if base:
        roles[-1] = "base"
    sources = [_open(stack, model, role, use_ema) for model, role in zip(models, roles, strict=True)]
    known = any(source.model.family != "unknown" for source in sources)
    return sources if known else [_by_key(source) for source in sources]


def _open(stack: ExitStack, given: ModelInput, role: str, use_ema: bool) -> Source:
    weights = open_input(stack, given, role)
    model = identify(weights)
    if "unet" not in model.components:
        _refuse_adapter(weights, role)
    return Source(weights, model, role, use_ema=use_ema)


def _by_key(source: Source) -> Source:
    return Source(source.weights, structural(source.weights, source.model), source.role, source.use_ema)


def _refuse_adapter(weights: Weights, role: str) -> None:
    """Refuse what is a difference, not a model."""
    format, _ = recognise(weights)
    if format is not None:
        raise SdkitError(
            f"{role} ({weights.path}) is an adapter ({format}): a difference, and no whole model",
            "bake it into a model first with `sdkit merge BASE ADAPTER`; `sdkit inspect` says what is in it",
        )


def _with_weights(given: Mapping[str, Value], weights: Sequence[float | None], method: Method) -> dict[str, Value]:
    """The options, with the weights written behind the models among them."""
    if all(weight is None for weight in weights):
        return dict(given)
    if WEIGHTS not in method.parameters:
        raise UsageError(
            f"{method.name} takes no weight per model", f"its parameters are: {', '.join(method.parameters)}"
        )
    if WEIGHTS in given or any(weight is None for weight in weights):
        raise UsageError("some models have a weight and others have none", "write MODEL=WEIGHT for every model")
    return {**given, WEIGHTS: tuple(float(weight) for weight in weights if weight is not None)}


def _choice(value: str, what: str, allowed: Sequence[str]) -> str:
    if value.replace("_", "-") not in allowed:
        raise UsageError(f"--{what} {value}: there is no such choice", f"it is one of {', '.join(allowed)}")
    return value.replace("_", "-")
