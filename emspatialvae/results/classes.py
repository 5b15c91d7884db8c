"""The classes of a run as they lie in its folder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.io import mrc
from emspatialvae.results import export
from emspatialvae.results.run_folder import RunDir

THRESHOLDS = (0.143, 0.5)
"""Of the FRC, for the resolution."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a run as they lie in its folder, the largest first."""

    numbers: NDArray[np.int64]
    """[k], as in rlnClassNumber."""
    particles: NDArray[np.int64]
    """[k]"""
    resolution_A: Floats
    """[k, 2]; where the FRC of the half sets falls below `THRESHOLDS`; NaN where it never was above."""
    images: NDArray[np.float32]
    """[k, box, box]"""
    junk_share: Floats | None
    """[k]; of their particles, those that are more likely junk than not; None where the run does not know junk."""
    pixel_size_A: float
    """Of the averages."""
    purity: Floats | None = None
    """[k]; mean probability that their particles belong to them and to no other class."""

    @property
    def share(self) -> Floats:
        """Of the particles that were used, [k]."""
        return self.particles / self.particles.sum()

    def __len__(self) -> int:
        return len(self.numbers)


def read_classes(run: RunDir) -> Classes | None:
    """The classes that `classify_run` left in a run, None where it has none.

    Raises
    ------
    RunFolderError
        They are damaged.
    """
    import pandas as pd

    folder = run.path / "classes"
    if not folder.is_dir():
        return None
    try:
        with export.open_text(folder / "classes.csv", "r") as stream:
            table = pd.read_csv(stream)
        header = mrc.read_header(folder / "classes.mrcs")
        images = mrc.read_images(header, np.arange(len(table)))
        return Classes(
            numbers=table["class"].to_numpy(dtype=np.int64),
            particles=table["particles"].to_numpy(dtype=np.int64),
            resolution_A=table[[resolution_label(threshold) for threshold in THRESHOLDS]].to_numpy(dtype=np.float64),
            images=images,
            junk_share=table["junk_share"].to_numpy(dtype=np.float64) if "junk_share" in table else None,
            pixel_size_A=float(table["pixel_size_A"].to_numpy()[0]),
            purity=table["class_posterior"].to_numpy(dtype=np.float64) if "class_posterior" in table else None,
        )
    except (KeyError, ValueError, IndexError, OSError, EmsvaeError) as error:
        raise RunFolderError(f"{folder} is damaged ({error}); run `emsvae classes {run.path}` again") from None


def resolution_label(threshold: float) -> str:
    """Column of the resolution at a threshold of the FRC."""
    return f"resolution_frc_{threshold:g}_A"
