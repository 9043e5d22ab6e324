"""What four training methods can teach the embedded base, at what cost, measured.

    python -m benchmarks.methods DATA [--base tiny] [--out runs/methods] [--workers 1] [--tune] [--write docs]

DATA is the folder that recipes/tiny-base/pictures.py made. Every training is a process of its own, with one thread.
Each result is a line in OUT/results.jsonl; what is there already is not measured again, so the command goes on where it
was stopped. ``--tune`` chooses the hyper-parameters anew first (chosen.yaml); ``--write`` puts tables, plot and contact
sheets into the documentation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Failed
from benchmarks.methods import settings
from benchmarks.methods.concepts import NEW_STYLE, SUBJECTS, TUNING, concept
from benchmarks.methods.one import Line, Order
from benchmarks.methods.pages import PLOT, sheet_name, tables, write_plot, write_sheet, write_tables
from benchmarks.methods.results import Results, carry_out
from sdkit.core.hashing import quick_id
from sdkit.families.bases import resolve_base
from sdkit.weights import open_weights

SEEDS = (1, 2, 3)
COMMAND = [sys.executable, "-m", "benchmarks.methods.one"]


class Comparison:
    """The measurements of one call.

    Args:
        base: a base's name or path.
        data: the folder that recipes/tiny-base/pictures.py made.
        out: where results and pictures go.
        workers: trainings at a time.
    """

    def __init__(self, base: str, data: Path, out: Path, workers: int) -> None:
        path = resolve_base(base)
        with open_weights(path) as weights:
            base_id = quick_id(*weights.files)
        self.data, self._workers = data.absolute(), workers
        self._blank = Order(str(path.absolute()), base_id, str(self.data), str(out.absolute()), concept="")
        self.results = Results(out / "results.jsonl")

    def base_orders(self, names: Sequence[str]) -> list[Order]:
        """What the base does by itself."""
        return [replace(self._blank, concept=name) for name in names]

    def tuning_orders(self) -> Iterator[tuple[str, settings.Options, Order]]:
        """(method, hyper-parameters, what they mean) for everything that is tried."""
        (name,) = TUNING
        for method, entries in settings.tried().items():
            for hyper in entries:
                yield method, hyper, self._order(name, method, hyper, SEEDS[0], draw=False)

    def run_orders(self) -> list[Order]:
        """The runs that are reported."""
        chosen = settings.chosen()
        return [
            self._order(name, condition, chosen[settings.method_of(condition)], seed)
            for seed in SEEDS
            for name in (*SUBJECTS, NEW_STYLE)
            for condition in settings.conditions(style=name == NEW_STYLE)
        ]

    def _order(self, name: str, condition: str, hyper: settings.Options, seed: int, *, draw: bool = True) -> Order:
        options = settings.run_options(condition, concept(self.data, name), hyper)
        return replace(self._blank, concept=name, condition=condition, seed=seed, options=options, draw=draw)

    def carry_out(self, orders: Sequence[Order]) -> list[Line]:
        """The results of orders, measured where they are not there yet."""
        done = sum(self.results.of(order) is not None for order in orders)
        for order, line in carry_out(orders, self.results, COMMAND, self._workers):
            done += 1
            print(f"{done} of {len(orders)}: {_told(order, line)}", file=sys.stderr)
        return [found for order in orders if (found := self.results.of(order)) is not None]

    def tune(self) -> None:
        """Choose the hyper-parameters: those that lead to the lowest held-out loss."""
        entries = list(self.tuning_orders())
        self.carry_out(self.base_orders(list(TUNING)))
        tuned = self.carry_out([order for _, _, order in entries])
        losses: dict[str, list[tuple[settings.Options, float]]] = {}
        for (method, hyper, _), line in zip(entries, tuned, strict=True):
            losses.setdefault(method, []).append((hyper, mean(line["losses"]["held_out"])))
        settings.write_chosen(next(iter(TUNING)), losses)

    def write_sheets(self, folder: Path, bases: Sequence[Line]) -> None:
        """A contact sheet of each concept that is reported, with the first seed."""
        asked = {line["concept"]: line["asked"] for line in bases}
        for name in (*SUBJECTS, NEW_STYLE):
            thing = concept(self.data, name)
            (base,) = self.base_orders([name])
            first = [order for order in self.run_orders() if (order.concept, order.seed) == (name, SEEDS[0])]
            drawn = [(f"the base, asked for “{asked[name]}”", base.pictures)]
            drawn += [(order.condition, order.pictures) for order in first]
            write_sheet(folder / sheet_name(name), thing, drawn)


def mean(losses: Sequence[Sequence[float]]) -> float:
    """Of [pictures, pairs]."""
    return sum(map(sum, losses)) / sum(map(len, losses))


def _told(order: Order, line: Line) -> str:
    what = f"{order.condition}, {order.concept}, seed {order.seed}" if order.condition else f"the base, {order.concept}"
    cost = f", {line['cpu_seconds']:.0f} CPU s" if order.condition else ""
    return f"{what}: held-out loss {mean(line['losses']['held_out']):.4f}{cost}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--tune", action="store_true", help="choose the hyper-parameters anew, on one subject")
    parser.add_argument("--write", type=Path, metavar="DOCS", help="the folder of training.md")
    return parser.parse_args()


def main() -> None:
    """Measure what is not measured yet, and print or write the table."""
    given = options()
    os.environ.update({name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
    os.environ["SDKIT_HOME"] = str(given.out.absolute() / "home")  # its caches, and no registry of a person's
    if not (given.data / "subjects").is_dir():
        sys.exit(f"{given.data} holds no subjects: `python recipes/tiny-base/pictures.py {given.data}` makes them")
    comparison = Comparison(given.base, given.data, given.out, given.workers)
    try:
        if given.tune:
            comparison.tune()
        bases = comparison.carry_out(comparison.base_orders([*SUBJECTS, NEW_STYLE]))
        runs = comparison.carry_out(comparison.run_orders())
    except Failed as failed:
        sys.exit(f"a training failed: {failed}\nwhat was measured is kept in {given.out / 'results.jsonl'}")
    text = tables(bases, runs)
    print(text)
    if given.write is not None:
        write_tables(given.write / "training.md", text)
        write_plot(given.write / "pictures" / PLOT, bases, runs)
        comparison.write_sheets(given.write / "pictures", bases)


if __name__ == "__main__":
    main()
