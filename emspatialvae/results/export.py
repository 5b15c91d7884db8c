"""Results back into the files they came from: STAR, .cs, .csv and stacks of aligned images.

Labels: what RELION has a label for goes under RELION's label, the rest under ``emsvae*``. Poses of a 3-D refinement are
protected: unless ``--poses overwrite`` is given, ours then go under ``emsvae*`` labels too, and so do our classes if the
file has some of its own. The names themselves stand in `emspatialvae.particles.columns`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Mask
from emspatialvae.io import cs, star
from emspatialvae.io.atomic import atomic_path, check_writable
from emspatialvae.io.star_scan import MISSING
from emspatialvae.particles.columns import (
    ANGLE,
    CLASS,
    LOG_LIKELIHOOD,
    ORIGIN_A,
    ORIGIN_PX,
    POSE_LABELS,
    USED,
    kept_apart,
)
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.particles.table import CS_MICROGRAPH_PIXEL, STAR_COORDINATES, CsTable
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir

if TYPE_CHECKING:
    import pandas as pd
from emspatialvae.results.latents import known_scores, latents_table, open_text, read_csv

UNKNOWN = {text.decode().lower() for text in MISSING} | {"inf", "infinity"}
"""Cells without a number, signs left out."""


@dataclass(frozen=True)
class Column:
    """One column of results: where it goes and its values, shape [n]."""

    label: str
    values: NDArray[Any]
    digits: str = ".6f"


def write(
    latents: Latents, stack: ParticleStack, destination: Path, *, poses: Poses = "auto", force: bool = False
) -> None:
    """Write results in the format that the ending of ``destination`` names: .star, .cs or .csv."""
    check_destination(destination, force=force)
    WRITERS[destination.suffix](latents, stack, destination, poses=poses, force=force)


def write_run(latents: Latents, stack: ParticleStack, run: RunDir, folder: Path) -> Latents:
    """Write a run's own tables into a folder, from where they take their places; returns the results with the nine digits of ``latents.csv``.

    All other files are made from those, as `emsvae export` will do: the same run never gives two different STAR files.
    """
    manifest = run.manifest
    table = folder / run.latents.name
    write(latents, stack, table)
    latents = read_csv(table, manifest.z_dim, manifest.preparation.pixel_size_A)
    for suffix in (".star", ".cs") if stack.kind == "cs" else (".star",):
        write(latents, stack, folder / f"{run.star.stem}{suffix}", poses=manifest.config.poses)
    return latents


def check_destination(destination: Path, *, force: bool) -> None:
    """Refuse a name that tells no format, or that is taken, before the work is done."""
    if destination.suffix not in WRITERS:
        raise EmsvaeError(f"{destination}: cannot tell the format; expected a name ending in {', '.join(WRITERS)}")
    check_writable(destination, force)


def protects_poses(stack: ParticleStack, poses: Poses) -> bool:
    """Whether the poses in the file must be left as they are."""
    return poses == "keep" or (poses == "auto" and stack.has_3d_pose)


def class_label(stack: ParticleStack, poses: Poses) -> str:
    """Where our classes go in a STAR file: under RELION's label, unless that holds those of a 3-D classification."""
    own = isinstance(stack.metadata, star.StarFile) and CLASS in particle_block(stack.metadata).labels
    return kept_apart(CLASS) if own and protects_poses(stack, poses) else CLASS


def result_columns(latents: Latents, stack: ParticleStack, poses: Poses) -> list[Column]:
    """The columns that are added to a STAR file; the pose under RELION's labels where that is allowed."""
    psi_deg, origin_A = geometry.to_relion(latents.reported_pose, latents.pixel_size_A)
    apart = protects_poses(stack, poses)
    origin, origin_labels = origin_A, ORIGIN_A
    if not apart and _has_pixel_origins(stack):
        origin, origin_labels = origin_A / stack.pixel_size_A[: len(latents), None], ORIGIN_PX

    def label(name: str) -> str:
        if name == CLASS:
            return class_label(stack, poses)
        return kept_apart(name) if apart and name in POSE_LABELS else name

    return [
        Column(label(ANGLE), psi_deg),
        *[Column(label(name), values) for name, values in zip(origin_labels, origin.T, strict=True)],
        Column(label(LOG_LIKELIHOOD), latents.log_likelihood, ".6e"),
        *[
            Column(label(names.star), values, "d" if values.dtype.kind == "i" else ".6f")
            for names, values in known_scores(latents)
        ],
        *[Column(f"emsvaeZ{k + 1}", z) for k, z in enumerate(latents.z.T)],
        *[Column(f"emsvaeZStd{k + 1}", sd) for k, sd in enumerate(latents.z_sd.T)],
        Column("emsvaeThetaStd", np.degrees(latents.theta_sd_rad)),
        Column("emsvaeShiftStdAngst", np.sqrt((latents.shift_sd_px**2).mean(1)) * latents.pixel_size_A),
        Column(USED[0], latents.used.astype(int), "d"),
    ]


