"""Drawing pictures with a base and adapters, from a request to files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Drawing, Event
from sdkit.core.memory import peak_memory_mib
from sdkit.core.report import Report
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.generation.parameters import Parameters, png, read_settings
from sdkit.generation.pictures import Watch, check_request, checked, draw
from sdkit.generation.prompt import Tag, parse_prompt, split_tags, without_folders
from sdkit.generation.request import Request
from sdkit.hubs import is_reference
from sdkit.jobs.edited import CROSS_REPLACE, SELF_REPLACE, EditedPicture
from sdkit.jobs.find_adapter import Shelf, open_shelf
from sdkit.jobs.live_adapters import Dose, Library, UsedAdapter, live, plain_names
from sdkit.jobs.pull import local_path, local_paths
from sdkit.report.sheet import contact_sheet
from sdkit.runtime.image_tower import text_projections
from sdkit.runtime.load import backbone_class, load_backbone
from sdkit.runtime.steering import check_steering
from sdkit.weights import open_weights
from sdkit.weights.atomic import check_target, write_file
from sdkit.weights.hashes import hash_file

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from sdkit.runtime.backbone import Backbone

PathLike = str | os.PathLike[str]
Adapters = Sequence[PathLike | tuple[PathLike, float]] | Mapping[PathLike, float]


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A picture.

    Attributes:
        path: its file; of a grid, that of the grid.
        prompt: with the adapters that were given beside it.
        seed: of its noise.
        parameters: what the file says it was drawn with; empty in a dry run.
    """

    path: str
    prompt: str
    seed: int
    parameters: str


@dataclass(frozen=True, slots=True)
class GenerateReport(Report):
    """What was drawn, or with `dry_run` would be.

    Attributes:
        output: the file, or the first of several.
        outputs: all files.
        base: the base's name.
        family: its family.
        pictures: in order of prompts, then seeds.
        adapters: what was live, each once.
        notes: facts a person should see.
        seconds: wall time.
        peak_memory_mib: largest resident memory; None where the system does not tell.
        dry_run: whether nothing was drawn.
    """

    output: str
    outputs: tuple[str, ...]
    base: str
    family: str
    pictures: tuple[DrawnPicture, ...]
    adapters: tuple[UsedAdapter, ...]
    notes: tuple[str, ...]
    seconds: float
    peak_memory_mib: float | None
    dry_run: bool


