"""How long `sdkit merge` takes and how much memory it needs, whole process, beside `cp` in the same minutes.

    python -m benchmarks.merge --data DIR [--rounds 7] [--only sd15,sdxl,several,startup] [--mecha PYTHON] [--json FILE]

Every round runs, for each case, `cp BASE OUT && sync OUT` and then the merge (which flushes its output, too), so that
both meet the same weather: on a virtual machine one and the same copy may take 0.5 s or 2.3 s. Minima are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data import ensure
from benchmarks.measure import Series, run

STRENGTH = 0.8
MAX_MIB = 260
SDKIT: tuple[str, ...] = (sys.executable, "-m", "sdkit")
HERE = Path(__file__).parent
SECTIONS = ("sd15", "sdxl", "several", "startup")


@dataclass(frozen=True)
class Case:
    """A merge: a base, and LoRAs with their strengths."""

    name: str
    base: str
    loras: tuple[tuple[str, float], ...]


SD15 = Case("LoRA rank 32 → SD1.5", "sd15_a", (("lora15", STRENGTH),))
SDXL = Case("LoRA rank 32 → SDXL", "sdxl_a", (("loraxl", STRENGTH),))
SEVERAL = (
    Case("1 LoRA → SD1.5", "sd15_a", (("lora15", 0.5),)),
    Case("2 LoRAs → SD1.5", "sd15_a", (("lora15", 0.5), ("lora15_fp16", -0.3))),
    Case("3 LoRAs → SD1.5", "sd15_a", (("lora15", 0.5), ("lora15_fp16", -0.3), ("lora15", 0.2))),
)


@dataclass
class Measured:
    """The series of one case."""

    case: Case
    copy: Series
    merge: Series
    mecha: Series | None


class Bench:
    """The measurements of one call.

    Args:
        data: folder with the files.
        out: where outputs go, on the same disk.
        rounds: how often each command runs.
        mecha: an interpreter that has sd-mecha, to run it as well.
    """

    def __init__(self, data: Path, out: Path, rounds: int, mecha: str | None) -> None:
        self.data, self.out, self.rounds, self.mecha = data, out, rounds, mecha

    def file(self, name: str) -> Path:
        """One of the files."""
        return self.data / f"{name}.safetensors"

    def cases(self, cases: Sequence[Case], *, peers: bool) -> list[Measured]:
        """Measure merges, round by round."""
        measured = [
            Measured(case, Series("cp && sync"), Series("sdkit"), Series("sd-mecha") if peers and self.mecha else None)
            for case in cases
        ]
        for number in range(self.rounds):
            for entry in measured:
                self._round(entry)
                print(f"round {number + 1} of {self.rounds}: {entry.case.name}", file=sys.stderr)
        return measured

    def _round(self, entry: Measured) -> None:
        base, case = self.file(entry.case.base), entry.case
        self._write(entry.copy, ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", base, self.out])
        loras = [f"{self.file(name)}={strength}" for name, strength in case.loras]
        self._write(entry.merge, [*SDKIT, "merge", base, *loras, "-o", self.out, "-q"])
        if entry.mecha is not None and self.mecha is not None:
            (name, strength), script = case.loras[0], HERE / "mecha_lora.py"
            self._write(entry.mecha, [self.mecha, script, base, self.file(name), str(strength), self.out])

    def _write(self, series: Series, command: Sequence[str | Path]) -> None:
        series.add(command)
        self.out.unlink(missing_ok=True)

    def product(self, lora: str) -> dict[str, float]:
        """The plain float32 product of one LoRA's factors, in seconds."""
        found: dict[str, float] = json.loads(run([sys.executable, HERE / "product.py", self.file(lora)]).stdout)
        return found

    def startup(self) -> list[tuple[Series, bool | None]]:
        """Commands that answer at once, and whether they import torch (None where the command is not there)."""
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "sdkit --help": [*SDKIT, "--help"],
            "sdkit inspect (SDXL)": [*SDKIT, "inspect", self.file("sdxl_a")],
        }
        results = []
        for name, command in commands.items():
            series = Series(name)
            for _ in range(3 * self.rounds):
                series.add(command)
            results.append((series, None if series.failed else imports_torch(command)))
        return results


def imports_torch(command: Sequence[str | Path]) -> bool:
    """Whether a Python command line imports torch; python's own list of imports tells."""
    noisy = [command[0], "-X", "importtime", *command[1:]]
    listing = run(["sh", "-c", '"$@" 2>&1 >/dev/null', "sh", *noisy]).stdout
    return any(line.rpartition("|")[2].strip() == "torch" for line in listing.splitlines())


def merge_table(measured: Sequence[Measured]) -> list[str]:
    """Markdown."""
    lines = ["| work | tool | min s | median s | peak MiB | × cp | goal |", "|---|---|---|---|---|---|---|"]
    for entry in measured:
        for series in (entry.copy, entry.merge, entry.mecha):
            if series is None:
                continue
            if series.failed:
                lines.append(f"| {entry.case.name} | {series.name} | failed: {series.failed} | | | | |")
                continue
            ratio = series.best / entry.copy.best
            goal = met(entry) if series is entry.merge else ""
            numbers = f"{series.best:.2f} | {series.median:.2f} | {series.mib:.0f} | {ratio:.2f}"
            lines.append(f"| {entry.case.name} | {series.name} | {numbers} | {goal} |")
    return lines


