"""Models that can be calculated with before anything is read: ``a + 0.7 * (b - c)``.

    >>> a, b, c = (sdkit.open(f"{name}.safetensors") for name in "abc")
    >>> (a + 0.7 * (b - c)).save("mix.safetensors")

What is built is a recipe: `LazyModel.recipe` shows it, and saving runs it as `sdkit run` does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.jobs.inputs import is_adapter
from sdkit.jobs.pull import local_path
from sdkit.jobs.run import RunReport, plan_model, run
from sdkit.weights import Weights, open_weights

PathLike = str | os.PathLike[str]

RESULT = "result"
NEVER_WRITTEN = ".sdkit-planned.safetensors"  # recipes want to know an output, also those that are only planned


@dataclass(frozen=True, slots=True, eq=False)
class _Blend:
    """The result of a merge method, as one model among others."""

    models: tuple[LazyModel, ...]
    options: Mapping[str, Any]


# A model that is a term of a sum.
Node = Path | _Blend


@dataclass(frozen=True, slots=True, eq=False)
class LazyModel:
    """A sum of models and adapters, each times a number.

    The numbers of the models say what it is: they add up to 1 for a model and to 0 for a difference of models, which
    can be added to one.

    Attributes:
        terms: models with their numbers; the first gives the output its layout.
        adapters: adapters with their strengths.
    """

    terms: tuple[tuple[Node, float], ...] = ()
    adapters: tuple[tuple[Path, float], ...] = ()

    @property
    def total(self) -> float:
        """What the models' numbers add up to."""
        return math.fsum(number for _, number in self.terms)

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model."""
        return bool(self.terms) and math.isclose(self.total, 1.0, abs_tol=1e-6)

    @property
    def is_difference(self) -> bool:
        """Whether it can be added to a model: adapters, or a difference of models."""
        return math.isclose(self.total, 0.0, abs_tol=1e-6)

    def __add__(self, other: LazyModel) -> LazyModel:
        if not isinstance(other, LazyModel):
            return NotImplemented
        if self.is_model and other.is_model:
            raise UsageError(
                "the sum of two models is twice a model",
                "average them, 0.5 * a + 0.5 * b, or add what one has learnt: a + (b - base)",
            )
        first, second = (other, self) if self.is_difference and not other.is_difference else (self, other)
        return LazyModel(first.terms + second.terms, first.adapters + second.adapters)

    def __sub__(self, other: LazyModel) -> LazyModel:
        return self + -other if isinstance(other, LazyModel) else NotImplemented

    def __mul__(self, factor: float) -> LazyModel:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            return NotImplemented
        if not math.isfinite(factor):
            raise UsageError(f"{factor} is no finite number")
        terms = tuple((node, number * factor) for node, number in self.terms)
        return LazyModel(terms, tuple((path, strength * factor) for path, strength in self.adapters))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LazyModel:
        if divisor == 0:
            raise UsageError("a model cannot be divided by 0")
        return self * (1 / divisor)

    def __neg__(self) -> LazyModel:
        return self * -1.0

    def blend(self, *others: LazyModel, base: LazyModel | None = None, **options: Any) -> LazyModel:
        """A blend of this model (A) with others, by any method and with the options of `sdkit.blend`."""
        everyone = (self, *others, *((base,) if base is not None else ()))
        for model in everyone:
            model.check_is_model()
        return LazyModel(((_Blend(everyone, {**options, "base": base is not None}), 1.0),))

    def recipe(self, output: PathLike | None = None, *, name: str = RESULT, **options: Any) -> dict[str, Any]:
        """The recipe that makes it, as `sdkit.run` and, written as YAML, `sdkit run` take it.

        Args:
            output: the file.
            name: of its last step; those before it are numbered.
            options: of the last step.

        Raises:
            UsageError: it is no model but a difference, or a share of one.
        """
        steps = _Steps("step" if name == RESULT else name)
        last = {**steps.table(self), **options}
        if output is not None:
            last["output"] = str(output)
        return {"steps": {**steps.tables, name: last}}

    def save(
        self,
        output: PathLike,
        *,
        dtype: str | None = None,
        stochastic: int | None = None,
        force: bool = False,
        dry_run: bool = False,
        **controls: Any,
    ) -> RunReport:
        """Compute it and write a file (or, like its first model, a folder).

        Args:
            output: the file.
            dtype: element type of the output, as in `sdkit.blend`.
            stochastic: a seed; round at random, as in `sdkit.blend`.
            force: replace what is there.
            dry_run: stop before anything is written.
            controls: ``threads``, ``progress``, as in `sdkit.run`.
        """
        given: dict[str, Any] = {"dtype": dtype, "stochastic": stochastic}
        recipe = self.recipe(output, **{key: value for key, value in given.items() if value is not None})
        return run(recipe, force=force, dry_run=dry_run, **controls)

    def plan(self, stack: ExitStack, name: str) -> Weights:
        """The model as opened weights whose tensors are expressions: what jobs that take models read.

        Args:
            stack: keeps the files open that it is computed from.
            name: what recipes call it.

        Raises:
            SdkitError: it is no model, or one of its files cannot be read.
        """
        self.check_is_model()
        if len(self.terms) == 1 and not self.adapters and isinstance(self.terms[0][0], Path):
            return stack.enter_context(open_weights(self.terms[0][0]))
        return plan_model(self.recipe(NEVER_WRITTEN, name=name), stack, {})

    def check_is_model(self) -> None:
        """Refuse what is no whole model.

        Raises:
            UsageError: saying what it is instead.
        """
        if self.is_model:
            return
        if self.is_difference:
            raise UsageError("this is a difference, not a model", "add it to a model: a + 0.5 * (b - c)")
        raise UsageError(
            f"the models' shares add up to {self.total:g}, not to 1",
            "0.3 * a + 0.7 * b is a model, 0.3 * a + 0.3 * b not",
        )


class _Steps:
    """The steps that make a lazy model."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.tables: dict[str, dict[str, Any]] = {}
        self._made: list[tuple[object, str]] = []

    def table(self, model: LazyModel) -> dict[str, Any]:
        """The step whose result is the model; those it needs stand in `tables` then."""
        if not model.terms:
            return self._sum(model)
        model.check_is_model()
        if model.adapters:
            base = self._source(LazyModel(model.terms))
            return {"merge": [base, *self._adapters(model)]}
        (node, number), *others = model.terms
        if not others and number == 1.0 and isinstance(node, _Blend):
            return self._blend(node)
        return {"blend": [{**self._node(part), "weight": share} for part, share in model.terms], "method": "linear"}

    def _sum(self, model: LazyModel) -> dict[str, Any]:
        if not model.adapters:
            raise UsageError("nothing is left: no model and no adapter")
        if len(model.adapters) > 1:
            return {"merge": self._adapters(model)}
        ((path, strength),) = model.adapters
        return {"scale": [{"path": str(path)}, strength]}

    @staticmethod
    def _adapters(model: LazyModel) -> list[dict[str, Any]]:
        return [{"path": str(path), "strength": strength} for path, strength in model.adapters]

    def _blend(self, node: _Blend) -> dict[str, Any]:
        options = dict(node.options)
        models = [self._source(model) for model in node.models]
        if options.pop("base"):
            options["base"] = models.pop()
        return {"blend": models, **options}

    def _source(self, model: LazyModel) -> dict[str, Any]:
        """A model as an input of a step."""
        if len(model.terms) == 1 and model.terms[0][1] == 1.0 and not model.adapters:
            return self._node(model.terms[0][0])
        return self._step(model, model)

    def _node(self, node: Node) -> dict[str, Any]:
        return {"path": str(node)} if isinstance(node, Path) else self._step(node, LazyModel(((node, 1.0),)))

    def _step(self, key: object, model: LazyModel) -> dict[str, Any]:
        """A step of its own, made once however often it is used."""
        name = next((name for known, name in self._made if known is key), "")
        if not name:
            table = self.table(model)
            name = f"{self._prefix}_{len(self.tables) + 1}"
            self.tables[name] = table
            self._made.append((key, name))
        return {"step": name}


def open(path: PathLike) -> LazyModel:
    """A checkpoint or an adapter to calculate with. Only its header is read.

    Raises:
        SdkitError: it is neither.
    """
    found = local_path(path)
    term = ((found, 1.0),)
    return LazyModel(adapters=term) if is_adapter(found) else LazyModel(term)
