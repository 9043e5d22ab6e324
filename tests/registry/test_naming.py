"""What files and hubs call a model becomes a name that can be typed, whatever it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdkit.core.errors import UsageError
from sdkit.registry.naming import check_name, name_of, safe_name

HOSTILE = st.text(st.sampled_from("ab-@./\\=\0\n\t \x1b\u202e\ud800\N{NO-BREAK SPACE}é狐"), max_size=200) | st.text()


@given(HOSTILE)
@example("")
@example("@12")
@example("--delete")
@example("../../etc/passwd")
@example(" -x")
@example("fox=0.5")
@example("x" * 500)
@example("\u202egpj.exe")
@example("a" * 119 + " b")
def test_whatever_a_stranger_calls_a_model_becomes_a_name(text: str) -> None:
    name = safe_name(text)
    check_name(name)
    assert name.isprintable() and len(name) <= 120 and not set(name) & set("/\\=")
    assert safe_name(name) == name


@given(HOSTILE)
@example(" @")
@example("fox ")
@example("sly fox")
def test_a_name_that_can_be_typed_stays(text: str) -> None:
    try:
        check_name(text)
    except UsageError:
        return
    assert safe_name(text) == text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("fox.safetensors", "fox"),
        ("v1.5.ckpt", "v1.5"),
        ("sly fox", "sly fox"),
        ("pipeline-0.9", "pipeline-0.9"),
        ("cfg=7.safetensors", "cfg_7"),
        (".hidden.pt", "hidden"),
    ],
)
def test_a_file_lends_its_name(path: str, name: str) -> None:
    assert name_of(Path("models", path)) == name
