"""Results back into the files they came from: STAR, .cs, .csv and stacks of aligned images.

Labels: what RELION has a label for goes under RELION's label, the rest under ``emsvae*``. Poses of a 3-D refinement are
protected: unless ``--poses overwrite`` is given, ours then go under ``emsvae*`` labels too, and so do our classes if the
file has some of its own. The names themselves stand in `emspatialvae.labels`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae import geometry, imaging, labels
from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.infer import Latents
from emspatialvae.io import cs, star
from emspatialvae.io.atomic import atomic_path, check_writable
from emspatialvae.io.mrc import StackWriter
from emspatialvae.io.pictures import NpyStack, npy_writer
from emspatialvae.particles import ParticleStack
from emspatialvae.run import RunDir
from emspatialvae.sources import particle_block

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 64 << 20
CLASS_POSE = ("class_theta_rad", "class_shift_x_A", "class_shift_y_A")
"""Columns of ``latents.csv`` with `Latents.class_pose`."""


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
    latents = read_csv(table, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)
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
    own = isinstance(stack.metadata, star.StarFile) and labels.CLASS in particle_block(stack.metadata).labels
    return labels.kept_apart(labels.CLASS) if own and protects_poses(stack, poses) else labels.CLASS


def result_columns(latents: Latents, stack: ParticleStack, poses: Poses) -> list[Column]:
    """The columns that are added to a STAR file; the pose under RELION's labels where that is allowed."""
    psi_deg, origin_A = geometry.to_relion(latents.reported_pose, latents.pixel_size_A)
    apart = protects_poses(stack, poses)
    origin, origin_labels = origin_A, labels.ORIGIN_A
    if not apart and _has_pixel_origins(stack):
        origin, origin_labels = origin_A / stack.pixel_size_A[: len(latents), None], labels.ORIGIN_PX

    def label(name: str) -> str:
        if name == labels.CLASS:
            return class_label(stack, poses)
        return labels.kept_apart(name) if apart and name in labels.POSE_LABELS else name

    return [
        Column(label(labels.ANGLE), psi_deg),
        *[Column(label(name), values) for name, values in zip(origin_labels, origin.T, strict=True)],
        Column(label(labels.LOG_LIKELIHOOD), latents.log_likelihood, ".6e"),
        *[
            Column(label(names.star), values, "d" if values.dtype.kind == "i" else ".6f")
            for names, values in _scores(latents)
        ],
        *[Column(f"emsvaeZ{k + 1}", z) for k, z in enumerate(latents.z.T)],
        *[Column(f"emsvaeZStd{k + 1}", sd) for k, sd in enumerate(latents.z_sd.T)],
        Column("emsvaeThetaStd", np.degrees(latents.theta_sd_rad)),
        Column("emsvaeShiftStdAngst", np.sqrt((latents.shift_sd_px**2).mean(1)) * latents.pixel_size_A),
        Column(labels.USED[0], latents.used.astype(int), "d"),
    ]


def _scores(latents: Latents) -> list[tuple[labels.Names, NDArray[Any]]]:
    """Those of `labels.SCORES` that are known, [n] each."""
    found = ((names, getattr(latents, field)) for field, names in labels.SCORES.items())
    return [(names, values) for names, values in found if values is not None]


def _has_pixel_origins(stack: ParticleStack) -> bool:
    """RELION 3.0: no optics table, offsets in pixels. In later files those labels are silently ignored."""
    if not isinstance(stack.metadata, star.StarFile) or stack.metadata.version is not None:
        return False
    known = particle_block(stack.metadata).labels
    return all(block.name != "optics" for block in stack.metadata.blocks) and labels.ORIGIN_A[0] not in known


def write_star(
    latents: Latents, stack: ParticleStack, destination: Path, *, poses: Poses = "auto", force: bool = False
) -> None:
    """Write the input with our columns; for a .cs file or a bare stack, a new RELION 3.1 file.

    Rows that were not used (bad images, or beyond ``--limit``) keep what they had; in new columns they get 0, and
    ``emsvaeUsed`` 0. Every byte of every other cell of a STAR file stays.
    """
    _check_finite(latents)
    columns = result_columns(latents, stack, poses)
    if not isinstance(stack.metadata, star.StarFile):
        star.write_new(destination, _new_tables(stack, columns), overwrite=force)
        return
    block = particle_block(stack.metadata)
    cells = {}
    for column in columns:
        known = column.label in block.labels
        texts = block.columns(column.label)[column.label] if known else ["0"] * block.n_rows
        for row, (value, used) in enumerate(zip(column.values.tolist(), latents.used.tolist(), strict=True)):
            if used or column.label == labels.USED[0]:
                texts[row] = format(value, column.digits)
        cells[column.label] = texts
    star.write_with_columns(stack.metadata, block.name, cells, destination, overwrite=force)