def met(entry: Measured) -> str:
    """The goal for a case, and whether it holds."""
    if len(entry.case.loras) > 1:
        return ""
    copy, merge = entry.copy.best, entry.merge.best
    if entry.case.base == "sdxl_a":
        limit, words = 2.0 * copy, "≤ 2.0 × cp"
    elif copy < 0.65:
        limit, words = 2.6, "≤ 2.6 s"
    else:
        limit, words = 4.0 * copy, "≤ 4 × cp"
    return f"{words}, ≤ {MAX_MIB} MiB: {'met' if merge <= limit and entry.merge.mib <= MAX_MIB else 'NOT met'}"


def further_table(measured: Sequence[Measured], products: dict[str, dict[str, float]]) -> list[str]:
    """Markdown: what each further LoRA costs, beside its own product."""
    lines = [
        "| further LoRA | wall s | CPU s | float32 product s (reused memory) | × product | goal |",
        "|---|---|---|---|---|---|",
    ]
    for before, after in zip(measured, measured[1:], strict=False):
        if before.merge.failed or after.merge.failed:
            continue
        name = after.case.loras[-1][0]
        cost, cpu = after.merge.best - before.merge.best, after.merge.cpu - before.merge.cpu
        plain, reused = products[name]["plain"], products[name]["reused"]
        goal = f"≤ 1.3: {'met' if cost <= 1.3 * plain else 'NOT met'}"
        lines.append(f"| {name} | {cost:.2f} | {cpu:.2f} | {plain:.2f} ({reused:.2f}) | {cost / plain:.2f} | {goal} |")
    return lines


def startup_table(results: Sequence[tuple[Series, bool | None]]) -> list[str]:
    """Markdown."""
    goals = {"sdkit --help": (120, None), "sdkit inspect (SDXL)": (150, 45)}
    lines = ["| command | min ms | median ms | peak MiB | imports torch | goal |", "|---|---|---|---|---|---|"]
    for series, torch in results:
        if series.failed:
            lines.append(f"| {series.name} | {series.failed} | | | | |")
            continue
        best, (limit, memory) = 1000 * series.best, goals.get(series.name, (None, None))
        words = [f"≤ {limit} ms"] * bool(limit) + [f"≤ {memory} MiB"] * bool(memory)
        holds = best <= (limit or best) and series.mib <= (memory or series.mib) and not torch
        goal = f"{', '.join(words)}: {'met' if holds else 'NOT met'}" if words else ""
        numbers = f"{best:.0f} | {1000 * series.median:.0f} | {series.mib:.0f} | {'yes' if torch else 'no'}"
        lines.append(f"| {series.name} | {numbers} | {goal} |")
    return lines


def machine() -> str:
    """What was measured on, in one sentence."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GiB, {platform.system()}, {versions}"


@contextmanager
def output_in(folder: Path) -> Iterator[Path]:
    """A path for outputs, on the disk the files are on; it goes away with everything in it."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as inside:
        yield Path(inside) / "out.safetensors"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("benchmarks/files"), help="folder of the files; filled if empty"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--mecha", metavar="PYTHON", help="an interpreter that has sd-mecha, to measure it as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there")
    return parser.parse_args()


def main() -> None:
    """Measure, and print Markdown."""
    chosen = options()
    sections = chosen.only.split(",")
    if unknown := sorted(set(sections) - set(SECTIONS)):
        sys.exit(f"--only: there is no {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    cases = [case for name, case in (("sd15", SD15), ("sdxl", SDXL)) if name in sections]
    several = SEVERAL if "several" in sections else ()
    names = {name for case in (*cases, *several) for name in (case.base, *(lora for lora, _ in case.loras))}
    ensure(chosen.data, sorted(names | ({"sdxl_a"} if "startup" in sections else set())))
    record: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds}
    print(f"{machine()}. {chosen.rounds} rounds.")
    with output_in(chosen.data) as out:
        bench = Bench(chosen.data, out, chosen.rounds, chosen.mecha)
        _merges(bench, cases, several, record)
        if "startup" in sections:
            started = bench.startup()
            _print(startup_table(started))
            record["startup"] = [{**series.as_dict(), "imports_torch": torch} for series, torch in started]
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")


def _merges(bench: Bench, cases: Sequence[Case], several: Sequence[Case], record: dict[str, Any]) -> None:
    measured = bench.cases(cases, peers=True)
    if measured:
        _print(merge_table(measured))
    further = bench.cases(several, peers=False)
    if further:
        products = {name: bench.product(name) for name in {case.loras[-1][0] for case in several}}
        _print(merge_table(further))
        _print(further_table(further, products))
        record["products"] = products
    record["merges"] = [_record(entry) for entry in (*measured, *further)]


def _record(entry: Measured) -> dict[str, Any]:
    series = (entry.copy, entry.merge, entry.mecha)
    return {"case": entry.case.name, "series": [one.as_dict() for one in series if one is not None]}


def _print(lines: Sequence[str]) -> None:
    print("\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
