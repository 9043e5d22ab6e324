"""Following the recipe that a file carries."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdkit.jobs.inputs import Input, Unwritten, open_input
from sdkit.weights import Weights

ADAPTER_VERBS = frozenset({"combine", "subtract", "scale", "resize"})
VERBS = frozenset({"blend", "merge", "convert", *ADAPTER_VERBS})


class Rebuild:
    """Follows a recipe whose inputs are known.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the recipe is damaged.
    """

    def __init__(
        self, recipe: Mapping[str, Any], found: Mapping[str, Path], stack: ExitStack, controls: Mapping[str, Any]
    ) -> None:
        self._recipe, self._found, self._stack, self._controls = recipe, found, stack, controls
        self._steps: Mapping[str, Any] = recipe.get("steps", {})
        self._models: dict[str, Weights | None] = {}

    def write(self, target: Path) -> None:
        """Rebuild the last step into a file or folder."""
        if self._recipe["verb"] in ADAPTER_VERBS:
            self._adapters(target)
        elif self._recipe["verb"] == "convert":
            self._convert(target)
        else:
            self._do(self._recipe, target, **self._controls)

    def _do(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        if recipe["verb"] == "blend":
            self._blend(recipe, target, **controls)
        else:
            self._merge(recipe, target, **controls)

    def _input(self, entry: Mapping[str, Any]) -> Input:
        """A parent: a file under the name the recipe knows it by, or the result of an earlier step."""
        if "step" not in entry:
            weights = open_input(self._stack, self._found[entry["id"]])
            weights.known.update({key: entry[key] for key in ("name", "sha256", "source") if key in entry})
            return weights
        name = entry["step"]
        if name not in self._models:
            self._models[name] = None
            step = Unwritten(name, self._stack)
            self._do(self._steps[name], step)
            self._models[name] = step.model
        model = self._models[name]
        if model is None:
            raise ValueError(f"the step {name} needs itself")
        return model

    def _blend(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        from sdkit.jobs.blend import blend

        parents = recipe["parents"]
        named = {entry["role"]: self._input(entry) for entry in parents if entry["role"] in ("base", "VAE")}
        factors = recipe.get("factors", {})
        plain = ("blocks", "rules", "blend_vae", "missing", "ema", "allow_prediction_mix", "dtype", "seed")
        blend(
            [self._input(entry) for entry in parents if entry["role"] not in ("base", "VAE")],
            target,
            method=recipe["method"],
            parameters={key: tuple(v) if isinstance(v, list) else v for key, v in recipe["parameters"].items()},
            base=named.get("base"),
            vae=named.get("VAE"),
            unet_alpha=factors.get("unet", 1.0),
            te_alpha=factors.get("te", 1.0),
            stochastic=recipe.get("stochastic"),
            **{key: recipe[key] for key in plain if key in recipe},
            **controls,
        )

    def _merge(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        from sdkit.jobs.merge import merge

        base, *adapters = recipe["parents"]
        options = ("unet_alpha", "te_alpha", "blocks", "dtype", "stochastic", "dora", "allow_unmatched")
        merge(
            self._input(base),
            [(self._input(entry), entry["strength"]) for entry in adapters],
            target,
            tokens=False,
            **{key: recipe[key] for key in options if key in recipe},
            **controls,
        )

    def _adapters(self, target: Path) -> None:
        from sdkit.adapters.ranks import RankRule
        from sdkit.jobs.combine import weighted_sum

        recipe = self._recipe
        rules = ("rank", "sv_ratio", "sv_fro", "sv_cumulative", "error")
        rule = {key: recipe[key] for key in rules if key in recipe}
        options = {key: recipe[key] for key in ("dtype", "format", "allow_unmatched") if key in recipe}
        adapters = [entry for entry in recipe["parents"] if entry.get("role") == "adapter"]
        base = next((self._found[entry["id"]] for entry in recipe["parents"] if entry.get("role") == "base"), None)
        weighted_sum(
            recipe["verb"],
            [(self._found[entry["id"]], float(entry["strength"])) for entry in adapters],
            target,
            rank=RankRule(**rule) if rule else None,
            base=base,
            **options,
            **self._controls,
        )

    def _convert(self, target: Path) -> None:
        from sdkit.jobs.convert import convert
        from sdkit.jobs.converting.recipe import given

        convert(output=target, verify=False, **given(self._recipe, self._found), **self._controls)  # compared anyway
