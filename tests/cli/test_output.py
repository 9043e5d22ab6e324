from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit.cli.output import Mode, Output, clean, columns, fitted, write_line
from sdkit.core.human import human_bytes, plural


@pytest.mark.parametrize(
    ("mode", "stdout", "stderr"),
    [
        (Mode.TEXT, "one\ntwo\n", "working\nwarning: odd\n"),
        (Mode.JSON, '{\n  "a": 1\n}\n', "warning: odd\n"),
        (Mode.QUIET, "bare\n", "warning: odd\n"),
    ],
)
def test_each_reader_gets_their_own(capsys: pytest.CaptureFixture[str], mode: Mode, stdout: str, stderr: str) -> None:
    output = Output(mode)
    output.say("working")
    output.warn("odd")
    output.result({"a": 1}, ["one", "two"], ["bare"])
    assert capsys.readouterr() == (stdout, stderr)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("bell\x07 c1\x9b31m bidi\u202e zero\u200b half\ud800", "bell? c1?31m bidi? zero? half?"),
        ("naïve 日本 …", "naïve 日本 …"),
    ],
)
def test_clean_leaves_nothing_that_moves_a_terminal(text: str, safe: str) -> None:
    assert clean(text) == safe


@given(st.text())
def test_clean_text_is_printable_and_stays_so(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_ascii_and_returns_what_it_was_given(data: dict[str, str]) -> None:
    import contextlib

    with contextlib.redirect_stdout(io.StringIO()) as stream:
        Output(Mode.JSON).result(data)
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue()) == data


def test_signs_have_an_ascii_spelling() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_line(stream, "2 × 3 → 6… é")
    assert raw.getvalue() == b"2 x 3 -> 6... ?\n"


def test_columns() -> None:
    assert columns([("a", "1"), ("long", "")], indent=" ") == [" a     1", " long"]
    assert columns([]) == []


def test_rows_are_folded_where_the_width_is_known_and_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "holds", "read"), ("one", "lora, locon, tucker, loha", "✓"), ("two", "", "")]
    monkeypatch.delenv("COLUMNS", raising=False)
    assert fitted(rows, headed=True) == columns(rows)  # stdout is no terminal here
    monkeypatch.setenv("COLUMNS", "80")
    assert fitted(rows, headed=True) == columns(rows)
    monkeypatch.setenv("COLUMNS", "20")
    assert fitted(rows, headed=True) == ["one", "  holds: lora,", "  locon, tucker,", "  loha; read", "two"]
    assert fitted(rows[1:]) == ["one", "  lora, locon,", "  tucker, loha", "  ✓", "two"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6_938_040_682, "6.9 GB"), (5e15, "5000.0 TB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_plurals() -> None:
    assert [plural(count, "tensor") for count in (0, 1, 2531)] == ["0 tensors", "1 tensor", "2,531 tensors"]
