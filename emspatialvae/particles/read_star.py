"""RELION's STAR files, 3.0 to 5, as a `ParticleStack`. Nothing here looks for the images; `emspatialvae.particles.load` does."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.ctf import completed
from emspatialvae.io.image_names import parse_image_name
from emspatialvae.io.star import StarBlock, StarFile
from emspatialvae.particles.optics_groups import optics_rows
from emspatialvae.particles.pixel_size import pixel_size_or_nan
from emspatialvae.particles.stack import OpticsGroup, ParticleStack

Numbers = dict[str, NDArray[np.float64]]

PARTICLE_BLOCKS = ("particles", "images", "")
BEAM = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
ANGLES, UNSET = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), -999.0
FLAT_TOMO = "rlnTomoSubTomosAre2DStacks"
OPTICS_NUMBERS = (
    "rlnOpticsGroup",
    "rlnImagePixelSize",
    "rlnImageDimensionality",
    "rlnCtfDataArePhaseFlipped",
    "rlnCtfDataAreCtfPremultiplied",
    *BEAM,
)
NUMBERS = (
    *("rlnOpticsGroup", "rlnDetectorPixelSize", "rlnMagnification", *BEAM),
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"),
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX", "rlnOriginY"),
)
"""Columns of the particle table that are read where they exist."""

STAR_CTF = {
    "defocus_u_A": "rlnDefocusU",
    "defocus_v_A": "rlnDefocusV",
    "astigmatism_rad": "rlnDefocusAngle",
    "phase_shift_rad": "rlnPhaseShift",
    "voltage_kV": "rlnVoltage",
    "cs_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
"""What the fields of `CtfParams` are called in STAR files."""


def particle_block(star: StarFile) -> StarBlock:
    """The block that lists particle images: one of RELION's names, else the only one with ``rlnImageName``, as RELION reads it.

    Raises
    ------
    ParticleFileError
        There is none, or there are several under other names.
    """
    with_images = [block for block in star.blocks if "rlnImageName" in block.labels]
    for block in with_images:
        if block.name in PARTICLE_BLOCKS:
            return block
    if len(with_images) == 1:
        return with_images[0]
    if with_images:
        names = ", ".join(f"data_{block.name}" for block in with_images)
        raise ParticleFileError(
            f"{star.path}: several blocks list images ({names}); expected one, or one of the name data_particles; rename it"
        )
    found = ", ".join(f"data_{block.name} with {len(block.labels)} labels" for block in star.blocks) or "nothing"
    raise ParticleFileError(
        f"{star.path}: no block of particles; found {found}, expected data_particles (or data_images, data_) "
        "with _rlnImageName; give the particles file, not micrographs or a model"
    )


def read_star_source(config: InputConfig) -> ParticleStack:
    """Read RELION 3.0 (one block) or 3.1 and later (optics and particles, in either order)."""
    star = StarFile.read(config.particles)
    block = particle_block(star)
    notes = ["line ends are CRLF, which RELION cannot read; what is written back has LF"] if star.crlf else []
    # One pass over the file for all that is wanted of a million rows.
    texts, numbers = block.read(["rlnImageName"], [label for label in NUMBERS if label in block.labels], lenient=True)
    notes += _without_missing(block, numbers)
    names, paths, file_of, index_of = _split_image_names(texts["rlnImageName"], star.path)
    _check_no_subtomograms(star, block, texts["rlnImageName"])
    table = next((b for b in star.blocks if b.name == "optics"), None)
    if table is None:
        optics, optics_of, beam = _star_without_optics(block, numbers, config)
    else:
        optics, optics_of, beam = _star_optics(block, numbers, table, config)
        if "rlnOriginX" in block.labels and "rlnOriginXAngst" not in block.labels:
            notes.append("offsets are in pixels (rlnOriginX), which RELION 3.1 and later ignore in a file with optics")
        if "rlnOpticsGroup" not in block.labels:
            notes.append("particles do not say their optics group; the only one in the file is taken for all")
    # Without a phase plate RELION writes no phase shift.
    ctf, assumed = completed(_star_ctf(numbers, beam), STAR_CTF, usual=("phase_shift_rad",))
    pixel_size_A = np.array([group.pixel_size_A for group in optics])[optics_of]
    pose, in_angstrom = _star_pose(numbers)
    return ParticleStack(
        source=star.path,
        kind="star",
        names=names,
        paths=paths,
        file_of=file_of,
        index_of=index_of,
        optics=optics,
        optics_of=optics_of,
        ctf=ctf,
        pose=pose if pose is None or not in_angstrom else pose.scaled(1 / pixel_size_A),
        shift_A=pose.shift_px if pose is not None and in_angstrom and np.isnan(pixel_size_A).all() else None,
        has_3d_pose=any(
            np.any(np.nan_to_num(numbers[label]) != 0) for label in ("rlnAngleRot", "rlnAngleTilt") if label in numbers
        ),
        metadata=star,
        notes=(*notes, *assumed),
    )


def subtomograms(source: Path, how: str) -> ParticleFileError:
    """Particles are volumes; ``how`` says what shows it."""
    return ParticleFileError(
        f"{source}: the particles are subtomograms, volumes ({how}); expected 2-D images; project each volume into one image of a "
        "stack, and give a STAR file that names these (N@stack.mrcs)"
    )


def tilt_stacks(source: Path, name: str) -> ParticleFileError:
    """Each particle is a stack of its own."""
    return ParticleFileError(
        f"{source}: each particle is a 2-D tilt stack of its own (a pseudo-subtomogram of RELION 4 or 5, the first is {name}); expected "
        "one image per particle: average the tilts of each, or take one, into one stack, and name the images N@stack.mrcs"
    )


def _check_no_subtomograms(star: StarFile, block: StarBlock, names: list[str]) -> None:
    """Refuse what the tables already say: RELION 4 and 5 list subtomograms without ``N@``, as volumes or as tilt stacks."""
    whole = next((name for name in names if "@" not in name), None)
    if whole is None or not any(label.startswith("rlnTomo") for label in block.labels):
        return
    general = next((b for b in star.blocks if b.name == "general" and FLAT_TOMO in b.labels), None)
    flat = general.read(numbers=[FLAT_TOMO])[1][FLAT_TOMO].any() if general else "stack2d" in whole
    raise tilt_stacks(star.path, whole) if flat else subtomograms(star.path, f"as {whole}")


def _split_image_names(
    image_names: list[str], source: Path
) -> tuple[NDArray[Any], tuple[str, ...], NDArray[np.int32], NDArray[np.int64]]:
    """``N@path`` to names, the paths that occur, and for each row the path's number and the 0-based image index.

    A name without ``@`` is that of a file of one image: `load` looks whether it holds no more.
    """
    codes: dict[str, int] = {}
    file_of, index_of = np.empty(len(image_names), np.int32), np.empty(len(image_names), np.int64)
    for row, name in enumerate(image_names):
        number, path = image = parse_image_name(name)
        if not path or number == 0 or (number is None and "@" in name):
            raise ParticleFileError(
                f"{source}: image name {name!r} of particle {row + 1}; expected N@stack.mrcs with N counted from 1"
            )
        file_of[row], index_of[row] = codes.setdefault(path, len(codes)), image.place
    return np.array(image_names, dtype=object), tuple(codes), file_of, index_of


def _without_missing(block: StarBlock, numbers: Numbers) -> list[str]:
    """Take out columns that hold no number at all, and the angles -999 that stand for "not set"; a sentence for each.

    Numbers that are missing in some rows stay NaN there.

    Raises
    ------
    ParticleFileError
        Particles without an optics group.
    """
    notes: list[str] = []
    for label in list(numbers):
        column = numbers[label]
        unset = column == UNSET if label in ANGLES else np.zeros(len(column), bool)
        column[unset] = np.nan
        bad = np.flatnonzero(~np.isfinite(column))
        if not len(bad):
            continue
        shown = (
            "-999, which stands for unset," if unset[bad[0]] else f"no number ({block.columns(label)[label][bad[0]]!r})"
        )
        where = f"{label} is {shown}" if unset[bad[0]] else f"{label} holds {shown}"
        if label == "rlnOpticsGroup":
            raise ParticleFileError(
                f"{block.path}: {where} in {len(bad):,} of {len(column):,} rows of data_{block.name}, the first is particle "
                f"{bad[0] + 1}; expected numbers of data_optics; repair the file"
            )
        if len(bad) == len(column):
            del numbers[label]
            notes.append(f"{where} in every row: the column counts as absent")
        else:
            column[bad] = np.nan
            notes.append(
                f"{where} in {len(bad):,} of {len(column):,} rows, the first is particle {bad[0] + 1}: missing there"
            )
    return notes


def _star_optics(
    block: StarBlock, numbers: Numbers, table: StarBlock, config: InputConfig
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32], Numbers]:
    """Optics groups, each particle's group, and voltage, Cs and amplitude contrast per particle."""
    wanted = [label for label in OPTICS_NUMBERS if label in table.labels]
    named = [label for label in ("rlnOpticsGroupName",) if label in table.labels]
    if "rlnOpticsGroup" not in table.labels:
        raise ParticleFileError(f"{block.path}: data_optics has no rlnOpticsGroup; repair the file")
    texts, optics = table.read(named, wanted, lenient=True)
    known = optics["rlnOpticsGroup"]
    optics_of = optics_rows(block.path, known, numbers.get("rlnOpticsGroup"), block.n_rows, block.name).astype(np.int32)
    if "rlnImageDimensionality" in optics and np.any(optics["rlnImageDimensionality"] == 3):
        raise subtomograms(block.path, "rlnImageDimensionality is 3")
    groups = tuple(
        OpticsGroup(
            name=texts["rlnOpticsGroupName"][row] if named else f"{number:.0f}",
            pixel_size_A=pixel_size_or_nan(
                config, optics["rlnImagePixelSize"][row] if "rlnImagePixelSize" in optics else None
            ),
            phase_flipped="rlnCtfDataArePhaseFlipped" in optics and bool(optics["rlnCtfDataArePhaseFlipped"][row]),
            ctf_premultiplied="rlnCtfDataAreCtfPremultiplied" in optics
            and bool(optics["rlnCtfDataAreCtfPremultiplied"][row]),
        )
        for row, number in enumerate(known)
    )
    # Files converted from 3.0 by hand may keep the beam in the particle table.
    optics = {label: values for label, values in optics.items() if np.isfinite(values).any()}
    beam = {
        label: optics[label][optics_of] if label in optics else numbers[label]
        for label in BEAM
        if label in {*optics, *numbers}
    }
    return groups, optics_of, beam


