"""Converting an adapter into another format, with the proof that it does the same."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import reads
from sdkit.adapters.difference import Located
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.recast import recast
from sdkit.conversion.adapter import USUAL_RULE, Approximation, Fitted, Fitting, kinds_of
from sdkit.conversion.adapter_proof import AdapterProof, prove_adapter
from sdkit.conversion.rest import Dropped
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.memory import peak_memory_mib
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families import FAMILIES, identify
from sdkit.families.family import Model
from sdkit.formats import (
    NEGATIVE,
    Dialect,
    Format,
    adapter_family,
    check_writable,
    format_for,
    holding,
    negative_beside,
    own_metadata,
    read_adapter,
    recognise,
    without_idle,
    write_adapter,
    writing_codec,
)
from sdkit.jobs.algebra import described, one_thread
from sdkit.jobs.fitting import fitting_model
from sdkit.jobs.inputs import parent_of, with_words_beside
from sdkit.jobs.merge_checks import check_is_not_input, family_error, known_model
from sdkit.jobs.record import recorded
from sdkit.merging.tokens import token_paths
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import DType, Weights, open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.atomic_folder import check_folder_target
from sdkit.weights.metadata import converted_metadata, public_metadata


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What a person may choose.

    Attributes:
        base: the model the adapter was made for: names modules of unusual sizes, and works out relative changes.
        family: the adapter's, where its header does not tell.
        network_alpha: alpha of the modules whose alpha the file does not state.
        rank: of approximations, see `Fitting`.
        dtype: element type of all tensors; None to keep each one's.
        allow_lossy: whether changes the format cannot hold may become the nearest it can.
        keep_training_metadata: whether captions, folders and paths stay among the metadata.
        prune: leave out what belongs to no module.
    """

    base: Path | None = None
    family: str | None = None
    network_alpha: float | None = None
    rank: int | None = None
    allow_lossy: bool = False
    keep_training_metadata: bool = False
    prune: bool = False
    dtype: DType | None = None


_FAMILIES = frozenset(family.name for family in FAMILIES)


@dataclass(frozen=True, slots=True)
class AdapterConversion(Report):
    """What the conversion of an adapter did, or with `dry_run` would do.

    Attributes:
        output: the file or folder.
        source: the name of what was converted.
        family: its family; empty where nothing told.
        was: the format it had.
        to: the format, with the dialect behind a colon, that was written.
        programs: those that apply all of it.
        consumed: tensors of the source that went in.
        renamed: how many tensors written have names the source has not; None in a dry run.
        dropped: what was not written, and why.
        unmatched: what belongs to no module; there is none, as it is an error unless pruned.
        changes: changes of weights and biases written.
        approximations: the changes that became others, with their errors.
        saved: files beside the output: words that its format has no place for.
        left_out: keys of metadata that were not written, as they tell of the training data or name paths.
        proof: what reading back has shown; None where that was not asked for, and in a dry run.
        parents: what went in, by name and quick id.
        notes: facts worth knowing.
        bytes: size of the tensors written.
        seconds: wall time, the proof included.
        peak_memory_mib: largest resident memory of the process so far; None where the system does not tell.
        dry_run: whether nothing was written.
    """

    output: str
    source: str
    family: str
    was: str
    to: str
    programs: tuple[str, ...]
    consumed: int
    renamed: int | None
    dropped: tuple[Dropped, ...]
    unmatched: tuple[str, ...]
    changes: int
    approximations: tuple[Approximation, ...]
    saved: tuple[str, ...]
    left_out: tuple[str, ...]
    proof: AdapterProof | None
    parents: tuple[dict[str, object], ...]
    notes: tuple[str, ...]
    bytes: int
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


