"""Merging adapters into a checkpoint: the main job."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.adapters.deltas.dora import Drawn
from sdkit.adapters.drawn import drawn_as
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.memory import peak_memory_mib
from sdkit.core.paths import written_bytes
from sdkit.core.progress import NoProgress, Progress
from sdkit.formats import read_adapter
from sdkit.jobs.algebra import one_thread
from sdkit.jobs.inputs import (
    Input,
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
    with_words_beside,
)
from sdkit.jobs.merge_checks import (
    check_bakeable,
    check_is_adapter,
    check_is_not_input,
    check_not_rounded,
    check_requantisation,
    check_widening,
    family_error,
    known_model,
    unmatched_error,
)
from sdkit.jobs.merge_report import MergeReport, adapter_report
from sdkit.jobs.record import recorded
from sdkit.merging.bake import Bake, Dose, bake
from sdkit.merging.blocks import BlockSpec, block_strengths
from sdkit.merging.concepts import KIND, Concept, is_concept, joined
from sdkit.merging.strengths import Strengths
from sdkit.merging.tokens import save_tokens, token_paths
from sdkit.merging.trained_on import doubts
from sdkit.merging.undo import Changed, write_undo
from sdkit.merging.widened_folder import widened_configs
from sdkit.runtime.load import load_backbone
from sdkit.streaming import Output, Rounding, Stream
from sdkit.streaming.checkpoint import check_output, checkpoint_stream, is_folder
from sdkit.streaming.lazy import LazyWeights, leaves
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import DType, Weights
from sdkit.weights.atomic import AtomicFile, check_space, check_target
from sdkit.weights.dtypes import parse_dtype
from sdkit.weights.metadata import merged_metadata, read_recipe
from sdkit.weights.reader import Container, raw_header

PathLike = str | os.PathLike[str]
Adapters = Input | Sequence[Input | tuple[Input, float]] | Mapping[PathLike, float]


@dataclass(frozen=True, slots=True)
class _Request:
    """The options of one merge, checked."""

    base: Input
    adapters: tuple[tuple[Input, float], ...]
    output: Target
    unet_alpha: float
    te_alpha: float
    blocks: BlockSpec | None
    dtype: DType | None
    rounding: Rounding
    undo: Path | None
    dora: Drawn
    allow_unmatched: bool
    tokens: bool
    force: bool


def merge(
    base: Input,
    adapters: Adapters,
    output: PathLike | Unwritten | None = None,
    *,
    alpha: float = 1.0,
    unet_alpha: float = 1.0,
    te_alpha: float = 1.0,
    blocks: BlockSpec | None = None,
    dtype: str | None = None,
    stochastic: int | None = None,
    undo: PathLike | None = None,
    dora: Drawn = "exact",
    allow_unmatched: bool = False,
    tokens: bool = True,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Add adapters to the weights of a checkpoint: W + Σ strength · ΔW, in one pass and constant memory.

    Each result is the exact sum rounded once to the base's element type (within 0.51 units in the last place).
    Tensors that no adapter changes keep their bytes.

    Args:
        base: a safetensors file, a pickled checkpoint (the output is safetensors), a shard index or a diffusers folder;
            or weights opened or computed already, as every adapter may be, too.
        adapters: one path, several, ``(path, strength)`` pairs, or a mapping path → strength.
        output: the file (for a folder: the folder) to write; default ``BASE+ADAPTER….safetensors`` in the current
            directory.
        alpha: strength of adapters given without one. Negative subtracts.
        unet_alpha: multiplies the strength of everything in the UNet.
        te_alpha: multiplies the strength of everything in the text encoders.
        blocks: factors per block, see `sdkit.merging.blocks`.
        dtype: element type of all floating-point tensors of the output (``fp16``, ``bf16``, ``fp32``, ``fp8_e4m3``,
            ``fp8_e5m2``); default: each keeps its own.
        stochastic: a seed; round changed values up or down at random in proportion to the distance, not to the
            nearest. Keeps changes that are too small for a coarse type alive on average.
        undo: also write this file, with which `unmerge` restores the base bit for bit.
        dora: ``exact``: DoRAs as they were trained. ``comfyui`` (and Forge) and ``a1111`` divide the lengths of output
            features by other norms; with their name the merged model is what they draw with the adapter.
        allow_unmatched: merge what matches although parts of an adapter have no place in the base.
        tokens: save the tokens that adapters bring along as files beside the output.
        force: replace existing outputs.
        dry_run: stop before anything is written; every check has been made then.
        threads: workers; the bytes written never depend on it. Default: one per core.
        progress: told about the bytes written.

    Returns:
        A report of what matched, what changed, and what it cost.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and inputs are never touched.
    """
    pairs = _pairs(adapters, alpha)
    for name, factor in (("unet_alpha", unet_alpha), ("te_alpha", te_alpha)):
        if not math.isfinite(factor):
            raise UsageError(f"{name} {factor} is no finite number")
    request = _Request(
        base=base,
        adapters=pairs,
        output=as_target(output if output is not None else _default_output(base, [adapter for adapter, _ in pairs])),
        unet_alpha=unet_alpha,
        te_alpha=te_alpha,
        blocks=blocks,
        dtype=parse_dtype(dtype),
        rounding=Rounding(stochastic),
        undo=Path(undo) if undo is not None else None,
        dora=dora,
        allow_unmatched=allow_unmatched,
        tokens=tokens,
        force=force,
    )
    with input_stack(request.output) as stack:
        report = _Merge(request, stack, progress or NoProgress(), threads).run(dry_run=dry_run)
        return recorded(report, [base, *pairs])


