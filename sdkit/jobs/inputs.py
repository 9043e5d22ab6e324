"""What models and adapters are given as: paths, or weights somebody has opened or computed already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import UsageError
from sdkit.core.hashing import quick_id
from sdkit.families import identify
from sdkit.formats import embeddings_beside, read_adapter, recognise
from sdkit.jobs.pull import local_path, source_of
from sdkit.streaming.lazy import LazyWeights, leaves
from sdkit.weights import Weights, open_weights
from sdkit.weights.metadata import parent

PathLike = str | os.PathLike[str]


@runtime_checkable
class Computable(Protocol):
    """A model that is computed from others when it is wanted (what `sdkit.open` and sums of it give)."""

    def plan(self, stack: ExitStack, name: str) -> Weights:
        """The model as opened weights, called `name`; what is opened for it is closed with `stack`."""
        ...


Input = PathLike | Weights
ModelInput = Input | Computable


def open_input(stack: ExitStack, source: ModelInput, role: str = "") -> Weights:
    """The opened weights; those opened here are closed with `stack`.

    Args:
        stack: keeps files open.
        source: a path, opened weights or, where there is a role, a model to be computed.
        role: what a computed model is called; no two of a job may have the same.
    """
    if isinstance(source, Weights):
        return source
    if role and isinstance(source, Computable):
        return source.plan(stack, role.replace(" ", "_"))
    given: object = source
    if not isinstance(given, (str, os.PathLike)):
        hint = "what `sdkit.open` gives has methods of its own: a.blend(b, method='slerp').save(…)"
        raise UsageError(f"{type(given).__name__} is no path of a model", hint)
    return stack.enter_context(open_weights(local_path(given)))


def parent_of(weights: Weights, **facts: object) -> dict[str, object]:
    """An input as recipes name it: a file by its content, a computed model by its step."""
    if isinstance(weights, LazyWeights):
        return {"name": weights.name, "step": weights.name, **facts}
    known = {"name": weights.path.name, **source_of(weights.path), **weights.known}
    return parent(known.pop("name"), quick_id(*weights.files), **known, **facts)


def earlier_steps(opened: Iterable[Weights]) -> dict[str, dict[str, object]]:
    """The recipes of all steps that the inputs are computed by, by name."""
    steps: dict[str, dict[str, object]] = {}
    for weights in opened:
        if isinstance(weights, LazyWeights):
            nested = weights.recipe.get("steps", {})
            assert isinstance(nested, Mapping)
            steps.update(nested)
            steps[weights.name] = {key: value for key, value in weights.recipe.items() if key != "steps"}
    return steps


def with_earlier_steps(recipe: Mapping[str, object], opened: Iterable[Weights]) -> dict[str, object]:
    """The recipe of a step with those of the steps before it that nothing was written of."""
    steps = earlier_steps(opened)
    return {**recipe, "steps": steps} if steps else dict(recipe)


def input_files(opened: Sequence[Weights]) -> list[Path]:
    """Every file or folder that is read."""
    return [weights.path for weights in leaves(opened)]


def notes_of(opened: Iterable[Weights]) -> tuple[str, ...]:
    """What the steps that computed the inputs want a person to see."""
    found = (note for weights in opened if isinstance(weights, LazyWeights) for note in weights.notes)
    return tuple(dict.fromkeys(found))


def label(weights: Weights) -> str:
    """What people call the input."""
    return weights.name if isinstance(weights, LazyWeights) else weights.path.name


def is_adapter(path: Path) -> bool:
    """Whether a file or folder holds an adapter and not a checkpoint."""
    with open_weights(path) as weights:
        return not identify(weights).has_denoiser and recognise(weights)[0] is not None


def with_words_beside(stack: ExitStack, artifact: Artifact) -> Artifact:
    """A Custom Diffusion with the words that lie beside it, as its usual format has no place for them."""
    if artifact.kind != "custom-diffusion":
        return artifact
    opened = [stack.enter_context(open_weights(path)) for path in embeddings_beside(artifact)]
    return replace(artifact, tokens=(*artifact.tokens, *(rows for one in opened for rows in read_adapter(one).tokens)))


@dataclass(slots=True)
class Unwritten:
    """In place of an output file: the result is not written but stays an expression, for a later step.

    Attributes:
        name: of the step.
        stack: keeps the inputs open as long as the result is wanted.
        model: the result, once the job is done.
    """

    name: str
    stack: ExitStack
    model: LazyWeights | None = None


Target = Path | Unwritten


def as_target(output: PathLike | Unwritten) -> Target:
    """The output in one of its two forms."""
    return output if isinstance(output, Unwritten) else Path(output)


@contextmanager
def input_stack(target: Target) -> Iterator[ExitStack]:
    """What inputs are opened with: closed at once after a file is written, later where the result stays unwritten."""
    if isinstance(target, Unwritten):
        yield target.stack
        return
    with ExitStack() as stack:
        yield stack
