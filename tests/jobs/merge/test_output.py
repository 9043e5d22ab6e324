"""Where a merge writes, and what it checks about the place beforehand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from models import kohya_lora, save, sd1, sd1_modules

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.jobs.merge import default_output


def test_a_full_disk_is_found_before_any_work_even_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora = save(sd1(), tmp_path / "base.safetensors"), save(kohya_lora(sd1_modules()), tmp_path / "l.safetensors")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(SdkitError, match=r"needs \d+\.\d MB, the disk has 1\.0 MB free"):
        sdkit.merge(base, lora, tmp_path / "out.safetensors", dry_run=True)


@pytest.mark.parametrize(
    ("base", "adapters", "name"),
    [
        ("models/dream.safetensors", ["loras/pony.safetensors"], "dream+pony.safetensors"),
        ("old.ckpt", ["a.safetensors", "b.pt"], "old+a+b.safetensors"),
        ("pipeline", ["a.safetensors"], "pipeline+a"),
        ("shards/model.safetensors.index.json", ["a.safetensors"], "shards+a"),
    ],
)
def test_the_default_name_says_what_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, adapters: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pipeline", "shards"):
        (tmp_path / folder).mkdir()
    assert default_output(Path(base), [Path(adapter) for adapter in adapters]) == Path(name)
