from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sdkit
from sdkit.cli.main import COMMANDS, main

HEAVY = ("torch", "numpy", "rich", "safetensors", "diffusers", "transformers")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sdkit", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"abc")
    return path


def test_help_lists_every_command_with_the_first_line_of_its_module() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2]
    for path in COMMANDS.glob("[!_]*.py"):
        line = path.read_text(encoding="utf-8").split("\n")[0].strip('".')
        assert f"  {path.stem.replace('_', '-')}" in listed
        assert line in " ".join(listed.split())


@pytest.mark.parametrize("path", sorted(COMMANDS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_command_explains_itself(path: Path) -> None:
    result = CliRunner().invoke(main, [path.stem.replace("_", "-"), "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: sdkit {path.stem.replace('_', '-')}" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["hash", "--help"], ["completion", "zsh"], ["hash", "FILE"], ["nonsense"]]
)
def test_nothing_heavy_is_imported(file: Path, arguments: list[str]) -> None:
    program = f"""
import sys
from sdkit.cli.main import main
try:
    main({[str(file) if word == "FILE" else word for word in arguments]!r})
except SystemExit:
    print("IMPORTED", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_listing_imports_no_command() -> None:
    program = """
import sys
from sdkit.cli.main import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in sys.modules if name.startswith("sdkit.cli.commands")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert run("--version").stdout == f"sdkit {sdkit.__version__}\n"


def test_no_command_shows_the_help_and_fails() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_unknown_command_suggests_the_nearest() -> None:
    done = run("hahs", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no command `hahs`\n\nhint: did you mean `sdkit hash`?\n"


def test_unknown_option_is_a_usage_error() -> None:
    done = run("hash", "--jsno", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such option '--jsno'")
    assert "\n\nhint: `sdkit hash --help`" in done.stderr


def test_a_reader_that_leaves_early_causes_no_noise() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sdkit", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_back(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_SDKIT_COMPLETE" in result.stdout


def test_completion_knows_the_commands() -> None:
    environment = {"_SDKIT_COMPLETE": "fish_complete", "COMP_WORDS": "sdkit ha", "COMP_CWORD": "ha"}
    result = CliRunner().invoke(main, [], env=environment)
    assert result.stdout.startswith("plain,hash\t")


def test_lazy_names_are_what_they_say() -> None:
    from sdkit.core.errors import SdkitError
    from sdkit.jobs.hash import hash

    assert sdkit.SdkitError is SdkitError
    assert sdkit.hash is hash
    assert set(sdkit.__all__) <= set(dir(sdkit))
    with pytest.raises(AttributeError, match="nonsense"):
        sdkit.nonsense  # noqa: B018
