"""What the conversion of an adapter will write, known before the first byte moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.adapters.builder import reads
from sdkit.adapters.difference import Located
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.recast import recast
from sdkit.conversion.adapter import USUAL_RULE, Fitted, Fitting, kinds_of
from sdkit.conversion.rest import Dropped
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import Progress
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.formats import Dialect, Format, check_writable, holding
from sdkit.jobs.converting.adapter_source import check_names, choose_format, read_source
from sdkit.jobs.converting.options import AdapterOptions
from sdkit.jobs.inputs import parent_of, with_words_beside
from sdkit.merging.tokens import token_paths
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import DType, Weights, open_weights
from sdkit.weights.metadata import public_metadata


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """One conversion of an adapter.

    Attributes:
        source: the adapter as it was read.
        base: the opened model it is for; None where none was named.
        model: whose names its modules have; None where they only keep their own.
        family: its family; empty where nothing told.
        format: what is written.
        dialect: which of its dialects.
        path: the file or folder.
        fitted: the adapter as the format can hold it.
        words: files beside the output, for words that the format has no place for.
        private: keys of metadata that are not written.
    """

    source: Artifact
    base: Weights | None
    model: Model | None
    family: str
    format: Format
    dialect: Dialect
    path: Path
    fitted: Fitted
    words: Sequence[tuple[Path, tuple[TokenRows, ...]]]
    private: tuple[str, ...]

    @property
    def folder(self) -> bool:
        """Whether the output is a folder."""
        return not self.dialect.suffix

    @property
    def to(self) -> str:
        """The format, with the dialect behind a colon."""
        return f"{self.format.name}:{self.dialect.name}" if self.dialect.name else self.format.name

    @property
    def parents(self) -> tuple[dict[str, object], ...]:
        """What goes in, as recipes name it."""
        given = ((self.source.source, "source"), (self.base, "base"))
        return tuple(parent_of(weights, role=role) for weights, role in given if weights is not None)

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that apply all of what is written in this dialect, for models of this family."""
        kinds = kinds_of(self.fitted.artifact)
        told = replace(self.format, dialects=(self.dialect,)).readers(
            kinds, self.family, pickled=self.dialect.suffix == ".pt"
        )
        return tuple(program for program in self.dialect.programs if not told[program])

    @property
    def consumed(self) -> int:
        """How many tensors of the source go in."""
        return sum(not _is_left(name, self.source.unmatched) for name in self.source.source.tensors)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What is not written, and why."""
        return tuple(_dropped(self.source, self.fitted))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return _nbytes(self.fitted.artifact)


def plan_adapter(
    stack: ExitStack, weights: Weights, to: str, output: Path | None, options: AdapterOptions, progress: Progress
) -> AdapterPlan:
    """How an opened adapter is written; what is opened for it is closed with `stack`.

    Raises:
        SdkitError: it cannot be, or something would be lost and that was not allowed.
    """
    base = stack.enter_context(open_weights(options.base)) if options.base else None
    source, model, family = read_source(weights, base, options)
    source, format, dialect = choose_format(to, with_words_beside(stack, source))
    check_names(source, model, family, format)
    path = output if output is not None else _default_output(weights.path, dialect.name or format.name, dialect)
    progress.start("fitting", len(source.deltas))
    held = source if format.words or not source.deltas else replace(source, tokens=())
    fitted = _fitted(_recast(held, options.dtype), model, base, format, options)
    words = token_paths(_recast(source, options.dtype).tokens, path) if held is not source else []
    private = () if options.keep_training_metadata else public_metadata(source.metadata)[1]
    return AdapterPlan(source, base, model, family, format, dialect, path, fitted, words, private)


def _recast(artifact: Artifact, dtype: DType | None) -> Artifact:
    if dtype is not None and not artifact.deltas and not artifact.tokens:
        path = artifact.source.path
        raise UsageError(
            f"{path}: dtype concerns changes of weights and words, this is a {artifact.kind}", "leave it out"
        )
    return recast(artifact, dtype) if dtype is not None else artifact


def _fitted(
    source: Artifact, model: Model | None, base: Weights | None, format: Format, options: AdapterOptions
) -> Fitted:
    """What will be written.

    Raises:
        SdkitError: something would be lost, and that was not allowed.
    """
    if not source.deltas:
        check_writable(source, model, format.name)
        return Fitted(source)
    rule = RankRule(options.rank) if options.rank else USUAL_RULE
    fitted = Fitting(format, model, _located(base), rule).fit(source)
    if fitted.approximations and not options.allow_lossy:
        kinds = " and ".join(sorted({entry.was for entry in fitted.approximations}))
        worst = max(fitted.approximations, key=lambda entry: entry.error)
        raise SdkitError(
            f"{source.source.path}: {len(fitted.approximations)} of {len(source.deltas)} changes are of the kind "
            f"{kinds}, which {format.name} cannot hold; what can be written instead is up to {worst.error:.2%} off "
            f"({worst.name}, rank {worst.rank})",
            f"--allow-lossy writes that; --rank N chooses another rank; {_whole(source)}",
        )
    return fitted


def _whole(source: Artifact) -> str:
    """Where nothing would be lost, as a hint."""
    able = holding(kinds_of(source))
    return f"--to {' or '.join(able)} holds all of it" if able else "no format that is written holds all of it"


def _located(base: Weights | None) -> Callable[[str], Located] | None:
    if base is None:
        return None
    places = identify(base).places

    def find(name: str) -> Located:
        return Located(base, places[name], quantisation_scale(base, places[name].key))

    return find


def _is_left(name: str, unmatched: tuple[str, ...]) -> bool:
    """Whether a tensor is, or belongs to a module that is, without a place."""
    return any(name == left or name.startswith(f"{left}.") for left in unmatched)


def _dropped(source: Artifact, fitted: Fitted) -> Iterator[Dropped]:
    if source.unmatched:
        tensors = source.source.tensors.items()
        size = sum(info.nbytes for name, info in tensors if _is_left(name, source.unmatched))
        yield Dropped("belongs to no module of the model", source.unmatched, size)
    rankless = tuple(entry.name for entry in fitted.approximations if entry.rank == 0)
    if rankless:
        yield Dropped("a change of a bias or a norm, which the format has no place for", rankless, 0)


def _default_output(source: Path, to: str, dialect: Dialect) -> Path:
    """The source's name in the current directory, with what it has become."""
    stem = source.absolute().name if source.is_dir() else source.stem
    return Path(f"{stem}-{to}{dialect.suffix}")


def _nbytes(artifact: Artifact) -> int:
    infos = {read.info.name: read.info for delta in artifact.deltas.values() for read in reads(delta)}
    infos |= {f"{rows.token} {rows.component}": rows.info for rows in artifact.tokens}
    infos |= {f"{part.component} steering": part.vector.info for part in artifact.steering}
    networks = artifact.key_value.networks.values() if artifact.key_value else ()
    stored = [read.info for pair in networks for network in pair for read in network.values()]
    return sum(info.nbytes for info in (*infos.values(), *stored))
