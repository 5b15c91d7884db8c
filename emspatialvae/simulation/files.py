"""The folder of a simulated stack and its STAR files, for phantoms and for maps alike."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.imaging.geometry import Pose2D, to_relion
from emspatialvae.io import leftovers
from emspatialvae.io.atomic import place_new, replace_folder, sync_tree
from emspatialvae.io.image_names import image_name
from emspatialvae.simulation.microscope import AMPLITUDE_CONTRAST, CS_MM, VOLTAGE_KV, Microscope

if TYPE_CHECKING:
    import pandas as pd

PER_MICROGRAPH = 100
OWN = ("particles.mrcs", "particles.star", "truth.star", "simulation.json")
"""All that lies in the folder of a simulation."""


@contextmanager
def folder_when_whole(out: Path, force: bool, beside: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name at the end; what stood there goes then, and only if it was ours.

    ``beside``: names of what the caller has made in it and gives up, too.
    """
    if out.exists() or out.is_symlink():
        if not force:
            raise OutputExistsError(out)
        if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / "simulation.json").is_file()):
            raise EmsvaeError(
                f"{out} is not the folder of an earlier simulation and is not replaced; choose another --out"
            )
        strange = sorted(entry.name for entry in out.iterdir() if entry.name not in (*OWN, *beside))
        if strange:
            raise EmsvaeError(
                f"{out} holds what `emsvae simulate` did not write there: {', '.join(strange[:3])}; --force would remove it: move it "
                "elsewhere, or choose another --out"
            )
    out = out.absolute()
    partial = leftovers.temporary_beside(out, ending="")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise EmsvaeError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
        leftovers.sweep(out.parent)
        yield partial
        sync_tree(partial)
        if force:
            replace_folder(partial, out)
        else:
            place_new(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_stars(
    folder: Path, pose: Pose2D, microscope: Microscope, is_junk: NDArray[np.bool_], known: Mapping[str, Any]
) -> None:
    """Write ``particles.star`` without the truth, and ``truth.star`` with RELION's poses and what else is ``known``.

    Parameters
    ----------
    pose, microscope, is_junk
        Of the n particles; shifts in pixels. The column of junk is written where there is any.
    known
        Labels and columns [n] that follow the poses.
    """
    import pandas as pd

    from emspatialvae.io import star

    n = len(pose)
    columns: dict[str, Any] = {
        "rlnImageName": [image_name(i, "particles.mrcs") for i in range(n)],
        # zero-padded and in order: RELION sorts rows by micrograph
        "rlnMicrographName": [f"simulated_{i // PER_MICROGRAPH + 1:06d}.mrc" for i in range(n)],
        "rlnOpticsGroup": microscope.group + 1,
    }
    if microscope.ctf is not None:
        columns |= {
            "rlnDefocusU": microscope.ctf.defocus_u_A,
            "rlnDefocusV": microscope.ctf.defocus_v_A,
            "rlnDefocusAngle": np.degrees(microscope.ctf.astigmatism_rad),
            "rlnPhaseShift": np.degrees(microscope.ctf.phase_shift_rad),
        }
    angle_deg, move_A = to_relion(pose, microscope.pixel_size_A)
    truth: dict[str, Any] = {"rlnAnglePsi": angle_deg, "rlnOriginXAngst": move_A[:, 0], "rlnOriginYAngst": move_A[:, 1]}
    truth |= known
    if is_junk.any():
        truth["emsvaeTrueJunk"] = is_junk.astype(np.int64)
    optics = _optics(microscope)
    for name, added in (("particles.star", {}), ("truth.star", truth)):
        blocks = {"optics": optics, "particles": pd.DataFrame(columns | added)}
        star.write_new(folder / name, blocks, overwrite=False)


def _optics(microscope: Microscope) -> "pd.DataFrame":
    """RELION's optics table, a row per group."""
    import pandas as pd

    groups = range(1, len(microscope.noise) + 1)
    same = {
        "rlnSphericalAberration": CS_MM,
        "rlnAmplitudeContrast": AMPLITUDE_CONTRAST,
        "rlnImagePixelSize": microscope.pixel_size_A,
        "rlnImageSize": microscope.box,
        "rlnImageDimensionality": 2,
    }
    table: dict[str, Any] = {
        "rlnOpticsGroup": list(groups),
        "rlnOpticsGroupName": [f"opticsGroup{group}" for group in groups],
        "rlnVoltage": list(VOLTAGE_KV[: len(groups)]),
    }
    return pd.DataFrame(table | {label: [value] * len(groups) for label, value in same.items()})
