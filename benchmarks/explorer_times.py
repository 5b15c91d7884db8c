"""How long the Latent explorer takes to answer: a click, a move of the lasso with live averages, a gallery of 200 classes.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/explorer_times.py RUN [--particles 200000]

RUN is a small run with its images; its rows are repeated, with a little noise on z, up to the number of particles. Every figure is the time
until the main thread has answered (wall clock, and what of it was its own computing: on a machine that is busy with other things the
second counts).
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
import pandas as pd
from qtpy.QtWidgets import QApplication

CLASSES, MOVES = 200, 8


def enlarged(run: Path, particles: int, out: Path) -> Path:
    """A run of many particles made of one of few."""
    config = json.loads((run / "config.json").read_text())
    source = Path(config["config"]["input"]["particles"])
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    times = -(-particles // len(table))
    big = pd.concat([table] * times, ignore_index=True)[:particles]
    rng = np.random.default_rng(0)
    for name in [name for name in big.columns if name[0] == "z" and name[1:].isdigit()]:
        big[name] += rng.normal(0, 0.1, particles)
    big["class"] = rng.integers(1, CLASSES + 1, particles) * big["used"]
    out.mkdir()
    big.to_csv(out / "latents.csv", index=False, float_format="%.5g")
    shutil.copy(run / "checkpoint.pt", out)
    project = out / "project"
    project.mkdir()
    for star, copy in ((source, project / source.name), (run / "particles.star", out / "particles.star")):
        lines = star.read_text().splitlines(keepends=True)
        first = next(i for i, line in enumerate(lines) if "@" in line)
        rows = [line for line in lines[first:] if "@" in line]
        with copy.open("w") as stream:
            stream.writelines(lines[:first])
            stream.writelines((rows * times)[:particles])
    config["config"]["input"] |= {"particles": str(project / source.name), "project_dir": str(source.parent)}
    config["n_particles"] = particles
    (out / "config.json").write_text(json.dumps(config))
    write_classes(run, out, big["class"].to_numpy())
    return out


def write_classes(run: Path, out: Path, numbers: np.ndarray) -> None:
    """Averages of the small run, each several times."""
    from emspatialvae.io.mrc import StackWriter
    from emspatialvae.results.classes import read_classes
    from emspatialvae.results.run_folder import RunDir

    few = read_classes(RunDir(run))
    assert few is not None, "RUN has no classes; call emsvae classes first"
    own = pd.read_csv(run / "classes" / "classes.csv")
    table = pd.concat([own] * -(-CLASSES // len(own)), ignore_index=True)[:CLASSES]
    table["class"] = np.arange(1, CLASSES + 1)
    table["particles"] = np.bincount(numbers, minlength=CLASSES + 1)[1:]
    images = np.concatenate([few.images] * -(-CLASSES // len(few)))[:CLASSES]
    (out / "classes").mkdir()
    table.to_csv(out / "classes" / "classes.csv", index=False)
    with StackWriter(out / "classes" / "classes.mrcs", CLASSES, images.shape[-1], few.pixel_size_A) as writer:
        writer.append(images)


def timed(name: str, action: Callable[[], object], quiet: Callable[[], bool]) -> None:
    """Print how long an action takes until everything is still again."""
    wall, own = time.perf_counter(), time.thread_time()
    action()
    while True:
        QApplication.processEvents()
        if quiet():
            break
        time.sleep(0.002)
    QApplication.processEvents()
    print(f"| {name} | {time.perf_counter() - wall:.2f} s | {time.thread_time() - own:.2f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--particles", type=int, default=200_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = enlarged(asked.run.absolute(), asked.particles, Path(scratch) / "big")
        viewer = napari.Viewer(show=False)
        explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
        viewer.show()

        def quiet() -> bool:
            return explorer.session.is_read and not explorer.session.is_working

        print(f"| {asked.particles:,} particles | wall | main thread |\n|---|---|---|")
        timed("open, gallery of 200 classes shown", lambda: explorer.open(run), quiet)
        timed("choose a class", lambda: explorer.classes.board.press(3), quiet)
        timed(
            "sort by similarity",
            lambda: (explorer.classes.order.setCurrentText("similarity"), explorer.classes._arrange()),
            quiet,
        )
        explorer.show_page(explorer.particle)
        rows = explorer.session.data.used[[10, 200, 4000]]
        for row in rows:
            timed("click on a particle", lambda row=row: explorer.session.pick(int(row)), quiet)
        explorer.session.selection.clear()
        timed("select page, its sample", lambda: explorer.show_page(explorer.select), quiet)
        canvas, half = explorer.canvas, explorer.canvas.view
        for k in range(MOVES):
            reach = half.left + (k + 2) / (MOVES + 2) * half.size[0]
            corners = np.array(
                [[half.left, half.bottom], [reach, half.bottom], [reach, half.top], [half.left, half.top]]
            )

            def move(corners: np.ndarray = corners) -> None:
                from napari_emsvae.explorer.scatter import raster

                canvas.enclosing.emit(raster.inside_polygon(canvas.points, corners))

            timed("a move of the lasso, with averages", move, quiet)
        timed("the lasso is closed", lambda: explorer.select.take(canvas.points[:, 0] > 0), quiet)
        viewer.close()


if __name__ == "__main__":
    main()
