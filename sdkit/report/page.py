"""The page of a run: one file of HTML that needs nothing else, made from the run's log and its samples."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdkit.core.human import human_bytes, human_seconds
from sdkit.report.chart import Band, Chart, Line, Point, number, smoothed
from sdkit.report.log import Record, RunLog
from sdkit.report.thumbnails import SampleSheet, sample_sheet

TEMPLATE, STYLE = (Path(__file__).with_name(name) for name in ("page.html", "page.css"))


def render(log: RunLog) -> str:
    """The page.

    Raises:
        OSError: a picture that is there cannot be read.
    """
    return filled(
        TEMPLATE,
        title=Path(log.begun["plan"]["output"]).stem,
        subtitle=_subtitle(log),
        state=_state(log),
        figures=_figures(log),
        samples=_samples(log),
        loss=loss_chart(log),
        held_out=held_out_chart(log),
        small=[chart for chart in (rate_chart(log), norm_chart(log)) if chart],
        facts=_facts(log),
        options=[(key, _word(value)) for key, value in log.begun["options"].items()],
        changed=log.begun["changed"].keys(),
        examples=log.begun["plan"]["examples"],
        notes=_notes(log),
        command=_command(log),
    )


def filled(template: Path, **values: Any) -> str:
    """A page of the house's looks.

    Args:
        template: its file.
        values: what the template asks for beside its style.
    """
    import jinja2

    # Captions, prompts and names come from anywhere: all is escaped but the style and the charts, which are ours.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(style=STYLE.read_text(encoding="utf-8"), **values)


# Charts


def loss_chart(log: RunLog) -> Chart | None:
    """The loss of every step, and its mean over the steps around; beside it that of its parts."""
    points = _points(log.steps, "loss")
    if not points:
        return None
    window = _window(len(points))
    lines = [
        Line(points, "raw", "each step"),
        Line(smoothed(points, window), "main", f"mean of {window} steps"),
        *_part_lines(log, window),
    ]
    return Chart("training loss by step", lines)


def held_out_chart(log: RunLog) -> Chart | None:
    """The held-out loss, with what the interval of its fall leaves open."""
    records = log.validations
    if not records:
        return None
    base = _value(records[0].get("base"))
    falls = [(float(record["step"]), *_fall(record)) for record in records]
    band = [(step, base - high, base - low) for step, low, high in falls if low == low]
    start = [(float(record["step"]), base) for record in records]
    points = _points(records, "loss")
    lines = [Line(start, "dashed", "untrained"), Line(points, "main", "held-out loss", dots=True)]
    begin = (points[0][0], base, base)
    return Chart("held-out loss by step", lines, [Band([begin, *band], "95 % interval")] if band else [])


def rate_chart(log: RunLog) -> Chart | None:
    """The learning rate."""
    return _small("learning rate", log, "lr")


def norm_chart(log: RunLog) -> Chart | None:
    """The length of the gradients."""
    return _small("gradient norm", log, "grad_norm", smooth=True)


def _small(title: str, log: RunLog, key: str, *, smooth: bool = False) -> Chart | None:
    points = _points(log.steps, key)
    if not points:
        return None
    lines = [Line(points, "raw"), Line(smoothed(points, _window(len(points))), "main")]
    return Chart(title, lines if smooth else [Line(points, "main")], width=420, height=200)


def _part_lines(log: RunLog, window: int) -> list[Line]:
    names = sorted({name for record in log.steps for name in record.get("parts") or {}})
    styles = ("second", "third", "fourth")
    return [
        Line(smoothed([(x, _value(parts.get(name))) for x, parts in _parts(log)], window), style, name)
        for name, style in zip(names, styles, strict=False)
    ]


def _parts(log: RunLog) -> list[tuple[int, Record]]:
    return [(int(record["step"]), record.get("parts") or {}) for record in log.steps]


def _points(records: Sequence[Record], key: str) -> list[Point]:
    return [(float(record["step"]), _value(record.get(key))) for record in records]


def _value(entry: Any) -> float:
    """A number of the log, whose null stands for NaN."""
    return float(entry) if isinstance(entry, (int, float)) else math.nan


def _fall(record: Record) -> tuple[float, float]:
    """The interval of the fall; NaN where there is none."""
    low, high = record.get("fall") or (None, None)
    return _value(low), _value(high)


def _window(count: int) -> int:
    """An odd number of steps to take the mean of: a twelfth of the run, so that its shape is left."""
    return max(3, count // 12) | 1


# Words


def _subtitle(log: RunLog) -> str:
    plan, data = log.begun["plan"], log.begun["data"]
    return f"{plan['method']} on {plan['base']} ({plan['family']}), from {plan['pictures']} pictures of {data}"


def _state(log: RunLog) -> tuple[str, str]:
    """(class, words) for how the run stands."""
    steps = f"{number(log.step)} of {number(log.begun['plan']['steps'])} steps"
    if log.finished:
        return "good", f"finished, {number(log.step)} steps"
    if log.named("interrupted", "ended"):
        return "open", f"interrupted after {steps}"
    return "open", f"{steps}; running, or stopped without a word"


def _figures(log: RunLog) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what a person wants to know first."""
    plan = log.begun["plan"]
    figures = []
    if log.validations:
        figures.append(_held_out_figure(log))
    losses = [y for _, y in _points(log.steps, "loss") if y == y]
    if losses:
        last = losses[-_window(len(losses)) :]
        figures.append(("Training loss", f"{sum(last) / len(last):.4f}", f"mean of the last {len(last)} steps"))
    figures.append(("Time", human_seconds(run_seconds(log)), _pace(log)))
    figures += _memory_figures(log)
    figures.append(("Trained", f"{plan['parameters']:,}", f"parameters in {plan['modules']:,} modules"))
    size = [record["output_bytes"] for record in log.named("ended") if record.get("output_bytes")]
    if size:
        figures.append(("Result", human_bytes(size[-1]), plan["output"]))
    return figures


