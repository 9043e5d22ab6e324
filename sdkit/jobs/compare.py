"""Comparing training methods: the same pictures, base, seed, held-out pairs and prompts for all of them."""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event, Note, Step
from sdkit.core.hashing import quick_id
from sdkit.core.human import human_seconds
from sdkit.core.report import Report
from sdkit.jobs.comparing.contestants import Contestant, named, read_contestants
from sdkit.jobs.comparing.material import Material, read_material, write_pictures
from sdkit.jobs.comparing.order import MEASURED, Order, Picture
from sdkit.jobs.comparing.process import carry_out
from sdkit.jobs.comparing.results import Row, advice, row, table
from sdkit.jobs.pull import local_path
from sdkit.jobs.stop import StopRequest
from sdkit.jobs.train import train
from sdkit.jobs.train_request import PathLike
from sdkit.report.comparison import Comparison, Rowed, render
from sdkit.training.data import Dataset
from sdkit.training.method import load_method
from sdkit.training.plan import Plan
from sdkit.weights import open_weights
from sdkit.weights.atomic import write_file

STEPS, CFG = 20, 7.0  # of what is drawn
BUDGET = "500"
TRIAL = 12  # steps that show how long one takes; the first two are slower and do not count
PAGE, RESULTS, MARK = "report.html", "results.json", ".comparison"
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class CompareReport(Report):
    """What was compared, or with `dry_run` would be.

    Attributes:
        output: the page.
        base: the base's name.
        pictures: trained on.
        held_out: pictures the loss is measured on.
        subject: what the new thing is, in words the base knows.
        prompts: what was drawn, in words the base knows.
        plans: of every method that is compared: label → plan.
        rows: the figures.
        table: the same in words; the first line has the heads.
        advice: what follows from the figures.
        left_out: methods that were not compared → why.
        notes: facts a person should see.
        seconds: wall time of this call.
        finished: whether all that can be compared is.
        dry_run: whether nothing was done.
    """

    output: str
    base: str
    pictures: int
    held_out: int
    subject: str
    prompts: tuple[str, ...]
    plans: dict[str, Plan]
    rows: tuple[Row, ...]
    table: tuple[tuple[str, ...], ...]
    advice: str
    left_out: dict[str, str]
    notes: tuple[str, ...]
    seconds: float
    finished: bool
    dry_run: bool


def compare(
    methods: Sequence[str],
    base: PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    subject: str = "",
    prompts: Sequence[str] = (),
    prior: Sequence[str] = (),
    held_out: str = "0.2",
    budget: str = BUDGET,
    cfg: float = CFG,
    force: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda line: None,
    watch: Callable[[Event], None] = lambda event: None,
    should_stop: StopRequest | None = None,
    **options: Any,
) -> CompareReport:
    """Train by several methods, each in a process of its own, and measure them alike. What is finished stays.

    Args:
        methods: ``lora``, ``dreambooth:class=dog``, ``lora:rank=4:algo=dora``, ….
        base: a diffusers folder or a checkpoint, or ``tiny``.
        data: a folder of pictures with captions; ``{}`` in them names what is new.
        output: a folder; default ``runs/DATA-compare``.
        subject: what the new thing is, in words the base knows (``dog``): what the base is asked for, and what a new
            word begins as.
        prompts: what is drawn, ``{}`` for the new thing; default is the captions of held-out pictures.
        prior: what the base knows and should not forget; default is the subject's class.
        held_out: a folder of pictures that are not trained on, or the share of them.
        budget: of every training: a number of steps, or a time of its steps: ``90s``, ``10m``, ``2h``.
        cfg: guidance of what is drawn.
        force: measure everything anew.
        dry_run: stop after the plans.
        say: told what begins.
        watch: called with every event of the trainings.
        should_stop: asked after every event; when it says so, the training's state is saved and all ends.
        options: keys for all methods that know them.

    Raises:
        SdkitError: whatever is wrong, most of it before anything is trained.
    """
    target = Path(output) if output is not None else Path("runs") / f"{Path(data).absolute().name}-compare"
    subject = subject.strip()
    material = read_material(Path(data), held_out, subject, prompts, prior, str(options.get("caption", "")))
    contestants = read_contestants(methods, options, subject, _steps(budget))
    asked = _Asked(local_path(base), target, subject, budget, cfg, options)
    run = _Run(asked, material, contestants, say, watch, should_stop or StopRequest())
    return run.go(force=force, dry_run=dry_run)


