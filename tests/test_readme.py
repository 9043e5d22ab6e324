"""The README's examples run as they stand, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdkit.cli.main import COMMANDS, main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", README, re.DOTALL)
COMMAND_LINES = [line.removeprefix("$ ") for kind, block in BLOCKS if kind == "console" for line in block.splitlines()]


def test_the_readme_is_short_and_its_console_blocks_are_commands() -> None:
    assert len(README.splitlines()) <= 220
    assert len(COMMAND_LINES) > 5
    assert all(line.startswith("sdkit ") for line in COMMAND_LINES)


@pytest.mark.skipif(
    any(not (COMMANDS / f"{shlex.split(line)[1]}.py").exists() for line in COMMAND_LINES),
    reason="a command the README shows is not built yet",
)
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})
            continue
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "))[1:]
            few = ["--steps", "3"] if words[0] == "quickstart" else []
            result = CliRunner().invoke(main, [*words, *few])
            assert result.exit_code == 0, f"{line}\n{result.output}"
    restored, base = tmp_path / "restored.safetensors", tmp_path / "quickstart/base.safetensors"
    assert restored.read_bytes() == base.read_bytes()
