"""A process of its own that carries out one order: so that memory is measured apart, and a crash ends no comparison.

    python -m sdkit.jobs.comparing.worker < ORDER

The order is the first line of stdin, and whatever happens is a line of JSON on stdout. When stdin ends, be it that the
comparison was asked to stop or that it is no more, the training's state is saved and the process ends.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError
from sdkit.core.events import Event
from sdkit.core.paths import written_bytes
from sdkit.jobs.comparing.measure import (
    Tower,
    draw_prior,
    draw_prompts,
    likeness,
    losses,
    prior_pictures,
    trained_model,
    untrained_model,
)
from sdkit.jobs.comparing.order import Order
from sdkit.jobs.stop import StopRequest
from sdkit.report.log import read_log
from sdkit.report.page import run_seconds
from sdkit.training.method import load_method
from sdkit.training.state import complete_states

STOPPED = 3  # exit status


def measure_base(order: Order) -> None:
    """What the base does by itself, asked in words it knows."""
    backbone = untrained_model(order)
    draw_prior(order, backbone)
    drawn = draw_prompts(order, backbone, watch=tell)
    order.keep(
        {
            "held_out": losses(order, backbone, order.held_out),
            "prior": losses(order, backbone, prior_pictures(order)),
            **likeness(order, drawn, find_tower(order)),
        }
    )


def measure_method(order: Order, stop: StopRequest) -> bool:
    """Train, and measure what was trained; whether it was finished."""
    from sdkit.jobs.train import train

    folder = Path(order.folder)
    report = train(
        order.method,
        order.base,
        folder / "pictures",
        folder,
        resume=bool(complete_states(folder / "state")),
        watch=tell,
        should_stop=stop,
        **order.options,
    )
    if not report.finished:
        return False
    if order.trial:
        return True
    _, method = load_method(order.method)
    kind, options = method.resolve(order.method, order.options)
    result, beside = Path(report.output), [Path(path) for path in report.saved]
    negative = kind.settle(options, result.stem).sample_negative
    with trained_model(order, kind, result, beside) as backbone:
        drawn = draw_prompts(order, backbone, negative, tell)
        found = {
            "held_out": losses(order, backbone, order.held_out),
            "prior": losses(order, backbone, prior_pictures(order)),
            **likeness(order, drawn, find_tower(order)),
            **_costs(folder),
            "steps": report.step,
            "parameters": report.parameters,
            "bytes": sum(map(written_bytes, [result, *beside])),
            "files": [path.name for path in (result, *beside)],
        }
    order.keep(found)
    shutil.rmtree(folder / "state", ignore_errors=True)  # there is nothing left to resume
    return True


def _costs(folder: Path) -> dict[str, Any]:
    """What the run has taken, over all its processes, as its log says."""
    log = read_log(folder)
    ended = log.named("ended")
    return {
        "seconds": round(run_seconds(log), 2),
        "step_seconds": round(sum(float(record["seconds"]) for record in log.steps), 2),
        **{
            key: max((record[key] for record in ended if record.get(key)), default=None)
            for key in ("memory_mib", "device_memory_mib")
        },
        "device": log.begun["device"],
    }


def find_tower(order: Order) -> Tower | None:
    """What sees pictures and reads texts, where the base comes with an image encoder."""
    from sdkit.runtime.image_tower import load_tower

    return load_tower(Path(order.base)) if (Path(order.base) / "image_encoder").is_dir() else None


def tell(event: Event) -> None:
    """Say what happens."""
    _write(event.as_dict())


def _write(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _stop_at_end(stop: StopRequest) -> None:
    """Ask to stop when nobody listens any more."""
    sys.stdin.read()
    stop.ask()


def main() -> int:
    """Carry out the order on stdin; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process; who asks is the first
    order, stop = Order.read(sys.stdin.readline()), StopRequest()
    threading.Thread(target=_stop_at_end, args=(stop,), daemon=True).start()
    try:
        if not order.method:
            measure_base(order)
        elif not measure_method(order, stop):
            return STOPPED
    except SdkitError as error:
        _write({"error": error.message, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