def _star_without_optics(
    block: StarBlock, numbers: Numbers, config: InputConfig
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32], Numbers]:
    """RELION 3.0: pixel size in A = 1e4 * rlnDetectorPixelSize (um) / rlnMagnification, the beam in the particle table."""
    beam = {label: numbers[label] for label in BEAM if label in numbers}
    if config.pixel_size_A is not None or not {"rlnDetectorPixelSize", "rlnMagnification"} <= set(numbers):
        size = pixel_size_or_nan(config, None)
        return (OpticsGroup("opticsGroup1", size),), np.zeros(block.n_rows, np.int32), beam
    with np.errstate(divide="ignore"):
        found = 1e4 * numbers["rlnDetectorPixelSize"] / numbers["rlnMagnification"]
    sizes, optics_of = np.unique(found, return_inverse=True)
    groups = tuple(OpticsGroup(f"opticsGroup{n + 1}", pixel_size_or_nan(config, size)) for n, size in enumerate(sizes))
    return groups, optics_of.astype(np.int32), beam


def _star_ctf(numbers: Numbers, beam: Numbers) -> Numbers:
    """The CTF columns that the file has, under our names and in our units."""
    columns = numbers | beam
    found = {ours: columns[theirs] for ours, theirs in STAR_CTF.items() if theirs in columns}
    return {ours: np.radians(values) if ours.endswith("_rad") else values for ours, values in found.items()}


def _star_pose(numbers: Numbers) -> tuple[geometry.Pose2D | None, bool]:
    """The poses in the file, NaN where one is not set, and whether shifts are in angstrom: such win, as in RELION 3.1 and later."""
    if "rlnAnglePsi" not in numbers:
        return None, False
    psi = numbers["rlnAnglePsi"]
    for x, y, in_angstrom in (("rlnOriginXAngst", "rlnOriginYAngst", True), ("rlnOriginX", "rlnOriginY", False)):
        if x in numbers and y in numbers:
            return geometry.from_relion(psi, np.stack([numbers[x], numbers[y]], -1), 1.0), in_angstrom
    return geometry.from_relion(psi, np.zeros((len(psi), 2)), 1.0), False