class _Merge:
    """One merge, from opened inputs to the report."""

    def __init__(self, request: _Request, stack: ExitStack, progress: Progress, threads: int | None) -> None:
        self._began = time.perf_counter()
        self._request = request
        self._progress = progress
        self._threads = threads
        self._base = open_input(stack, request.base)
        self._model = known_model(self._base)
        adapters = [(open_input(stack, adapter), strength) for adapter, strength in request.adapters]
        self._inputs = input_files([self._base, *(weights for weights, _ in adapters)])
        self._check_targets()
        self._stack = stack
        artifacts = drawn_as([self._open(weights) for weights, _ in adapters], request.dora)
        self._doses = [Dose(artifact, strength) for artifact, (_, strength) in zip(artifacts, adapters, strict=True)]
        self._warned = [doubt for dose in self._doses for doubt in doubts(dose.artifact, self._base, self._model)]

    def run(self, *, dry_run: bool) -> MergeReport:
        request = self._request
        strengths = Strengths(request.unet_alpha, request.te_alpha, block_strengths(request.blocks, self._model))
        plan = bake(self._base, self._model, self._joined(), strengths)
        check_requantisation(self._base, request.dtype)
        check_widening(plan.widened, undo=request.undo is not None, lazy_folder=self._is_lazy_folder())
        outputs = plan.outputs(request.dtype, request.rounding)
        target = request.output
        tokens = token_paths(self._tokens(), target) if isinstance(target, Path) else []
        for path, _ in tokens:
            self._check_side_target(path)
        if not plan.addends and request.dtype is None:
            raise SdkitError(
                "nothing would change: every strength is 0, or the adapters hold no weight changes",
                "give a strength with ADAPTER=0.8 or --alpha; `sdkit inspect` shows what an adapter holds",
            )
        parents = tuple(self._parents())
        recipe = with_earlier_steps(self._recipe(parents), [self._base])
        if isinstance(target, Unwritten):
            target.model = self._lazy(outputs, recipe, target.name)
            return self._report(plan, outputs, tokens, parents, dry_run=True)
        check_space(target, sum(output.nbytes for output in outputs))
        if not dry_run:
            self._write(plan, outputs, tokens, merged_metadata(self._kept_metadata(), recipe, checkpoint=True))
        return self._report(plan, outputs, tokens, parents, dry_run=dry_run)

    def _joined(self) -> list[Dose]:
        """The adapters, with several Custom Diffusions as one where they can be joined."""
        kind = [dose for dose in self._doses if dose.artifact.kind == KIND and dose.strength != 0.0]
        able = [dose for dose in kind if is_concept(dose.artifact)]
        if len(kind) < 2 or self._is_scaled(able):  # which `bake` refuses
            return self._doses
        if len(able) < len(kind):
            strange = next(dose for dose in kind if dose not in able).artifact.source.path
            self._warned.append(
                f"{len(kind)} Custom Diffusions are added up, so that each changes the others' words: they are joined "
                f"where all are whole keys and values with a word, and {strange.name} is not"
            )
            return self._doses
        with one_thread():
            found = joined(load_backbone(self._base, text_only=True), self._base, [_concept(dose) for dose in able])
        self._warned.append(found.sentence)
        return [*(dose for dose in self._doses if dose not in able), Dose(found.artifact, 1.0)]

    def _is_scaled(self, doses: Sequence[Dose]) -> bool:
        """Whether whole weights are to take the places of scaled fp8 ones."""
        names = {target.name for dose in doses for target in dose.artifact.deltas}
        return any(quantisation_scale(self._base, self._model.places[name].key) != 1.0 for name in names)

    def _is_lazy_folder(self) -> bool:
        return isinstance(self._request.output, Unwritten) and is_folder(self._base)

    def _lazy(self, outputs: Sequence[Output], recipe: Mapping[str, object], name: str) -> LazyWeights:
        check_not_rounded(self._request.rounding, name)
        files = leaves([self._base, *(dose.artifact.source for dose in self._doses)])
        words = [rows.token for rows in self._tokens()]
        notes = [f"step {name} writes nothing, so the token {word} is saved nowhere" for word in dict.fromkeys(words)]
        return LazyWeights(name, self._base, outputs, self._kept_metadata(), recipe, files, notes)

    def _tokens(self) -> Iterable[TokenRows]:
        return (rows for dose in self._doses if self._request.tokens for rows in dose.artifact.tokens)

    def _check_targets(self) -> None:
        request = self._request
        if isinstance(request.output, Path):
            check_is_not_input(request.output, self._inputs)
            check_output(self._base, request.output, overwrite=request.force)
        if request.undo is None:
            return
        if isinstance(request.output, Unwritten) or isinstance(self._base, LazyWeights):
            raise SdkitError("--undo restores a base that is a file from a merge that is one", "leave out --undo")
        self._check_side_target(request.undo)
        if is_folder(self._base):
            raise SdkitError("--undo works on single files; the base is a folder", "keep the folder itself as the undo")
        if request.dtype is not None:
            raise SdkitError("--undo restores bits, which --dtype discards in every tensor", "leave out one of the two")

    def _check_side_target(self, path: Path) -> None:
        """Refuse a file beside the output that would replace an input, the output or what may not be replaced."""
        check_is_not_input(path, self._inputs)
        target = self._request.output
        if isinstance(target, Path) and path.resolve() == target.resolve():
            raise SdkitError(f"{path}: would be both the merged model and a file beside it", "give them two names")
        check_target(path, overwrite=self._request.force)

    def _open(self, weights: Weights) -> Artifact:
        """Read an adapter and refuse what cannot go into this base."""
        check_is_adapter(weights)
        try:
            artifact = read_adapter(weights, self._model)
        except SdkitError as error:
            raise family_error(weights, self._model) or error from None
        check_bakeable(artifact)
        if artifact.unmatched and not self._request.allow_unmatched:
            raise family_error(weights, self._model) or unmatched_error(artifact, self._model)
        return with_words_beside(self._stack, artifact)

    def _write(
        self,
        plan: Bake,
        outputs: Sequence[Output],
        tokens: Sequence[tuple[Path, tuple[TokenRows, ...]]],
        metadata: Mapping[str, str],
    ) -> None:
        request = self._request
        assert isinstance(request.output, Path)
        self._progress.start("merging", sum(output.nbytes for output in outputs))
        with ExitStack() as stack:
            beside: list[AtomicFile] = []
            for path, group in tokens:
                beside.append(stack.enter_context(save_tokens(group, path, overwrite=request.force)))
            with checkpoint_stream(
                self._base,
                outputs,
                request.output,
                metadata,
                overwrite=request.force,
                threads=self._threads,
                advance=self._progress.advance,
                side_files=widened_configs(self._base, self._model, plan.widened),
            ) as stream:
                stream.run()
                if request.undo is not None:
                    beside.append(stack.enter_context(self._undo(plan, stream, request.undo)))
                for file in beside:  # only now is it sure that there will be a merged model beside them
                    file.commit()

    def _undo(self, plan: Bake, stream: Stream, path: Path) -> AtomicFile:
        """Compare the base with the output, which has no name yet, so that there is no merge without its undo file."""
        writer = stream.writers[0]
        changed = [
            Changed(self._base, info, writer.descriptor, writer.offsets[name])
            for name, info in self._base.tensors.items()
            if name in plan.addends
        ]
        self._progress.start("saving the undo file", sum(entry.info.nbytes for entry in changed))
        return write_undo(changed, raw_header(self._base), path, overwrite=self._request.force, threads=stream.threads)

    def _kept_metadata(self) -> Mapping[str, str]:
        """What the base says about itself; a pickle has no metadata, only its maker's variables, paths among them."""
        return {"format": "pt"} if self._base.container is Container.PICKLE else self._base.metadata

    def _parents(self) -> Iterable[dict[str, object]]:
        yield parent_of(self._base, role="base")
        for dose in self._doses:
            yield parent_of(dose.artifact.source, role="adapter", strength=dose.strength)

    def _recipe(self, parents: Sequence[Mapping[str, object]]) -> dict[str, object]:
        """Everything that decides the output's bytes, as it is written into the metadata."""
        request = self._request
        options: dict[str, object] = {
            "unet_alpha": request.unet_alpha,
            "te_alpha": request.te_alpha,
            "blocks": {k: v for k, v in block_strengths(request.blocks, self._model).items() if v != 1.0},
            "dtype": request.dtype.name if request.dtype else None,
            "stochastic": request.rounding.seed,
            "dora": request.dora,
            "allow_unmatched": request.allow_unmatched,
        }
        plain: dict[str, object] = {"unet_alpha": 1.0, "te_alpha": 1.0, "blocks": {}, "dora": "exact"}
        plain["allow_unmatched"] = False
        chosen = {name: value for name, value in options.items() if value is not None and value != plain.get(name)}
        return {"verb": "merge", "parents": list(parents), **chosen}

    def _report(
        self,
        plan: Bake,
        outputs: Sequence[Output],
        tokens: Sequence[tuple[Path, tuple[TokenRows, ...]]],
        parents: tuple[dict[str, object], ...],
        *,
        dry_run: bool,
    ) -> MergeReport:
        request = self._request
        reports = tuple(adapter_report(dose) for dose in self._doses)
        return MergeReport(
            output=request.output.name if isinstance(request.output, Unwritten) else str(request.output),
            base=label(self._base),
            family=self._model.family,
            adapters=reports,
            matched=sum(report.matched for report in reports),
            unmatched=tuple(name for report in reports for name in report.unmatched),
            changed=len(plan.addends),
            tensors=len(outputs),
            overflowed=(),
            bytes=sum(output.nbytes for output in outputs) if dry_run else written_bytes(str(request.output)),
            saved=tuple(str(path) for path, _ in tokens),
            undo=str(request.undo) if request.undo else None,
            parents=parents,
            warnings=tuple(self._warnings(plan)),
            seconds=time.perf_counter() - self._began,
            peak_memory_mib=peak_memory_mib(),
            dry_run=dry_run,
        )

    def _warnings(self, plan: Bake) -> Iterable[str]:
        yield from notes_of([self._base])
        yield from self._warned
        if isinstance(self._request.output, Unwritten):
            return
        coarse = Counter(self._stored_type(key).name for key in plan.addends)
        if self._request.rounding.seed is None:
            for name in sorted(coarse.keys() & {"BF16", "F8_E4M3", "F8_E5M2"}):
                yield f"{coarse[name]} changed tensors are {name}, which drops small changes; --stochastic keeps them"
        for key, columns in plan.widened.items():
            yield f"{key} reads {columns} inputs now: the result is a control model, which wants a picture to follow"
        if self._model.ema:
            yield f"the base also holds an EMA copy ({len(self._model.ema)} tensors), which is left as it is"

    def _stored_type(self, key: str) -> DType:
        return self._request.dtype or self._base.tensors[key].dtype


