from __future__ import annotations

from pathlib import Path

import pytest

from sdkit.core.errors import SdkitError
from sdkit.families import bases
from sdkit.families.bases import base_word, resolve_base


def test_a_name_is_a_path_unless_it_is_the_embedded_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_base("sd15.safetensors") == resolve_base(Path("sd15.safetensors")) == Path("sd15.safetensors")
    assert resolve_base("./tiny") == resolve_base(Path("./tiny")) == Path("tiny")
    monkeypatch.setattr(bases, "__file__", str(tmp_path / "families" / "bases.py"))
    with pytest.raises(SdkitError, match="the base tiny is missing from this installation"):
        resolve_base("tiny")
    (tmp_path / "assets" / "tiny").mkdir(parents=True)
    (tmp_path / "assets" / "tiny" / "model_index.json").write_text("{}")
    assert resolve_base("tiny") == tmp_path / "assets" / "tiny"


def test_a_base_is_written_as_it_is_read() -> None:
    assert base_word(resolve_base("tiny")) == "tiny"
    assert base_word(Path("models/base.safetensors")) == str(Path("models/base.safetensors"))
    assert base_word(Path("tiny")) != "tiny" and resolve_base(base_word(Path("tiny"))) == Path("tiny")
