"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real particle files: ``$EMSVAE_TEST_DATA``, or ``shared/data`` beside the checkout; skips without."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EMSVAE_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real particle files here; point EMSVAE_TEST_DATA at them")
    return folder