def _concept(dose: Dose) -> Concept:
    """A Custom Diffusion with the class, or the classes, that its recipe names."""
    options = (read_recipe(dose.artifact.metadata) or {}).get("options")
    class_ = options.get("class") if isinstance(options, dict) else None
    return Concept(dose.artifact, dose.strength, tuple(class_.split("|")) if isinstance(class_, str) else ())


def default_output(base: Path, adapters: Sequence[Path]) -> Path:
    """``BASE+ADAPTER.safetensors`` in the current directory; a folder keeps being one."""
    if base.name.endswith(".index.json"):  # shards: the model is the folder they lie in
        base = base.absolute().parent
    names = [path.name if path.is_dir() else path.stem for path in (base, *adapters)]
    return Path("+".join(names) + ("" if base.is_dir() else ".safetensors"))


def _default_output(base: Input, adapters: Sequence[Input]) -> Path:
    paths = [entry.path if isinstance(entry, Weights) else Path(entry) for entry in (base, *adapters)]
    return default_output(paths[0], paths[1:])


def _pairs(adapters: Adapters, alpha: float) -> tuple[tuple[Input, float], ...]:
    """Every adapter with its strength."""
    found: list[tuple[Input, float]]
    if isinstance(adapters, Mapping):
        found = [(path, float(strength)) for path, strength in adapters.items()]
    else:
        entries = [adapters] if isinstance(adapters, (str, os.PathLike, Weights)) else adapters
        found = [(entry[0], float(entry[1])) if isinstance(entry, tuple) else (entry, alpha) for entry in entries]
    if not found:
        raise UsageError("no adapter was given", "sdkit merge BASE ADAPTER")
    for adapter, strength in found:
        if not math.isfinite(strength):
            name = adapter.path if isinstance(adapter, Weights) else adapter
            raise UsageError(f"{name}: the strength {strength} is no finite number")
    return tuple(found)
