"""How long blending, extracting and resizing take and how much memory they need, whole process, beside `cp`.

    python -m benchmarks blend --data DIR [--rounds 5] [--only sdxl,ties,average,recipe,extract,resize] [--mecha PYTHON]

As in benchmarks/merge.py every round alternates each case with `cp A OUT && sync OUT`, and minima are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import ensure
from benchmarks.measure import Series, run
from benchmarks.merge import HERE, SDKIT, machine, output_in

Command = list[str | Path]

# Made of the other files where they are missing: what they are made of, and how.
DERIVED = {
    "sdxl_c": ("blend", "sdxl_a", "sdxl_b", "--alpha", "0.4"),
    "sd15_d": ("blend", "sd15_a", "sd15_b", "--alpha", "0.3"),
    "sd15_base": ("blend", "sd15_a", "sd15_b", "sd15_c", "--method", "n-average"),
}
RECIPE = """steps:
  people: {{blend: ["{a}=0.6", "{b}=0.4"], method: linear}}
  style: {{blend: ["{c}", "{d}"], method: ties, base: "{base}", density: 0.3}}
  both: {{blend: [people, style], method: slerp, alpha: 0.4}}
  mix: {{merge: [both, "{lora}=0.7"], output: "{out}"}}
"""


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        section: what `--only` calls it.
        name: what the table calls it.
        files: what it reads.
        command: the command line, given the path of each file and the output.
        beside: the file that is copied beside it; None where nothing is.
        times: the goal: at most so many times the copy; None where there is none.
        seconds: the goal in seconds.
        mib: the goal in MiB.
        mecha: a script that does the same with sd-mecha, with the same files and the output.
        faster: the goal: so many times faster than that.
    """

    section: str
    name: str
    files: tuple[str, ...]
    command: Callable[[dict[str, Path], Path], Command]
    beside: str | None = None
    times: float | None = None
    seconds: float | None = None
    mib: float | None = None
    mecha: str | None = None
    faster: float | None = None


def blending(*words: str, base: str | None = None) -> Callable[[dict[str, Path], Path], Command]:
    """`sdkit blend` of all files but the base."""

    def command(files: dict[str, Path], out: Path) -> Command:
        models = [path for name, path in files.items() if name != base]
        given: Command = ["--base", files[base]] if base else []
        return [*SDKIT, "blend", *models, *words, *given, "-o", out, "-q"]

    return command


def recipe(files: dict[str, Path], out: Path) -> Command:
    """`sdkit run` of a recipe of five models and a LoRA, written beside the output."""
    names = dict(zip("abcd", (files[f"sd15_{letter}"] for letter in "abcd"), strict=True))
    path = out.with_name("five.yaml")
    path.write_text(RECIPE.format(**names, base=files["sd15_base"], lora=files["lora15"], out=out))
    return [*SDKIT, "run", path, "--force", "-q"]


def average(count: int) -> Case:
    """The mean of so many models (three files over and over: they count as read each time)."""

    def command(files: dict[str, Path], out: Path) -> Command:
        models = [list(files.values())[number % len(files)] for number in range(count)]
        return [*SDKIT, "blend", *models, "--method", "n-average", "-o", out, "-q"]

    return Case("average", f"mean of {count} SD1.5", ("sd15_a", "sd15_b", "sd15_c"), command, "sd15_a")


SD15 = ("sd15_a", "sd15_b", "sd15_c", "sd15_base")
XL = ("sdxl_a", "sdxl_b")
CASES = (
    Case("sdxl", "weighted sum, SDXL", XL, blending("--alpha", "0.3"), "sdxl_a", 2.0, mib=300),
    Case(
        "sdxl",
        "add difference, SDXL",
        (*XL, "sdxl_c"),
        blending("-m", "add-difference", "--alpha", "0.7"),
        "sdxl_a",
        2.5,
        mib=300,
    ),
    Case("sdxl", "SLERP, SDXL", XL, blending("-m", "slerp", "--alpha", "0.4"), "sdxl_a", 3.0, mib=300),
    Case(
        "ties",
        "TIES of three SD1.5",
        SD15,
        blending("-m", "ties", "-p", "density=0.2", base="sd15_base"),
        "sd15_a",
        mib=1024,
        mecha="ties",
        faster=6,
    ),
    Case(
        "ties",
        "DARE with TIES of three SD1.5",
        SD15,
        blending("-m", "dare-ties", "-p", "density=0.1", base="sd15_base"),
        "sd15_a",
        mib=1024,
        mecha="dare",
        faster=6,
    ),
    *(average(count) for count in (2, 4, 6, 8, 10)),
    Case("recipe", "recipe of five SD1.5 and a LoRA", (*SD15, "sd15_d", "lora15"), recipe, "sd15_a"),
    Case(
        "extract",
        "extract rank 32, SDXL",
        XL,
        lambda files, out: [*SDKIT, "extract", files["sdxl_b"], files["sdxl_a"], "--rank", "32", "-o", out, "-q"],
        seconds=180,
        mib=1536,
    ),
    Case(
        "resize",
        "resize an SDXL LoRA 128 → 32",
        ("loraxl_128",),
        lambda files, out: [*SDKIT, "resize", files["loraxl_128"], "--rank", "32", "-o", out, "-q"],
        seconds=10,
    ),
)


