"""Screenshots of the napari plugin, as they stand in the README.

    xvfb-run -a -s "-screen 0 1600x1000x24" python examples/screenshots.py [RUN] [--out docs]

RUN is a run folder with its images; without one, particles are simulated and trained on, which takes a minute or two.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication

from emspatialvae.config import InputConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.train import train_run
from napari_emsvae.explorer.run_data import RunData

SIZE = (1600, 1000)
KMEANS_ROUNDS = 2
GREYS = np.arange(0, 256, 3)
PATIENCE_S = 300
SETTLE_S = 1.5


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", nargs="?", type=Path, help="a run folder with its images")
    asked.add_argument("--out", type=Path, default=Path("docs"), help="where the pictures go")
    options = asked.parse_args()
    options.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = own_copy(options.run, Path(scratch)) if options.run else small_run(Path(scratch))
        with window() as viewer:
            picture_the_explorer(viewer, run, options.out)
        with window() as viewer:
            picture_the_form(viewer, Path(scratch), options.out)


def own_copy(run: Path, scratch: Path) -> Path:
    """Selections are kept in the run: the user's own stay as they are."""
    return shutil.copytree(run, scratch / run.name, ignore=shutil.ignore_patterns("selections*"))


def small_run(scratch: Path) -> Path:
    stack = simulate_stack(SimulateConfig("views", scratch / "sim", particles=3000, box=48, snr=0.3, junk=0.1))
    train = TrainConfig(epochs=20)
    run, particles = start_run(RunConfig(InputConfig(stack / "particles.star"), train=train), scratch / "run")
    train_run(run, particles, train)
    return run.path


# ----------------------------------------------------------------------------------------------------------- pictures


def picture_the_explorer(viewer: napari.Viewer, run: Path, out: Path) -> None:
    """Every page, opened as ``emsvae view`` does."""
    viewer.open(str(run), plugin="emspatialvae")
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]

    def shoot_when_quiet(name: str) -> None:
        wait(lambda: not explorer.session.is_working)
        shoot(viewer, out / name)

    wait(lambda: explorer.session.is_read)
    explorer.folder.setText(run.name)  # where it lies is nobody's business
    wait(lambda: not explorer.session.is_working)
    data = explorer.session.data
    if explorer.classes.gallery is not None:
        for tile in (3, 6):
            explorer.classes.board.press(tile)
    shoot_when_quiet("explorer.png")
    viewer.theme = "light"
    shoot_when_quiet("light.png")
    viewer.theme = "dark"

    ends = along(data, (4, 50, 96))
    explorer.session.selection.clear()
    explorer.show_page(explorer.select)
    for name, end in zip(("one end", "the other end"), (ends[0], ends[2]), strict=True):
        explorer.select.take(near(data, end))
        explorer.select.region_name.setText(name)
        explorer.select.name_region()
    explorer.scatter.colour.setCurrentText("regions")
    explorer.scatter.recolour()
    shoot_when_quiet("selection.png")
    explorer.show_page(explorer.montage)
    explorer.montage.show_selected()
    shoot_when_quiet("montage.png")
    explorer.session.selection.clear()
    explorer.scatter.colour.setCurrentText("density")
    explorer.scatter.recolour()

    explorer.show_page(explorer.particle)
    explorer.session.pick(ends[1])
    shoot_when_quiet("particle.png")

    explorer.show_page(explorer.path)
    for which, end in enumerate((ends[0], ends[2])):
        explorer.path.set_end(which, end)
    explorer.path.make()
    wait(lambda: explorer.path.film is not None)
    viewer.dims.set_current_step(0, len(explorer.path.film.z) // 4)
    shoot_when_quiet("path.png")

    explorer.show_page(explorer.model)
    explorer.model.along.setCurrentText("principal components")
    explorer.model._list_sliders()
    explorer.model.show_map()
    shoot_when_quiet("model.png")


def along(data: RunData, percentiles: Sequence[float]) -> list[int]:
    """Typical particles at percentiles of the latent coordinate that spreads most."""
    z = data.latents.z[data.used]
    axis = np.argmax(np.subtract(*np.percentile(z, (75, 25), axis=0)))
    found = []
    for percentile in percentiles:
        low, high = np.percentile(z[:, axis], (max(0, percentile - 3), min(100, percentile + 3)))
        rows = np.flatnonzero((z[:, axis] >= low) & (z[:, axis] <= high))
        away = np.linalg.norm(z[rows] - np.median(z[rows], 0), axis=1)
        found.append(int(data.used[rows[np.argmin(away)]]))
    return found


def near(data: RunData, particle: int) -> np.ndarray:
    """The tenth of the particles that is nearest to one."""
    away = np.linalg.norm(data.latents.z - data.latents.z[particle], axis=1)
    return data.latents.used & (away <= np.percentile(away[data.used], 10))


def picture_the_form(viewer: napari.Viewer, scratch: Path, out: Path) -> None:
    stack = simulate_stack(SimulateConfig("hinge", scratch / "hinge", particles=1500, box=48, snr=0.5))
    viewer.open(str(stack / "particles.star"), plugin="emspatialvae")
    form = viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]
    form.settings.fields["train.epochs"].setText("20")
    form.start()
    form.particles.setText("particles.star")
    form.out.setText("particles_emsvae")
    wait(lambda: len(form.training.curve.shown.epochs) >= 8)
    wait(lambda: form.training.live.shown is not None and form.training.live.shown.map is not None)
    form.training.log.setPlainText(form.training.log.toPlainText().replace(f"{stack}/", ""))
    shoot(viewer, out / "training.png", settle_s=0)
    form.cancel()
    wait(lambda: not form.training.is_running)


# -------------------------------------------------------------------------------------------------------------- tools


@contextmanager
def window() -> Iterator[napari.Viewer]:
    viewer = napari.Viewer(show=False)
    viewer.show()
    viewer.window.resize(*SIZE)
    try:
        yield viewer
    finally:
        viewer.close()


def wait(true: Callable[[], bool]) -> None:
    patience = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > patience:
            sys.exit(f"waited {PATIENCE_S} s in vain")
        QApplication.processEvents()
        time.sleep(0.02)


def shoot(viewer: napari.Viewer, path: Path, settle_s: float = SETTLE_S) -> None:
    until = time.monotonic() + settle_s
    wait(lambda: time.monotonic() >= until)
    picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    # Nearly all pixels are grey, few have the colours of the scatter: each kind gets a palette of its own.
    colours = picture.quantize(256 - len(GREYS), method=Image.Quantize.MAXCOVERAGE, kmeans=KMEANS_ROUNDS)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.repeat(GREYS, 3).tolist(), *(colours.getpalette() or [])[: 3 * (256 - len(GREYS))]])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
