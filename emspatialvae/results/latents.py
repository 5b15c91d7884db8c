"""What is known of each particle, `Latents`, and the table that holds it on the disk, ``latents.csv``."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import RunFolderError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.particles.columns import SCORES, Names

if TYPE_CHECKING:
    import pandas as pd

CLASS_POSE = ("class_theta_rad", "class_shift_x_A", "class_shift_y_A")
"""Columns of ``latents.csv`` with `Latents.class_pose`."""


@dataclass(frozen=True, eq=False)
class Latents:
    """z, theta and shift of n particles, in the order of their metadata file."""

    names: NDArray[Any]
    """[n]"""
    used: NDArray[np.bool_]
    """[n]; False for images that could not be used, or of which the model says what is no number: theirs are zero."""
    z: Floats
    """[n, z_dim]"""
    z_sd: Floats
    """[n, z_dim]"""
    pose: Pose2D
    """Shifts in prepared pixels."""
    theta_sd_rad: Floats
    """[n]"""
    shift_sd_px: Floats
    """[n, 2]"""
    log_likelihood: Floats
    """[n], nats"""
    pixel_size_A: float
    """Of the prepared images."""
    peak_weight: Floats | None = None
    """[n]; probability that the pose lies in the right mode, 0 to 1. None where the model knows one mode only."""

    misfit: Floats | None = None
    """[n]; what the image leaves unexplained beyond noise, in s.d. of the latter: about 0 for a particle, high for junk."""
    junk: Floats | None = None
    """[n]; probability of being junk, 0 to 1, judged against the other particles (`emspatialvae.inference.junk_score`)."""
    scale: Floats | None = None
    """[n]; amplitude of each particle (``--scale particle``)."""
    class_number: NDArray[np.int64] | None = None
    """[n]; from 1, 0 for images that could not be used. None until `emsvae classes` has made classes."""
    class_posterior: Floats | None = None
    """[n]; probability of that class, given z and its uncertainty."""
    class_pose: Pose2D | None = None
    """n poses that align each particle on the average of its class, where the run has no common frame; shifts in prepared pixels."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def reported_pose(self) -> Pose2D:
        """What is written to STAR and .cs files: poses on the class averages where there are such, else `pose`."""
        return self.pose if self.class_pose is None else self.class_pose

    def to_pandas(self) -> "pd.DataFrame":
        """A row per particle, with the columns of ``latents.csv``: angles in radians, shifts in angstrom."""
        return latents_table(self)

    def __getitem__(self, rows: Any) -> "Latents":
        whole = {"pixel_size_A", *(key for key, value in vars(self).items() if value is None)}
        return Latents(**{key: value if key in whole else value[rows] for key, value in vars(self).items()})


def known_scores(latents: Latents) -> list[tuple[Names, NDArray[Any]]]:
    """Those of `SCORES` that are known, [n] each."""
    found = ((names, getattr(latents, field)) for field, names in SCORES.items())
    return [(names, values) for names, values in found if values is not None]


def latents_table(latents: Latents) -> "pd.DataFrame":
    """The results as a table; theta and shift in our own convention (see `emspatialvae.imaging.geometry`)."""
    import pandas as pd

    shift_A, shift_sd_A = latents.pose.shift_px * latents.pixel_size_A, latents.shift_sd_px * latents.pixel_size_A
    # As objects: pandas' own kind of text refuses bytes that are no UTF-8.
    columns: dict[str, Any] = {"image_name": pd.Series(latents.names, dtype=object), "used": latents.used.astype(int)}
    columns |= {f"z{k + 1}": z for k, z in enumerate(latents.z.T)}
    columns |= {f"z{k + 1}_sd": sd for k, sd in enumerate(latents.z_sd.T)}
    columns |= {"theta_rad": latents.pose.theta_rad, "theta_sd_rad": latents.theta_sd_rad}
    columns |= {"shift_x_A": shift_A[:, 0], "shift_y_A": shift_A[:, 1]}
    columns |= {"shift_x_sd_A": shift_sd_A[:, 0], "shift_y_sd_A": shift_sd_A[:, 1]}
    columns["log_likelihood"] = latents.log_likelihood
    columns |= {names.csv: values for names, values in known_scores(latents)}
    if latents.class_pose is not None:
        on_class_A = latents.class_pose.shift_px * latents.pixel_size_A
        values = (latents.class_pose.theta_rad, on_class_A[:, 0], on_class_A[:, 1])
        columns |= dict(zip(CLASS_POSE, values, strict=True))
    return pd.DataFrame(columns)


def read_csv(file: Path, z_dim: int | None, pixel_size_A: float) -> Latents:
    """What `write_csv` wrote; ``z_dim`` None: with as many coordinates as there are.

    Raises
    ------
    RunFolderError
        The table is missing or damaged.
    """
    import pandas as pd

    if not file.is_file():
        raise RunFolderError(
            f"{file} is missing: the run has no results yet; finish it with `emsvae train ... --resume`"
        )
    try:
        with file.open("rb") as stream:  # see `open_text`
            table = pd.read_csv(
                stream, dtype={"image_name": object}, keep_default_na=False, encoding_errors="surrogateescape"
            )
        count = z_dim or sum(bool(re.fullmatch(r"z\d+", str(name))) for name in table.columns)
        z, z_sd = ([_numbers(table, f"z{k + 1}{end}") for k in range(count)] for end in ("", "_sd"))
        shift, shift_sd = (
            np.stack([_numbers(table, name) for name in names], 1)
            for names in (("shift_x_A", "shift_y_A"), ("shift_x_sd_A", "shift_y_sd_A"))
        )
        return Latents(
            names=table["image_name"].to_numpy(dtype=object),
            used=_numbers(table, "used").astype(bool),
            z=np.stack(z, 1),
            z_sd=np.stack(z_sd, 1),
            pose=Pose2D(_numbers(table, "theta_rad"), shift / pixel_size_A),
            theta_sd_rad=_numbers(table, "theta_sd_rad"),
            shift_sd_px=shift_sd / pixel_size_A,
            log_likelihood=_numbers(table, "log_likelihood"),
            pixel_size_A=pixel_size_A,
            class_pose=_class_pose(table, pixel_size_A),
            **{
                field: _numbers(table, names.csv, whole=field == "class_number")
                for field, names in SCORES.items()
                if names.csv in table
            },
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise RunFolderError(
            f"{file} is damaged ({str(error)[:200]}); run `emsvae train ... --resume` to write it again"
        ) from None


def _class_pose(table: "pd.DataFrame", pixel_size_A: float) -> Pose2D | None:
    if CLASS_POSE[0] not in table:
        return None
    shift_A = np.stack([_numbers(table, name) for name in CLASS_POSE[1:]], 1)
    return Pose2D(_numbers(table, CLASS_POSE[0]), shift_A / pixel_size_A)


def _numbers(table: "pd.DataFrame", name: str, *, whole: bool = False) -> NDArray[Any]:
    """A column of finite numbers; ValueError where it holds anything else."""
    values = table[name].to_numpy()
    if values.dtype.kind not in ("i" if whole else "iuf") or not np.isfinite(values).all():
        raise ValueError(f"{name} holds what is no {'whole ' if whole else ''}number")
    return values if whole else values.astype(np.float64)


def open_text(file: Path, mode: str) -> IO[str]:
    """A table as a stream for pandas, which takes a ``~`` in a path for somebody's home; bytes of a name that are no UTF-8 stay as they are."""
    return file.open(mode, encoding="utf-8", errors="surrogateescape", newline="")
