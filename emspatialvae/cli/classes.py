"""``emsvae classes``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse
from emspatialvae.config import ClassMethod


@dataclass(frozen=True)
class ClassesCommand:
    """Put particles that look alike into classes, and average the raw, full-size images of each class with our poses.

    Writes rlnClassNumber into the run's particles.star (.cs, latents.csv), and RUN/classes/ with averages and a table. Classes
    made before are replaced.
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    k: int | Literal["auto"] = 20
    """Number of classes; auto: groups are merged until all of them are distinct."""
    method: ClassMethod | None = None
    """images: particles whose decoded images agree (views of a 3-D object: at the best angle); kmeans: compact classes of one size in
    z; gmm (mixture of Gaussians): classes of any size and shape in z [default: images, coordinate engine kmeans]."""
    seed: int = 0
    """The same seed gives the same classes and half sets."""
    project_dir: Path | None = None
    """Where the images lie now, if they were moved."""


def main(argv: list[str]) -> int:
    """``emsvae classes``."""
    asked = parse(ClassesCommand, argv)
    from emspatialvae.jobs import ranks
    from emspatialvae.workflows.classes import classify_run

    with ranks.joined():
        classify_run(
            asked.run,
            None if asked.k == "auto" else asked.k,
            method=asked.method,
            seed=asked.seed,
            project_dir=asked.project_dir,
        )
    return 0
