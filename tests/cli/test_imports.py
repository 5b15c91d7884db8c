"""Commands that need no model load no torch, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

TOLD = "import sys; from emspatialvae.cli.main import main; main(sys.argv[1:]); print('torch loaded:', 'torch' in sys.modules)"


def loads_torch(*words: str | Path, folder: Path) -> bool:
    told = subprocess.run(
        [sys.executable, "-c", TOLD, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.splitlines()[-1] == "torch loaded: True"


@pytest.mark.parametrize(
    "words",
    [
        ("export", "{run}", "--csv", "x.csv", "--star", "x.star"),
        ("select", "{run}", "--where", "z1 > 0", "--out", "some.star"),
    ],
)
def test_no_torch(tiny_run, tmp_path, words):
    assert not loads_torch(*(word.format(run=tiny_run) for word in words), folder=tmp_path)


def test_a_command_that_draws_loads_it(tiny_run, tmp_path):
    """The test above can fail."""
    assert loads_torch("manifold", tiny_run, "--out", "map.png", folder=tmp_path)