def generate(
    base: PathLike,
    prompt: str | Sequence[str] | None = None,
    output: PathLike = "picture.png",
    *,
    negative: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    width: int | None = None,
    height: int | None = None,
    count: int = 1,
    sampler: str | None = None,
    clip_skip: int | None = None,
    like: PathLike | None = None,
    adapters: Adapters = (),
    inversion: PathLike | None = None,
    cross_replace: float = CROSS_REPLACE,
    self_replace: float = SELF_REPLACE,
    folder: PathLike | None = None,
    image_encoder: str = "",
    grid: bool = False,
    batch: int = 1,
    device: str = "auto",
    precision: str = "auto",
    prediction: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    watch: Callable[[Event], None] | None = None,
) -> GenerateReport:
    """Draw pictures and write them as PNG files that say what they were drawn with.

    What is left open of `negative` … `clip_skip` is as in `like`, else as in `sdkit.generation.request.Request`.

    Args:
        base: a checkpoint or a diffusers folder, by its path, registered name or a reference to a hub; or ``tiny``.
        prompt: one or several, in the syntax of `sdkit.generation.prompt`.
        output: the file; several pictures are numbered, ``picture-1.png``.
        negative: what the pictures should not show; by default, where the prompt calls an embedding that is one of a
            pair (NAME, with NAME-neg beside it), its other half.
        seed: of the first picture of every prompt; the next has the next number.
        steps: of the sampler.
        cfg: guidance.
        width: in pixels; default is what the base was made for.
        height: in pixels.
        count: pictures of every prompt.
        sampler: by its name in `sdkit.generation.samplers`.
        clip_skip: layer of the text encoder, counted from the end.
        like: a picture that says what it was drawn with.
        adapters: live beside those the prompts name: paths, ``(path, strength)`` pairs, or path → strength; a name or
            a reference stands for a path.
        inversion: an inverted picture, which is drawn again, or edited where `prompt` says something else than its
            own; it brings steps, sampler, size and noise, and `cfg` where none is given.
        cross_replace: of an edit, the share of the steps whose attention over the text is taken over from the picture.
        self_replace: the same of the attention over the picture itself.
        folder: where adapters lie that prompts call by name; the current folder is looked at, too.
        image_encoder: the CLIP (several with commas between) that an aesthetic embedding was made with, where its file
            does not say what the base's texts are there; see `sdkit.runtime.image_tower`.
        grid: write one picture of all of them with labels.
        batch: pictures drawn at once.
        device: ``auto`` or a device's name.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        prediction: ``epsilon`` or ``v_prediction``, where the base does not say or says it wrongly.
        force: replace files that are there.
        dry_run: stop when everything has been checked that can be without loading the base.
        watch: called with a `Drawing` event after every step.

    Raises:
        SdkitError: whatever is wrong, most of it before the base is loaded.
    """
    began = time.perf_counter()
    if count < 1 or batch < 1:
        raise UsageError(f"{'count' if count < 1 else 'batch'} must be at least 1")
    given = {"negative": negative, "seed": seed, "steps": steps, "cfg": cfg, "width": width, "height": height}
    given |= {"sampler": sampler, "clip_skip": clip_skip}
    edited = EditedPicture(local_path(inversion), cross_replace, self_replace) if inversion is not None else None
    settings = _settings(given, like, edited, count)
    prompts = _prompts(prompt, settings.pop("prompt", None))
    request, pairs = Request("", **settings), _pairs(adapters)
    named = [(_local(adapter), strength) for adapter, strength in pairs]
    job = _Job(
        base=local_path(base),
        request=request,
        count=count,
        output=Path(output),
        grid=grid,
        force=force,
        batch=batch,
        watch=watch or ignore,
        pairs="negative" not in settings,
        image_encoder=local_paths(image_encoder),
        edited=edited,
    )
    with ExitStack() as stack:
        plan = job.plan(stack, prompts, named, open_shelf(Path(folder) if folder is not None else None))
        if dry_run:
            pictures = job.imagined(plan)
        else:
            pictures = job.draw(_loaded(job.base, prediction, device, precision), plan)
    return GenerateReport(
        output=pictures[0].path,
        outputs=tuple(dict.fromkeys(picture.path for picture in pictures)),
        base=job.base.name,
        family=plan.model.family,
        pictures=tuple(pictures),
        adapters=tuple(dict.fromkeys(dose.used() for prompt in plan.prompts for dose in prompt.doses)),
        notes=plan.notes,
        seconds=time.perf_counter() - began,
        peak_memory_mib=peak_memory_mib(),
        dry_run=dry_run,
    )


def ignore(event: Event) -> None:
    """Watch nothing."""


def _settings(
    given: Mapping[str, Any], like: PathLike | None, edited: EditedPicture | None, count: int
) -> dict[str, Any]:
    """What a request is made of: what was given, else what the picture says that is to be like, or to be edited."""
    settings: dict[str, Any] = read_settings(Path(like)) if like is not None else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    return edited.settings(settings, count) if edited is not None else settings


def _prompts(prompt: str | Sequence[str] | None, like: str | None) -> list[str]:
    chosen = prompt if prompt else like
    prompts = [chosen] if isinstance(chosen, str) else list(chosen or ())
    if not prompts:
        raise UsageError("no prompt was given", 'say what to draw: --prompt "a cat"')
    return prompts


