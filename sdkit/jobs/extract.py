"""The difference of two checkpoints as an adapter."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sdkit.adapters.artifact import Target
from sdkit.adapters.builder import same_weight
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.adapters.difference import Located, cut_difference, difference, differs
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.sums import Cut
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.families.family import Model
from sdkit.jobs.algebra import (
    AlgebraReport,
    Finished,
    ModuleReport,
    check_result,
    default_name,
    described,
    finish,
    in_order,
    stem,
)
from sdkit.jobs.inputs import parent_of
from sdkit.jobs.merge_checks import check_is_not_input, known_model
from sdkit.jobs.pull import local_path
from sdkit.jobs.record import recorded
from sdkit.streaming.expression import torch_dtype
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import Weights, open_weights
from sdkit.weights.dtypes import parse_dtype
from sdkit.weights.metadata import merged_metadata

PathLike = str | os.PathLike[str]

# The largest rank a rule may find when the caller does not say; without a limit the rounding noise of 16-bit
# checkpoints, which has full rank, would be kept.
DEFAULT_LIMIT = 128


@dataclass(frozen=True, slots=True)
class _Part:
    """One parameter to look at."""

    target: Target
    tuned: Located
    base: Located

    @property
    def nbytes(self) -> int:
        return self.tuned.read.info.nbytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is compared, and what is left out and why.

    Attributes:
        parts: parameters that can be in an adapter.
        excluded: parameters that may differ and are left out: reason → parts.
        missing: how many parameters only one of the two has.
    """

    parts: tuple[_Part, ...]
    excluded: dict[str, list[_Part]] = field(default_factory=dict)
    missing: int = 0