def _steps(budget: str) -> int:
    """A budget's steps; of a time none is known yet."""
    return int(budget) if budget.isdigit() and int(budget) else TRIAL if _seconds(budget) else 1


def _seconds(budget: str) -> float:
    """A budget's time; 0 where it is a number of steps.

    Raises:
        UsageError: it is neither.
    """
    if budget.isdigit() and int(budget):
        return 0.0
    found = _SECONDS.fullmatch(budget.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--budget {budget}: neither steps nor a time", "write 500, or 90s, 10m, 2h")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is the same for all, beside the pictures."""

    base: Path
    target: Path
    subject: str
    budget: str
    cfg: float
    options: Mapping[str, Any]

    def order(self, material: Material, contestant: Contestant | None, base_id: str) -> Order:
        """What a process shall do for a contestant, or for the base by itself."""
        naming = contestant.naming if contestant is not None else self.plainly
        own = contestant.options if contestant is not None else self.options
        resolution = own.get("resolution")
        return Order(
            label=contestant.label if contestant else "",
            method=contestant.method if contestant else "",
            options=dict(contestant.options) if contestant else {},
            base=str(self.base.absolute()),
            base_id=base_id,
            data_id=material.trained.id,
            folder=str((self.target / (contestant.folder if contestant else "base")).absolute()),
            held_out=_pictures(material.held_out, naming),
            prior=material.prior,
            prior_folder=str((self.target / "base" / "prior").absolute()),
            prompts=tuple(map(naming, material.prompts)),
            texts=tuple(map(self.plainly, material.prompts)),
            shown=_pictures(material.trained, self.plainly),
            steps=STEPS,
            cfg=self.cfg,
            device=str(own.get("device", "auto")),
            precision=str(own.get("precision", "auto")),
            resolution=int(resolution) if resolution else None,
        )

    def plainly(self, text: str) -> str:
        """A caption or prompt in words the base knows."""
        return named(text, self.subject)


def _pictures(dataset: Dataset, naming: Callable[[str], str]) -> tuple[Picture, ...]:
    return tuple(Picture(sample.id, str(sample.path.absolute()), naming(sample.caption)) for sample in dataset.samples)


class _Run:
    """One comparison, from what was asked to the report."""

    def __init__(
        self,
        asked: _Asked,
        material: Material,
        contestants: Sequence[Contestant],
        say: Callable[[str], None],
        watch: Callable[[Event], None],
        should_stop: StopRequest,
    ) -> None:
        self._asked, self._material, self._contestants = asked, material, contestants
        self._say, self._watch, self._should_stop = say, watch, should_stop
        self._left_out: dict[str, str] = {}
        self._planned_notes: frozenset[str] = frozenset()
        self._common_notes: list[str] = []
        self._began = time.perf_counter()
        with open_weights(asked.base) as weights:
            self._base_id = quick_id(*weights.files)

    def go(self, *, force: bool, dry_run: bool) -> CompareReport:
        """Plan, and unless that was all, train and measure."""
        plans = self._plans()
        if dry_run:
            return self._report(plans, [], finished=False, dry_run=True)
        base = self._asked.order(self._material, None, self._base_id)
        chosen = [each for each in self._contestants if each.label in plans]
        orders = [(each, self._asked.order(self._material, each, self._base_id)) for each in chosen]
        _claim(self._asked.target)
        self._check_target([base, *(order for _, order in orders)], force=force)
        rows: list[Row] = []
        finished = self._done(base, "the base by itself")
        for contestant, order in orders if finished else ():
            try:
                finished = self._compared(contestant, order)
            except SdkitError as error:  # the others are not to suffer for it
                self._left_out[contestant.label] = f"failed: {error.message}"
                self._say(f"{contestant.label} failed: {error.message}")
                continue
            if not finished:
                break
            rows.append(self._row(contestant, base))
            self._write(base, rows)
        return self._report(plans, rows, finished=finished and not self._stopped)

    # Plans

    def _plans(self) -> dict[str, Plan]:
        """The plan of every method that can be compared on these pictures; of the others, why not.

        Raises:
            SdkitError: there is none.
        """
        plans = {}
        with tempfile.TemporaryDirectory() as place:
            for contestant in self._contestants:
                folder = Path(place) / contestant.folder / "pictures"
                write_pictures(self._material, folder, contestant.naming)
                reason = _unfit(contestant)
                try:
                    if not reason:
                        plans[contestant.label] = self._plan(contestant, folder)
                except SdkitError as error:
                    reason = error.message.replace(str(folder), str(self._material.data))
                if reason:
                    self._left_out[contestant.label] = reason
        if not plans:
            label, reason = next(iter(self._left_out.items()))
            raise SdkitError(f"none of the methods can be compared on these pictures; {label}: {reason}")
        said = [plan.notes for plan in plans.values()]
        self._planned_notes = frozenset(note for notes in said for note in notes)
        self._common_notes = [note for note in said[0] if all(note in notes for notes in said)]
        return plans

    def _plan(self, contestant: Contestant, folder: Path) -> Plan:
        place = self._asked.target / contestant.folder
        plan = train(contestant.method, self._asked.base, folder, place, dry_run=True, **contestant.options).plan
        seconds = _seconds(self._asked.budget)
        return replace(plan, seconds=seconds, steps=0) if seconds else plan

    # Trainings

    def _check_target(self, orders: Sequence[Order], *, force: bool) -> None:
        """Keep what was measured as it is asked for now.

        Raises:
            SdkitError: something was measured otherwise, and is not to be replaced.
        """
        for order in orders:
            found = self._with_budget(order).measured() if order.method else order.measured()
            if force:
                shutil.rmtree(order.folder, ignore_errors=True)
            elif found is not None and found["order"] != self._with_budget(order).digest:
                raise SdkitError(
                    f"{Path(order.folder) / MEASURED}: was measured with other settings, pictures or another base",
                    "compare elsewhere with -o, or measure everything anew with --force",
                )

    def _compared(self, contestant: Contestant, order: Order) -> bool:
        """Train and measure one; whether that is done."""
        folder = Path(order.folder)
        if self._with_budget(order).measured() is None:
            write_pictures(self._material, folder / "pictures", contestant.naming)
        if _seconds(self._asked.budget) and not self._budget_file(order).is_file() and not self._tried(order):
            return False
        return self._done(self._with_budget(order), contestant.label)

    def _done(self, order: Order, what: str) -> bool:
        """Have an order carried out, unless it is already."""
        if order.measured() is not None:
            self._say(f"{what}: measured already")
            return True
        self._say(f"{what}: {'training and measuring' if order.method else 'drawing and measuring'}")
        return carry_out(order, self._told, self._should_stop)

    def _told(self, event: Event) -> None:
        """Pass on what happens, but for what the plans have said already."""
        if not isinstance(event, Note) or event.text not in self._planned_notes:
            self._watch(event)

    def _tried(self, order: Order) -> bool:
        """Find out how many steps fit into a time, and keep that: a comparison that goes on does not ask again."""
        place = Path(order.folder) / "trial"
        times: list[float] = []
        trial = replace(
            order, folder=str(place), trial=TRIAL, options={**order.options, "steps": TRIAL, "save_every": 0}
        )
        self._say(f"{order.label}: {TRIAL} steps to see how long one takes")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(Path(order.folder) / "pictures", place / "pictures")
        done = carry_out(
            trial, lambda event: times.append(event.seconds) if isinstance(event, Step) else None, self._should_stop
        )
        shutil.rmtree(place, ignore_errors=True)
        if not done:
            return False
        steps = max(1, round(_seconds(self._asked.budget) / statistics.median(times[2:])))
        write_file(self._budget_file(order), str(steps).encode(), overwrite=True)
        return True

    def _with_budget(self, order: Order) -> Order:
        """The order with as many steps as the time allows, where that is known."""
        file = self._budget_file(order)
        if not order.method or not _seconds(self._asked.budget) or not file.is_file():
            return order
        return replace(order, options={**order.options, "steps": int(file.read_text())})

    @staticmethod
    def _budget_file(order: Order) -> Path:
        return Path(order.folder) / "steps.txt"

    @property
    def _stopped(self) -> bool:
        return self._should_stop()

    # Results

    def _row(self, contestant: Contestant, base: Order) -> Row:
        order = self._asked.order(self._material, contestant, self._base_id)
        before, found = base.measured(), order.measured()
        assert before is not None and found is not None, "both are measured"
        return row(contestant.label, contestant.method, contestant.folder, before, found)

    def _write(self, base: Order, rows: Sequence[Row]) -> None:
        """The page and the figures of what is measured so far."""
        before = base.measured()
        assert before is not None, "the base is measured first"
        target = self._asked.target
        drawn = {each.label: target / each.folder / "drawn" for each in self._contestants}
        page = Comparison(
            title=f"{self._material.data.absolute().name}: {len(rows)} methods compared",
            subtitle=self._subtitle(),
            advice=advice(rows),
            table=table(rows, before),
            rows=[
                Rowed(entry.label, entry.fall, entry.fall_interval, entry.output_bytes, entry.seconds) for entry in rows
            ],
            prompts=base.texts,
            pictures=[("the base", base.drawn), *((entry.label, drawn[entry.label]) for entry in rows)],
            shown=[Path(picture.path) for picture in base.shown],
            left_out=self._left_out,
            notes=self._notes(),
        )
        write_file(target / PAGE, render(page).encode(), overwrite=True)
        figures = {"base": before, "rows": [asdict(entry) for entry in rows], "advice": page.advice}
        write_file(target / RESULTS, _json(figures), overwrite=True)

    def _subtitle(self) -> str:
        material, asked = self._material, self._asked
        each = human_seconds(_seconds(asked.budget)) if _seconds(asked.budget) else f"{asked.budget} steps"
        return (
            f"on {asked.base.name}: {len(material.trained.samples)} pictures to train on, "
            f"{len(material.held_out.samples)} held out, {each} each"
        )

    def _notes(self) -> list[str]:
        notes = [*self._material.trained.notes, *self._common_notes]
        for contestant in self._contestants:
            _, method = load_method(contestant.method)
            kind, options = method.resolve(contestant.method, contestant.options)
            if kind.passes > 1:
                notes.append(
                    f"{contestant.label} trains the guided prediction; the held-out loss is of the plain one, for all"
                )
        return list(dict.fromkeys(notes))

    def _report(
        self, plans: Mapping[str, Plan], rows: Sequence[Row], *, finished: bool, dry_run: bool = False
    ) -> CompareReport:
        asked, material = self._asked, self._material
        base = asked.order(material, None, self._base_id)
        before = None if dry_run else base.measured()
        return CompareReport(
            output=str(asked.target / PAGE),
            base=asked.base.name,
            pictures=len(material.trained.samples),
            held_out=len(material.held_out.samples),
            subject=asked.subject,
            prompts=base.texts,
            plans=dict(plans),
            rows=tuple(rows),
            table=tuple(map(tuple, table(rows, before))) if before is not None else (),
            advice=advice(rows) if rows else "",
            left_out=dict(self._left_out),
            notes=tuple(self._notes()),
            seconds=time.perf_counter() - self._began,
            finished=finished,
            dry_run=dry_run,
        )


def _claim(target: Path) -> None:
    """Mark a folder as one whose contents a comparison may replace.

    Raises:
        SdkitError: there is something in it that no comparison has made, or it cannot be written.
    """
    try:
        if target.exists() and any(target.iterdir()) and not (target / MARK).is_file():
            raise SdkitError(f"{target}: is not empty, and holds no comparison", "name another folder with -o")
        target.mkdir(parents=True, exist_ok=True)
        (target / MARK).touch()
    except OSError as error:
        raise SdkitError(f"{target}: cannot be written: {error}") from None


def _unfit(contestant: Contestant) -> str:
    """Why a method cannot be compared by the pictures a denoiser draws; empty where it can."""
    _, method = load_method(contestant.method)
    kind, _ = method.resolve(contestant.method, contestant.options)
    draws = kind.component == "unet" or kind.modelspec  # a part of a base that is not the denoiser draws nothing new
    return "" if draws else "it trains no denoiser, so there is nothing new to draw"


def _json(figures: Mapping[str, Any]) -> bytes:
    import json

    return json.dumps(figures, indent=1).encode()
