"""Plugins are files: the file's name is the plugin's name, and the first line of its docstring is its help text."""

from __future__ import annotations

import ast
from pathlib import Path


def first_doc_line(path: Path) -> str:
    """The first line of a Python file's docstring, without its final period, read without importing the file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")
