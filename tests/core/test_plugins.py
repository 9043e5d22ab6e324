from __future__ import annotations

from pathlib import Path

import pytest

from sdkit.core.plugins import first_doc_line


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""Do a thing.\n\nAt length."""\nraise SystemExit("imported")\n', "Do a thing"),
        ("# a comment\n'''Wait … what?'''\n", "Wait … what?"),
        ("x = 1\n", ""),
    ],
)
def test_first_doc_line_is_read_without_importing(tmp_path: Path, source: str, line: str) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(source, encoding="utf-8")
    assert first_doc_line(path) == line
