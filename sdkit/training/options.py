"""The keys of ``sdkit train METHOD … key=value``: how they are declared, read and explained, without torch.

Every method declares its own dataclass of options and inherits what it shares with others: `TrainOptions`, which all
have, and the sets of `sdkit.training.option_sets`. The classes have no slots, because classes with slots cannot be
inherited together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_type_hints

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint

WEIGHT_SUFFIXES = frozenset({".safetensors", ".pt", ".bin", ".ckpt", ".pth"})
SEVERAL = "|"  # between the values of a key that takes several
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
IsFile = Callable[[str], bool]
_NAMES = {bool: "yes or no", int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a class says of a key.

    Attributes:
        help: what it is, in a line.
        minimum: the least it may be.
        maximum: the most it may be.
        late: whether a resume may change it.
        without_effect: whether the result is the same whatever it is.
        names_file: whether a text names a file or folder, given which words do; None for a key that names none.
        names_model: whether every word it may be names a model, so that a registered name will do.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    late: bool = False
    without_effect: bool = False
    names_file: Callable[[str, IsFile], bool] | None = None
    names_model: bool = False


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is a key; `more` is what `Declaration` has."""
    return field(default=default, metadata={"option": Declaration(help, **more)})


def fixed(value: Any) -> Any:
    """A field that is no key: nobody may set it. A class that inherits it may make it an `option`, and the reverse."""
    return field(default=value, metadata={"option": None})


