"""Calculating with adapters alone: their sum, difference, multiple, and the same at another rank."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import reads, same_weight
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.low_rank_form import form_rank
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.sums import Cut, Terms, cut_sum, exact_sum, norm_of, scaled, widest
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.families.family import Model
from sdkit.jobs.algebra import (
    BASE_FACTS,
    AlgebraReport,
    Finished,
    ModuleReport,
    Opened,
    check_result,
    default_name,
    described,
    finish,
    in_order,
    open_adapters,
    parents_of,
    sorted_changes,
    stem,
)
from sdkit.jobs.inputs import parent_of
from sdkit.jobs.merge_checks import check_is_not_input
from sdkit.jobs.pull import local_path, optional_path
from sdkit.jobs.record import recorded
from sdkit.streaming.expression import torch_dtype
from sdkit.weights import DType, open_weights
from sdkit.weights.dtypes import parse_dtype
from sdkit.weights.metadata import merged_metadata

PathLike = str | os.PathLike[str]
Adapters = Sequence[PathLike | tuple[PathLike, float]] | Mapping[PathLike, float]


class Options(TypedDict, total=False):
    """What every calculation may be told.

    Keys:
        format: of the output: ``kohya``, ``peft`` or ``diffusers``; default: the first adapter's.
        dtype: element type of the output; default: the widest of the inputs.
        base: the model the adapters are for, when their own headers do not tell enough.
        allow_unmatched: leave out tensors that belong to no module.
        force: replace an existing output.
        dry_run: calculate and report, but write nothing.
        threads: workers; the bytes written never depend on it.
        progress: told about the bytes done.
    """

    format: str | None
    dtype: str | None
    base: PathLike | None
    allow_unmatched: bool
    force: bool
    dry_run: bool
    threads: int | None
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class _Options:
    """`Options` with their defaults."""

    format: str | None = None
    dtype: str | None = None
    base: PathLike | None = None
    allow_unmatched: bool = False
    force: bool = False
    dry_run: bool = False
    threads: int | None = None
    progress: Progress | None = None


def combine(
    adapters: Adapters,
    output: PathLike | None = None,
    *,
    rank: RankRule | int | None = None,
    **options: Unpack[Options],
) -> AlgebraReport:
    """Add adapters up to one that does, at strength 1, what all of them loaded at their strengths do together.

    The sum is exact: factors are put side by side, so ranks add up. (Adding ``up`` to ``up`` and ``down`` to ``down``,
    as others do, also multiplies every adapter with every other one.) With `rank` the sum is cut to the best of that
    rank, and the report states the error.

    Args:
        adapters: paths, ``(path, strength)`` pairs or a mapping path → strength; the first decides the format. A
            registered name or a reference to a hub stands for a path.
        output: the file to write (PEFT: the folder); default ``A+B.safetensors`` in the current directory.
        rank: a rank, or a rule that finds one for each module.
        options: see `Options`.

    Raises:
        SdkitError: whatever is wrong, with a hint; no output is left behind.
    """
    pairs = _pairs(adapters)
    return _Sum("combine", pairs, "+".join(stem(path) for path, _ in pairs), rank, _Options(**options)).run(output)


def subtract(
    first: PathLike,
    second: PathLike | tuple[PathLike, float],
    output: PathLike | None = None,
    *,
    rank: RankRule | int | None = None,
    **options: Unpack[Options],
) -> AlgebraReport:
    """What the first adapter does and the second does not: A − strength · B, as exactly as `combine`."""
    (one, _), (other, strength) = _pairs([first, second])
    pairs = [(one, 1.0), (other, -strength)]
    return _Sum("subtract", pairs, f"{stem(one)}-{stem(other)}", rank, _Options(**options)).run(output)


def resize(
    adapter: PathLike, output: PathLike | None = None, *, rank: RankRule | int, **options: Unpack[Options]
) -> AlgebraReport:
    """The same adapter at a smaller rank: for each module the best approximation there is, with its error.

    The singular values of ``up @ down`` are found through the small cores of the two factors, without ever forming the
    product. A module that has no higher rank already keeps its bytes.

    Args:
        adapter: the file or folder.
        output: default ``NAME-rank32.safetensors`` in the current directory.
        rank: a rank, or a rule that finds one for each module.
        options: see `Options`.
    """
    rule = _rule(rank)
    path = local_path(adapter)
    suffix = f"rank{rule.rank}" if rule.fixed else "resized"
    return _Sum("resize", [(path, 1.0)], f"{stem(path)}-{suffix}", rule, _Options(**options)).run(output)


def scale(
    adapter: PathLike, factor: float, output: PathLike | None = None, **options: Unpack[Options]
) -> AlgebraReport:
    """The adapter whose effect at strength 1 is that of `adapter` at strength `factor`.

    Only alpha changes where there is one, so the factors keep every bit.
    """
    if factor == 0 or not math.isfinite(factor):
        raise UsageError(f"a factor of {factor:g} leaves no adapter", "readers take an alpha of 0 for a missing one")
    path = local_path(adapter)
    return _Sum("scale", [(path, factor)], f"{stem(path)}-x{factor:g}", None, _Options(**options)).run(output)


def weighted_sum(
    verb: str,
    pairs: Sequence[tuple[Path, float]],
    output: Path,
    *,
    rank: RankRule | None = None,
    **options: Unpack[Options],
) -> AlgebraReport:
    """What all of these are, Σ strength · adapter, as one of them has been recorded in a file's recipe."""
    return _Sum(verb, pairs, verb, rank, _Options(**options)).run(output)


