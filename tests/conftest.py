"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real files that the environment variable SDKIT_TEST_DATA names; it has a folder ``data``."""
    folder = os.environ.get("SDKIT_TEST_DATA", "")
    if not folder:
        pytest.skip("SDKIT_TEST_DATA does not name the folder of real files")
    return Path(folder)
