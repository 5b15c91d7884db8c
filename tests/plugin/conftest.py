"""Qt's platform is decided here, before anything starts Qt: without a display it would end the whole process."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

if sys.platform.startswith("linux"):
    display = bool(os.environ.get("DISPLAY"))
    os.environ.setdefault("QT_QPA_PLATFORM", "xcb" if display else "offscreen")

PARTICLES, BOX, PREPARED_BOX = 60, 32, 24
CONSTANT = 7
"""Row of the simulated stack whose image is constant, so that a run cannot use it."""


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """Folder with particles.mrcs and particles.star: 60 hinges of 32 px at 4 A, one of them wiped out."""
    from emspatialvae.config import SimulateConfig
    from emspatialvae.io.mrc import read_header
    from emspatialvae.simulation.stack import simulate_stack

    folder = tmp_path_factory.mktemp("simulated")
    simulate_stack(SimulateConfig("hinge", folder / "data", particles=PARTICLES, box=BOX, snr=1.0, shift_px=1.0))
    header = read_header(folder / "data" / "particles.mrcs")
    shape = (header.n_images, header.height, header.width)
    images = np.memmap(header.path, header.dtype, "r+", header.offset_bytes, shape)
    images[CONSTANT] = 3.0
    images.flush()
    return folder / "data"


@pytest.fixture(scope="session")
def trained_run(simulated, tmp_path_factory) -> Path:
    """A run of one epoch on `simulated`, prepared at 24 px."""
    from emspatialvae.config import InputConfig, ModelConfig, PrepareConfig, RunConfig, TrainConfig
    from emspatialvae.workflows.begin_run import start_run
    from emspatialvae.workflows.train import train_run

    config = RunConfig(
        InputConfig(simulated / "particles.star"),
        PrepareConfig(box=PREPARED_BOX),
        ModelConfig(hidden=16, encoder_hidden=16),
        TrainConfig(epochs=1, infer_turns=1, device="cpu"),
    )
    run, stack = start_run(config, tmp_path_factory.mktemp("runs") / "run", say=lambda _: None)
    train_run(run, stack, config.train, figures=False, say=lambda _: None)
    return run.path


@pytest.fixture
def model(request):
    """napari's viewer without a window; needs no display."""
    pytest.importorskip("napari", reason="napari is not installed")
    request.getfixturevalue("mock_app_model")
    from napari.components import ViewerModel
    from napari.plugins import _initialize_plugins

    # An earlier test has initialised them for an application that is gone.
    _initialize_plugins.cache_clear()
    _initialize_plugins()
    return ViewerModel()


@pytest.fixture
def viewer(request):
    """A napari viewer with a canvas; skips where there is none."""
    pytest.importorskip("napari", reason="napari is not installed")
    pytest.importorskip("pytestqt", reason="pytest-qt is not installed")
    if os.environ.get("QT_QPA_PLATFORM") == "offscreen":
        pytest.skip('no display, so no GL canvas; run under xvfb-run -a -s "-screen 0 1600x1000x24"')
    return request.getfixturevalue("make_napari_viewer")(show=True)