class _Sum:
    """One weighted sum of adapters, from opened inputs to the report."""

    def __init__(
        self,
        verb: str,
        pairs: Sequence[tuple[Path, float]],
        name: str,
        rank: RankRule | int | None,
        options: _Options,
    ) -> None:
        self._began = time.perf_counter()
        self._verb, self._pairs, self._name, self._options = verb, pairs, name, options
        self._rule = _rule(rank) if rank is not None else None
        self._base = optional_path(options.base)
        self._norms: dict[Target, float] = {}
        self._cuts: dict[Target, Cut] = {}

    def run(self, output: PathLike | None) -> AlgebraReport:
        with ExitStack() as stack:
            opened = self._open(stack)
            format = self._options.format or opened.artifacts[0].format
            target = Path(output) if output is not None else default_name(self._name, format)
            check_is_not_input(target, [path for path, _ in self._pairs])
            check_result(target, format, force=self._options.force)
            result = self._result(opened, format)
            report = finish(result, target, self._began, force=self._options.force, dry_run=self._options.dry_run)
            return recorded(report, [*self._pairs, self._base])

    def _open(self, stack: ExitStack) -> Opened:
        options, paths = self._options, [path for path, _ in self._pairs]
        # One adapter in its own format needs no model: its modules keep the names they have.
        names = len(paths) > 1 or options.format is not None or self._base is not None
        opened = open_adapters(paths, stack, base=self._base, names=names, allow_unmatched=options.allow_unmatched)
        first = opened.artifacts[0].format
        if opened.model is None and (options.format or first) != first:
            raise SdkitError(f"{paths[0]}: its model is needed to write it as {options.format}", "name it with --base")
        return opened

    def _result(self, opened: Opened, format: str) -> Finished:
        artifacts = opened.artifacts
        dtype = parse_dtype(self._options.dtype) or _widest(artifacts)
        terms = self._terms(artifacts)
        shapes = {target: _shape(target, terms[target], opened.model) for target in terms}
        kept, changes = self._changes(terms, shapes, format, dtype)
        spelled = {module: name for artifact in artifacts[::-1] for module, name in artifact.spelled.items()}
        made = computed_artifact(self._name, changes, dtype, format=format, spelled=spelled)
        deltas = {**made.deltas, **kept}
        deltas = {target: deltas[target] for target in sorted_changes(deltas)}
        parents = parents_of(artifacts, (strength for _, strength in self._pairs)) + self._base_parent()
        return Finished(
            verb=self._verb,
            artifact=replace(made, deltas=deltas, tokens=tuple(rows for one in artifacts for rows in one.tokens)),
            format=format,
            model=opened.model,
            family=opened.family,
            modules=lambda: [self._module(target, deltas[target], terms[target]) for target in deltas],
            parents=parents,
            metadata=merged_metadata(self._kept_metadata(opened), self._recipe(parents)),
            notes=tuple(dict.fromkeys(note for artifact in artifacts for note in artifact.notes)),
        )

    def _terms(self, artifacts: Sequence[Artifact]) -> dict[Target, list[tuple[Delta, float]]]:
        """For every changed parameter, what the adapters add to it; a strength of 0 adds nothing."""
        terms: dict[Target, list[tuple[Delta, float]]] = {}
        for artifact, (_, strength) in zip(artifacts, self._pairs, strict=True):
            for target, delta in artifact.deltas.items():
                if is_relative(delta):
                    raise SdkitError(
                        f"{artifact.source.path}: holds {delta.kind}, which depends on the weights it is merged into",
                        "merge it into its base, then `sdkit extract` a plain LoRA",
                    )
                if strength != 0.0:
                    terms.setdefault(target, []).append((delta, strength))
        if not terms:
            raise UsageError("nothing would be left: every strength is 0", "give one with ADAPTER=0.8")
        return {target: terms[target] for target in sorted_changes(terms)}

    def _changes(
        self, terms: Mapping[Target, Terms], shapes: Mapping[Target, tuple[int, ...]], format: str, dtype: DType
    ) -> tuple[dict[Target, Delta], dict[Target, Computed]]:
        """What can stay as it is, and what must be computed."""
        kept: dict[Target, Delta] = {}
        changes: dict[Target, Computed] = {}
        cut: list[Target] = []
        for target, parts in terms.items():
            if self._rule is not None and len(shapes[target]) > 1 and self._reduces(parts, shapes[target]):
                cut.append(target)
            elif len(parts) == 1 and _can_stay(parts[0][0], format, self._options.dtype):
                kept[target] = scaled(target, *parts[0])
            else:
                changes[target] = exact_sum(parts, shapes[target], partial(self._norms.__setitem__, target))
        for target, found in zip(cut, self._cut(cut, terms, shapes, dtype), strict=True):
            self._cuts[target] = found
            changes[target] = Computed.of(found.tensors)
        return kept, changes

    def _reduces(self, parts: Terms, shape: tuple[int, ...]) -> bool:
        """Whether the rule can lead to a smaller rank than the exact sum has."""
        assert self._rule is not None
        ranks = [form_rank(delta) for delta, _ in parts]
        total = sum(min(shape[0], math.prod(shape[1:])) if rank is None else rank for rank in ranks)
        return not self._rule.fixed or self._rule.rank is None or total > self._rule.rank

    def _cut(
        self,
        targets: Sequence[Target],
        terms: Mapping[Target, Terms],
        shapes: Mapping[Target, tuple[int, ...]],
        dtype: DType,
    ) -> Iterator[Cut]:
        rule, progress = self._rule, self._options.progress or NoProgress()
        if not targets or rule is None:
            return iter(())
        progress.start("decomposing", sum(_nbytes(terms[target]) for target in targets))

        def work(target: Target) -> Cut:
            found = cut_sum(terms[target], shapes[target], rule, torch_dtype(dtype))
            progress.advance(_nbytes(terms[target]))
            return found

        return in_order(work, targets, self._options.threads)

    def _module(self, target: Target, delta: Delta, parts: Terms) -> ModuleReport:
        ranks = [part.rank for part, _ in parts]
        before = sum(rank for rank in ranks if rank is not None) if any(rank is not None for rank in ranks) else None
        cut = self._cuts.get(target)
        norm = cut.norm if cut else self._norms.get(target)
        if norm is None and not self._options.dry_run:
            norm = norm_of(parts)
        return ModuleReport(target.name, delta.kind, delta.rank, before, norm, cut.error if cut else 0.0)

    def _kept_metadata(self, opened: Opened) -> dict[str, str]:
        """Of one adapter all it says about itself; of several only what is true of the sum."""
        metadata = opened.artifacts[0].metadata
        if len(opened.artifacts) == 1:
            return dict(metadata)
        facts = {key: metadata[key] for key in BASE_FACTS if key in metadata}
        return {**described(opened.model, opened.family), **facts} if opened.family else facts

    def _base_parent(self) -> tuple[dict[str, object], ...]:
        if self._base is None:
            return ()
        with open_weights(self._base) as weights:
            return (parent_of(weights, role="base"),)

    def _recipe(self, parents: Sequence[Mapping[str, object]]) -> dict[str, object]:
        rule = self._rule
        names = ("rank", "sv_ratio", "sv_fro", "sv_cumulative", "error")
        chosen = {name: getattr(rule, name) for name in names if rule is not None and getattr(rule, name) is not None}
        options = {name: getattr(self._options, name) for name in ("dtype", "format", "allow_unmatched")}
        asked = {name: value for name, value in options.items() if value}
        return {"verb": self._verb, "parents": list(parents), **asked, **chosen}


