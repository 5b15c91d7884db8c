"""Stacks whose truth is known: an object of blobs, its poses, the microscope's CTF and noise, junk, and the bounds.

The signal-to-noise ratio is the variance of the clean stack over all its pixels, before the CTF and without the junk,
divided by the variance of the noise of the first optics group. That noise has s.d. 1 and the signal is scaled to match;
particles are bright (positive).
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.geometry import Pose2D, to_relion, wrap_rad
from emspatialvae.simulation.bounds import cramer_rao
from emspatialvae.simulation.junk import junk_images
from emspatialvae.simulation.kinds import default_span_deg, hinge_object, phantom
from emspatialvae.simulation.microscope import (
    AMPLITUDE_CONTRAST,
    CS_MM,
    VOLTAGE_KV,
    Microscope,
    draw_ctf,
    spectra_of,
)
from emspatialvae.simulation.phantom import Phantom, chunks, clean_image
from emspatialvae.simulation.truth import Simulation, Truth, load_simulation

if TYPE_CHECKING:
    import pandas as pd

    from emspatialvae.config import SimulateConfig

__all__ = [
    "Simulation",
    "clean_image",
    "draw_truth",
    "hinge_object",
    "load_simulation",
    "scale_to_snr",
    "simulate_stack",
]

Floats = NDArray[np.float64]

NOISE_SD = 1.0  # of the first optics group
BOUND_SAMPLE = 500  # particles over which the bounds are averaged
PER_MICROGRAPH = 100


def draw_truth(particles: int, shift_px: float, rng: np.random.Generator, z_dim: int = 1) -> tuple[Floats, Pose2D]:
    """Contents z [n, d] uniform on [-1, 1], theta uniform on the circle, shift Gaussian with s.d. ``shift_px`` per axis."""
    z = rng.uniform(-1, 1, (particles, z_dim))
    theta_rad = wrap_rad(rng.uniform(0, 2 * np.pi, particles))
    return z, Pose2D(theta_rad, shift_px * rng.standard_normal((particles, 2)))


def scale_to_snr(obj: Phantom, z: Floats, pose: Pose2D, box: int, snr: float) -> Phantom:
    """The object as high as gives these particles' clean images the variance ``snr * NOISE_SD^2`` over all pixels.

    An object of height 0 stays as it is.
    """
    if obj.height == 0:
        return obj
    total, squares = 0.0, 0.0
    for rows in chunks(len(z)):
        images = clean_image(obj, z[rows], pose[rows], box)
        total += images.sum()
        squares += np.vdot(images, images)
    pixels = len(z) * box * box
    variance = squares / pixels - (total / pixels) ** 2
    return replace(obj, height=float(obj.height * NOISE_SD * np.sqrt(snr / variance)))


def simulate_stack(config: "SimulateConfig") -> Path:
    """Write a stack with known truth and return its folder ``config.out``.

    In it: ``particles.mrcs``; ``particles.star`` (RELION 3.1, no poses; defocus where there is a CTF); ``truth.star``
    (the same rows with RELION's pose labels, by which RELION itself aligns the stack, ``emsvaeTrueZ1..`` and, where
    there is junk, ``emsvaeTrueJunk``); ``simulation.json`` (settings, noise spectra, signal scale, bounds). The same
    settings give the same bytes. The folder appears under its name when it is whole.

    Raises
    ------
    EmsvaeError
        A setting that makes no sense.
    OutputExistsError
        ``config.out`` exists and ``config.force`` is not set.
    """
    _check(config)
    # In this order for ever: what comes later must not change the bytes of what came before.
    for_truth, for_noise, for_microscope, for_junk = map(
        np.random.default_rng, np.random.SeedSequence(config.seed).spawn(4)
    )
    obj = phantom(config.kind, config.span_deg)
    z, pose = draw_truth(config.particles, config.shift_px, for_truth, obj.z_dim)
    microscope = _draw_microscope(config, for_microscope)
    truth = Truth(z, pose, microscope, for_junk.random(config.particles) < config.junk)
    real = np.flatnonzero(~truth.is_junk)
    if not len(real):
        raise EmsvaeError("simulate: every particle is junk; lower --junk or ask for more --particles")
    with _folder_when_whole(config.out, config.force) as folder:
        obj = scale_to_snr(obj, z[real], pose[real], config.box, config.snr)
        _write_images(folder / "particles.mrcs", obj, truth, config.snr, (for_noise, for_junk))
        _write_stars(folder, truth)
        bound = None
        if obj.height > 0:
            some = truth[real[:BOUND_SAMPLE]]
            bound = cramer_rao(obj, some.z, some.pose, some.microscope, config.shift_px).summary()
        facts = _settings(config) | {
            "noise_sd": NOISE_SD,
            "noise": [dataclasses.asdict(spectrum) for spectrum in microscope.noise],
            "signal_scale": obj.height,
            "symmetry": obj.symmetry,
            "cramer_rao": bound,
        }
        (folder / "simulation.json").write_text(json.dumps(facts, indent=2) + "\n")
    return config.out


def _settings(config: "SimulateConfig") -> dict[str, Any]:
    """What was asked for, but for where it was written; spans as they were used."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del settings["out"], settings["force"]
    return settings | {"span_deg": default_span_deg(config.kind) if config.span_deg is None else config.span_deg}