def _has_pixel_origins(stack: ParticleStack) -> bool:
    """RELION 3.0: no optics table, offsets in pixels. In later files those labels are silently ignored."""
    if not isinstance(stack.metadata, star.StarFile) or stack.metadata.version is not None:
        return False
    known = particle_block(stack.metadata).labels
    return all(block.name != "optics" for block in stack.metadata.blocks) and ORIGIN_A[0] not in known


def write_star(
    latents: Latents,
    stack: ParticleStack,
    destination: Path,
    *,
    poses: Poses = "auto",
    force: bool = False,
    replaced: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the input with our columns; for a .cs file or a bare stack, a new RELION 3.1 file.

    ``replaced``: labels of the input -> other texts for its particles, one each: names of images, coordinates.

    Rows that were not used (bad images, or beyond ``--limit``) keep what they had; in new columns they get 0, and
    ``emsvaeUsed`` 0. Every byte of every other cell of a STAR file stays.
    """
    _check_finite(latents)
    columns = result_columns(latents, stack, poses)
    if not isinstance(stack.metadata, star.StarFile):
        tables = _new_tables(stack, columns, latents.used, replaced or {})
        star.write_new(destination, tables, overwrite=force)
        return
    block = particle_block(stack.metadata)
    cells: dict[str, list[str]] = {}
    for column in columns:
        known = column.label in block.labels
        texts = block.columns(column.label)[column.label] if known else ["0"] * block.n_rows
        # What the file itself does not know must not be written again: RELION would read a number.
        texts = ["0" if text.lower().lstrip("+-") in UNKNOWN else text for text in texts]
        for row, (value, used) in enumerate(zip(column.values.tolist(), latents.used.tolist(), strict=True)):
            if used or column.label == USED[0]:
                texts[row] = format(value, column.digits)
        cells[column.label] = texts
    for label, texts in (replaced or {}).items():
        cells[label] = [*texts, *block.columns(label)[label][len(texts) :]]
    star.write_with_columns(stack.metadata, block.name, cells, destination, overwrite=force)


def _check_finite(latents: Latents) -> None:
    for name, values in vars(latents).items():
        parts = vars(values).values() if isinstance(values, geometry.Pose2D) else [values]
        arrays = [np.asarray(part) for part in parts]
        if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
            raise EmsvaeError(
                f"{name} holds NaN or infinity, which RELION would read as a number; train again with a lower --learning-rate"
            )


def _new_tables(
    stack: ParticleStack, columns: list[Column], used: Mask, replaced: Mapping[str, Sequence[str]]
) -> "Mapping[str, pd.DataFrame]":
    """Optics and particles of a new RELION 3.1 file, with what is known of the particles."""
    import pandas as pd

    known_ctf = np.ones(len(stack), bool) if stack.ctf is None else stack.ctf.known
    # Of each group a particle that can speak for it.
    first: list[int] = [
        int(np.argmax((stack.optics_of == group) * (1 + known_ctf))) for group in range(len(stack.optics))
    ]
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": np.arange(len(stack.optics)) + 1,
            "rlnOpticsGroupName": [group.name for group in stack.optics],
            "rlnImagePixelSize": np.array([group.pixel_size_A for group in stack.optics], np.float32),
            "rlnImageSize": [stack.files[int(stack.file_of[row])].width for row in first],
            "rlnImageDimensionality": 2,
        }
    )
    table: dict[str, Any] = {
        "rlnImageName": pd.Series(
            stack.image_names(stack.paths),
            dtype=object,
        ),
        "rlnOpticsGroup": stack.optics_of + 1,
    }
    if isinstance(stack.metadata, np.ndarray):
        table |= _picked(CsTable(stack.source, stack.metadata[: len(stack)]))
    # Particles that were left out for want of a CTF get zeros, as in all other columns.
    if stack.ctf is not None and known_ctf.any() and (known_ctf | ~used).all():
        # cryoSPARC holds float32; as such the numbers are written in the few digits that they have.
        known = {name: np.nan_to_num(values).astype(np.float32) for name, values in vars(stack.ctf).items()}
        optics["rlnVoltage"] = known["voltage_kV"][first]
        optics["rlnSphericalAberration"] = known["cs_mm"][first]
        optics["rlnAmplitudeContrast"] = known["amplitude_contrast"][first]
        table |= {
            "rlnDefocusU": known["defocus_u_A"],
            "rlnDefocusV": known["defocus_v_A"],
            "rlnDefocusAngle": np.degrees(known["astigmatism_rad"]),
            "rlnPhaseShift": np.degrees(known["phase_shift_rad"]),
        }
    else:
        # RELION refuses an optics table without them (ObservationModel: "not all necessary variables"); 0 stands for unknown.
        optics["rlnVoltage"] = optics["rlnSphericalAberration"] = 0.0
    table |= {column.label: column.values for column in columns}
    table |= {label: pd.Series(list(texts), dtype=object) for label, texts in replaced.items()}
    return {"optics": optics, "particles": pd.DataFrame(table)}


def _picked(table: CsTable) -> dict[str, Any]:
    """Where cryoSPARC picked the particles, under RELION's labels: y as stored, nothing is flipped."""
    places = table.coordinates()
    if places is None:
        return {}
    micrograph, x, y = STAR_COORDINATES
    names = np.array(places.micrographs, dtype=object)[places.micrograph_of]
    found = {micrograph: names, x: places.xy_px[:, 0], y: places.xy_px[:, 1]}
    if CS_MICROGRAPH_PIXEL in table.names:
        found["rlnMicrographPixelSize"] = table.read(numbers=(CS_MICROGRAPH_PIXEL,))[1][CS_MICROGRAPH_PIXEL]
    return found


def write_cs(
    latents: Latents, stack: ParticleStack, destination: Path, *, poses: Poses = "auto", force: bool = False
) -> None:
    """Write the input .cs with ``alignments2D`` and ``emsvae`` fields; every other field and row as it came.

    Raises
    ------
    EmsvaeError
        The particles did not come from a .cs file.
    """
    if not isinstance(stack.metadata, np.ndarray):
        raise EmsvaeError(f"{stack.source} is not a .cs file, so there is no .cs to write back; use --star")
    _check_finite(latents)
    array, n = stack.metadata, len(latents)
    own_pixels = latents.reported_pose.scaled(latents.pixel_size_A / stack.pixel_size_A[:n])
    pose_rad, shift_px = geometry.to_cryosparc(own_pixels)
    group = "emsvae" if poses == "keep" else "alignments2D"
    fields: dict[str, NDArray[Any]] = {
        f"{group}/pose": pose_rad.astype(np.float32),
        f"{group}/shift": shift_px.astype(np.float32),
        "emsvae/z": latents.z.astype(np.float32),
        "emsvae/z_std": latents.z_sd.astype(np.float32),
        "emsvae/theta_std_rad": latents.theta_sd_rad.astype(np.float32),
        "emsvae/shift_std_A": (latents.shift_sd_px * latents.pixel_size_A).astype(np.float32),
    }
    for names, values in known_scores(latents):
        whole_numbers = values.dtype.kind == "i"  # classes, which cryoSPARC counts from 0
        name = kept_apart(names.cs) if group == "emsvae" else names.cs
        fields[name] = np.maximum(values - 1, 0).astype(np.uint32) if whole_numbers else values.astype(np.float32)
    merged: dict[str, NDArray[Any]] = {}
    for name, values in fields.items():
        whole = (
            array[name].copy()
            if name in (array.dtype.names or ())
            else np.zeros((len(array), *values.shape[1:]), values.dtype)
        )
        whole[:n][latents.used] = values[latents.used]
        merged[name] = whole
    # The unit of the shift belongs to every row, used or not.
    own = next((f for f in (f"{group}/psize_A", "blob/psize_A") if f in (array.dtype.names or ())), None)
    psize_A = array[own].copy() if own else np.resize(stack.pixel_size_A, len(array)).astype(np.float32)
    psize_A[:n][latents.used] = stack.pixel_size_A[:n][latents.used]
    merged[f"{group}/psize_A"] = psize_A
    merged[USED[1]] = np.pad(latents.used, (0, len(array) - n)).astype(np.uint32)
    cs.write_cs(destination, cs.with_fields(array, merged), overwrite=force)


def write_csv(
    latents: Latents, stack: ParticleStack, destination: Path, *, poses: Poses = "auto", force: bool = False
) -> None:
    """``latents.csv``: one row per particle, units in the names, nine digits. Stack and poses change nothing here."""
    table = latents_table(latents)
    with atomic_path(destination, overwrite=force) as temporary, open_text(temporary, "w") as stream:
        table.to_csv(stream, index=False, float_format="%.9g")


WRITERS = {".star": write_star, ".cs": write_cs, ".csv": write_csv}