def _rule(rank: RankRule | int) -> RankRule:
    return RankRule(rank) if isinstance(rank, int) else rank


def _can_stay(delta: Delta, format: str, dtype: str | None) -> bool:
    """Whether the output can hold the change in its own kind, whose tensors then keep every bit."""
    if isinstance(delta, Full) and delta.scale != 1.0:
        return False  # files have no place for such a scale
    plain = isinstance(delta, LowRank) and delta.mid is None
    return dtype is None and (plain or format == "kohya")


def _shape(target: Target, parts: Terms, model: Model | None) -> tuple[int, ...]:
    """The shape of the weight: the model's where it is known, else the most detailed of the changes'.

    Raises:
        SdkitError: the changes are of different weights.
    """
    place = model.places[target.name].shape if model is not None else ()
    if place and all(same_weight(delta.shape, place) for delta, _ in parts):
        return place
    shape = max((delta.shape for delta, _ in parts), key=len)
    for delta, _ in parts:
        if not same_weight(delta.shape, shape):
            raise SdkitError(
                f"{target.name}: the adapters change weights of the shapes {list(delta.shape)} and {list(shape)}",
                "they were made for different models",
            )
    return shape


def _nbytes(parts: Terms) -> int:
    return sum(read.info.nbytes for delta, _ in parts for read in reads(delta))


def _widest(artifacts: Sequence[Artifact]) -> DType:
    return widest({read.dtype for artifact in artifacts for delta in artifact.deltas.values() for read in reads(delta)})


def _pairs(adapters: Adapters) -> list[tuple[Path, float]]:
    """Every adapter with its strength; 1 where none was given."""
    entries = list(adapters.items()) if isinstance(adapters, Mapping) else list(adapters)
    pairs = [(entry[0], float(entry[1])) if isinstance(entry, tuple) else (entry, 1.0) for entry in entries]
    if len(pairs) < 2:
        raise UsageError("only one adapter was given", "sdkit merge LORA LORA=0.5; `sdkit scale` changes a single one")
    for path, strength in pairs:
        if not math.isfinite(strength):
            raise UsageError(f"{path}: the strength {strength} is no finite number")
    return [(local_path(path), strength) for path, strength in pairs]
