"""What one trained or downloaded adapter is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdkit.adapters.deltas.delta import Delta
from sdkit.weights import TensorInfo, Weights


@dataclass(frozen=True, slots=True)
class Target:
    """What a delta changes: one parameter of one module.

    Attributes:
        module: hub name (diffusers' module with its component in front, ``unet.mid_block.attentions.0.proj_in``).
        parameter: ``weight`` or ``bias``.
    """

    module: str
    parameter: str = "weight"

    @property
    def name(self) -> str:
        """The hub name of the parameter, as `Model.places` spells it."""
        return f"{self.module}.{self.parameter}"

    @property
    def component(self) -> str:
        """The component it belongs to: ``unet``, ``text_encoder``, ``vae``, …"""
        return self.module.partition(".")[0]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of a token embedding (textual inversion) found in a file.

    Attributes:
        token: the trigger, as the file spells it.
        component: the text encoder they belong to.
        weights: the file.
        info: the tensor, shape [n, d] or [d].
    """

    token: str
    component: str
    weights: Weights
    info: TensorInfo


@dataclass(frozen=True, slots=True)
class Artifact:
    """One adapter in the internal form. Nothing but headers and scalars has been read when it exists.

    Attributes:
        source: the opened file, whose tensors the deltas refer to.
        format: the codec that read it (``kohya``, ``peft``, …).
        deltas: what it changes.
        tokens: what it teaches the tokenizer.
        unmatched: the modules in the file that the model has no place for, in the file's own names.
        notes: facts a person should see (an assumed alpha, a dialect), one sentence each.
        metadata: the file's metadata.
    """

    source: Weights
    format: str
    deltas: Mapping[Target, Delta] = field(default_factory=dict)
    tokens: tuple[TokenRows, ...] = ()
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
