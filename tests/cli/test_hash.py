from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sdkit
from sdkit.cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["hash", *map(str, arguments)])


def test_json_holds_what_the_function_returns(model: Path) -> None:
    result = run(model, "--json")
    (hashes,) = json.loads(result.stdout)["files"]
    assert hashes["sshs_model_hash"] == hashlib.sha256(b"abc").hexdigest()
    assert hashes["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest() == sdkit.hash(model).sha256
    assert hashes["path"] == str(model)
    assert result.stderr == ""


def test_quiet_writes_what_sha256sum_writes(model: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert run("-q", model, model).stdout == f"{digest}  {model}\n" * 2


def test_text_names_every_hash(model: Path) -> None:
    result = run(model)
    assert result.exit_code == 0
    for name in ("size", "sha256", "autov1", "autov2", "autov3", "crc32", "sshs_model_hash", "sshs_legacy_hash"):
        assert f"\n  {name} " in result.stdout


def test_a_damaged_file_is_hashed_with_a_warning(model: Path) -> None:
    model.write_bytes(model.read_bytes() + b"tail")
    result = run(model, "--json")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {model} is no sound safetensors file: 4 bytes follow")
    assert json.loads(result.stdout)["files"][0]["autov3"] is None


def test_what_cannot_be_hashed_says_why(model: Path, tmp_path: Path) -> None:
    folder, missing = run(tmp_path), run(tmp_path / "missing.safetensors")
    assert (folder.exit_code, missing.exit_code, run().exit_code) == (1, 1, 2)
    assert "is a folder" in folder.stderr and "hint: sdkit hash" in folder.stderr
    assert missing.stderr.startswith(f"error: {tmp_path}/missing.safetensors: no such file or directory")
