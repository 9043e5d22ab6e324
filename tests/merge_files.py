"""The model and the LoRA that tests of `merge` work on, and what they ask of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from click.testing import CliRunner, Result
from models import kohya_lora, sd1, sd1_modules, sd1_places
from safetensors import safe_open

from sdkit.cli.main import main

PLACES = sd1_places()
BASE = sd1()
LORA = kohya_lora(sd1_modules())
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def keys_in_file_order(path: Path) -> list[str]:
    data = path.read_bytes()
    fields = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [key for key in fields if key != "__metadata__"]


def refused(base: Path, lora: Path, *options: object, output: Path | None = None) -> str:
    """Merge, which must fail without changing anything in the folder; what was said."""
    folder = base.parent
    before = {path: content(path) for path in folder.rglob("*")}
    result = run(base, lora, "-o", output or folder / "out.safetensors", *options)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert "unexpectedly" not in result.stderr
    assert result.stdout == ""
    assert {path: content(path) for path in folder.rglob("*")} == before
    return result.stderr


def content(path: Path) -> str:
    return sha256(path) if path.is_file() else "folder"