def _draw_microscope(config: "SimulateConfig", rng: np.random.Generator) -> Microscope:
    group = rng.integers(config.optics_groups, size=config.particles)
    ctf = None
    if config.ctf:
        ctf = draw_ctf(group, (config.defocus_min_A, config.defocus_max_A), config.astigmatism_A, rng)
    noise = spectra_of(config.noise_colour, config.optics_groups)
    return Microscope(config.box, config.pixel_size_A, group, noise, ctf)


def _check(config: "SimulateConfig") -> None:
    rules = [
        ("particles", config.particles >= 1, "at least 1"),
        ("box", config.box >= 16, "at least 16 px"),
        ("snr", 0 < config.snr < np.inf, "a positive number"),
        ("shift-px", 0 <= config.shift_px <= config.box / 4, "between 0 and a quarter of the box"),
        ("span-deg", config.span_deg is None or 0 < config.span_deg <= 180, "between 0 and 180 degrees"),
        ("defocus-min-a", 0 <= config.defocus_min_A < np.inf, "a number of angstrom, 0 or more"),
        ("defocus-max-a", config.defocus_min_A <= config.defocus_max_A < np.inf, "at least the smallest defocus"),
        ("astigmatism-a", 0 <= config.astigmatism_A < np.inf, "a number of angstrom, 0 or more"),
        ("noise-colour", config.noise_colour in ("white", "coloured"), "white or coloured"),
        ("junk", 0 <= config.junk < 1, "a fraction from 0 to below 1"),
        ("optics-groups", config.optics_groups in (1, 2), "1 or 2"),
        ("pixel-size-a", 0 < config.pixel_size_A < np.inf, "a positive number of angstrom"),
        ("seed", config.seed >= 0, "0 or more"),
    ]
    for option, holds, wanted in rules:
        if not holds:
            name = option.replace("-", "_")
            found = getattr(config, f"{name[:-2]}_A" if name.endswith("_a") else name)
            raise EmsvaeError(f"simulate: {option} is {found}; it must be {wanted}")


@contextmanager
def _folder_when_whole(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name at the end; what stood there goes then, and only if it was ours."""
    if out.exists() or out.is_symlink():
        if not force:
            raise OutputExistsError(out)
        if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / "simulation.json").is_file()):
            raise EmsvaeError(
                f"{out} is not the folder of an earlier simulation and is not replaced; choose another --out"
            )
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise EmsvaeError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_images(
    path: Path, obj: Phantom, truth: Truth, snr: float, rngs: tuple[np.random.Generator, np.random.Generator]
) -> None:
    from emspatialvae.io.mrc import StackWriter

    for_noise, for_junk = rngs
    box = truth.microscope.box
    with StackWriter(path, len(truth), box, truth.microscope.pixel_size_A, overwrite=False) as stack:
        for rows in chunks(len(truth)):
            some = truth[rows]
            clean = clean_image(obj, some.z, some.pose, box)
            clean[some.is_junk] = junk_images(int(some.is_junk.sum()), box, NOISE_SD * np.sqrt(snr), for_junk)
            images = some.microscope.image(clean).astype(np.float32)
            images += some.microscope.draw_noise(for_noise)
            stack.append(images)


def _write_stars(folder: Path, truth: Truth) -> None:
    import pandas as pd

    from emspatialvae.io import star

    n, microscope = len(truth), truth.microscope
    columns: dict[str, Any] = {
        "rlnImageName": [f"{i:06d}@particles.mrcs" for i in range(1, n + 1)],
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
    angle_deg, move_A = to_relion(truth.pose, microscope.pixel_size_A)
    known: dict[str, Any] = {"rlnAnglePsi": angle_deg, "rlnOriginXAngst": move_A[:, 0], "rlnOriginYAngst": move_A[:, 1]}
    known |= {f"emsvaeTrueZ{k}": z for k, z in enumerate(truth.z.T, 1)}
    if truth.is_junk.any():
        known["emsvaeTrueJunk"] = truth.is_junk.astype(np.int64)
    optics = _optics(microscope)
    for name, added in (("particles.star", {}), ("truth.star", known)):
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