def _held_out_figure(log: RunLog) -> tuple[str, str, str]:
    first, last = log.validations[0], log.validations[-1]
    before, after = _value(first.get("base")), _value(last.get("loss"))
    how, sign = ("fell", 1) if after <= before else ("rose", -1)
    low, high = sorted(sign * end for end in _fall(last))
    interval = f"95 %: {low:.4f} to {high:.4f}, " if low == low else ""
    remark = f"{how} by {abs(before - after):.4f} from {before:.4f} ({interval}{last['pairs']} fixed pairs)"
    return "Held-out loss", f"{after:.4f}", remark


def run_seconds(log: RunLog) -> float:
    """Wall time of all processes of the run; of one that was killed, that of its steps."""
    total = steps = 0.0
    for record in log.named("begun", "step", "ended"):
        if record["event"] == "step":
            steps += _value(record.get("seconds"))
        else:
            total += steps if record["event"] == "begun" else _value(record.get("seconds"))
            steps = 0.0
    return total + steps


def _pace(log: RunLog) -> str:
    seconds = [_value(record.get("seconds")) for record in log.steps]
    return f"{len(seconds) / max(sum(seconds), 1e-9):.2f} steps a second" if seconds else ""


def _memory_figures(log: RunLog) -> list[tuple[str, str, str]]:
    figures = []
    for key, name in (("memory_mib", "Peak memory"), ("device_memory_mib", "On the GPU")):
        told = [record[key] for record in log.named("ended") if record.get(key)]
        if told:
            figures.append((name, human_bytes(max(told) * (1 << 20)), log.begun["device"]))
    return figures


def _facts(log: RunLog) -> list[tuple[str, str]]:
    """(name, value) for the table of the run."""
    plan, begun = log.begun["plan"], log.begun
    sizes = ", ".join(f"{count} of {size}" for size, count in plan["buckets"].items())
    resumed = len(log.named("begun")) - 1
    sources = ", ".join(f"{count} from {source}" for source, count in plan["caption_sources"].items())
    return [
        ("Method", plan["method"]),
        ("Base", f"{plan['base']} ({plan['family']})"),
        ("Data", f"{begun['data']}: {plan['pictures']} pictures ({sizes})"),
        ("Captions", sources),
        *_class_fact(plan.get("class_pictures")),
        ("Steps", f"{number(plan['steps'])} of {plan['batch']} pictures, {plan['epochs']:g} epochs"),
        ("Device", begun["device"]),
        *([("Resumed", "once" if resumed == 1 else f"{resumed} times")] if resumed else []),
        ("Versions", ", ".join(f"{name} {version}" for name, version in begun["versions"].items())),
    ]


def _class_fact(prior: Record | None) -> list[tuple[str, str]]:
    return [("Class", f"{prior['pictures']} pictures of “{prior['prompt']}”")] if prior else []


def _notes(log: RunLog) -> list[str]:
    """What a person should know, each once."""
    notes = [record["text"] for record in log.named("note")]
    notes += [
        f"step {record['step']}: no finite gradients; back to step {record['to_step']}, lr × {record['lr_scale']:g}"
        for record in log.named("rolledback")
    ]
    skipped = sum(1 for record in log.steps if record.get("skipped"))
    if skipped:
        notes.append(f"{skipped} steps without a finite gradient were skipped")
    return list(dict.fromkeys(notes))


def _command(log: RunLog) -> str:
    """The command that makes the run again, with names in the places of paths."""
    plan, begun = log.begun["plan"], log.begun
    words = ["sdkit", "train", plan["method"], "--base", plan["base"], "--data", begun["data"]]
    words += [f"{key}={_word(value)}" for key, value in begun["changed"].items()]
    return shlex.join(words)


def _word(value: Any) -> str:
    """A value as it is written behind its key."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _samples(log: RunLog) -> SampleSheet | None:
    return sample_sheet(log) if log.samples else None