def _check_finite(latents: Latents) -> None:
    for name, values in vars(latents).items():
        parts = vars(values).values() if isinstance(values, geometry.Pose2D) else [values]
        arrays = [np.asarray(part) for part in parts]
        if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
            raise EmsvaeError(
                f"{name} holds NaN or infinity, which RELION would read as a number; train again with a lower --learning-rate"
            )


def _new_tables(stack: ParticleStack, columns: list[Column]) -> "Mapping[str, pd.DataFrame]":
    """Optics and particles of a new RELION 3.1 file, with what is known of the particles."""
    import pandas as pd

    first = [
        int(np.flatnonzero(stack.optics_of == group)[0]) if np.any(stack.optics_of == group) else 0
        for group in range(len(stack.optics))
    ]
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": np.arange(len(stack.optics)) + 1,
            "rlnOpticsGroupName": [group.name for group in stack.optics],
            "rlnImagePixelSize": np.array([group.pixel_size_A for group in stack.optics], np.float32),
            "rlnImageSize": [stack.files[stack.file_of[row]].width for row in first],
            "rlnImageDimensionality": 2,
        }
    )
    table: dict[str, Any] = {
        "rlnImageName": pd.Series(
            [f"{i + 1:06d}@{stack.paths[f]}" for i, f in zip(stack.index_of, stack.file_of, strict=True)], dtype=object
        ),
        "rlnOpticsGroup": stack.optics_of + 1,
    }
    if stack.ctf is not None and stack.ctf.known.all():
        # cryoSPARC holds float32; as such the numbers are written in the few digits that they have.
        known = {name: values.astype(np.float32) for name, values in vars(stack.ctf).items()}
        optics["rlnVoltage"] = known["voltage_kV"][first]
        optics["rlnSphericalAberration"] = known["cs_mm"][first]
        optics["rlnAmplitudeContrast"] = known["amplitude_contrast"][first]
        table |= {
            "rlnDefocusU": known["defocus_u_A"],
            "rlnDefocusV": known["defocus_v_A"],
            "rlnDefocusAngle": np.degrees(known["astigmatism_rad"]),
            "rlnPhaseShift": np.degrees(known["phase_shift_rad"]),
        }
    table |= {column.label: column.values for column in columns}
    return {"optics": optics, "particles": pd.DataFrame(table)}


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
    for names, values in _scores(latents):
        whole_numbers = values.dtype.kind == "i"  # classes, which cryoSPARC counts from 0
        name = labels.kept_apart(names.cs) if group == "emsvae" else names.cs
        fields[name] = np.maximum(values - 1, 0).astype(np.uint32) if whole_numbers else values.astype(np.float32)
    merged = {}
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
    merged[labels.USED[1]] = np.pad(latents.used, (0, len(array) - n)).astype(np.uint32)
    cs.write_cs(destination, cs.with_fields(array, merged), overwrite=force)


# ------------------------------------------------------------------------------------------------------------- tables


def write_csv(
    latents: Latents, stack: ParticleStack, destination: Path, *, poses: Poses = "auto", force: bool = False
) -> None:
    """``latents.csv``: one row per particle, units in the names, nine digits. Stack and poses change nothing here."""
    table = latents_table(latents)
    with atomic_path(destination, overwrite=force) as temporary, open_text(temporary, "w") as stream:
        table.to_csv(stream, index=False, float_format="%.9g")


def open_text(file: Path, mode: str) -> IO[str]:
    """A table as a stream for pandas, which takes a ``~`` in a path for somebody's home; bytes of a name that are no UTF-8 stay as they are."""
    return file.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


def latents_table(latents: Latents) -> "pd.DataFrame":
    """The results as a table; theta and shift in our own convention (see `emspatialvae.geometry`)."""
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
    columns |= {names.csv: values for names, values in _scores(latents)}
    if latents.class_pose is not None:
        on_class_A = latents.class_pose.shift_px * latents.pixel_size_A
        values = (latents.class_pose.theta_rad, on_class_A[:, 0], on_class_A[:, 1])
        columns |= dict(zip(CLASS_POSE, values, strict=True))
    return pd.DataFrame(columns)