def _pairs(adapters: Adapters) -> list[tuple[str, float]]:
    entries = list(adapters.items()) if isinstance(adapters, Mapping) else list(adapters)
    pairs = [
        (os.fspath(entry[0]), float(entry[1])) if isinstance(entry, tuple) else (os.fspath(entry), 1.0)
        for entry in entries
    ]
    for name, strength in pairs:
        if not math.isfinite(strength):
            raise UsageError(f"{name}: the strength {strength} is no finite number")
    return pairs


def _local(adapter: str) -> str:
    """A reference to a hub is pulled; files and names are looked for as those of a prompt are."""
    return os.fspath(local_path(adapter)) if is_reference(adapter) else adapter


def _loaded(base: Path, prediction: str | None, device: str, precision: str) -> Backbone:
    from sdkit.runtime.precision import compute_type, find_device

    place = find_device(device)
    dtype = compute_type(precision, place)
    return load_backbone(base, prediction=prediction).to(place, dtype)


@dataclass(frozen=True, slots=True)
class _PromptPlan:
    """A prompt with its adapters opened.

    Attributes:
        text: what is encoded, without adapters' tags.
        recorded: what the pictures say of it.
        negative: the negative prompt, as it was written.
        doses: its adapters.
    """

    text: str
    recorded: str
    negative: str
    doses: tuple[Dose, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be drawn.

    Attributes:
        model: what the base's header said.
        file: the base's file; None if it has several.
        prompts: in order.
        notes: facts a person should see.
        projections: see `sdkit.runtime.steering.steering`.
    """

    model: Model
    file: Path | None
    prompts: tuple[_PromptPlan, ...]
    notes: tuple[str, ...]
    projections: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `generate`, checked as far as it can be without looking at files."""

    base: Path
    request: Request
    count: int
    output: Path
    grid: bool
    force: bool
    batch: int
    watch: Callable[[Event], None]
    pairs: bool  # whether the negative halves of pairs of embeddings are the negative prompt
    image_encoder: str
    edited: EditedPicture | None = None

    def plan(
        self, stack: ExitStack, prompts: Sequence[str], adapters: Sequence[tuple[str, float]], shelf: Shelf
    ) -> _Plan:
        """Check everything that can be without loading the base, and open the adapters."""
        check_request(self.request)
        for path in self.paths(len(prompts) * self.count):
            if path.suffix.lower() != ".png":
                raise UsageError(f"{path}: pictures are written as PNG files", f"use -o {path.with_suffix('.png')}")
            check_target(path, overwrite=self.force)
        with open_weights(self.base) as weights:
            model = identify(weights)
            backbone_class(self.base, model)
            file = weights.path if weights.files == (weights.path,) else None
            if self.edited is not None:
                self.edited.check(weights)
        library = Library(stack, shelf, model)
        if parse_prompt(self.request.negative).tags:
            raise UsageError("the negative prompt names an adapter", "adapters are named in the prompt")
        beside = [library.dose(Tag("lora", name, strength, strength)) for name, strength in adapters]
        planned = tuple(self._prompt(prompt, beside, library) for prompt in prompts)
        projections = self._projections(model, [dose for prompt in planned for dose in prompt.doses])
        return _Plan(model, file, planned, tuple(dict.fromkeys(library.notes)), projections)

    def _projections(self, model: Model, doses: Sequence[Dose]) -> Sequence[torch.Tensor]:
        """What aesthetic embeddings need beside their files, which are checked."""
        steering = [dose.artifact for dose in doses if dose.artifact.steering]
        projections = text_projections(self.image_encoder, self.base) if steering else []
        for artifact in steering:
            check_steering(artifact, model, projections)
        return projections

    def _prompt(self, prompt: str, beside: Sequence[Dose], library: Library) -> _PromptPlan:
        parsed = parse_prompt(prompt)  # says what is wrong with it
        words, _ = split_tags(prompt)
        doses = [*beside, *(library.dose(tag) for tag in parsed.tags)]
        doses += library.embeddings(f"{words}\n{self.request.negative}", doses)
        halves = library.negatives(doses) if self.pairs else []
        negative = ", ".join(dose.name for dose in halves) or self.request.negative
        tags = "".join(f" {dose.short_tag()}" for dose in beside if dose.artifact.kind != "textual-inversion")
        recorded = without_folders(prompt) + tags
        return _PromptPlan(plain_names(words), recorded, negative, (*doses, *halves))

    def paths(self, total: int) -> list[Path]:
        """Where `total` pictures go."""
        if self.grid or total == 1:
            return [self.output] * total
        return [self.output.with_stem(f"{self.output.stem}-{number}") for number in range(1, total + 1)]

    def requests(self, prompt: _PromptPlan) -> list[Request]:
        """What is drawn of one prompt."""
        first = replace(self.request, prompt=prompt.text, negative=plain_names(prompt.negative))
        return [replace(first, seed=self.request.seed + number) for number in range(self.count)]

    def imagined(self, plan: _Plan) -> list[DrawnPicture]:
        """The pictures as a dry run knows them."""
        paths = iter(self.paths(len(plan.prompts) * self.count))
        return [
            DrawnPicture(str(next(paths)), prompt.recorded, request.seed, "")
            for prompt in plan.prompts
            for request in self.requests(prompt)
        ]

    def draw(self, backbone: Backbone, plan: _Plan) -> list[DrawnPicture]:
        """Draw, and write every batch when it is drawn."""
        total = len(plan.prompts) * self.count
        paths = iter(self.paths(total))
        model_hash = hash_file(plan.file).autov2 if plan.file else ""
        drawn: list[DrawnPicture] = []
        rows: list[tuple[str, list[Image]]] = []
        for prompt in plan.prompts:
            hashes = {dose.name: digest for dose in prompt.doses if (digest := dose.digest())}
            rows.append((prompt.recorded, []))
            for request, picture in self._pictures(backbone, prompt, plan.projections, self._watch(len(drawn), total)):
                said = replace(request, prompt=prompt.recorded, negative=prompt.negative)
                inversion = self.edited.path.stem if self.edited else ""
                text = str(Parameters(said, _base_name(self.base), model_hash, hashes, inversion))
                drawn.append(DrawnPicture(str(next(paths)), prompt.recorded, request.seed, text))
                if self.grid:
                    rows[-1][1].append(picture)
                else:
                    write_file(Path(drawn[-1].path), png(picture, text), overwrite=self.force)
        if self.grid:
            sheet = contact_sheet([f"seed {self.request.seed + number}" for number in range(self.count)], rows)
            write_file(self.output, png(sheet, drawn[0].parameters), overwrite=self.force)
        return drawn

    def _pictures(
        self,
        backbone: Backbone,
        prompt: _PromptPlan,
        projections: Sequence[torch.Tensor],
        watch: Callable[[int], Watch],
    ) -> Iterator[tuple[Request, Image]]:
        """The pictures of one prompt, batch by batch."""
        if self.edited is not None:
            with live(backbone, prompt.doses, projections), _enough_memory():
                yield self.edited.draw(backbone, self.requests(prompt)[0], watch(0))
            return
        requests = [checked(request, backbone) for request in self.requests(prompt)]
        with live(backbone, prompt.doses, projections):
            for start in range(0, self.count, self.batch):
                group = requests[start : start + self.batch]
                with _enough_memory():
                    pictures = draw(backbone, group, batch=self.batch, watch=watch(start))
                yield from zip(group, pictures, strict=True)

    def _watch(self, before: int, total: int) -> Callable[[int], Watch]:
        """What watches the pictures from the n-th of a prompt on, of `total` in all, when `before` are drawn."""
        steps = self.request.steps
        return lambda start: lambda done, _: self.watch(Drawing((before + start) * steps + done, total * steps))


@contextmanager
def _enough_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise SdkitError(
            "the memory of the device does not suffice", "draw smaller pictures, one at once, or use --precision fp16"
        ) from None


def _base_name(base: Path) -> str:
    return base.name if base.is_dir() else base.stem
