"""docs/train.ipynb runs from its first cell to its last: `pytest -m slow tests/test_notebook.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "train.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_begins_with_the_installation_and_keeps_no_output() -> None:
    first, *_ = codes = cells("code")
    assert first["metadata"]["tags"] == ["install"] and "%pip install" in source(first)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in codes)


def test_every_cell_is_python() -> None:
    for cell in cells("code"):
        lines = (line for line in source(cell).splitlines() if not line.lstrip().startswith("%"))
        compile("\n".join(lines) + "\n    pass" * ("install" in cell["metadata"].get("tags", [])), "cell", "exec")


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path: Path) -> None:
    """With few steps, which is what the cell of parameters is for."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = parameters.source.replace("STEPS = 300", "STEPS = 2")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "STEPS = 2" in parameters.source and (tmp_path / "runs" / "emoji" / "emoji.safetensors").is_file()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2, "the drawings, and those before and after"
