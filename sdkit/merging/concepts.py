"""Several Custom Diffusions in one model, each word keeping its own keys and values: constrained least squares.

Every file holds whole keys and values W_i of cross-attention, so that adding up their differences from the base lets
each spoil the words of the others. Instead the weights are asked for that change the base least on other texts, and
give for each word what its own file gives (Kumari et al. 2023, arXiv:2212.04488, section 3.3):

    min ‖(Ŵ − W) C_regᵀ‖   with   Ŵ Cᵀ = V,   V = [… W_i c_iᵀ …]
    Ŵ = W + vᵀ d,   d = C (C_regᵀ C_reg)⁻¹,   vᵀ = (V − W Cᵀ) (d Cᵀ)⁻¹

Rows of C are what the text encoder makes of the words and of what follows them, rows of C_reg what it makes of captions
without them. The change has as many ranks as C has rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import read_place
from sdkit.runtime.tensors import in_memory
from sdkit.runtime.tokens import installed_words, spliced, words_of
from sdkit.streaming.expression import Read
from sdkit.weights import Weights

if TYPE_CHECKING:
    import torch

KIND = "custom-diffusion"
CAPTIONS = 200  # as the authors' code takes
_BATCH = 16
_RIDGE = 1e-8  # of the mean square of the texts' features, in directions no caption has
_SAME = 1e-8  # texts closer than this, beside the others, are one and not two conditions
_SIZE = (512, 512)  # of pictures the text is for; what is read of it does not depend on it
_THINGS = (
    "dog cat horse bird fish house tree car train boat bridge mountain river beach forest garden flower apple "
    "table chair lamp window door street city village church castle tower ship airplane bicycle clock book guitar "
    "piano cup bottle plate cake bread cheese hat coat shoe bag umbrella woman man child girl boy king queen "
    "soldier dancer painter farmer doctor teacher robot dragon ghost moon sun cloud storm snow fire wave desert "
    "island cave road field lake waterfall statue mask sword crown ring mirror candle kite ball toy puppet rabbit "
    "elephant lion tiger bear wolf owl butterfly bee spider snake turtle whale shark penguin"
).split()
_LOOKS = (
    "red blue green yellow old new small big wooden golden dark bright happy sad wet broken shiny soft tall wild"
).split()
_PLACES = (
    "on a table|in the snow|at night|by the sea|in a room|under a tree|on a hill|in the rain|at sunset|in a city|"
    "in front of a wall|on the grass|seen from above|in black and white|as an oil painting|as a drawing|in a forest|"
    "on a white background|in the fog|close up"
).split("|")


@dataclass(frozen=True, slots=True)
class Concept:
    """One Custom Diffusion of several.

    Attributes:
        artifact: its weights, and its word or words.
        strength: 1 keeps what its file gives for its word, 0 what the base gives.
        classes: what its words are one of, as prompts name it behind the word; empty where nothing says.
    """

    artifact: Artifact
    strength: float = 1.0
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """Several concepts as one change.

    Attributes:
        artifact: low-rank changes of the base's keys and values, without words.
        words: the words that keep their meaning.
        miss: how far keys and values at the words are from each file's own, beside these; the largest.
        drift: how far those of other captions move, beside the base's; their root mean square over all keys and values.
        added: the same, had the differences been added up.
    """

    artifact: Artifact
    words: tuple[str, ...]
    miss: float
    drift: float
    added: float

    @property
    def sentence(self) -> str:
        """What was done, for people."""
        return (
            f"{len(self.words)} words ({', '.join(self.words)}) are joined by constrained least squares: at each word "
            f"keys and values are its own file's to {self.miss:.1e}, those of {CAPTIONS} other captions move by "
            f"{self.drift:.2%} (added up, they would move by {self.added:.2%})"
        )


def is_concept(artifact: Artifact) -> bool:
    """Whether a file can be joined with others: keys and values of cross-attention alone, whole, and a word."""
    whole = all(isinstance(delta, Replacement) for delta in artifact.deltas.values())
    inside = all(target.module.endswith((".attn2.to_k", ".attn2.to_v")) for target in artifact.deltas)
    return artifact.kind == KIND and bool(artifact.deltas) and whole and inside and bool(artifact.tokens)


def joined(backbone: Backbone, base: Weights, concepts: Sequence[Concept]) -> Joined:
    """Several concepts as one change of a base.

    Args:
        backbone: the base's text encoders, at least.
        base: its weights.

    Raises:
        SdkitError: two of them have the same word, or different weights.
    """
    import torch

    _check(concepts)
    with ExitStack() as stack, torch.no_grad():
        for concept in concepts:
            stack.enter_context(spliced(backbone, words_of(concept.artifact, backbone)))
        texts = [torch.cat(list(_at_words(backbone, concept))) for concept in concepts]
        others = torch.cat(list(_of_captions(backbone)))
    conditions = _Conditions(texts, others.T @ others)
    found = {
        target: conditions.solve(
            weight := read_place(base, backbone.model.places[target.name]).double(),
            [_difference(concept, target, weight) for concept in concepts],
        )
        for target in concepts[0].artifact.deltas
    }
    own = sum(one.own for one in found.values())
    return Joined(
        _artifact({target: one.factors for target, one in found.items()}),
        tuple(dict.fromkeys(part.token for concept in concepts for part in concept.artifact.tokens)),
        max(one.miss for one in found.values()),
        math.sqrt(sum(one.moved for one in found.values()) / own),
        math.sqrt(sum(one.added for one in found.values()) / own),
    )


@dataclass(frozen=True, slots=True)
class _Solved:
    """One weight's change.

    Attributes:
        factors: ``up`` and ``down``.
        miss: see `Joined`.
        moved: ‖(Ŵ − W) C_regᵀ‖².
        added: the same of the differences' sum.
        own: ‖W C_regᵀ‖².
    """

    factors: Mapping[str, torch.Tensor]
    miss: float
    moved: float
    added: float
    own: float


class _Conditions:
    """What all weights are solved for.

    Args:
        texts: of each concept, [tokens, width].
        gram: C_regᵀ C_reg, [width, width].
    """

    def __init__(self, texts: Sequence[torch.Tensor], gram: torch.Tensor) -> None:
        import torch

        self._texts, self._gram = texts, gram
        self._all = torch.cat(list(texts))
        self._down = weighing(gram, self._all)

    def solve(self, weight: torch.Tensor, differences: Sequence[torch.Tensor]) -> _Solved:
        """The change of a weight W [out, in] that each concept's own file would change by one of `differences`."""
        import torch

        wanted = torch.cat([text @ own.T for text, own in zip(self._texts, differences, strict=True)])
        up = change_of(self._down, self._all, wanted)
        change = up @ self._down
        miss = (self._all @ change.T - wanted).norm() / (self._all @ weight.T + wanted).norm()
        total = torch.stack(list(differences)).sum(0)
        return _Solved(
            _balanced(up, self._down), float(miss), self._moved(change), self._moved(total), self._moved(weight)
        )

    def _moved(self, matrix: torch.Tensor) -> float:
        """‖matrix · C_regᵀ‖²."""
        return float(((matrix @ self._gram) * matrix).sum())


