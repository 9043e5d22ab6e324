"""The keys of ``sdkit train METHOD … key=value``: one table for all methods, read without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint

WEIGHT_SUFFIXES = frozenset({".safetensors", ".pt", ".bin", ".ckpt", ".pth"})
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

# Keys of what is looked at on the way; they change nothing in the training.
UNSEEN = frozenset("validate_every sample sample_every sample_steps sample_cfg sample_seed tensorboard".split())


def _option(default: Any, help: str, **limits: float) -> Any:
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What a run is made of, beside base, data and output."""

    steps: int = _option(1000, "optimizer steps", minimum=1)
    epochs: float | None = _option(None, "passes over the pictures; instead of steps", minimum=0.0)
    seed: int = _option(0, "all randomness follows from it", minimum=0)
    lr: float = _option(1e-4, "learning rate", minimum=0.0)
    te_lr: float | None = _option(None, "learning rate of the text encoder [default: lr]", minimum=0.0)
    batch: int = _option(1, "pictures in a batch", minimum=1)
    accumulate: int = _option(1, "batches in a step", minimum=1)
    resolution: int | None = _option(None, "side of a square with as many pixels [default: the base's]", minimum=8)
    optimizer: str = _option("adamw", "adamw, adam, sgd, adafactor, adamw8bit, lion, prodigy or adamw-schedulefree")
    weight_decay: float = _option(0.01, "of the optimizer", minimum=0.0)
    schedule: str = _option("constant_with_warmup", "of the learning rate: constant, linear, cosine, …")
    warmup: int = _option(0, "steps until the learning rate is reached", minimum=0)
    precision: str = _option("auto", "fp32, bf16 or fp16 [auto: bf16 on a GPU, else fp32]")
    device: str = _option("auto", "cuda, mps, xpu or cpu")
    max_grad_norm: float = _option(1.0, "gradients longer than this are shortened; 0 leaves them", minimum=0.0)
    ema: float | None = _option(
        None, "save a moving average of the parameters, with this decay", minimum=0.0, maximum=1.0
    )
    checkpointing: bool = _option(False, "save memory by computing activations twice")
    compile: bool = _option(False, "let torch compile what trains: minutes at the start, faster steps")
    caption: str = _option("", "caption of pictures that have none")
    caption_dropout: float = _option(
        0.0, "share of steps a picture comes without its caption", minimum=0.0, maximum=1.0
    )
    flip: bool = _option(False, "mirror half of the pictures")
    background: str = _option("white", "colour that transparent pixels show")
    mask: str = _option("", "which parts count: alpha, files (NAME-masklabel.png beside) or a folder; white counts")
    unmasked_weight: float = _option(0.0, "how much the masked-out parts count", minimum=0.0, maximum=1.0)
    strict: bool = _option(False, "stop at a damaged picture instead of leaving it out")
    token: str = _option("", "trigger word, noted in the file [default of an embedding: <NAME>]")
    as_: str = _option("weights", "what learns: weights (the base itself) or lora")
    class_: str | None = _option(None, "what the subject is one of; turns prior preservation on")
    class_images: int = _option(200, "pictures of the class; the base draws those that are not there", minimum=1)
    class_data: str = _option("", "folder of pictures of the class, instead of drawn ones")
    prior_weight: float = _option(1.0, "weight of the class pictures", minimum=0.0)
    init: str = _option("", "continue from this file; of an embedding, also the word it begins as")
    snr_gamma: float | None = _option(None, "min-SNR weighting, usually 5", minimum=0.0)
    noise_offset: float = _option(0.0, "noise common to a whole picture", minimum=0.0)
    prediction: str | None = _option(None, "epsilon or v_prediction, where the base does not say")
    save_every: int = _option(250, "steps between saved states; 0 saves only the last", minimum=0)
    keep_states: int = _option(2, "saved states that are kept", minimum=1)
    validation: str = _option("", "for the held-out loss: a folder of pictures, or the share of them not trained on")
    validate_every: int = _option(0, "steps between validations; 0 only before and after", minimum=0)
    sample: str = _option("", "prompts drawn on the way: several with | between, or a .txt file with one a line")
    sample_every: int = _option(0, "steps between samples; 0 draws only before and after", minimum=0)
    sample_steps: int = _option(20, "steps of the sampler", minimum=1)
    sample_cfg: float = _option(7.0, "guidance of the samples", minimum=0.0)
    sample_seed: int = _option(0, "noise of the samples follows from it", minimum=0)
    tensorboard: bool = _option(False, "write the run for TensorBoard too")
    format: str = _option("kohya", "file format of the result")
    save_dtype: str = _option("fp16", "fp32, fp16, bf16, or keep (as the base), of the result")
    kl_weight: float = _option(1e-6, "pull of the latents towards a normal distribution", minimum=0.0)
    algo: str = _option("lora", "what is trained beside a layer: lora, dora, loha or lokr")
    rank: int = _option(16, "rank of the LoRA", minimum=1)
    network_alpha: float | None = _option(None, "scale × rank of the LoRA [default: rank]", minimum=0.0)
    targets: str = _option("transformer", "layers: attention, transformer, or a regular expression")
    conv_rank: int = _option(0, "rank beside convolutions (LoCon); 0 leaves them out", minimum=0)
    conv_alpha: float | None = _option(None, "alpha beside convolutions [default: conv_rank]", minimum=0.0)
    text_encoder: bool = _option(False, "train the text encoder too")
    rslora: bool = _option(False, "scale by alpha / sqrt(rank)")
    layer_structure: str = _option("1,2,1", "widths of a hypernetwork's layers, as multiples of its input's")
    activation: str = _option("linear", "between a hypernetwork's layers: linear, relu, leakyrelu, swish, mish, …")
    activate_output: bool = _option(False, "the activation comes behind the last layer too")
    layer_norm: bool = _option(False, "a layer norm behind each layer of a hypernetwork")
    layer_dropout: str = _option("0", "dropout behind hidden layers: a number, or a list like layer_structure")
    weight_init: str = _option("Normal", "Normal, XavierNormal, XavierUniform, KaimingNormal or KaimingUniform")
    widths: str = _option("", "widths that get networks, like 768,320 [default: all the base has]")
    factor: int = _option(-1, "size of LoKr's smaller side; -1 makes both sides about equal", minimum=-1)
    decompose_both: bool = _option(False, "LoKr's smaller side may be low-rank too")
    lora_plus: float = _option(1.0, "learning rate of up beside that of down (LoRA+: 16)", minimum=0.0)
    vectors: int | None = _option(
        None, "vectors of the embedding [default: 1, or as init's file]", minimum=1, maximum=16
    )
    property_: str = _option("object", "what the embedding names, object or style: which templates replace captions")
    scale_lr: bool = _option(False, "multiply the learning rate by the pictures in a step")

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
        try:
            share = float(self.validation)
        except ValueError:
            return None
        if not 0 < share < 1:
            raise UsageError(f"validation={self.validation}: a share lies between 0 and 1", "0.1 is a tenth")
        return share

    def as_dict(self) -> dict[str, Any]:
        """Key → value, as they are written on the command line."""
        return {spelled(entry.name): getattr(self, entry.name) for entry in fields(self)}


