"""Folders of PEFT (LoRA, DoRA, LoHa, LoKr, OFT): adapter_config.json beside adapter_model.safetensors.

Keys are ``base_model.model.<module>.lora_A.weight`` (down) and ``lora_B.weight`` (up), one folder per component, which
only the module names tell. Rank and alpha are in the JSON alone: ``r`` and ``lora_alpha``, overridden per module by the
regular expressions of ``rank_pattern`` and ``alpha_pattern``; the scale is alpha / r, or alpha / √r with
``use_rslora``. LoHa and LoKr have LyCORIS' roles (``hada_w1_a``, ``lokr_w2``) and the scale ``alpha`` / r, which PEFT
applies to a LoKr of two whole sides too. OFT has ``oft_R.weight``, and its series in the JSON. Initialisations such as
PiSSA also change the base, so that the file alone is not the whole change.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder, same_weight
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.input_rotation import InputRotation
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._lycoris import LOHA, LOKR, block_size, changes, refuse
from sdkit.formats._peft_write import component_files
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.atomic import write_file
from sdkit.weights.atomic_folder import AtomicFolder

CHANGES = ("lora", "locon", "dora", "loha", "lokr", "oftv2", "bias")
DIALECTS = (Dialect(("peft",), suffix="", says="a folder, with one folder in it for each component"),)
CONFIG = "adapter_config"
TEXT_MODEL = "text_model."
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>A|B)(?:\.default)?\.(?P<part>weight|bias)")
_LENGTHS = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_LYCORIS = re.compile(rf"(?:base_model\.model\.)?(?P<module>.+)\.(?P<role>{'|'.join((*LOHA, *LOKR))})(?:\.default)?")
_OFT = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.oft_R(?:\.default)?\.weight")
_KINDS = ("LORA", "LOHA", "LOKR", "OFT")
_SIGNS = (f"{CONFIG}.json", f"*/{CONFIG}.json")  # of one component, or of several
_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

# Settings that change what the factors mean, and initialisations that change the base.
_REFUSED_SETTINGS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters",
    "modules_to_save": "a copy of whole modules",
    "trainable_token_indices": "trained token rows",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Patterns come from strangers, and Python's matcher can be made to run for years. A pattern within these limits cannot:
# no repeated group, and few of what makes it try again (at most so many of each character).
_MOST_TERMS = 64
_MAX_PATTERN_LENGTH = 1024
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_COUNTS = {"*": 2, "+": 3, "{": 2, "?": 4, "(": 4, "|": 16}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What PEFT's configuration says about ranks and alphas.

    Attributes:
        where: the file, for messages.
        rank: ``r``; None when it is not stated and the tensors' own rank counts.
        alpha: ``lora_alpha``; None when it is not stated (then the scale is 1).
        rank_stabilised: ``use_rslora``.
        dora: ``use_dora``.
        ranks: compiled ``rank_pattern`` with the rank of the modules it matches, in order.
        alphas: the same for ``alpha_pattern``.
    """

    where: Path
    rank: int | None
    alpha: float | None
    rank_stabilised: bool
    dora: bool
    ranks: tuple[tuple[re.Pattern[str], float], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: Path) -> LoraSettings:
        """Read a configuration.

        Raises:
            SdkitError: a value is not of its type, or a pattern is no usable regular expression.
        """
        rank, alpha = config.get("r"), config.get("lora_alpha")
        for key, value in (("r", rank), ("lora_alpha", alpha)):
            if value is not None and not _is_number(value):
                raise _bad(where, key, value)
        return cls(
            where,
            int(rank) if rank is not None else None,
            float(alpha) if alpha is not None else None,
            bool(config.get("use_rslora")),
            bool(config.get("use_dora")),
            _patterns(config, "rank_pattern", where),
            _patterns(config, "alpha_pattern", where),
        )

    def scale(self, module: str, rank: int | None) -> float:
        """The scale of a module whose factors have `rank`.

        Args:
            module: name within the component, as PEFT matches its patterns against it.
            rank: None for a LoKr of two whole sides, whose rank is only stated.

        Raises:
            SdkitError: the configuration states another rank.
        """
        stated = _first_match(self.ranks, module, self.rank)
        rank = int(stated or 1) if rank is None else rank
        if stated is not None and stated != rank:
            raise SdkitError(
                f"{self.where}: {module} has rank {rank}, its configuration says {stated:g}",
                "the configuration belongs to another file; fetch both again",
            )
        alpha = _first_match(self.alphas, module, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def detect(weights: Weights) -> Verdict:
    """Recognised by PEFT's configuration."""
    kinds = list(dict.fromkeys(str(config.get("peft_type")) for config in component_configs(weights).values()))
    strange = next((kind for kind in kinds if kind not in _KINDS), None)
    if strange is not None:
        return Verdict(False, f"adapter_config.json says {strange[:40]}; of PEFT's kinds {', '.join(_KINDS)} are read")
    if kinds:
        return Verdict(True, f"adapter_config.json says {' and '.join(kinds)}")
    start = "base_model.model."
    if weights.mentions(start) and any(name.startswith(start) for name in weights.tensors):
        return Verdict(False, "its names are PEFT's, but alpha is in adapter_config.json: open the folder of both")
    return Verdict(False, "there is no adapter_config.json")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`.

    Raises:
        SdkitError: also for settings that would change the result and are not supported.
    """
    builder = ArtifactBuilder(weights, model, "peft")
    for component, config in component_configs(weights).items():
        _refuse_settings(weights, config)
        _read_component(builder, component, config)
    for name in weights.tensors:
        if name.partition("/")[0] not in component_configs(weights) and "" not in component_configs(weights):
            builder.leave(name)
    return builder.build()


def component_configs(weights: Weights) -> dict[str, dict[str, Any]]:
    """Component → its configuration; in a folder of one component, which only the module names tell, that is ``""``."""
    found = {key.removesuffix(CONFIG).rstrip("/"): key for key in weights.configs if key.split("/")[-1] == CONFIG}
    return {component: weights.configs[key] for component, key in found.items()}


def _read_component(builder: ArtifactBuilder, component: str, config: Mapping[str, Any]) -> None:
    """Take the tensors below a component's folder, or all."""
    weights, prefix = builder.weights, f"{component}/" if component else ""
    tensors = {n.removeprefix(prefix): info for n, info in weights.tensors.items() if n.startswith(prefix)}
    if config["peft_type"] == "OFT":
        _read_oft(builder, config, tensors, component)
        return
    if config["peft_type"] != "LORA":
        settings = LoraSettings.parse({**config, "lora_alpha": config.get("alpha")}, weights.path)
        _read_lycoris(builder, settings, tensors, component)
        return
    settings = LoraSettings.parse(config, weights.path)
    pairs = _pairs(builder, tensors)
    component = component or fitting_component(
        builder, {spelled: _pair_shape(parts) for spelled, parts in pairs.items()}
    )
    if config.get("fan_in_fan_out"):
        builder.note("fan_in_fan_out is set; it concerns no layer of these models, and PEFT ignores it for them too")
    for spelled, parts in pairs.items():
        if config.get("use_dora") and "lengths" not in parts:
            raise SdkitError(f"{weights.path}: {spelled} is incomplete: lora_magnitude_vector missing")
        add_pair(builder, candidates(component, spelled), spelled, parts, settings)


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. `path` becomes PEFT's folder; a LoRA of several components has one folder for each.

    Raises:
        SdkitError: also when PEFT cannot hold a change.
    """
    files = _files(artifact, model)
    with AtomicFolder(path, overwrite=overwrite, signs=_SIGNS) as folder:
        for component, (contents, config) in files.items():
            place = folder.work / component if len(files) > 1 else folder.work
            place.mkdir(exist_ok=True)
            write_adapter_file(place / "adapter_model.safetensors", contents, metadata, overwrite=False)
            write_file(place / f"{CONFIG}.json", json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
        folder.commit()


def check(artifact: Artifact, model: Model | None) -> None:
    """See `formats.check_writable`."""
    _files(artifact, model)


def _files(artifact: Artifact, model: Model | None) -> dict[str, tuple[dict[str, Content], dict[str, object]]]:
    """Component → tensors and configuration."""
    files = {}
    for component, (modules, biases) in by_component(artifact, model, "PEFT").items():
        shapes = {name: _weight_shape(model, f"{component}.{name}", delta) for name, delta in modules.items()}
        files[component] = component_files(modules, shapes, biases)
    return files


def _weight_shape(model: Model | None, module: str, delta: Delta) -> tuple[int, ...]:
    return model.places[f"{module}.weight"].shape if model is not None else delta.shape


class Component(NamedTuple):
    """What PEFT keeps of one component: module within it → the change of its weight, and of its bias."""

    modules: dict[str, Delta]
    biases: dict[str, Full]


def by_component(artifact: Artifact, model: Model | None, format: str) -> dict[str, Component]:
    """Component → its changes, for formats that hold changes of weights, and of biases beside them, alone.

    Raises:
        SdkitError: there is something else in it.
    """
    if artifact.tokens:
        raise SdkitError(f"{format}'s format cannot hold the token {artifact.tokens[0].token}", "write it in kohya's")
    components: dict[str, Component] = defaultdict(lambda: Component({}, {}))
    for target, delta in artifact.deltas.items():
        component, module = components[target.component], target.module.partition(".")[2]
        if target.parameter == "weight":
            component.modules[module] = delta
        elif isinstance(delta, Full):
            component.biases[module] = delta
        else:
            raise not_held(target.name, delta, format)
    for name, component in components.items():
        _check_biases(name, component, model)
    return components


def _check_biases(name: str, component: Component, model: Model | None) -> None:
    """PEFT gives every LoRA of a component a bias or none, and cannot merge one into a layer that has none."""
    without = (
        module for module in component.modules if model is not None and f"{name}.{module}.bias" not in model.places
    )
    lacking = next(without, None) if component.biases else None
    if lacking is not None:
        raise SdkitError(
            f"{name}.{next(iter(component.biases))}.bias: PEFT gives every LoRA a bias or none, and {lacking} has none",
            "write it in kohya's, which holds every kind",
        )


def not_held(name: str, delta: Delta, format: str) -> SdkitError:
    """The error for a change that a format has no place for."""
    return SdkitError(
        f"{name}: a change of the kind {delta.kind} cannot be written in {format}'s format",
        "write it in kohya's, which holds every kind",
    )


def candidates(component: str, module: str) -> list[str]:
    """Hub names a module may have; transformers 5 spells a text encoder's modules without ``text_model.``"""
    if not component.startswith("text_encoder"):
        return [f"{component}.{module}"]
    short = module.removeprefix(TEXT_MODEL)
    # `text_projection` lies beside the text model in either spelling.
    return [f"{component}.{module}", f"{component}.{TEXT_MODEL}{short}", f"{component}.{short}"]


def add_pair(
    builder: ArtifactBuilder,
    hub_names: list[str],
    spelled: str,
    parts: Mapping[str, TensorInfo],
    settings: LoraSettings,
    alpha: float | None = None,
    *,
    stated: bool = True,
) -> None:
    """Add one module given its parts ``A`` (down), ``B`` (up) and perhaps ``bias``.

    Args:
        parts: also ``lengths``, which make it a DoRA; PEFT's belong to the output features.
        alpha: the module's own alpha from the file, which overrides the settings.
        stated: whether either of them states it.

    Raises:
        SdkitError: one of the pair is missing, or the ranks contradict each other.
    """
    missing = [f"lora_{side}" for side in "AB" if side not in parts]
    if missing:
        raise SdkitError(f"{builder.weights.path}: {spelled} is incomplete: {' and '.join(missing)} missing")
    up, down = builder.read(parts["B"]), builder.read(parts["A"])
    rank = down.shape[0] if down.shape else 1
    name = spelled.removeprefix(f"{hub_names[0].partition('.')[0]}.")
    scale = alpha / max(rank, 1) if alpha is not None else settings.scale(name, max(rank, 1))
    module = builder.resolve(*hub_names)
    change: Delta = LowRank(up, down, scale)
    if "lengths" in parts:
        change = Dora(change, builder.read(parts["lengths"]), by_input=False)
    builder.add(module, spelled, change, stated=stated)
    if "bias" in parts:
        builder.add(module, spelled, Full(builder.read(parts["bias"]), scale), "bias")


def _pairs(builder: ArtifactBuilder, tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    pairs: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in tensors.items():
        match, lengths = _KEY.fullmatch(name), _LENGTHS.fullmatch(name)
        if lengths is not None:
            pairs[lengths["module"]]["lengths"] = info
        elif match is None:
            builder.leave(name)
        elif match["part"] == "weight":
            pairs[match["module"]][match["side"]] = info
        elif match["side"] == "B":
            pairs[match["module"]]["bias"] = info
        else:
            builder.leave(name)
    return pairs


def _read_lycoris(
    builder: ArtifactBuilder, settings: LoraSettings, tensors: Mapping[str, TensorInfo], component: str
) -> None:
    """Take a LoHa or LoKr."""
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in tensors.items():
        match = _LYCORIS.fullmatch(name)
        if match is None:
            builder.leave(name)
        else:
            modules[match["module"]][match["role"]] = info
    found = {
        spelled: next(changes(builder, spelled, parts, partial(settings.scale, spelled)))[1]
        for spelled, parts in modules.items()
    }
    component = component or fitting_component(builder, {spelled: delta.shape for spelled, delta in found.items()})
    for spelled, delta in found.items():
        builder.add(builder.resolve(*candidates(component, spelled)), spelled, delta)


def _read_oft(
    builder: ArtifactBuilder, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], component: str
) -> None:
    """Take an OFT, which turns the input features.

    Raises:
        SdkitError: also when the rotations are held near the identity, which PEFT does anew whenever it uses them.
    """
    where = builder.weights.path
    if config.get("coft"):
        raise refuse(builder.weights, "adapter_config.json, coft", "an OFT that is held near the identity")
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else 0
    if not isinstance(terms, int) or not 0 <= terms <= _MOST_TERMS:
        raise _bad(where, "num_cayley_neumann_terms", terms)
    modules = {}
    for name, info in tensors.items():
        match = _OFT.fullmatch(name)
        if match is None:
            builder.leave(name)
        else:
            modules[match["module"]] = info
    component = component or _component_of_names(builder, modules)
    for spelled, info in modules.items():
        hub = builder.resolve(*candidates(component, spelled))
        read = builder.read(info)
        turned = builder.shape_of(hub) or (1, info.shape[0] * block_size(read))
        builder.add(hub, spelled, InputRotation(read, turned, terms))


def _component_of_names(builder: ArtifactBuilder, modules: Collection[str]) -> str:
    """The component that has most of these modules; OFT's tensors tell no shapes of weights."""
    if builder.model is None:
        return fitting_component(builder, dict.fromkeys(modules))
    model = builder.model
    known = {
        name: sum(any(f"{hub}.weight" in model.places for hub in candidates(name, module)) for module in modules)
        for name in _COMPONENTS
    }
    return max(_COMPONENTS, key=lambda name: known[name])


def fitting_component(builder: ArtifactBuilder, shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    """The component whose modules fit best: by name, and for SDXL's two text encoders by shape."""
    if builder.model is None:
        text = any(name.startswith((TEXT_MODEL, "encoder.layers.", "text_projection")) for name in shapes)
        return "text_encoder" if text else "unet"
    model = builder.model
    fits = {name: sum(_fits(model, name, *entry) for entry in shapes.items()) for name in _COMPONENTS}
    return max(_COMPONENTS, key=lambda name: fits[name])


def _pair_shape(parts: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    return (*parts["B"].shape[:1], *parts["A"].shape[1:]) if {"A", "B"} <= set(parts) else None


def _fits(model: Model, component: str, spelled: str, shape: tuple[int, ...] | None) -> bool:
    places = (model.places.get(f"{name}.weight") for name in candidates(component, spelled))
    place = next((place for place in places if place is not None), None)
    return place is not None and shape is not None and same_weight(shape, place.shape)


def _refuse_settings(weights: Weights, config: Mapping[str, Any]) -> None:
    for key, kind in _REFUSED_SETTINGS.items():
        if config.get(key):
            raise refuse(weights, f"adapter_config.json, {key}", kind)
    if config.get("bias", "none") != "none":
        raise refuse(weights, f"adapter_config.json, bias = {str(config['bias'])[:20]}", "a set of trained biases")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise SdkitError(
            f"{weights.path}: it was initialised with {start[:40]}, which also changes the base it was trained on",
            "save it again with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )


def _patterns(config: Mapping[str, Any], key: str, where: Path) -> tuple[tuple[re.Pattern[str], float], ...]:
    table = config.get(key) or {}
    if not isinstance(table, dict) or not all(_is_number(value) for value in table.values()):
        raise _bad(where, key, table)
    return tuple((_compile(pattern, key, where), float(value)) for pattern, value in table.items())


def _compile(pattern: str, key: str, where: Path) -> re.Pattern[str]:
    """PEFT's rule: the pattern matches a module's whole name, or the end of it after a dot."""
    risky = any(pattern.count(character) > most for character, most in _MAX_COUNTS.items())
    if risky or _REPEATED_GROUP.search(pattern) or len(pattern) > _MAX_PATTERN_LENGTH:
        raise _bad(where, key, pattern, "is too complicated a pattern to be matched safely")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except (re.error, RecursionError, OverflowError):
        raise _bad(where, key, pattern, "is no regular expression") from None


def _first_match(table: tuple[tuple[re.Pattern[str], float], ...], module: str, default: float | None) -> float | None:
    return next((value for pattern, value in table if pattern.match(module)), default)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bad(where: Path, key: str, value: object, reason: str = "is no usable value") -> SdkitError:
    return SdkitError(f"{where}: {key} in the adapter's configuration: {str(value)[:80]!r} {reason}")
