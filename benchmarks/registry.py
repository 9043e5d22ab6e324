"""How long `sdkit models` takes with many models, and scanning, and reading files whole; all of the process.

    python -m benchmarks.registry --data DIR [--models 10000] [--files 2000] [--rounds 5]

`DIR` gets a registry of models that are not there, and sparse LoRAs of 100 MB with the names of real ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.measure import Series, run

SDKIT = (sys.executable, "-m", "sdkit")
GOAL_MS, GOAL_MIB, GOAL_SCAN_SECONDS = 250, 60, 5.0


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    _measure_listing(options.data / "listing", options.models, options.rounds)
    if options.files:
        _measure_scan(options.data / "scan", options.files)
    _measure_hashing(options.data / "hash", options.rounds)


def _measure_listing(home: Path, count: int, rounds: int) -> None:
    os.environ["SDKIT_HOME"] = str(home)
    if not (home / "registry.db").exists():
        run([sys.executable, "-c", _FILL.format(count=count)])
    print(f"{count:,} models; goal: {GOAL_MS} ms, {GOAL_MIB} MiB, no torch")
    for words in (
        ["models"],
        ["models", "--limit", "0"],
        ["models", "--json"],
        ["models", "fox"],
        ["models", "show", "model-77"],
    ):
        series = Series(" ".join(words))
        for _ in range(rounds):
            series.add([*SDKIT, *words])
        told = series.failed or f"{series.best * 1000:.0f} ms (median {series.median * 1000:.0f}), {series.mib:.0f} MiB"
        print(f"  sdkit {series.name}: {told}")


def _measure_scan(folder: Path, count: int) -> None:
    os.environ["SDKIT_HOME"] = str(folder / "home")
    models = folder / "models"
    if not models.is_dir():
        run([sys.executable, "-c", _FILES.format(folder=str(models), count=count)])
    print(f"{count:,} LoRAs of 100 MB; goal: {GOAL_SCAN_SECONDS} s")
    for what in ("first", "again"):
        began = time.perf_counter()
        done = run([*SDKIT, "models", "scan", models])
        seconds = time.perf_counter() - began
        print(f"  {what}: {seconds:.1f} s ({done.cpu_seconds:.1f} s of all cores), {done.mib:.0f} MiB")


def _measure_hashing(folder: Path, rounds: int) -> None:
    """Reading whole files, beside what the system's own program takes for each in turn."""
    os.environ["SDKIT_HOME"] = str(folder / "home")
    models = folder / "models"
    if not models.is_dir():
        run([sys.executable, "-c", _FILES.format(folder=str(models), count=8)])
        run([*SDKIT, "models", "scan", models])
    files = sorted(models.iterdir())
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} files of 100 MB whole; goal: 80 % of sha256sum's speed")
    for name, command in (("sha256sum", ["sha256sum", *files]), ("verify", [*SDKIT, "models", "verify", "--again"])):
        series = Series(name)
        for _ in range(rounds):
            series.add(list(map(str, command)))
        print(f"  {series.name}: {series.failed or f'{size / series.best / 1e6:,.0f} MB/s'}")


_FILL = """
from pathlib import Path
from sdkit.registry import open_registry
from sdkit.registry.facts import Facts
with open_registry() as registry, registry.writing():
    for number in range({count}):
        animal = ("fox", "badger", "heron", "newt")[number % 4]
        registry.observe(Facts(
            Path(f"/models/model-{{number}}.safetensors"), f"1:{{number}}:2:3", 144_000_000 + number,
            f"quick1-{{number}}", f"sample1-{{number}}", "lora", ("sd1", "sdxl")[number % 2], "kohya",
            (f"ohwx {{animal}}", f"word{{number % 100}}"), "", None, {{"rank": 32, "title": f"A {{animal}}"}},
        ))
"""

_FILES = """
import math
from pathlib import Path
from sdkit.families import reference
from sdkit.weights import DTYPES
from sdkit.weights.header import build_header
folder = Path({folder!r})
folder.mkdir(parents=True)
model = reference("sd1")
rows = []
names = [f"lora_unet_{{name}}" for name in list(model.kohya_modules)[:192]]
half = DTYPES["F16"]
for name in names:
    shapes = {{"lora_down.weight": (128, 1024), "lora_up.weight": (1024, 128), "alpha": ()}}
    rows += [(f"{{name}}.{{role}}", half, shape) for role, shape in shapes.items()]
size = sum(dtype.nbytes(math.prod(shape)) for _, dtype, shape in rows)
for number in range({count}):
    header = build_header(rows, {{"ss_output_name": f"lora {{number}}", "modelspec.trigger_phrase": f"word{{number}}"}})
    with open(folder / f"lora-{{number}}.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
"""


if __name__ == "__main__":
    main()