def results_of(run: RunDir) -> Latents:
    """The results of a run.

    Raises
    ------
    RunFolderError
        There are none yet, or they are damaged, or not as many as the run has particles.
    """
    manifest = run.manifest
    latents = read_csv(run.latents, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)
    if len(latents) != manifest.n_particles:
        raise RunFolderError(
            f"{run.latents} is damaged ({len(latents):,} rows for {manifest.n_particles:,} particles); run `emsvae train ... --resume` "
            "to write it again"
        )
    return latents


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
        count = z_dim or sum(bool(re.fullmatch(r"z\d+", name)) for name in table)
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
            pose=geometry.Pose2D(_numbers(table, "theta_rad"), shift / pixel_size_A),
            theta_sd_rad=_numbers(table, "theta_sd_rad"),
            shift_sd_px=shift_sd / pixel_size_A,
            log_likelihood=_numbers(table, "log_likelihood"),
            pixel_size_A=pixel_size_A,
            class_pose=_class_pose(table, pixel_size_A),
            **{
                field: _numbers(table, names.csv, whole=field == "class_number")
                for field, names in labels.SCORES.items()
                if names.csv in table
            },
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise RunFolderError(
            f"{file} is damaged ({str(error)[:200]}); run `emsvae train ... --resume` to write it again"
        ) from None


def _numbers(table: "pd.DataFrame", name: str, *, whole: bool = False) -> NDArray[Any]:
    """A column of finite numbers; ValueError where it holds anything else."""
    values = table[name].to_numpy()
    if values.dtype.kind not in ("i" if whole else "iuf") or not np.isfinite(values).all():
        raise ValueError(f"{name} holds what is no {'whole ' if whole else ''}number")
    return values if whole else values.astype(np.float64)


def _class_pose(table: "pd.DataFrame", pixel_size_A: float) -> geometry.Pose2D | None:
    if CLASS_POSE[0] not in table:
        return None
    shift_A = np.stack([_numbers(table, name) for name in CLASS_POSE[1:]], 1)
    return geometry.Pose2D(_numbers(table, CLASS_POSE[0]), shift_A / pixel_size_A)


# ------------------------------------------------------------------------------------------------------------- images


def write_aligned(
    latents: Latents,
    stack: ParticleStack,
    destination: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the raw, full-size images with rotation and shift taken out, in particle order; unused ones as they are.

    A destination that ends in .npy gets an array, with channels where the images have them; any other an MRC stack.
    """
    if len(stack.boxes) > 1:
        raise EmsvaeError(
            f"{stack.source} has boxes of {stack.boxes} px, one aligned stack has one; export the optics groups apart"
        )
    n, box = len(latents), max(stack.boxes)
    pose = latents.reported_pose.scaled(latents.pixel_size_A / stack.pixel_size_A[:n])
    size = max(1, CHUNK_BYTES // (4 * stack.channels * box**2))
    with _stack_writer(stack, destination, n, box, force) as append:
        for start in range(0, n, size):
            rows = np.arange(start, min(start + size, n))
            images = stack.channel_images(rows)
            used = latents.used[rows]
            for channel in images.swapaxes(0, 1):
                channel[used] = imaging.align(channel[used], pose[rows[used]])
            append(np.nan_to_num(images, posinf=0, neginf=0))
            progress(len(rows))


@contextmanager
def _stack_writer(
    stack: ParticleStack, destination: Path, n: int, box: int, force: bool
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Yields the function that takes the next images [k, channels, box, box]."""
    if destination.suffix == ".npy":
        source = stack.files[0]
        axes = source.axes if isinstance(source, NpyStack) else "n h w" if stack.channels == 1 else "n h w c"
        with npy_writer(destination, n, axes, stack.channels, box, overwrite=force) as append:
            yield append
        return
    if stack.channels > 1:
        raise EmsvaeError(f"{destination}: an MRC stack has no colour; end the name in .npy")
    with StackWriter(destination, n, box, float(stack.pixel_size_A[0]), overwrite=force) as writer:
        yield lambda images: writer.append(images[:, 0])


WRITERS = {".star": write_star, ".cs": write_cs, ".csv": write_csv}
