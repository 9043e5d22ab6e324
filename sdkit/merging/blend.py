"""Blending checkpoints: from opened models and a method to the plan of what is written. Reads nothing but headers.

The first model, A, gives the output its layout, names, element types, autoencoder, and everything that is no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sdkit.core.errors import SdkitError
from sdkit.families.configs import stated_configs
from sdkit.merging.agree import check_families, check_prediction, check_stored_types, check_variants
from sdkit.merging.align import Hubs, Source, as_stored, ema_key, is_buffer, like_shape
from sdkit.merging.blended import Wholes, blended
from sdkit.merging.channels import Narrowed, Widened
from sdkit.merging.method import Method, Value
from sdkit.merging.settings import Settings
from sdkit.merging.whole import Survey, Whole
from sdkit.streaming import Cat, Output, Rounding, Slice
from sdkit.streaming.expression import Context, Expression, TileFunction
from sdkit.streaming.lazy import stored
from sdkit.streaming.quantised import Times, quantisation_scale
from sdkit.weights import DTYPES, DType, TensorInfo

Missing = Literal["error", "from-a", "skip"]
Ema = Literal["drop", "keep", "use"]
WIDENED = "unet.conv_in.weight"  # inpainting, pix2pix and depth models add input channels here and nowhere else


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do where models differ.

    Attributes:
        missing: a weight some model lacks is an error, is taken from A, or is left out.
        ema: the averaged copies inside the files are left out, blended too, or used in place of the weights.
        blend_vae: whether the autoencoder is blended; else it is A's.
        allow_prediction_mix: whether models that predict the noise and the velocity may be mixed.
        dtype: element type of all floating-point tensors; None keeps A's.
        rounding: how blended weights are rounded.
        seed: of the methods that draw random numbers.
    """

    missing: Missing = "error"
    ema: Ema = "drop"
    blend_vae: bool = False
    allow_prediction_mix: bool = False
    dtype: DType | None = None
    rounding: Rounding = field(default_factory=Rounding)
    seed: int = 0


@dataclass(slots=True)
class Plan:
    """What will be written, and what became of the inputs.

    Attributes:
        outputs: every tensor, in file order.
        blended: tensors computed.
        copied: tensors whose bytes are copied.
        missing: weights of A that another model lacks.
        extra: weights of other models that A lacks; none of them is in the output.
        dropped: averaged copies left out.
        repaired: position counters that were damaged.
    """

    outputs: list[Output] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def copied(self) -> int:
        """Tensors whose bytes are copied."""
        return sum(output.copied is not None for output in self.outputs)

    @property
    def blended(self) -> int:
        """Tensors that are computed."""
        return len(self.outputs) - self.copied


@dataclass(frozen=True, slots=True)
class Counting:
    """0, 1, 2, …: the positions of a text encoder's tokens."""

    shape: tuple[int, ...]
    unit: int = 1

    def bind(self, context: Context) -> TileFunction:
        """Count."""
        import torch

        return torch.arange


def plan_blend(
    sources: Sequence[Source],
    base: Source | None,
    method: Method,
    settings: Settings,
    policy: Policy,
    vae: Source | None = None,
) -> Plan:
    """Plan the blend of `sources`, the first of which is A.

    Args:
        sources: the models in the method's order.
        base: what differences are taken from, for methods that work on them.
        method: what to do.
        settings: its options for every weight.
        policy: what to do where models differ.
        vae: a file whose autoencoder replaces A's.

    Raises:
        SdkitError: the models do not fit together, or a rule matches nothing.
    """
    method.check_models(len(sources), base is not None)
    everyone = [*sources, base] if base is not None else list(sources)
    check_families(everyone)
    check_variants(everyone)
    check_prediction(everyone, allow=policy.allow_prediction_mix)
    check_stored_types(everyone, changes_type=policy.dtype is not None)
    _check_wholes(method, sources[0], policy)
    return _Planner(tuple(sources), base, method, settings, policy, vae).plan()


def _check_wholes(method: Method, a: Source, policy: Policy) -> None:
    """Refuse what a method that looks at whole models cannot do."""
    if method.named and a.model.family == "unknown":
        raise SdkitError(
            f"{method.name} goes by diffusers' names, and {a.weights.path} is of no family sdkit knows",
            "`sdkit inspect` shows why; other methods need no names",
        )
    if method.sees_wholes and policy.ema == "keep":
        raise SdkitError(f"{method.name} blends no averaged copies (EMA)", "--ema drop or --ema use")


