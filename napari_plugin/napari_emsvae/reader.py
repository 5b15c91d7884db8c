"""What napari asks when a file or folder is opened: is it ours, and which layers does it hold.

`get_reader` answers at once and imports nothing heavy; what it returns does the reading. An `EmsvaeError` from there is shown by
napari as it is: one line that says what was found, what was expected and what to do.
"""

import json
from collections.abc import Callable
from pathlib import Path

from napari_emsvae.layers.layer_data import LayerData

Reader = Callable[[str | Path | list[str]], list[LayerData]]

SUFFIXES = (".star", ".cs", ".mrcs")
LARGEST_CONFIG_BYTES = 1 << 20
"""Ours take a few kilobytes; a larger ``config.json`` is somebody else's and is not worth parsing."""


def get_reader(path: str | Path | list[str]) -> Reader | None:
    """The function that reads ``path``; None when it is neither a particle file nor a run folder.

    A list of paths (napari's "open as stack") is never ours: each of our files is a stack already.
    """
    if isinstance(path, list):
        return None
    place = Path(path)
    if place.suffix.lower() in SUFFIXES and not place.is_dir():
        return read_particles
    return read_run if is_run_folder(place) else None


def is_run_folder(path: Path) -> bool:
    """Whether ``emsvae train`` made this folder, finished or not, by what ``config.json`` says of itself."""
    file = path / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_CONFIG_BYTES:
            return False
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "emspatialvae"} <= set(content)


def read_particles(path: str | Path | list[str]) -> list[LayerData]:
    """The layer of a particle file.

    Raises
    ------
    ParticleFileError
        The file cannot be used, or a stack that it names is missing.
    """
    from napari_emsvae.layers.build import particle_layers

    return particle_layers(_one(path))


def read_run(path: str | Path | list[str]) -> list[LayerData]:
    """The layers of a run folder.

    Raises
    ------
    EmsvaeError
        The run has no results yet, is damaged, or its particles are no longer where they were.
    """
    from napari_emsvae.layers.build import run_layers

    return run_layers(_one(path))


def _one(path: str | Path | list[str]) -> Path:
    return Path(path[0] if isinstance(path, list) else path).absolute()
