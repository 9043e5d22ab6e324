"""What one trained or downloaded adapter is, whatever file it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.key_value import Hypernetwork
from sdkit.adapters.trajectory import Trajectory
from sdkit.streaming.expression import Read
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
class Steering:
    """A place in CLIP's common space that a text encoder is drawn towards for every prompt (aesthetic gradients).

    Attributes:
        component: the text encoder.
        vector: [d] or [1, d].
        projection: from the text encoder's vectors to that space, [d, width]; None where the file has none.
    """

    component: str
    vector: Read
    projection: Read | None = None

    @property
    def width(self) -> int:
        """Numbers of the vector."""
        return self.vector.info.numel


@dataclass(frozen=True, slots=True)
class Change:
    """One sort of weight change in an adapter, and how many parameters it changes.

    Attributes:
        kind: as `Delta.kind`.
        rank: None for a kind without one.
        alpha: scale × rank, the alpha that kohya's scripts would write; None without a rank.
        count: how many deltas are of this sort.
    """

    kind: str
    rank: int | None
    alpha: float | None
    count: int


# Why an adapter of a kind cannot become part of a checkpoint, as `merge` says it.
_NOT_BAKEABLE = {
    "textual-inversion": "teaches the tokenizer a word; it changes no weight of the checkpoint",
    "hypernetwork": "transforms what attention reads while a picture is made; no change of the weights equals it",
    "hyperdreambooth": "predicts adapters from pictures (`sdkit train hyperdreambooth as=identity`); it is none itself",
    "aesthetic": "steers the text embedding while a picture is made; it holds no weights",
    "inversion": "is one picture's way out of noise; it changes no weight of the checkpoint",
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """One adapter in the internal form. Nothing but headers and scalars has been read when it exists.

    Attributes:
        source: the opened file, whose tensors the deltas refer to.
        format: the codec that read it (``kohya``, ``peft``, …).
        kind: ``lora`` (every kind of weight change), ``textual-inversion``, ``hypernetwork``, ``aesthetic``,
            ``custom-diffusion``, ``inversion`` or ``hyperdreambooth`` (a network that predicts adapters).
        deltas: what it changes.
        tokens: what it teaches the tokenizer.
        key_value: the networks of a hypernetwork.
        steering: the vectors of an aesthetic embedding.
        trajectory: the inverted picture of a null-text inversion.
        unmatched: the modules in the file that the model has no place for, in the file's own names.
        notes: facts a person should see (an assumed alpha, a dialect), one sentence each.
        metadata: the file's metadata.
        spelled: module → its name in the file, in the file's own format.
        unstated: changes whose alpha the file does not state, so that a scale of 1 is assumed.
        scale_known: False where that is a mere guess, because the format never states alpha.
    """

    source: Weights
    format: str
    kind: str = "lora"
    deltas: Mapping[Target, Delta] = field(default_factory=dict)
    tokens: tuple[TokenRows, ...] = ()
    key_value: Hypernetwork | None = None
    steering: tuple[Steering, ...] = ()
    trajectory: Trajectory | None = None
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    unstated: frozenset[Target] = frozenset()
    scale_known: bool = True

    @property
    def not_bakeable(self) -> str | None:
        """Why this adapter cannot be merged into a checkpoint, as a sentence without its subject; None when it can."""
        return _NOT_BAKEABLE.get(self.kind)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules it changes, sorted."""
        return tuple(sorted({target.module for target in self.deltas}))

    @property
    def changes(self) -> tuple[Change, ...]:
        """The distinct kinds, ranks and alphas among its deltas with their counts, most frequent first."""
        counts = Counter((delta.kind, delta.rank, _alpha(delta)) for delta in self.deltas.values())
        return tuple(Change(*key, count) for key, count in counts.most_common())


def _alpha(delta: Delta) -> float | None:
    return delta.scale * delta.rank if delta.rank is not None else None