def extract(
    tuned: PathLike,
    base: PathLike,
    output: PathLike | None = None,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    error: float | None = None,
    conv_rank: int | None = None,
    tucker: bool = False,
    diffs: bool = False,
    format: str = "kohya",
    dtype: str = "fp16",
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> AlgebraReport:
    """Write the adapter that turns `base` into `tuned`, as well as its ranks allow; the report states the error.

    The two may lie in different layouts (a single file and a folder). Parameters that are equal are left out. Every
    module is decomposed on its own, so memory does not grow with the checkpoints.

    Args:
        tuned: the changed checkpoint; like `base` a path, a registered name or a reference to a hub.
        base: what it was changed from.
        output: the file to write (PEFT: the folder); default ``TUNED-lora.safetensors`` in the current directory.
        rank: of every module, default 32; with `ratio` or `error` the largest one allowed, default 128.
        ratio: for each module keep singular values above the largest divided by this.
        error: for each module find the smallest rank that leaves at most this relative error.
        conv_rank: the same for convolutions with a kernel; 0 leaves them out. Default: as `rank`.
        tucker: write such convolutions with a Tucker core.
        diffs: add the differences of biases and normalisations, whole (kohya's format only).
        format: ``kohya``, ``peft`` or ``diffusers``.
        dtype: element type of the adapter.
        force: replace an existing output.
        dry_run: calculate and report, but write nothing.
        threads: workers; the bytes written never depend on it.
        progress: told about the bytes compared.

    Raises:
        SdkitError: whatever is wrong, with a hint; no output is left behind.
    """
    if conv_rank is not None and conv_rank < 0:
        raise UsageError(f"a rank of {conv_rank} for convolutions makes no sense", "0 leaves them out")
    if format != "kohya" and (tucker or diffs):
        raise UsageError(f"{'tucker' if tucker else 'diffs'} needs kohya's format", "leave out --format, or the option")
    rule, progress = _rule(rank, ratio, error), progress or NoProgress()
    first, second = local_path(tuned, progress), local_path(base, progress)
    target = Path(output) if output is not None else default_name(f"{stem(first)}-lora", format)
    check_is_not_input(target, [first, second])
    check_result(target, format, force=force)
    with ExitStack() as stack:
        job = _Extract(first, second, stack, rule, dtype)
        result = job.run(conv_rank, tucker, diffs, format, threads, progress)
        report = finish(result, target, job.began, force=force, dry_run=dry_run)
        return recorded(report, [first, second])


def _rule(rank: int | None, ratio: float | None, error: float | None) -> RankRule:
    limit = rank if rank is not None else 32 if ratio is None and error is None else DEFAULT_LIMIT
    return RankRule(limit, sv_ratio=ratio, error=error)


class _Extract:
    """One extraction, from opened checkpoints to the report."""

    def __init__(self, tuned: Path, base: Path, stack: ExitStack, rule: RankRule, dtype: str) -> None:
        self.began = time.perf_counter()
        self._tuned = stack.enter_context(open_weights(tuned))
        self._base = stack.enter_context(open_weights(base))
        self._models = known_model(self._tuned), known_model(self._base)
        self._rule = rule
        found = parse_dtype(dtype)
        if found is None or found.bits < 16:
            raise UsageError(f"an adapter cannot be stored as {dtype}", "use fp16, bf16 or fp32")
        self._dtype = found
        _check_families(self._tuned, self._base, *self._models)

    def run(
        self, conv_rank: int | None, tucker: bool, diffs: bool, format: str, threads: int | None, progress: Progress
    ) -> Finished:
        plan = self._plan(conv_rank, diffs)
        progress.start("extracting", sum(part.nbytes for part in plan.parts))
        conv_rule = self._rule if not conv_rank else RankRule(conv_rank, self._rule.sv_ratio, error=self._rule.error)

        def work(part: _Part) -> Cut | Computed | None:
            found = self._compute(part, conv_rule, tucker)
            progress.advance(part.nbytes)
            return found

        changes: dict[Target, Computed] = {}
        modules: list[ModuleReport] = []
        for part, found in zip(plan.parts, in_order(work, plan.parts, threads), strict=True):
            if found is not None:
                changes[part.target], report = _reported(part.target, found)
                modules.append(report)
        if not changes:
            raise SdkitError(
                f"{self._tuned.path}: nothing in it that an adapter can hold differs from {self._base.path.name}",
                "; ".join(self._warnings(plan, modules)) or "the two are the same model",
            )
        options = {"conv_rank": conv_rank, "tucker": tucker or None, "diffs": diffs or None}
        return self._finished(plan, changes, modules, format, options)

    def _compute(self, part: _Part, conv_rule: RankRule, tucker: bool) -> Cut | Computed | None:
        delta = difference(part.tuned, part.base)
        if delta is None:
            return None
        if delta.ndim == 1:
            return Computed.of({"diff": delta.to(torch_dtype(self._dtype))})
        return cut_difference(delta, conv_rule if _has_kernel(part) else self._rule, self._dtype, tucker=tucker)

    def _plan(self, conv_rank: int | None, diffs: bool) -> _Plan:
        """Which parameters are compared; everything here is known from headers."""
        tuned, base = self._models
        modules = set(base.kohya_modules.values()) & set(tuned.kohya_modules.values())
        parts: list[_Part] = []
        excluded: dict[str, list[_Part]] = {}
        names = sorted(set(tuned.places) & set(base.places))
        for name in names:
            module, _, parameter = name.rpartition(".")
            part = _Part(Target(module, parameter), self._located(0, name), self._located(1, name))
            reason = _excluded(part, module in modules, conv_rank, diffs)
            excluded.setdefault(reason, []).append(part) if reason else parts.append(part)
        return _Plan(tuple(parts), excluded, len(set(tuned.places) ^ set(base.places)))

    def _located(self, which: int, name: str) -> Located:
        weights = (self._tuned, self._base)[which]
        place = self._models[which].places[name]
        return Located(weights, place, quantisation_scale(weights, place.key))

    def _finished(
        self,
        plan: _Plan,
        changes: dict[Target, Computed],
        modules: Sequence[ModuleReport],
        format: str,
        options: Mapping[str, object],
    ) -> Finished:
        tuned, base = self._models
        parents = (parent_of(self._tuned, role="tuned"), parent_of(self._base, role="base"))
        rule = {name: getattr(self._rule, name) for name in ("rank", "sv_ratio", "error")}
        recipe = {"verb": "extract", "parents": list(parents), "dtype": self._dtype.name, **rule, **options}
        recipe = {key: value for key, value in recipe.items() if value is not None}
        return Finished(
            verb="extract",
            artifact=computed_artifact(self._tuned.path.name, changes, self._dtype, format=format),
            format=format,
            model=base,
            family=base.family,
            modules=lambda: modules,
            parents=parents,
            metadata=merged_metadata(described(tuned, base.family), recipe),
            warnings=tuple(self._warnings(plan, modules)),
        )

    def _warnings(self, plan: _Plan, modules: Sequence[ModuleReport]) -> Iterator[str]:
        for reason, parts in plan.excluded.items():
            changed = sum(differs(part.tuned, part.base) for part in parts if _comparable(part))
            changed += sum(not _comparable(part) for part in parts)
            if changed:
                yield f"{changed} changed parameters are left out: {reason}"
        if plan.missing:
            yield f"{plan.missing} parameters exist in only one of the two models and are left out"
        wanted = self._rule.error
        if wanted is not None and (short := sum(module.error > wanted for module in modules)):
            yield f"{short} modules would need a rank above {self._rule.rank} for an error of {wanted:g}"


def _reported(target: Target, found: Cut | Computed) -> tuple[Computed, ModuleReport]:
    """The change and its report."""
    if isinstance(found, Computed):
        norm = float(found.make()["diff"].double().norm())
        return found, ModuleReport(target.name, "full", None, None, norm)
    kind = "tucker" if "mid" in found.tensors else "locon" if found.tensors["down"].shape[2:].numel() > 1 else "lora"
    return Computed.of(found.tensors), ModuleReport(target.name, kind, found.rank, None, found.norm, found.error)


def _excluded(part: _Part, is_module: bool, conv_rank: int | None, diffs: bool) -> str:
    """Why a parameter cannot be in the adapter; empty when it can."""
    if not is_module:
        component = part.target.component
        return "the VAE is no part of adapters" if component == "vae" else "embeddings are no part of adapters"
    if not _comparable(part):
        return "their shapes differ"
    if len(part.base.place.shape) == 1:
        return "" if diffs else "biases and normalisations (--diffs adds them)"
    return "convolutions (--conv-rank adds them)" if conv_rank == 0 and _has_kernel(part) else ""


def _comparable(part: _Part) -> bool:
    return same_weight(part.tuned.place.shape, part.base.place.shape)


def _has_kernel(part: _Part) -> bool:
    return math.prod(part.base.place.shape[2:]) > 1


def _check_families(tuned: Weights, base: Weights, one: Model, other: Model) -> None:
    """Refuse what cannot be compared."""
    if one.family != other.family or "unknown" in (one.family, other.family):
        raise SdkitError(
            f"{tuned.path} is {one.family}, {base.path} is {other.family}",
            "only models of one known family can be compared; `sdkit inspect` shows the evidence",
        )
    if None not in (one.prediction, other.prediction) and one.prediction != other.prediction:
        raise SdkitError(
            f"{tuned.path} predicts {one.prediction}, {base.path} predicts {other.prediction}",
            "an adapter cannot change what a model predicts",
        )
