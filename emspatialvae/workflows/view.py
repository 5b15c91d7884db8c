"""``emsvae view``: particles or a run in a window of napari."""

import os
import subprocess
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
    _check_display()
    try:
        import napari
        from qtpy import QtWidgets  # noqa: F401  # without a Qt binding napari would say so in a page
    except ImportError as error:
        raise EmsvaeError(
            f'napari is not installed, or without Qt ({error.name or error}); pip install "emspatialvae[napari]"'
        ) from None
    _try_display()
    viewer = napari.Viewer(title=f"{what.name} - emsvae view", show=False)
    try:
        viewer.open(what, plugin=PLUGIN)
    except EmsvaeError:
        viewer.close()
        raise
    viewer.window.add_plugin_dock_widget(PLUGIN, "Latent explorer" if what.is_dir() else "Train")
    viewer.show()
    napari.run(gui_exceptions=True)


def _check_display() -> None:
    """Raise EmsvaeError where no display is named at all."""
    if sys.platform.startswith("linux") and not any(map(os.environ.get, DISPLAYS)):
        raise EmsvaeError(f"there is no display here to open a window on; {_ELSEWHERE}")


def _try_display() -> None:
    """Raise EmsvaeError where the display that is named does not answer.

    Qt does not raise an exception then, it aborts the process: so another one tries first.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_QT], capture_output=True, text=True, errors="replace", timeout=_PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        failure = f"no answer within {_PATIENCE_SECONDS} s"
    else:
        if done.returncode == 0:
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        failure = lines[0].removeprefix("qt.qpa.xcb: ") if lines else f"Qt ended with {done.returncode}"
    named = ", ".join(f"{name}={os.environ[name]}" for name in DISPLAYS if os.environ.get(name))
    raise EmsvaeError(f"no window can be opened on the display ({named}): {failure}; {_ELSEWHERE}")


DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
"""Environment variables, one of which tells Qt where to open windows."""
_TRY_QT = "from qtpy.QtWidgets import QApplication; QApplication([])"
_PATIENCE_SECONDS = 60
_ELSEWHERE = "call emsvae view where there is a display, or make pages to read with emsvae analyze"