def change_of(down: torch.Tensor, texts: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """vᵀ, [out, n], so that vᵀ d is the change that gives `wanted` at `texts` and else as little as can be.

    Args:
        down: d = C (C_regᵀ C_reg)⁻¹, [n, width].
        texts: C, [n, width].
        wanted: (V − W Cᵀ)ᵀ, [n, out]: by how much the outputs at the texts are to change.
    """
    import torch

    between = down @ texts.T
    change: torch.Tensor = wanted.T @ torch.linalg.pinv((between + between.T) / 2, hermitian=True, rtol=_SAME)
    return change


def weighing(gram: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """C (C_regᵀ C_reg)⁻¹; the ridge keeps it finite where the captions span less than the width."""
    import torch

    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weighed: torch.Tensor = torch.linalg.solve(gram + ridge, texts.T).T
    return weighed


def _balanced(up: torch.Tensor, down: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The same product with orthonormal columns on the left, so that float32 does not spoil it."""
    import torch

    left, right = torch.linalg.qr(up)
    return {"up": left.float(), "down": (right @ down).float()}


def _difference(concept: Concept, target: Target, weight: torch.Tensor) -> torch.Tensor:
    delta = concept.artifact.deltas[target]
    assert isinstance(delta, Replacement)
    return concept.strength * (delta.weight.load().double().reshape(weight.shape) - weight)


def _artifact(factors: Mapping[Target, Mapping[str, torch.Tensor]]) -> Artifact:
    tensors = {f"{target.name}.{role}": factor for target, pair in factors.items() for role, factor in pair.items()}
    held = in_memory("the joined concepts", tensors)
    deltas = {}
    for target in factors:
        up, down = (Read(held, held.tensors[f"{target.name}.{role}"]) for role in ("up", "down"))
        deltas[target] = LowRank(up, down, 1.0)
    return Artifact(held, "joined", deltas=deltas)


def _at_words(backbone: Backbone, concept: Concept) -> Iterator[torch.Tensor]:
    """What the text encoder makes of each word and of what follows it, up to the end of the text, [tokens, width].

    What stands before a word is read without it, so it says nothing of the word.
    """
    words = tuple(dict.fromkeys(part.token for part in concept.artifact.tokens))
    classes = concept.classes if len(concept.classes) == len(words) else [""] * len(words)
    component = backbone.text_encoders[0]
    for word, class_ in zip(words, classes, strict=True):
        name = f"{word} {class_}".strip()
        first = installed_words(backbone, component)[word][0]
        found = 0
        for text in (name, f"photo of a {name}"):
            ids, features = _read(backbone, [text])
            place = (ids[0] == first).nonzero()
            if len(place):  # else it comes too late to be read
                found += 1
                yield features[0, int(place[0]) : _length(backbone, ids[0])]
        assert found, "a word alone is always read"


def _of_captions(backbone: Backbone) -> Iterator[torch.Tensor]:
    captions = [_caption(number) for number in range(CAPTIONS)]
    for start in range(0, CAPTIONS, _BATCH):
        ids, features = _read(backbone, captions[start : start + _BATCH])
        for own, rows in zip(ids, features, strict=True):
            yield rows[: _length(backbone, own)]


def _caption(number: int) -> str:
    """The captions go through the words in strides without a common factor, so that no two are alike."""
    look, place = _LOOKS[7 * number % len(_LOOKS)], _PLACES[11 * (number // 3) % len(_PLACES)]
    other = _THINGS[(37 * number + 11) % len(_THINGS)]
    return f"a {look} {_THINGS[number % len(_THINGS)]} and a {other} {place}"


def _read(backbone: Backbone, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of texts [b, length], and what cross-attention reads of them, [b, length, width], in float64."""
    ids = backbone.tokenize(texts)
    context = backbone.encode_text(ids, _SIZE).context
    return ids[backbone.text_encoders[0]], context.double().cpu()


def _length(backbone: Backbone, ids: torch.Tensor) -> int:
    """Tokens up to and with the mark of the end."""
    end = backbone.tokenizers[backbone.text_encoders[0]].eos_token_id
    return int((ids == end).nonzero()[0]) + 1


def _check(concepts: Sequence[Concept]) -> None:
    first, *others = (concept.artifact for concept in concepts)
    for other in others:
        if set(other.deltas) != set(first.deltas):
            paths = f"{first.source.path} and {other.source.path}"
            raise SdkitError(f"{paths}: change different weights, so they cannot be joined", "were both trained alike?")
    owners: dict[str, Artifact] = {}
    for concept in concepts:
        for word in {part.token for part in concept.artifact.tokens}:
            owner = owners.setdefault(word, concept.artifact)
            if owner is not concept.artifact:
                raise SdkitError(
                    f"{owner.source.path} and {concept.artifact.source.path}: both call their concept {word}",
                    "train one again with another token=, or convert it and rename its word's file",
                )
