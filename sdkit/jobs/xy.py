"""What a blend draws at several strengths, as one labelled picture. No blended model is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.core.events import Drawing, Event
from sdkit.core.report import Report
from sdkit.generation.parameters import Parameters, png
from sdkit.generation.pictures import check_request, checked, draw
from sdkit.generation.prompt import parse_prompt
from sdkit.generation.request import Request
from sdkit.jobs.blend import blend
from sdkit.jobs.generate import ignore
from sdkit.jobs.inputs import Unwritten
from sdkit.jobs.run import plan_model
from sdkit.report.sheet import contact_sheet
from sdkit.weights.atomic import check_target, write_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdkit.streaming.lazy import LazyWeights

    _Blends = tuple[list[LazyWeights], tuple[str, ...], str]

PathLike = str | os.PathLike[str]
MAX_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class XYReport(Report):
    """What was drawn, or with `dry_run` would be.

    Attributes:
        output: the picture.
        models: names of the models, the base last; of a recipe its own.
        method: the merge method, or ``recipe``.
        alphas: strengths, from left to right.
        rows: what stands left of the rows.
        seconds: wall time.
        dry_run: whether nothing was drawn.
    """

    output: str
    models: tuple[str, ...]
    method: str
    alphas: tuple[float, ...]
    rows: tuple[str, ...]
    seconds: float
    dry_run: bool


def xy(
    models: PathLike | Sequence[PathLike],
    prompt: str | Sequence[str],
    output: PathLike = "xy.png",
    *,
    alphas: Sequence[float],
    method: str = "weighted_sum",
    base: PathLike | None = None,
    parameters: Mapping[str, Any] | None = None,
    step: str = "",
    count: int = 1,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
    dry_run: bool = False,
    watch: Callable[[Event], None] | None = None,
    **settings: Any,
) -> XYReport:
    """Draw the same pictures with a blend at each of several strengths.

    Args:
        models: as `sdkit.blend` takes them, or a recipe as `sdkit.run` takes it.
        prompt: one or several; each is a row.
        output: the picture, a PNG file.
        alphas: the strengths; each is a column.
        method: the merge method, one that has the option ``alpha``.
        base: what differences are taken from, for methods that need it.
        parameters: the method's other options.
        step: of the recipe, whose alpha it is; may be left out where there is one step.
        count: seeds of every prompt; each is a row.
        device: ``auto`` or a device's name.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        force: replace a file that is there.
        dry_run: stop when everything has been checked.
        watch: called with a `Drawing` event after every step.
        settings: fields of `sdkit.generation.request.Request`: ``seed``, ``steps``, ``sampler``, …

    Raises:
        SdkitError: whatever is wrong; every blend is planned before the first picture is drawn.
    """
    began = time.perf_counter()
    target = Path(output)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = _rows(prompts, count, settings)
    if not 1 <= len(alphas) <= MAX_COLUMNS:
        raise UsageError(f"{len(alphas)} strengths make no picture", f"use 1 to {MAX_COLUMNS}")
    if target.suffix.lower() != ".png":
        raise UsageError(f"{target}: pictures are written as PNG files", f"use -o {target.with_suffix('.png')}")
    check_target(target, overwrite=force)
    with ExitStack() as stack:
        given = [models] if isinstance(models, (str, os.PathLike)) else list(models)
        if len(given) == 1:
            blends, names, rule = _of_recipe(Path(given[0]), alphas, step, stack)
        else:
            blends, names, rule = _of_models(given, alphas, stack, method=method, base=base, parameters=parameters)
        if not dry_run:
            picture, first = _sheet(blends, alphas, rows, device, precision, watch or ignore)
            said = Parameters(first, model=f"{' + '.join(names)} by {rule}")
            write_file(target, png(picture, str(said)), overwrite=force)
    return XYReport(
        output=str(target),
        models=names,
        method=rule,
        alphas=tuple(alphas),
        rows=tuple(label for label, _ in rows),
        seconds=time.perf_counter() - began,
        dry_run=dry_run,
    )


def _of_models(
    models: Sequence[PathLike],
    alphas: Sequence[float],
    stack: ExitStack,
    *,
    method: str,
    base: PathLike | None,
    parameters: Mapping[str, Any] | None,
) -> _Blends:
    """The blends of models, what they are blends of, and by which method."""
    blends = []
    for alpha in alphas:
        step = Unwritten("blend", stack)
        report = blend(models, step, method=method, base=base, parameters={**(parameters or {}), "alpha": alpha})
        assert step.model is not None, "an unwritten blend leaves its model"
        blends.append(step.model)
    return blends, report.models, report.method


def _of_recipe(recipe: Path, alphas: Sequence[float], step: str, stack: ExitStack) -> _Blends:
    """The same of a recipe, with the alpha of one step changed."""
    if recipe.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{recipe}: a single model is no blend", "name two models, or a recipe (.yaml)")
    key = f"{step}.alpha" if step else "alpha"
    return [plan_model(recipe, stack, {key: alpha}) for alpha in alphas], (recipe.name,), "recipe"


def _rows(prompts: Sequence[str], count: int, settings: Mapping[str, Any]) -> list[tuple[str, Request]]:
    """What is drawn of every blend, with its label."""
    if not prompts or count < 1:
        raise UsageError("nothing is to be drawn", 'say what: --prompt "a cat" --count 1')
    rows = []
    for prompt in prompts:
        parse_prompt(prompt)
        first = Request(prompt, **settings)
        check_request(first)
        for seed in range(first.seed, first.seed + count):
            rows.append((prompt if count == 1 else f"{prompt} (seed {seed})", replace(first, seed=seed)))
    return rows


def _sheet(
    blends: Sequence[LazyWeights],
    alphas: Sequence[float],
    rows: Sequence[tuple[str, Request]],
    device: str,
    precision: str,
    watch: Callable[[Event], None],
) -> tuple[Image, Request]:
    """The pictures of all blends, one model in memory at a time, and the first request with nothing left open."""
    from sdkit.runtime.load import load_backbone
    from sdkit.runtime.precision import compute_type, find_device

    place = find_device(device)
    columns: list[list[Image]] = []
    requests = [request for _, request in rows]
    steps = sum(request.steps for request in requests)
    for model in blends:
        backbone = load_backbone(model).to(place, compute_type(precision, place))
        before = len(columns) * steps

        def shifted(done: int, _: int, before: int = before) -> None:
            watch(Drawing(before + done, len(blends) * steps))

        columns.append(draw(backbone, requests, watch=shifted))
        first = checked(requests[0], backbone)
    pictures = [[column[number] for column in columns] for number in range(len(rows))]
    labels = [label for label, _ in rows]
    return contact_sheet([f"alpha {alpha:g}" for alpha in alphas], list(zip(labels, pictures, strict=True))), first