def watching(default: Any, help: str, **more: Any) -> Any:
    """A key of what is looked at on the way; it changes nothing in the training."""
    return option(default, help, late=True, without_effect=True, **more)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as people write it.

    Attributes:
        word: how it is written: what Python keeps for itself has no underscore behind it.
        name: of its field.
        kind: its type.
        default: what it is when nobody says.
        declaration: what is known of it.
    """

    word: str
    name: str
    kind: Any
    default: Any
    declaration: Declaration

    def read(self, raw: Any) -> Any:
        """A value of the key's type; text is read, because YAML leaves ``1e-4`` as text.

        Raises:
            UsageError: it is none, or out of range.
        """
        try:
            value = _coerce(raw, self.kind)
        except (TypeError, ValueError):
            raise UsageError(f"{self.word}={raw}: {_NAMES[_plain(self.kind)]} is needed", self._hint()) from None
        low, high = self.declaration.minimum, self.declaration.maximum
        if value is not None and low is not None and value < low:
            raise UsageError(f"{self.word}={value}: must be at least {low:g}", self._hint())
        if value is not None and high is not None and value > high:
            raise UsageError(f"{self.word}={value}: must be at most {high:g}", self._hint())
        return value

    def _hint(self) -> str:
        """What the key is, for whoever gave it a wrong value."""
        return f"{self.word}= stands for: {self.declaration.help}"

    def names_file(self, value: Any, is_file: IsFile = lambda word: False) -> bool:
        """Whether a value is a file or folder.

        Args:
            is_file: whether a word, which could be just that, is one where it was written.
        """
        rule = self.declaration.names_file
        return rule is not None and value is not None and str(value) != "" and rule(str(value), is_file)


def always(text: str, is_file: IsFile) -> bool:
    """Of keys that can name nothing but files."""
    return True


def _is_text_file(text: str, is_file: IsFile) -> bool:
    return text.endswith(".txt")


def _is_no_share(text: str, is_file: IsFile) -> bool:
    return _share(text) is None


def is_init_file(text: str, is_file: IsFile) -> bool:
    """Of ``init=``, which of an embedding may be a word too."""
    return init_file(text) is not None or is_file(text)


@dataclass(frozen=True)
class TrainOptions:
    """What every run is made of, beside base, data and output."""

    steps: int = option(1000, "optimizer steps", minimum=1, late=True)
    epochs: float | None = option(None, "passes over the pictures; instead of steps", minimum=0.0, late=True)
    seed: int = option(0, "all randomness follows from it", minimum=0)
    lr: float = option(1e-4, "learning rate", minimum=0.0, late=True)
    batch: int = option(1, "pictures in a batch", minimum=1)
    accumulate: int = option(1, "batches in a step", minimum=1)
    resolution: int | None = option(None, "side of a square with as many pixels [default: the base's]", minimum=8)
    optimizer: str = option("adamw", "adamw, adam, sgd, adafactor, adamw8bit, lion, prodigy or adamw-schedulefree")
    weight_decay: float = option(0.01, "of the optimizer", minimum=0.0)
    schedule: str = option("constant_with_warmup", "of the learning rate: constant, linear, cosine, …", late=True)
    warmup: int = option(0, "steps until the learning rate is reached", minimum=0)
    precision: str = option("auto", "fp32, bf16 or fp16 [auto: bf16 on a GPU, else fp32]")
    device: str = option("auto", "cuda, mps, xpu or cpu", late=True, without_effect=True)
    max_grad_norm: float = option(1.0, "gradients longer than this are shortened; 0 leaves them", minimum=0.0)
    ema: float | None = option(
        None, "save a moving average of the parameters, with this decay", minimum=0.0, maximum=1.0
    )
    checkpointing: bool = option(False, "save memory by computing activations twice")
    compile: bool = option(False, "let torch compile what trains: minutes at the start, faster steps")
    caption: str = option("", "caption of pictures that have none")
    flip: bool = option(False, "mirror half of the pictures")
    background: str = option("white", "colour that transparent pixels show")
    strict: bool = option(False, "stop at a damaged picture instead of leaving it out")
    init: str = option("", "continue from this file", names_file=is_init_file, names_model=True)
    save_every: int = option(
        250, "steps between saved states; 0 saves only the last", minimum=0, late=True, without_effect=True
    )
    keep_states: int = option(2, "saved states that are kept", minimum=1, late=True, without_effect=True)
    validation: str = option(
        "",
        "for the held-out loss: a folder of pictures, or the share of them not trained on",
        without_effect=True,
        names_file=_is_no_share,
    )
    validate_every: int = watching(0, "steps between validations; 0 only before and after", minimum=0)
    sample: str = watching(
        "", "prompts drawn on the way: several with | between, or a .txt file with one a line", names_file=_is_text_file
    )
    sample_negative: str = watching("", "negative prompt of the samples")
    sample_every: int = watching(0, "steps between samples; 0 draws only before and after", minimum=0)
    sample_steps: int = watching(20, "steps of the sampler", minimum=1)
    sample_cfg: float = watching(7.0, "guidance of the samples", minimum=0.0)
    sample_seed: int = watching(0, "noise of the samples follows from it", minimum=0)
    tensorboard: bool = watching(False, "write the run for TensorBoard too")
    save_dtype: str = option("fp16", "fp32, fp16, bf16, or keep (as the base), of the result")

    # What the loop asks of every method, and only some leave to people: see `DenoisingOptions`.
    caption_dropout: float = fixed(0.0)
    mask: str = fixed("")
    unmasked_weight: float = fixed(0.0)
    prediction: str | None = fixed(None)
    zero_terminal_snr: bool = fixed(False)
    weights: str = fixed("fp32")
    fused_backward: bool = fixed(False)

    def usual(self) -> Mapping[str, Any]:
        """Defaults that follow from other options, by the names of their fields; what is given goes before them."""
        return {}

    @property
    def init_file(self) -> Path | None:
        """The file or folder `init` names; None where it is a word, or nothing."""
        return init_file(self.init)

    @property
    def held_out_share(self) -> float | None:
        """The share of the pictures that is held out; None where `validation` is a folder or empty.

        Raises:
            UsageError: it is a number, and no share.
        """
        share = _share(self.validation)
        if share is not None and not 0 < share < 1:
            raise UsageError(f"validation={self.validation}: a share lies between 0 and 1", "0.1 is a tenth")
        return share

    def as_dict(self) -> dict[str, Any]:
        """Key → value, as they are written on the command line."""
        return {word: getattr(self, key.name) for word, key in keys(type(self)).items()}

    def with_models(self, find: Callable[[str], str]) -> Self:
        """The same where `find` has found the models that options name."""
        named = [key.name for key in keys(type(self)).values() if key.declaration.names_model]
        found: dict[str, Any] = {name: find(getattr(self, name)) for name in named}
        return replace(self, **found)

    def without_places(self) -> dict[str, Any]:
        """As `as_dict`, where files and folders have their names alone, because others will read it."""
        known = keys(type(self))
        return {
            word: Path(value).name if known[word].names_file(value) and Path(value).exists() else value
            for word, value in self.as_dict().items()
        }

    def defaults(self) -> dict[str, Any]:
        """Key → what it would be had nobody given it, as the other keys are."""
        usual = self.usual()
        return {word: usual.get(key.name, key.default) for word, key in keys(type(self)).items()}


Options = TypeVar("Options", bound=TrainOptions)


def _share(text: str) -> float | None:
    """What `validation` says as a number; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def init_file(init: str) -> Path | None:
    """The file or folder that ``init=`` names; None where it is a word, or nothing."""
    path = Path(init)
    spelled_as_file = path.suffix in WEIGHT_SUFFIXES or "/" in init or os.sep in init
    return path if init and (spelled_as_file or may_be_adapter(path)) else None


