"""Train a hypernetwork: small networks that transform what attention reads, as A1111's web UI has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.key_value import WEIGHT_INITS, Hypernetwork, Structure, attention_inputs, spelled
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.formats import read_adapter, write_adapter
from sdkit.training.method import Method, Result, Size
from sdkit.training.option_sets import DenoisingOptions
from sdkit.training.options import option
from sdkit.weights import open_weights
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.rng import StepRNG
    from sdkit.training.trainable import Trainable


@dataclass(frozen=True)
class Options(DenoisingOptions):
    """Of a hypernetwork."""

    steps: int = 10_000
    lr: float = 5e-6
    save_dtype: str = "fp32"
    layer_structure: str = option("1,2,1", "widths of a hypernetwork's layers, as multiples of its input's")
    activation: str = option("linear", "between a hypernetwork's layers: linear, relu, leakyrelu, swish, mish, …")
    activate_output: bool = option(False, "the activation comes behind the last layer too")
    layer_norm: bool = option(False, "a layer norm behind each layer of a hypernetwork")
    layer_dropout: str = option("0", "dropout behind hidden layers: a number, or a list like layer_structure")
    weight_init: str = option("Normal", "Normal, XavierNormal, XavierUniform, KaimingNormal or KaimingUniform")
    widths: str = option("", "widths that get networks, like 768,320 [default: all the base has]")


def _structure(options: Options) -> Structure:
    factors = _numbers("layer_structure", options.layer_structure)
    chances = _numbers("layer_dropout", options.layer_dropout)
    if len(chances) == 1:
        chances = (0.0, *chances * (len(factors) - 2), 0.0)
    try:
        return Structure(
            factors,
            options.activation.lower(),
            layer_norm=options.layer_norm,
            activate_output=options.activate_output,
            dropout=chances if any(chances) else (),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{key}={text}: numbers with commas between them are needed") from None


def _widths(model: Model, options: Options) -> tuple[int, ...]:
    """The widths that get networks, the largest first."""
    known = sorted(attention_inputs(model), reverse=True)
    if not options.widths:
        return tuple(known)
    chosen = sorted({int(number) for number in _numbers("widths", options.widths)}, reverse=True)
    strange = next((width for width in chosen if width not in known), None)
    if strange is not None:
        raise UsageError(
            f"widths={options.widths}: no attention of this base reads anything {strange} wide",
            f"it has {spelled(tuple(known))}",
        )
    return tuple(chosen)


def _continued(model: Model, options: Options) -> Hypernetwork:
    """The hypernetwork of `init`, of which nothing but its numbers may change."""
    with open_weights(options.init) as weights:
        artifact = read_adapter(weights, model)
        found = artifact.key_value
        if found is None or artifact.unmatched or not found.networks:
            reason = ", ".join(artifact.unmatched[:3]) or f"a {artifact.kind}"
            raise SdkitError(f"{options.init}: is no hypernetwork for this base: {reason}")
    if _structure(options) not in (_structure(Options()), found.structure):
        raise UsageError(
            f"{options.init}: its structure is {found.structure}", "leave the structure out to go on training it"
        )
    if options.widths and set(_widths(model, options)) != set(found.networks):
        raise UsageError(f"{options.init}: its widths are {spelled(tuple(found.networks))}", "leave out widths=")
    return found


def _size(model: Model, options: Options) -> Size:
    item = parse_precision(options.save_dtype).itemsize
    if options.weight_init not in WEIGHT_INITS:
        raise UsageError(f"weight_init={options.weight_init}: unknown", nearest_hint(options.weight_init, WEIGHT_INITS))
    if options.init:
        found = _continued(model, options)
        structure, widths = found.structure, tuple(found.networks)
    else:
        structure, widths = _structure(options), _widths(model, options)
    inputs = attention_inputs(model)
    count = sum(structure.parameters(width) for width in widths)
    left = tuple(width for width in sorted(inputs, reverse=True) if width not in widths)
    notes = [f"networks of the structure {structure} for the widths {spelled(widths)}"]
    notes += [f"keys and values read at the widths {spelled(left)} stay the base's own"] if left else []
    modules = sum(len(inputs[width]) for width in widths)
    return Size(count, modules, count * item + 20_000, tuple(notes))


def _trainables(backbone: Backbone, options: Options, rng: StepRNG) -> list[Trainable]:
    from sdkit.runtime.install import loaded_networks
    from sdkit.training.trainables.key_value import KeyValue, new_networks

    if options.init:
        found = _continued(backbone.model, options)
        return [KeyValue(loaded_networks(found, backbone), found.structure, lr=options.lr)]
    structure = _structure(options)
    networks = new_networks(structure, _widths(backbone.model, options), options.weight_init, rng)
    return [KeyValue(networks, structure, lr=options.lr)]


def _save(result: Result[Options], path: Path, metadata: Mapping[str, str]) -> None:
    from sdkit.runtime.precision import save_type
    from sdkit.training.trainables.key_value import KeyValue

    (networks,), options = result.trained, result.options
    assert isinstance(networks, KeyValue)
    before = _continued(result.backbone.model, options) if options.init else None
    words = metadata.get("modelspec.trigger_phrase")
    artifact = networks.artifact(
        save_type(options.save_dtype),
        name=path.stem,
        step=options.steps + (before.step if before else 0),
        weight_init=before.weight_init if before else options.weight_init,
        checkpoint_name=result.backbone.base_name,
        info=f"trigger words: {words}" if words else None,
    )
    write_adapter(artifact, result.backbone.model, path, metadata, format="hypernetwork", overwrite=True)


METHOD = Method(
    options=Options,
    size=_size,
    trainables=_trainables,
    objective=Options.denoising,
    save=_save,
    suffix=lambda options: ".pt",
    modelspec="hypernetwork",
)