class _Planner:
    """Goes through A's tensors and decides about each."""

    def __init__(
        self,
        sources: tuple[Source, ...],
        base: Source | None,
        method: Method,
        settings: Settings,
        policy: Policy,
        vae: Source | None,
    ) -> None:
        self._a, self._sources, self._base, self._vae = sources[0], sources, base, vae
        self._method, self._settings, self._policy = method, settings, policy
        self._plan = Plan()
        self._averages = {ema_key(key): key for key in self._a.hubs}
        self._wholes = self._see_wholes() if method.sees_wholes else None

    def _see_wholes(self) -> Wholes:
        """The blended parameters that all models have, to be read when the first tensor is merged."""
        tensors = {
            hub: tuple(source.parameter(hub) for source in self._sources)
            for hub in self._a.model.places
            if all(hub in source.model.places for source in self._sources)
            and (self._policy.blend_vae or not hub.startswith("vae."))
        }
        whole = Whole(tensors, self._a.model, stated_configs(self._a.weights))
        return Wholes(whole, Survey(lambda: self._method.look(whole, self._settings.values)))

    def plan(self) -> Plan:
        for info in self._a.weights.tensors.values():
            expression = self._expression(info)
            if expression is not None:
                self._plan.outputs.append(self._output(info, expression))
        self._plan.outputs.extend(self._other_markers())
        self._check_missing()
        unused = self._settings.unused()
        if unused:
            raise SdkitError(
                f"--rule {unused[0]}: matches no blended weight",
                "rules are searched for in diffusers' names, like unet.mid_block.resnets.0.conv1.weight",
            )
        return self._plan

    def _output(self, info: TensorInfo, expression: Expression) -> Output:
        policy = self._policy
        if isinstance(expression, Counting):
            return Output(info.name, DTYPES["I64"], expression)
        dtype = policy.dtype if policy.dtype is not None and info.dtype.is_float else info.dtype
        return Output(info.name, dtype, expression, policy.rounding)

    def _expression(self, info: TensorInfo) -> Expression | None:
        """What becomes of one tensor of A; None leaves it out."""
        key = info.name
        if key in self._a.model.ema:
            return self._average(info)
        if is_buffer(key):
            return self._positions(info)
        hubs = self._a.hubs.get(key)
        if hubs is None or not info.numel:
            return stored(self._a.weights, info)
        if hubs[0].startswith("vae.") and self._vae is not None:
            return self._baked(info)
        if hubs[0].startswith("vae.") and not self._policy.blend_vae:
            return stored(self._a.weights, info)
        return self._blend(info, hubs)

    def _blend(self, info: TensorInfo, hubs: Hubs) -> Expression | None:
        found = [source.find(info.name, self._a) for source in self._sources]
        base = self._base.find(info.name, self._a) if self._base is not None else None
        inputs = [tensor for tensor in found if tensor is not None]
        if len(inputs) < len(found) or (self._base is not None and base is None):
            self._plan.missing.append(info.name)
            return None if self._policy.missing == "skip" else stored(self._a.weights, info)
        result = self._merged(info, hubs, inputs, base)
        if result == inputs[0]:
            return stored(self._a.weights, info) if not self._a.use_ema else result
        scale = quantisation_scale(self._a.weights, info.name)
        return result if scale == 1.0 else Times(result, 1 / scale)

    def _merged(self, info: TensorInfo, hubs: Hubs, inputs: list[Expression], base: Expression | None) -> Expression:
        everyone = [*inputs, base] if base is not None else inputs
        if hubs == (WIDENED,):
            return self._merged_channels(info, hubs, inputs, base)
        self._check_shapes(info, everyone)
        if self._wholes is not None:
            return self._by_parameter(info, hubs, self._wholes.models)
        values = [self._settings.of(hub, self._a.model) for hub in hubs]
        if all(entry == values[0] for entry in values):
            return self._apply(hubs[0], inputs, base, values[0])
        return Cat(tuple(self._rows(hub, inputs, base, entry) for hub, entry in zip(hubs, values, strict=True)))

    def _by_parameter(self, info: TensorInfo, hubs: Hubs, models: Whole) -> Expression:
        """Each parameter merged as diffusers has it, whatever tensor A keeps it in."""
        places = self._a.model.places
        merged = [self._apply(hub, models.tensors[hub], None, self._settings.of(hub, self._a.model)) for hub in hubs]
        parts = tuple(as_stored(tensor, places[hub]) for tensor, hub in zip(merged, hubs, strict=True))
        return like_shape(parts[0] if len(parts) == 1 else Cat(parts), info.shape)

    def _rows(
        self, hub: str, inputs: Sequence[Expression], base: Expression | None, values: Mapping[str, Value]
    ) -> Expression:
        """One of several parameters in a tensor, whose options differ from its neighbours'."""
        first, last = self._a.model.places[hub].rows or (0, inputs[0].shape[0])
        parts = [Slice(tensor, first, last) for tensor in inputs]
        return self._apply(hub, parts, Slice(base, first, last) if base is not None else None, values)

    def _merged_channels(
        self, info: TensorInfo, hubs: Hubs, inputs: list[Expression], base: Expression | None
    ) -> Expression:
        """The input convolution: the channels all models have are merged, the rest is the widest model's."""
        everyone = [*inputs, base] if base is not None else inputs
        values = self._settings.of(hubs[0], self._a.model)
        widths = [tensor.shape[1] for tensor in everyone]
        channels = min(widths)
        if channels == max(widths):
            self._check_shapes(info, everyone)
            return self._apply(hubs[0], inputs, base, values)
        cut = [tensor if tensor.shape[1] == channels else Narrowed(tensor, channels) for tensor in everyone]
        self._check_shapes(info, cut)
        wide = max(everyone, key=lambda tensor: tensor.shape[1])
        if wide.shape != info.shape and self._a.weights.configs:
            raise SdkitError(
                "A is a folder whose configuration has fewer input channels than another model",
                "put the inpainting, pix2pix or depth model first",
            )
        if base is None:
            return Widened(wide, self._apply(hubs[0], cut, None, values))
        return Widened(wide, self._apply(hubs[0], cut[:-1], cut[-1], values))

    def _apply(
        self, hub: str, inputs: Sequence[Expression], base: Expression | None, values: Mapping[str, Value]
    ) -> Expression:
        return blended(self._method, inputs, base, values, name=hub, seed=self._policy.seed, wholes=self._wholes)

    def _check_shapes(self, info: TensorInfo, tensors: Sequence[Expression]) -> None:
        sources = [*self._sources, self._base] if self._base is not None else list(self._sources)
        for source, tensor in zip(sources, tensors, strict=True):
            if source is not None and tensor.shape != tensors[0].shape:
                raise SdkitError(
                    f"{info.name}: {source.role} has the shape {list(tensor.shape)}, A has {list(tensors[0].shape)}",
                    "the models differ in their architecture and cannot be blended",
                )

    def _baked(self, info: TensorInfo) -> Expression:
        """A tensor of the autoencoder that replaces A's."""
        found = self._vae.find(info.name, self._a) if self._vae is not None else None
        if self._vae is None or found is None or found.shape != info.shape:
            path = self._vae.weights.path if self._vae is not None else ""
            raise SdkitError(f"{path}: holds no autoencoder that fits A: {info.name} is missing or has another shape")
        return found

    def _average(self, info: TensorInfo) -> Expression | None:
        """What becomes of a tensor of A's averaged copy."""
        if self._policy.ema != "keep":
            self._plan.dropped.append(info.name)
            return None
        key = self._averages.get(info.name)
        everyone = [*self._sources, self._base] if self._base is not None else list(self._sources)
        infos = [source.weights.tensors.get(info.name) for source in everyone if source is not None]
        if key is None:
            return stored(self._a.weights, info)  # the average's own counters
        tensors = [
            stored(source.weights, found)
            for source, found in zip(everyone, infos, strict=True)
            if source is not None and found is not None
        ]
        if len(tensors) < len(infos):
            raise SdkitError(
                f"--ema keep: not every model has the averaged copy {info.name}", "--ema drop leaves all of them out"
            )
        self._check_shapes(info, tensors)
        values = self._settings.of(self._a.hubs[key][0], self._a.model)
        base = tensors[-1] if self._base is not None else None
        return self._apply(self._a.hubs[key][0], tensors[: len(self._sources)], base, values)

    def _positions(self, info: TensorInfo) -> Expression:
        """Positions are counted anew where another tool has averaged or rounded them."""
        if info.dtype.name == "I64" and _counts(self._a.weights.read(info)):
            return stored(self._a.weights, info)
        self._plan.repaired.append(info.name)
        return Counting(info.shape)

    def _other_markers(self) -> Iterator[Output]:
        """Flags only other models carry: they hold for what is made of those models too."""
        seen = set(self._a.weights.tensors)
        for source in self._sources[1:]:
            for name in source.model.markers:
                if name not in seen:
                    seen.add(name)
                    info = source.weights.tensors[name]
                    yield Output(name, info.dtype, stored(source.weights, info))

    def _check_missing(self) -> None:
        """Complain about weights only some models have, unless the policy covers them."""
        others = [*self._sources[1:], *([self._base] if self._base is not None else [])]
        known = self._a.model.places
        for source in others:
            self._plan.extra.extend(
                hub
                for hub in source.model.places
                if hub not in known and (self._policy.blend_vae or not hub.startswith("vae."))
            )
        if self._policy.missing != "error" or not (self._plan.missing or self._plan.extra):
            return
        lacking = f"{len(self._plan.missing)} weights of A are missing in another model" if self._plan.missing else ""
        further = f"{len(self._plan.extra)} weights of other models are missing in A" if self._plan.extra else ""
        example = (self._plan.missing or self._plan.extra)[0]
        raise SdkitError(
            f"{' and '.join(part for part in (lacking, further) if part)} (for example {example})",
            "--missing from-a takes them from A, --missing skip leaves them out",
        )


def _counts(data: bytes) -> bool:
    """Whether 64-bit integers count 0, 1, 2, …"""
    values = [int.from_bytes(data[start : start + 8], "little", signed=True) for start in range(0, len(data), 8)]
    return values == list(range(len(values)))