def init_file(init: str) -> Path | None:
    """The file or folder that ``init=`` names; None where it is a word, or nothing."""
    path = Path(init)
    spelled_as_file = path.suffix in WEIGHT_SUFFIXES or "/" in init or os.sep in init
    return path if init and (spelled_as_file or may_be_adapter(path)) else None


def may_be_adapter(path: Path) -> bool:
    """Whether a file, or a folder with an adapter, is there; a folder of pictures may be called like a word."""
    return path.is_file() or (path / "adapter_config.json").is_file()


def spelled(name: str) -> str:
    """A field's name as people write the key: what Python keeps for itself has an underscore behind it."""
    return name.rstrip("_")


def option_help(accepts: Collection[str]) -> list[tuple[str, str]]:
    """(``key=TYPE``, explanation) for the keys a method accepts."""
    return [
        (f"{spelled(entry.name)}=", str(entry.metadata["help"]))
        for entry in fields(TrainOptions)
        if spelled(entry.name) in accepts
    ]


def parse_options(
    given: Mapping[str, Any], accepts: Collection[str], defaults: Mapping[str, Any], method: str
) -> TrainOptions:
    """Options from keys and values as they come from a command line, a recipe or a caller.

    Raises:
        UsageError: a key is unknown or of another method, or a value is not of its type or out of range.
    """
    types = get_type_hints(TrainOptions)
    entries = {spelled(entry.name): entry for entry in fields(TrainOptions)}
    values: dict[str, Any] = {entries[key].name: value for key, value in defaults.items()}
    for word, raw in given.items():
        key = spelled(word.replace("-", "_"))
        if key not in entries or key not in accepts:
            known = "" if key not in entries else f" of {method}"
            raise UsageError(
                f"unknown option {key}={known and ' (it is not one' + known + ')'}", nearest_hint(key, accepts)
            )
        name = entries[key].name
        values[name] = _check(key, _coerce(key, raw, types[name]), entries[key].metadata)
    return TrainOptions(**values)


def _coerce(key: str, raw: Any, kind: Any) -> Any:
    """A value of the type `kind`; text is read, because YAML leaves ``1e-4`` as text."""
    optional = type(None) in getattr(kind, "__args__", ())
    plain = next((entry for entry in getattr(kind, "__args__", ()) if entry is not type(None)), kind)
    if optional and (raw is None or str(raw).lower() in ("none", "null", "")):
        return None
    try:
        if plain is bool:
            return _boolean(raw)
        if plain is int:
            return _integer(raw)
        if plain is float:
            value = float(raw)
            if isinstance(raw, bool) or not math.isfinite(value):
                raise ValueError
            return value
    except (TypeError, ValueError):
        names = {bool: "yes or no", int: "a whole number", float: "a number"}
        raise UsageError(f"{key}={raw}: {names[plain]} is needed") from None
    return str(raw)


def _boolean(raw: Any) -> bool:
    text = str(raw).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError
    return text in _TRUE


def _integer(raw: Any) -> int:
    value = float(raw)
    if isinstance(raw, bool) or value != int(value):
        raise ValueError
    return int(raw) if not isinstance(raw, str) or raw.lstrip("+-").isdigit() else int(value)


def _check(key: str, value: Any, limits: Mapping[str, Any]) -> Any:
    low, high = limits.get("minimum"), limits.get("maximum")
    if value is not None and low is not None and value < low:
        raise UsageError(f"{key}={value}: must be at least {low:g}")
    if value is not None and high is not None and value > high:
        raise UsageError(f"{key}={value}: must be at most {high:g}")
    return value
