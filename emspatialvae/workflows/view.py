"""``emsvae view``: particles or a run in a window of napari."""

import os
import sys
from pathlib import Path

from emspatialvae.errors import EmsvaeError, RunFolderError

PLUGIN = "emspatialvae"
"""What napari calls our plugin; its widgets are asked for by the names that stand in its menu."""

SUFFIXES = (".star", ".cs", ".csg", ".mrcs")


def view(path: Path, project_dir: Path | None = None) -> None:
    """Open a run folder with the Latent explorer, or a particle file with the training form; returns when the window is closed.

    Raises
    ------
    EmsvaeError
        Neither of them; ``project_dir`` is no folder; napari is not installed, or there is no display.
    """
    what = path.absolute()
    if not what.exists():
        raise RunFolderError(f"{path}: no such file or folder; expected a run folder or a particle file")
    if what.is_dir():
        from emspatialvae.results.run_folder import RunDir

        RunDir(what)
    elif what.suffix.lower() not in SUFFIXES:
        raise EmsvaeError(f"{path}: expected a run folder or one of {', '.join(SUFFIXES)}")
    if project_dir is not None:
        if not project_dir.is_dir():
            raise EmsvaeError(f"--project-dir {project_dir} is not a folder; expected the root of the project")
        # Every search for images begins in the current folder: that is the one way to tell the readers, which napari calls.
        os.chdir(project_dir)
    _show(what)


def _show(what: Path) -> None:
    """Open napari and wait until it is closed.

    Raises
    ------
    EmsvaeError
        napari is not installed, or there is no display.
    """
    # Qt does not raise an exception without a display: it ends the process.
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(map(os.environ.get, displays)):
        raise EmsvaeError(
            "there is no display here to open a window on; call emsvae view where there is one, or make pages to read "
            "with emsvae analyze"
        )
    try:
        import napari
        from qtpy import QtWidgets  # noqa: F401  # without a Qt binding napari would say so in a page
    except ImportError as error:
        raise EmsvaeError(
            f'napari is not installed, or without Qt ({error.name or error}); pip install "emspatialvae[napari]"'
        ) from None
    viewer = napari.Viewer(title=f"{what.name} - emsvae view", show=False)
    try:
        viewer.open(what, plugin=PLUGIN)
    except EmsvaeError:
        viewer.close()
        raise
    viewer.window.add_plugin_dock_widget(PLUGIN, "Latent explorer" if what.is_dir() else "Train")
    viewer.show()
    napari.run(gui_exceptions=True)
