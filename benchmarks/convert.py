"""How long converting checkpoints takes and how much memory it needs, whole process, beside `cp`.

    python -m benchmarks convert --data DIR [--rounds 5] [--only sd15,sdxl] [--json FILE]

As in benchmarks/merge.py every round alternates each case with `cp A OUT && sync OUT`, and minima are compared. A
conversion reads back what it wrote and compares it with the source, unless `--no-verify` leaves that out: both are
measured, and the goal is for the whole, the proof included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.blend import Case, Command, show
from benchmarks.data import ensure
from benchmarks.measure import run
from benchmarks.merge import SDKIT

TIMES, MIB = 2.5, 300
MODELS = {"sd15": ("SD1.5", "sd15_a"), "sdxl": ("SDXL", "sdxl_a")}


def folder_of(file: Path) -> Path:
    """Where the same model lies as a folder."""
    return file.with_name(f"{file.stem}-folder")


def converting(to: str, *words: str) -> Callable[[dict[str, Path], Path], Command]:
    """`sdkit convert` of the one file, or of its folder."""

    def command(files: dict[str, Path], out: Path) -> Command:
        (file,) = files.values()
        source = file if to == "diffusers" else folder_of(file)
        return [*SDKIT, "convert", source, "--to", to, *words, "-o", out, "-q"]

    return command


def cases_of(section: str) -> list[Case]:
    """Both ways, with and without the proof."""
    title, name = MODELS[section]
    ways = (("file → folder", "diffusers"), ("folder → file", "single"))
    return [
        Case(section, f"{title}, {way}{note}", (name,), converting(to, *words), name, times, mib=MIB)
        for way, to in ways
        for note, words, times in (("", (), TIMES), (", not read back", ("--no-verify",), None))
    ]


def prepare(data: Path, cases: Sequence[Case]) -> None:
    """Make the files and folders that are missing."""
    names = sorted({name for case in cases for name in case.files})
    ensure(data, names)
    for name in names:
        file = data / f"{name}.safetensors"
        if not folder_of(file).exists():
            run([*SDKIT, "convert", file, "--to", "diffusers", "-o", folder_of(file), "-q"])


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("benchmarks/files"), help="folder of the files; filled if empty"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there")
    return parser.parse_args()


def main() -> None:
    """Measure, and print Markdown."""
    chosen = options()
    sections = chosen.only.split(",")
    if unknown := [section for section in sections if section not in MODELS]:
        sys.exit(f"--only: there is no {unknown[0]}")
    cases = [case for section in sections for case in cases_of(section)]
    prepare(chosen.data, cases)
    show(chosen, cases)


if __name__ == "__main__":
    main()
