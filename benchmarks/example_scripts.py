"""`sdkit train` beside diffusers' own example scripts: steps a second, peak memory, and how good the results are.

    python -m benchmarks.example_scripts DATA --scripts DIR --python PYTHON [--steps 300] [--rounds 3]

DATA is the folder that recipes/tiny-base/pictures.py made, DIR holds `train_text_to_image_lora.py` and
`textual_inversion.py` as diffusers publishes them in `examples/`, and PYTHON is an interpreter that has what both sides
need, and nothing else: what else is installed is imported by transformers, and costs memory.

    python -m venv E && E/bin/pip install . datasets torchvision tensorboard

Both sides train the embedded base, in float32 on one thread, on the same pictures with the same steps, batch, learning
rate and weight decay. What a step takes, in processor time, is told from two runs of different length, so start-up,
caches and the writing of the file count for neither side. One measure serves both results: the held-out loss of the
files they wrote. Every round has a seed of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Run, run

SUBJECT, WORD, INITIAL = "owl", "<owl>", "bird"
HELD_OUT = ("pink", "gray", "yellow")  # backgrounds that are not trained on
BATCH, RANK, LORA_RATE, TOKEN_RATE, DECAY = 4, 16, 1e-3, 5e-3, 0.01
SHORT = 20


@dataclass(frozen=True)
class Folders:
    """Where everything of one measurement lies."""

    base: Path
    captioned: Path
    plain: Path
    held_out: Path
    held_out_word: Path
    out: Path


@dataclass(frozen=True)
class Side:
    """One of the two that train: its command for so many steps, and the file it writes."""

    name: str
    command: Sequence[str | Path]
    written: Path


@dataclass(frozen=True)
class Measured:
    """What one side did.

    Attributes:
        step_seconds: processor time of a step, in each round.
        seconds: of each round's long run, whole process.
        mib: largest peak memory.
        before: held-out loss of the base.
        after: that of each round's file.
    """

    name: str
    step_seconds: list[float]
    seconds: list[float]
    mib: float
    before: float
    after: list[float]

    @property
    def steps_per_second(self) -> float:
        """Of processor time; the median over the rounds."""
        return 1 / statistics.median(self.step_seconds)


def prepare(data: Path, folder: Path) -> Folders:
    """The base as a float32 folder, which both sides load, and the subject's pictures as each side wants them."""
    found = Folders(*(folder / name for name in ("base", "captioned", "plain", "held-out", "held-out-word", "out")))
    run(
        [
            sys.executable,
            "-m",
            "sdkit",
            "convert",
            "tiny",
            "--to",
            "diffusers",
            "--dtype",
            "fp32",
            "-o",
            found.base,
            "--force",
        ]
    )
    for place in (found.captioned, found.plain, found.held_out, found.held_out_word):
        place.mkdir(parents=True)
    source = data / "subjects" / SUBJECT
    lines = [json.loads(line) for line in (source / "metadata.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        picture = source / line["file_name"]
        if picture.stem.rpartition("--")[2] in HELD_OUT:
            _copy(picture, found.held_out, line["text"])
            _copy(picture, found.held_out_word, f"a photo of a {WORD}")
        else:
            _copy(picture, found.captioned, line["text"])
            shutil.copy(picture, found.plain)
    return found


def _copy(picture: Path, folder: Path, caption: str) -> None:
    shutil.copy(picture, folder)
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": picture.name, "text": caption}) + "\n")


def lora(folders: Folders, scripts: Path, python: str, steps: int, seed: int) -> Iterator[Side]:
    """Both commands that train a LoRA on the attention of the U-Net."""
    out = folders.out / "sdkit.safetensors"
    options = [f"steps={steps}", f"rank={RANK}", f"lr={LORA_RATE}", f"batch={BATCH}", f"weight_decay={DECAY}"]
    command = [
        python,
        "-m",
        "sdkit",
        "train",
        "lora",
        "--base",
        folders.base,
        "--data",
        folders.captioned,
        "-o",
        out,
        "--force",
        "-q",
    ]
    yield Side("sdkit", [*command, *options, "targets=attention", "resolution=64", f"seed={seed}"], out)
    theirs = folders.out / "script"
    yield Side(
        "diffusers' script",
        [
            *(python, scripts / "train_text_to_image_lora.py", *_shared(folders.base, theirs, steps, LORA_RATE, seed)),
            *("--train_data_dir", folders.captioned, "--caption_column", "text", "--rank", str(RANK)),
        ],
        theirs / "pytorch_lora_weights.safetensors",
    )


def textual_inversion(folders: Folders, scripts: Path, python: str, steps: int, seed: int) -> Iterator[Side]:
    """Both commands that train one vector for a new word."""
    out = folders.out / "sdkit.safetensors"
    options = [f"steps={steps}", f"lr={TOKEN_RATE}", f"batch={BATCH}", f"weight_decay={DECAY}", "flip=yes"]
    words = [f"token={WORD}", f"init={INITIAL}", "property=object", "format=diffusers"]
    command = [
        python,
        "-m",
        "sdkit",
        "train",
        "textual-inversion",
        "--base",
        folders.base,
        "--data",
        folders.plain,
        "-o",
        out,
    ]
    yield Side("sdkit", [*command, "--force", "-q", *options, *words, "resolution=64", f"seed={seed}"], out)
    theirs = folders.out / "script"
    yield Side(
        "diffusers' script",
        [
            *(python, scripts / "textual_inversion.py", *_shared(folders.base, theirs, steps, TOKEN_RATE, seed)),
            *("--train_data_dir", folders.plain, "--learnable_property", "object"),
            *("--placeholder_token", WORD, "--initializer_token", INITIAL, "--save_steps", "1000000"),
        ],
        theirs / "learned_embeds.safetensors",
    )


def _shared(base: Path, out: Path, steps: int, rate: float, seed: int) -> list[str | Path]:
    """What both scripts call the same; neither saves states on the way, as sdkit does not in so few steps."""
    return [
        *("--pretrained_model_name_or_path", base, "--output_dir", out, "--resolution", "64", "--seed", str(seed)),
        *("--train_batch_size", str(BATCH), "--max_train_steps", str(steps), "--learning_rate", str(rate)),
        *("--adam_weight_decay", str(DECAY), "--lr_scheduler", "constant", "--lr_warmup_steps", "0"),
        *("--checkpointing_steps", "1000000"),
    ]


CASES = {"LoRA": lora, "textual inversion": textual_inversion}


def measure(case: str, folders: Folders, scripts: Path, python: str, steps: int, rounds: int) -> list[Measured]:
    """Both sides in turns, a short and a long run each a round."""
    runs: dict[str, list[tuple[Run, Run]]] = {}
    losses: dict[str, list[dict[str, float]]] = {}
    pictures = folders.held_out if case == "LoRA" else folders.held_out_word
    for number in range(1, rounds + 1):
        lengths = (SHORT, SHORT + steps)
        pairs = zip(*(CASES[case](folders, scripts, python, count, number) for count in lengths), strict=True)
        for short, long in pairs:
            _clear(folders.out)
            first = run(short.command)
            _clear(folders.out)
            runs.setdefault(long.name, []).append((first, run(long.command)))
            losses.setdefault(long.name, []).append(held_out_loss(folders.base, long.written, pictures))
            print(f"round {number} of {rounds}: {case}, {long.name}", file=sys.stderr)
    return [
        Measured(
            name=name,
            step_seconds=[(long.cpu_seconds - short.cpu_seconds) / steps for short, long in pairs],
            seconds=[long.seconds for _, long in pairs],
            mib=max(long.mib for _, long in pairs),
            before=losses[name][0]["before"],
            after=[loss["after"] for loss in losses[name]],
        )
        for name, pairs in runs.items()
    ]


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def held_out_loss(base: Path, file: Path, pictures: Path) -> dict[str, float]:
    """The held-out loss of an adapter's file, whoever wrote it, in a process of its own."""
    told: dict[str, float] = json.loads(run([sys.executable, "-m", "benchmarks.held_out", base, file, pictures]).stdout)
    return told


def table(results: dict[str, list[Measured]]) -> str:
    """Markdown."""
    lines = [
        "| | steps a processor second | × | whole run, s | peak MiB | held-out loss before → after | after, by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, sides in results.items():
        theirs = sides[-1].steps_per_second
        lines += [_row(case, side, side.steps_per_second / theirs) for side in sides]
    return "\n".join(lines)


def _row(case: str, side: Measured, ratio: float) -> str:
    seconds, after = statistics.median(side.seconds), statistics.mean(side.after)
    return (
        f"| {case}, {side.name} | {side.steps_per_second:.2f} | {ratio:.2f} | {seconds:.1f} | {side.mib:.0f} "
        f"| {side.before:.4f} → {after:.4f} | {', '.join(f'{loss:.4f}' for loss in side.after)} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scripts", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folders = prepare(given.data, Path(temporary))
        cases = [given.only] if given.only else list(CASES)
        results = {
            case: measure(case, folders, given.scripts, given.python, given.steps, given.rounds) for case in cases
        }
    print(table(results))


if __name__ == "__main__":
    main()
