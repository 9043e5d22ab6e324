"""Hypernetworks: a pair of small networks for every width of what attention reads its keys and values from.

    x + strength · network(x)    takes the place of x, once before ``to_k`` and once before ``to_v``

in self- and cross-attention alike; the width of x chooses the pair. So A1111's web UI trains and applies them, after
NovelAI (2022). No change of the weights equals it: the networks have activations, and biases where the model has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model
from sdkit.streaming.expression import Read

# Activations as A1111's files name them, and the class of torch.nn each name stands for. Those of its list that look
# at a whole batch (softmax and its kin) or cannot be built without arguments (threshold, …) are left out.
ACTIVATIONS = {
    "linear": "Identity",
    "relu": "ReLU",
    "leakyrelu": "LeakyReLU",
    "elu": "ELU",
    "swish": "Hardswish",  # the hard one, in spite of the name
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "celu": "CELU",
    "gelu": "GELU",
    "hardshrink": "Hardshrink",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "logsigmoid": "LogSigmoid",
    "mish": "Mish",
    "prelu": "PReLU",
    "relu6": "ReLU6",
    "rrelu": "RReLU",
    "selu": "SELU",
    "silu": "SiLU",
    "softplus": "Softplus",
    "softshrink": "Softshrink",
    "softsign": "Softsign",
    "tanhshrink": "Tanhshrink",
}
# What the weights of a new network are, in the words of A1111; biases begin at zero.
WEIGHT_INITS = ("Normal", "XavierNormal", "XavierUniform", "KaimingNormal", "KaimingUniform")
_MAX_LAYERS = 32
_MAX_FACTOR = 64
_ATTENTION_INPUT = re.compile(r"unet\..*\.attn[12]\.to_[kv]\.weight")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network.

    Attributes:
        kind: ``linear``, ``norm``, ``dropout``, or an activation's name.
        inputs: width of what goes in.
        outputs: width of what comes out.
        chance: of being dropped.
    """

    kind: str
    inputs: int
    outputs: int
    chance: float = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its tensors."""
        if self.kind == "linear":
            return {"weight": (self.outputs, self.inputs), "bias": (self.outputs,)}
        if self.kind == "norm":
            return {"weight": (self.outputs,), "bias": (self.outputs,)}
        return {"weight": (1,)} if self.kind == "prelu" else {}


@dataclass(frozen=True, slots=True)
class Structure:
    """The layers of each network, in the terms of A1111's files.

    Attributes:
        layer_structure: widths from the input to the output, as multiples of the input's: 1, 2, 1.
        activation: between the linear layers, one of `ACTIVATIONS`.
        layer_norm: whether each linear layer, with its activation, is followed by a layer norm.
        activate_output: whether the activation comes behind the last linear layer too.
        dropout: chance of being dropped at each of the widths (the input's counts for nothing); empty for no dropout.

    Raises:
        ValueError: no network can be built so; the message says why.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        factors = self.layer_structure
        if not 2 <= len(factors) <= _MAX_LAYERS or factors[0] != 1 or factors[-1] != 1:
            raise ValueError(f"the layer structure {spelled(factors)} does not begin and end with 1")
        if not all(0 < factor <= _MAX_FACTOR for factor in factors):
            raise ValueError(f"the layer structure {spelled(factors)} has a width that is not in 0 … {_MAX_FACTOR}")
        if self.activation not in ACTIVATIONS:
            near = nearest_hint(self.activation, ACTIVATIONS)
            raise ValueError(f"the activation {self.activation} is unknown{f' ({near})' if near else ''}")
        if self.dropout and len(self.dropout) != len(factors):
            raise ValueError(f"the dropout {spelled(self.dropout)} has not the {len(factors)} entries of the layers")
        if not all(0 <= chance < 1 for chance in self.dropout):
            raise ValueError(f"the dropout {spelled(self.dropout)} has a chance that is not in 0 … 1")

    def layers(self, width: int) -> Iterator[Layer]:
        """The layers of a network, whose order gives its tensors their names."""
        widths = [int(width * factor) for factor in self.layer_structure]
        last = len(widths) - 2
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            yield Layer("linear", inputs, outputs)
            if self.activation != "linear" and (index < last or self.activate_output):
                yield Layer(self.activation, outputs, outputs)
            if self.layer_norm:
                yield Layer("norm", outputs, outputs)
            if self.dropout and self.dropout[index + 1]:
                yield Layer("dropout", outputs, outputs, self.dropout[index + 1])

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The tensors of a network: ``linear.0.weight``, ``linear.0.bias``, …; the numbers count all layers."""
        return {
            f"linear.{index}.{role}": shape
            for index, layer in enumerate(self.layers(width))
            for role, shape in layer.shapes.items()
        }

    def parameters(self, width: int) -> int:
        """Numbers in both networks of a width."""
        return 2 * sum(math.prod(shape) for shape in self.shapes(width).values())

    def __str__(self) -> str:
        """``1, 2, 1, relu, layer norm, dropout 0, 0.3, 0``."""
        parts = [spelled(self.layer_structure), self.activation]
        parts += ["activated output"] if self.activate_output and self.activation != "linear" else []
        parts += ["layer norm"] if self.layer_norm else []
        parts += [f"dropout {spelled(self.dropout)}"] if any(self.dropout) else []
        return ", ".join(parts)


Tensors = Mapping[str, Read]


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """The networks of one file.

    Attributes:
        structure: of all networks.
        networks: width → the tensors, by the names of `Structure.shapes`, of the networks for keys and for values.
        weight_init: what the weights began as, in A1111's words.
        name: its own name.
        step: optimizer steps it was trained for.
        checkpoint: A1111's short hash of the base.
        checkpoint_name: the base.
        info: a text for people.
    """

    structure: Structure
    networks: Mapping[int, tuple[Tensors, Tensors]]
    weight_init: str = "Normal"
    name: str = ""
    step: int = 0
    checkpoint: str | None = None
    checkpoint_name: str | None = None
    info: str | None = None


def attention_inputs(model: Model) -> dict[int, list[str]]:
    """Width → the ``to_k`` and ``to_v`` that read it, as hub modules in the model's order."""
    found: dict[int, list[str]] = {}
    for name, place in model.places.items():
        if _ATTENTION_INPUT.fullmatch(name):
            found.setdefault(place.shape[1], []).append(name.removesuffix(".weight"))
    return found


def spelled(numbers: tuple[float, ...] | list[int]) -> str:
    """Numbers as people write them in a row."""
    return ", ".join(f"{number:g}" for number in numbers)
