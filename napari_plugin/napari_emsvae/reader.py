"""What napari asks when a file or folder is opened: is it ours, and which layers does it hold.

`get_reader` answers at once and imports nothing heavy; what it returns does the reading. An `EmsvaeError` from there is shown by
napari as it is: one line that says what was found, what was expected and what to do.
"""

import json
from collections.abc import Callable
from pathlib import Path

from napari_emsvae.layers.layer_data import LayerData

Reader = Callable[[str | Path | list[str]], list[LayerData]]

PLUGIN, RUN_FOLDERS = "emspatialvae", "*_emsvae/"
"""What napari calls us, and what runs are called unless the user says otherwise."""
SUFFIXES = (".star", ".cs", ".csg", ".mrcs")
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
    """Whether ``emsvae train`` made this folder, finished or not, by what ``config.json`` says of itself.

    One that is cut short is still ours where our name stands in it: opening it says what is wrong with it.
    """
    file = path / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_CONFIG_BYTES:
            return False
        text = file.read_text(errors="replace")
    except OSError:
        return False
    try:
        content = json.loads(text)
    except ValueError:
        return '"emspatialvae"' in text
    return isinstance(content, dict) and {"format", "emspatialvae"} <= set(content)


def prefer_for_runs() -> None:
    """Note in napari's preferences that folders named as runs are (particles_emsvae) are ours; a choice of the user's own stays.

    napari asks which plugin is to read a folder before it asks the plugins, as its own reader takes folders of images.
    """
    from napari.settings import get_settings

    known = get_settings().plugins.extension2reader
    if RUN_FOLDERS not in known:
        get_settings().plugins.extension2reader = {**known, RUN_FOLDERS: PLUGIN}


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

    layers = run_layers(_one(path))
    show_explorer()
    return layers


def show_explorer() -> None:
    """Open the Latent explorer in the window that is open, once the layers are in it."""
    import napari

    if napari.current_viewer() is None:
        return
    from qtpy.QtCore import QTimer

    QTimer.singleShot(0, _dock_explorer)


def _dock_explorer() -> None:
    import napari

    viewer = napari.current_viewer()  # it may have been closed since
    if viewer is not None and any("emsvae" in layer.metadata for layer in viewer.layers):
        viewer.window.add_plugin_dock_widget(PLUGIN, "Latent explorer", tabify=True)


def _one(path: str | Path | list[str]) -> Path:
    return Path(path[0] if isinstance(path, list) else path).absolute()