def may_be_adapter(path: Path) -> bool:
    """Whether a file, or a folder with an adapter, is there; a folder of pictures may be called like a word."""
    return path.is_file() or (path / "adapter_config.json").is_file()


def spelled(name: str) -> str:
    """A key as it is written, from a field's name or another spelling of it (``as_``, ``te-lr``)."""
    return name.replace("-", "_").rstrip("_")


def keys(kind: type[TrainOptions]) -> Mapping[str, Key]:
    """The keys of a class of options, as they are written, in the order of its fields."""
    types = get_type_hints(kind)
    found = {entry: _declaration(kind, entry.name) for entry in fields(kind)}
    return {
        spelled(entry.name): Key(spelled(entry.name), entry.name, types[entry.name], entry.default, declaration)
        for entry, declaration in found.items()
        if declaration is not None
    }


def _declaration(kind: type, name: str) -> Declaration | None:
    """What the nearest class says of a field: one that only sets another default says nothing."""
    for base in kind.__mro__:
        declared = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if declared is not None and name in base.__dict__.get("__annotations__", {}) and "option" in declared.metadata:
            found: Declaration | None = declared.metadata["option"]
            return found
    raise TypeError(f"{kind.__name__}.{name} is declared neither with option() nor with fixed()")


def option_help(known: Mapping[str, Key], defaults: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(``key=``, explanation and default) for keys.

    Args:
        defaults: for what ``as=`` may say, the usual one first, key → what it is when nobody says.
    """
    return [(f"{word}=", f"{key.declaration.help}{_default_note(key, defaults)}") for word, key in known.items()]


def _default_note(key: Key, defaults: Mapping[str, Mapping[str, Any]]) -> str:
    """`` [default: 16]``; nothing where there is none to speak of, or the explanation says it already."""
    shown = {form: _shown(values[key.word]) for form, values in defaults.items() if key.word in values}
    usual = next(iter(shown.values()))
    notes = [usual, *(f"{text} with as={form}" for form, text in shown.items() if text and text != usual)]
    said = ", ".join(filter(None, notes))
    return f" [default: {said}]" if said and "[" not in key.declaration.help else ""


def _shown(value: Any) -> str:
    """A default as people write it; empty for one that says nothing: no value, not asked for, chosen by itself."""
    if value is None or value is False or value in ("", "auto"):
        return ""
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def parse_options(kind: type[Options], given: Mapping[str, Any], method: str) -> Options:
    """Options from keys and values as they come from a command line, a recipe or a caller.

    Raises:
        UsageError: a key is unknown or of another method, or a value is not of its type or out of range.
    """
    known = keys(kind)
    values: dict[str, Any] = {}
    for word, raw in given.items():
        key = known.get(spelled(word))
        if key is None:
            raise unknown_option(word, known, method)
        values[key.name] = key.read(raw)
    options = kind(**values)
    return replace(options, **{name: value for name, value in options.usual().items() if name not in values})


def unknown_option(word: str, known: Collection[str], method: str) -> UsageError:
    """The error for a key that a method does not know; the hint names the nearest."""
    return UsageError(
        f"unknown option {spelled(word)}= (it is not one of {method})", nearest_hint(spelled(word), known)
    )


def _plain(kind: Any) -> Any:
    """The type itself, of one that may be missing."""
    return next((entry for entry in get_args(kind) if entry is not type(None)), kind)


def _coerce(raw: Any, kind: Any) -> Any:
    """The value of a text or a number; raises TypeError or ValueError where it is none."""
    optional, plain = type(None) in get_args(kind), _plain(kind)
    if optional and (raw is None or str(raw).lower() in ("none", "null", "")):
        return None
    if plain is bool:
        return _boolean(raw)
    if plain is int:
        return _integer(raw)
    if plain is float:
        return _number(raw)
    return str(raw)


def _boolean(raw: Any) -> bool:
    text = str(raw).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError
    return text in _TRUE


def _integer(raw: Any) -> int:
    value = _number(raw)
    if value != int(value):
        raise ValueError
    return int(raw) if not isinstance(raw, str) or raw.lstrip("+-").isdigit() else int(value)


def _number(raw: Any) -> float:
    value = float(raw)
    if isinstance(raw, bool) or not math.isfinite(value):
        raise ValueError
    return value
