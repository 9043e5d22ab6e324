"""The adapter that is converted: with the names of a model, its alpha, and the format that is meant for it."""

from __future__ import annotations

from dataclasses import replace

from sdkit.adapters.artifact import Artifact
from sdkit.conversion.adapter import kinds_of
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import FAMILIES
from sdkit.families.family import Model
from sdkit.formats import Dialect, Format, adapter_family, format_for, read_adapter
from sdkit.jobs.converting.options import AdapterOptions
from sdkit.jobs.fitting import fitting_model
from sdkit.jobs.merge_checks import family_error, known_model
from sdkit.weights import Weights

_FAMILIES = frozenset(family.name for family in FAMILIES)


def read_source(weights: Weights, base: Weights | None, options: AdapterOptions) -> tuple[Artifact, Model | None, str]:
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


def choose_format(to: str, source: Artifact) -> tuple[Artifact, Format, Dialect]:
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


def check_names(source: Artifact, model: Model | None, family: str, format: Format) -> None:
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
