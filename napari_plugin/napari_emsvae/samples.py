"""Sample data: File > Open Sample > emspatialvae.

Nothing is downloaded. The particles are simulated and kept in the user's cache folder; the run is trained there, in the background, when
it is asked for the first time.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import napari
import platformdirs
from napari.utils import notifications

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.errors import RunFolderError
from emspatialvae.jobs import background as jobs
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import simulate_stack
from napari_emsvae.layers.layer_data import LayerData
from napari_emsvae.reader import read_particles, read_run

HINGE = SimulateConfig("hinge", Path("hinge"), particles=2000, box=48, snr=0.3, shift_px=1.5)
TWO_HINGES = SimulateConfig("two-hinges", Path("two_hinges"), particles=2000, box=48, snr=0.5, shift_px=1.5)
MODEL, TRAIN = ModelConfig(z_dim=2), TrainConfig(epochs=20)


def cache_folder() -> Path:
    """Where samples are kept; can be deleted at any time."""
    return platformdirs.user_cache_path("emspatialvae", appauthor=False) / "samples"


def hinge() -> list[LayerData]:
    """2,000 particles with one hinge, not trained on yet."""
    return read_particles(_simulated(HINGE))


def trained() -> list[LayerData]:
    """A run on particles with two hinges: trained in about a minute when it is asked for first; the particles meanwhile."""
    particles = _simulated(TWO_HINGES)
    out = particles.parent.with_name(f"{particles.parent.name}_emsvae")
    job = jobs.attach(out)
    if job is None or job.poll().kind != "running":
        if _is_finished(out):
            _dock("Latent explorer")
            return read_run(out)
        job = jobs.start(RunConfig(InputConfig(particles), model=MODEL, train=TRAIN), out, force=out.exists())
    form = _dock("Train")
    if form is not None:
        form.follow(job)
    notifications.show_info("the sample is being trained, which takes about a minute; it opens itself")
    return read_particles(particles)


def _simulated(config: SimulateConfig) -> Path:
    folder = cache_folder() / config.out
    if not (folder / "particles.star").is_file():
        simulate_stack(replace(config, out=folder))
    return folder / "particles.star"


def _is_finished(out: Path) -> bool:
    """Whether there is a run with results that this version can read."""
    try:
        run = RunDir(out)
        return run.manifest is not None and run.latents.is_file()
    except RunFolderError:
        return False


def _dock(name: str) -> Any:
    """One of our widgets in the window that is open; None without one."""
    viewer = napari.current_viewer()
    return None if viewer is None else viewer.window.add_plugin_dock_widget("emspatialvae", name, tabify=True)[1]