@dataclass
class Measured:
    """The series of one case."""

    case: Case
    copy: Series | None
    sdkit: Series
    mecha: Series | None

    @property
    def series(self) -> list[Series]:
        """Those there are."""
        return [series for series in (self.copy, self.sdkit, self.mecha) if series is not None]


def measure(cases: Sequence[Case], data: Path, out: Path, rounds: int, mecha: str | None) -> list[Measured]:
    """Measure all cases, round by round."""
    measured = [
        Measured(
            case,
            Series("`cp && sync`") if case.beside else None,
            Series("sdkit"),
            Series("sd-mecha") if mecha and case.mecha else None,
        )
        for case in cases
    ]
    for number in range(rounds):
        for entry in measured:
            case, files = entry.case, {name: data / f"{name}.safetensors" for name in entry.case.files}
            if entry.copy is not None:
                entry.copy.add(
                    ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", data / f"{case.beside}.safetensors", out]
                )
                remove(out)
            entry.sdkit.add(case.command(files, out))
            remove(out)
            if entry.mecha is not None and case.mecha and mecha:
                entry.mecha.add([mecha, HERE / "mecha_ties.py", case.mecha, *files.values(), out])
                remove(out)
            print(f"round {number + 1} of {rounds}: {case.name}", file=sys.stderr)
    return measured


def remove(out: Path) -> None:
    """Remove an output, a file or a folder."""
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink(missing_ok=True)


def table(measured: Sequence[Measured]) -> list[str]:
    """Markdown."""
    lines = ["| work | tool | min s | median s | peak MiB | × cp | goal |", "|---|---|---|---|---|---|---|"]
    for entry in measured:
        for series in entry.series:
            name = entry.case.name if series is entry.series[0] else ""
            if series.failed:
                lines.append(f"| {name} | {series.name} | failed: {series.failed} | | | | |")
                continue
            memory = f"{series.mib:.0f}" if series is not entry.copy else ""
            copied = entry.copy is not None and not entry.copy.failed
            ratio = f"{series.best / entry.copy.best:.2f}" if copied and entry.copy else ""
            goal = met(entry) if series is entry.sdkit else ""
            lines.append(
                f"| {name} | {series.name} | {series.best:.2f} | {series.median:.2f} | {memory} | {ratio} | {goal} |"
            )
    return lines


def met(entry: Measured) -> str:
    """The goals of a case, each with whether it holds."""
    case, here = entry.case, entry.sdkit
    goals: list[tuple[str, bool]] = []
    if case.times and entry.copy is not None and not entry.copy.failed:
        goals.append((f"≤ {case.times:g} × cp", here.best <= case.times * entry.copy.best))
    if case.seconds:
        goals.append((f"≤ {case.seconds:g} s", here.best <= case.seconds))
    if case.mib:
        goals.append((f"≤ {case.mib:g} MiB", here.mib <= case.mib))
    if case.faster and entry.mecha is not None and not entry.mecha.failed:
        times = entry.mecha.best / here.best
        goals.append((f"≥ {case.faster:g} × sd-mecha ({times:.1f})", times >= case.faster))
    return ", ".join(f"{words}: {'met' if holds else 'NOT met'}" for words, holds in goals)


def prepare(data: Path, cases: Sequence[Case]) -> None:
    """Make the files that are missing."""
    names = {name for case in cases for name in case.files}
    wanted = {part for name in names for part in (DERIVED[name][1:] if name in DERIVED else (name,))}
    plain = {part for part in wanted if part.startswith(("sd15_", "sdxl_", "lora"))} - {"loraxl_128"}
    ensure(data, sorted(plain | ({"loraxl"} if "loraxl_128" in names else set())))
    for name, (verb, *words) in DERIVED.items():
        path = data / f"{name}.safetensors"
        if name in names and not path.exists():
            given = [
                data / f"{word}.safetensors" if (data / f"{word}.safetensors").exists() else word for word in words
            ]
            run([*SDKIT, verb, *given, "-o", path, "-q"])
    wide = data / "loraxl_128.safetensors"
    if "loraxl_128" in names and not wide.exists():
        run([sys.executable, HERE / "wide_lora.py", data / "loraxl.safetensors", wide])


def options() -> argparse.Namespace:
    """The command line."""
    sections = ",".join(dict.fromkeys(case.section for case in CASES))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("benchmarks/files"), help="folder of the files; filled if empty"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=sections, help=f"some of {sections}")
    parser.add_argument("--mecha", metavar="PYTHON", help="an interpreter that has sd-mecha, to measure it as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there")
    return parser.parse_args()


def main() -> None:
    """Measure, and print Markdown."""
    chosen = options()
    cases = [case for case in CASES if case.section in chosen.only.split(",")]
    if not cases:
        sys.exit(f"--only: there is no {chosen.only}")
    prepare(chosen.data, cases)
    show(chosen, cases)


def show(chosen: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Measure the cases as the command line says, and print Markdown."""
    print(f"{machine()}. {chosen.rounds} rounds.\n")
    with output_in(chosen.data) as out:
        measured = measure(cases, chosen.data, out, chosen.rounds, getattr(chosen, "mecha", None))
    print("\n".join(table(measured)))
    if chosen.json is not None:
        record: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds}
        record["cases"] = [
            {"case": entry.case.name, "series": [series.as_dict() for series in entry.series]} for entry in measured
        ]
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