def convert_adapter(
    weights: Weights,
    to: str,
    output: Path | None,
    options: AdapterOptions,
    *,
    verify: bool = True,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> AdapterConversion:
    """Write an opened adapter in another format; see `sdkit.convert`.

    Of a pair of embeddings, NAME and NAME-neg beside it, both are written, or neither where one cannot be.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and the source is never touched.
    """

    def one(source: Weights, place: Path | None, *, dry: bool) -> AdapterConversion:
        return _convert_one(source, to, place, options, verify=verify, force=force, dry_run=dry, progress=progress)

    negative = negative_beside(weights.path)
    if negative is None or recognise(weights)[0] != "textual-inversion":
        return one(weights, output, dry=dry_run)
    with open_weights(negative) as other:
        planned = one(weights, output, dry=True)
        place = Path(planned.output)
        beside = place.with_name(f"{place.stem}{NEGATIVE}{place.suffix}")
        second = one(other, beside, dry=True)
        if not dry_run:
            second, planned = one(other, beside, dry=False), one(weights, place, dry=False)
    note = f"{negative.name}, the negative half of the pair, is {beside.name}"
    return replace(planned, saved=(*planned.saved, second.output), notes=(*planned.notes, *second.notes, note))


def _convert_one(
    weights: Weights,
    to: str,
    output: Path | None,
    options: AdapterOptions,
    *,
    verify: bool,
    force: bool,
    dry_run: bool,
    progress: Progress | None,
) -> AdapterConversion:
    """One file; see `convert_adapter`.

    Raises:
        SdkitError: whatever is wrong, with a hint. No output is left behind, and the source is never touched.
    """
    began, told = time.perf_counter(), progress or NoProgress()
    with ExitStack() as stack, one_thread():
        base = stack.enter_context(open_weights(options.base)) if options.base else None
        source, model, family = _read(weights, base, options)
        source, format, dialect = _format(to, with_words_beside(stack, source))
        _check_names(source, model, family, format)
        place = output if output is not None else _default_output(weights.path, dialect.name or format.name, dialect)
        told.start("fitting", len(source.deltas))
        held = source if format.words or not source.deltas else replace(source, tokens=())
        fitted = _fitted(_recast(held, options.dtype), model, base, format, options)
        words = token_paths(_recast(source, options.dtype).tokens, place) if held is not source else []
        _check_output(
            place, [path for path, _ in words], weights.path, options.base, folder=not dialect.suffix, force=force
        )
        private = () if options.keep_training_metadata else public_metadata(source.metadata)[1]
        parents = tuple(
            parent_of(one, role=role) for one, role in ((weights, "source"), (base, "base")) if one is not None
        )
        report = AdapterConversion(
            output=str(place),
            source=weights.path.name,
            family=family,
            was=source.format,
            to=f"{format.name}:{dialect.name}" if dialect.name else format.name,
            programs=_readers(fitted.artifact, format, dialect, family),
            consumed=sum(not _is_left(name, source.unmatched) for name in weights.tensors),
            renamed=None,
            dropped=tuple(_dropped(source, fitted)),
            unmatched=(),
            changes=len(fitted.artifact.deltas),
            approximations=fitted.approximations,
            saved=tuple(str(path) for path, _ in words),
            left_out=private,
            proof=None,
            parents=parents,
            notes=source.notes,
            bytes=_nbytes(fitted.artifact),
            seconds=time.perf_counter() - began,
            peak_memory_mib=peak_memory_mib(),
            dry_run=dry_run,
        )
        if not dry_run:
            metadata = _metadata(source, model, family, private, _recipe(report, options, fitted))
            writer = _Writer(place, format.name, dialect.name, model, metadata, force=force)
            for path, rows in words:
                word = replace(source, deltas={}, tokens=rows, kind="textual-inversion")
                write_adapter(word, None, path, {}, format="textual-inversion", overwrite=force)
            told.start("writing and reading back", len(fitted.artifact.deltas))
            proof, renamed = writer.write(source, fitted, recast=options.dtype is not None, verify=verify)
            seconds = time.perf_counter() - began
            report = replace(report, proof=proof, renamed=renamed, seconds=seconds, peak_memory_mib=peak_memory_mib())
        return recorded(report, [weights.path, options.base])


def _recast(artifact: Artifact, dtype: DType | None) -> Artifact:
    if dtype is not None and not artifact.deltas and not artifact.tokens:
        path = artifact.source.path
        raise UsageError(
            f"{path}: dtype concerns changes of weights and words, this is a {artifact.kind}", "leave it out"
        )
    return recast(artifact, dtype) if dtype is not None else artifact


def _format(to: str, source: Artifact) -> tuple[Artifact, Format, Dialect]:
    """The format, and the adapter as one of the kind it holds: what Custom Diffusion changes may become a LoRA."""
    try:
        try:
            return source, *format_for(to, source.kind, kinds_of(source))
        except SdkitError:
            if source.kind != "custom-diffusion":
                raise
            return replace(source, kind="lora"), *format_for(to, "lora")
    except UsageError as error:
        message = f"{source.source.path}: is an adapter ({source.format}), and {error.message} of that kind"
        raise UsageError(message, error.hint) from None


def _read(weights: Weights, base: Weights | None, options: AdapterOptions) -> tuple[Artifact, Model | None, str]:
    """The adapter with the names of a model: the base's, or those of a published one of its family that it fits."""
    family = options.family or adapter_family(weights)[0] or ""
    if options.family is not None and options.family not in _FAMILIES:
        raise UsageError(f"there is no model family {family!r}", f"there are: {', '.join(sorted(_FAMILIES))}")
    model = known_model(base) if base is not None else fitting_model(family, weights)
    if base is not None and model is not None and (error := family_error(weights, model)) is not None:
        raise error
    artifact = _read_for(weights, model, strict=base is not None or options.family is not None)
    if artifact is None or (artifact.unmatched and base is None and not options.prune):
        model, artifact = None, read_adapter(weights)
    if artifact.unmatched and not options.prune:
        raise SdkitError(
            f"{weights.path}: {len(artifact.unmatched)} tensors or modules have no place "
            f"({', '.join(artifact.unmatched[:3])})",
            "--base names the model it was made for; --prune leaves them out",
        )
    return _with_alpha(artifact, options.network_alpha), model, model.family if model is not None else family


def _read_for(weights: Weights, model: Model | None, *, strict: bool) -> Artifact | None:
    """The adapter as one for `model`; None where it does not fit a model that was only guessed."""
    try:
        return read_adapter(weights, model)
    except SdkitError:
        if strict or model is None:
            raise
        return None


def _with_alpha(artifact: Artifact, alpha: float | None) -> Artifact:
    """The adapter with the alpha a person says where the file says none."""
    if alpha is None:
        if not artifact.scale_known:
            raise SdkitError(
                f"{artifact.source.path}: the format {artifact.format} does not store alpha",
                "--network-alpha says what it was trained with (loralib's default is 1)",
            )
        return artifact
    unstated = {
        target: delta for target, delta in artifact.deltas.items() if target in artifact.unstated and delta.rank
    }
    if not unstated:
        raise UsageError(f"{artifact.source.path}: states its alphas", "leave --network-alpha out")
    told = {target: replace(delta, scale=alpha / (delta.rank or 1)) for target, delta in unstated.items()}  # type: ignore[type-var]
    return replace(artifact, deltas={**artifact.deltas, **told}, scale_known=True)


def _readers(written: Artifact, format: Format, dialect: Dialect, family: str) -> tuple[str, ...]:
    """The programs that apply all of what is written in this dialect, for models of this family."""
    told = replace(format, dialects=(dialect,)).readers(kinds_of(written), family, pickled=dialect.suffix == ".pt")
    return tuple(program for program in dialect.programs if not told[program])


def _check_names(source: Artifact, model: Model | None, family: str, format: Format) -> None:
    """Without a model, modules can only keep the names they have."""
    if model is not None or not source.deltas or format.name == source.format:
        return
    if family and family not in _FAMILIES:
        raise SdkitError(
            f"{source.source.path}: {format.name} needs names for its modules, and this version recognises {family} "
            "and does not read its models",
            f"it can be written as {source.format} again, which keeps its names",
        )
    reason = f"it does not fit the published {family}" if family else adapter_family(source.source)[1]
    raise SdkitError(
        f"{source.source.path}: {format.name} needs names for its modules, and {reason}",
        "name the model it was made for with --base, or its --family",
    )


def _check_output(
    place: Path, beside: list[Path], source: Path, base: Path | None, *, folder: bool, force: bool
) -> None:
    check_is_not_input(place, [source, *([base] if base else [])])
    if folder:
        check_folder_target(place, overwrite=force)
    else:
        check_target(place, overwrite=force)
    for path in beside:
        check_target(path, overwrite=force)


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


def _recipe(report: AdapterConversion, options: AdapterOptions, fitted: Fitted) -> dict[str, object]:
    chosen = {
        name: value
        for name, value in asdict(replace(options, dtype=None)).items()
        if value not in (None, False) and name not in ("base", "keep_training_metadata")
    }
    if options.dtype is not None:
        chosen["dtype"] = options.dtype.name
    lossy = {"lossy": fitted.summary()} if fitted.approximations else {}
    return {"verb": "convert", "to": report.to, "parents": list(report.parents), **chosen, **lossy}


def _metadata(
    source: Artifact, model: Model | None, family: str, private: tuple[str, ...], recipe: dict[str, object]
) -> dict[str, str]:
    """What the source says of itself, but for what is private and what only its own format means something by."""
    own = own_metadata(source.metadata)
    kept = {key: text for key, text in source.metadata.items() if key not in private and key not in own}
    facts = described(model, family) if source.kind == "lora" else {}
    return {**facts, **converted_metadata(kept, recipe)}


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes an adapter and proves it; what fails the proof loses its name again."""

    path: Path
    format: str
    dialect: str
    model: Model | None
    metadata: dict[str, str]
    force: bool

    def write(self, source: Artifact, fitted: Fitted, *, recast: bool, verify: bool) -> tuple[AdapterProof | None, int]:
        """The proof, and how many of the tensors written have new names.

        Args:
            recast: whether numbers were rounded to another type.
        """
        codec = writing_codec(self.format)
        chosen = {"dialect": self.dialect} if self.dialect else {}
        codec.write(fitted.artifact, self.model, self.path, self.metadata, overwrite=self.force, **chosen)
        try:
            with open_weights(self.path) as written:
                renamed = sum(name not in source.source.tensors for name in written.tensors)
                if not verify:
                    return None, renamed
                errors = {entry.name: entry.error for entry in fitted.approximations}
                read = without_idle(fitted.artifact, codec.read(written, self.model))
                return prove_adapter(source, fitted.artifact, read, self.path, errors, recast=recast), renamed
        except BaseException:
            _remove(self.path)
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
