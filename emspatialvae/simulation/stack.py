"""Stacks whose truth is known: an object of blobs, its poses, the microscope's CTF and noise, junk, and the bounds.

The signal-to-noise ratio is the variance of the clean stack over all its pixels, before the CTF (unless asked for after it) and
without junk and neighbours, divided by the variance of the noise of the first optics group. That noise has s.d. 1 and the signal
is scaled to match; particles are bright (positive).
"""

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D, wrap_rad
from emspatialvae.simulation.bounds import cramer_rao
from emspatialvae.simulation.density import Density, read_density
from emspatialvae.simulation.files import folder_when_whole, write_stars
from emspatialvae.simulation.junk import junk_images
from emspatialvae.simulation.kinds import default_span_deg, hinge_object, phantom
from emspatialvae.simulation.map_stack import MapStack, clean_variances, draw_map_stack, facts_of
from emspatialvae.simulation.microscope import Microscope, draw_ctf, spectra_of
from emspatialvae.simulation.phantom import Phantom, chunks, clean_image
from emspatialvae.simulation.truth import Simulation, Truth, load_simulation

if TYPE_CHECKING:
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


NOISE_SD = 1.0  # of the first optics group
BOUND_SAMPLE = 500  # particles over which the bounds are averaged


def draw_truth(particles: int, shift_px: float, rng: np.random.Generator, z_dim: int = 1) -> tuple[Floats, Pose2D]:
    """Latents z [n, d] uniform on [-1, 1], theta uniform on the circle, shift Gaussian with s.d. ``shift_px`` per axis."""
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


def simulate_stack(config: "SimulateConfig", beside: tuple[str, ...] = ()) -> Path:
    """Write a stack with known truth and return its folder ``config.out``.

    In it: ``particles.mrcs``; ``particles.star`` (RELION 3.1, no poses; defocus where there is a CTF); ``truth.star``
    (the same rows with RELION's pose labels, by which RELION itself aligns the stack, ``emsvaeTrueZ1..`` or, of a map, RELION's
    Euler angles, and, where there is junk, ``emsvaeTrueJunk``); ``simulation.json`` (settings, noise spectra, signal scale, bounds). The same
    settings give the same bytes. The folder appears under its name when it is whole.

    Raises
    ------
    EmsvaeError
        A setting that makes no sense, or a map that cannot be read.
    OutputExistsError
        ``config.out`` exists and ``config.force`` is not set.
    """
    _check(config)
    if config.map is not None and Path(os.path.realpath(config.map)).is_relative_to(os.path.realpath(config.out)):
        raise EmsvaeError(
            f"{config.map} lies inside {config.out}, which the simulation takes the place of; choose another --out"
        )
    # In this order for ever: what comes later must not change the bytes of what came before.
    for_truth, for_noise, for_microscope, for_junk, for_neighbours = map(
        np.random.default_rng, np.random.SeedSequence(config.seed).spawn(5)
    )
    microscope = _draw_microscope(config, for_microscope)
    if config.map is not None:
        density = read_density(config.map, config.map_pixel_size_A, config.pixel_size_A)
        views = draw_map_stack(config, density, microscope, for_truth, for_junk, for_neighbours)
        return _write_map_stack(config, density, views, (for_noise, for_junk), beside)
    obj = phantom(config.kind, config.span_deg)
    z, pose = draw_truth(config.particles, config.shift_px, for_truth, obj.z_dim)
    truth = Truth(z, pose, microscope, for_junk.random(config.particles) < config.junk)
    real = np.flatnonzero(~truth.is_junk)
    if not len(real):
        raise EmsvaeError("simulate: every particle is junk; lower --junk or ask for more --particles")
    with folder_when_whole(config.out, config.force, beside) as folder:
        obj = scale_to_snr(obj, z[real], pose[real], config.box, config.snr)
        _write_images(folder / "particles.mrcs", obj, truth, config.snr, (for_noise, for_junk))
        latents = {f"emsvaeTrueZ{k}": column for k, column in enumerate(z.T, 1)}
        write_stars(folder, pose, microscope, truth.is_junk, latents)
        bound = None
        if obj.height > 0:
            some = truth[real[:BOUND_SAMPLE]]
            bound = cramer_rao(obj, some.z, some.pose, some.microscope, config.shift_px).summary()
        span_deg = default_span_deg(config.kind) if config.span_deg is None else config.span_deg
        known = {"span_deg": span_deg, "symmetry": obj.symmetry, "cramer_rao": bound}
        _write_facts(folder, config, microscope, obj.height, known)
    return config.out


def _write_map_stack(
    config: "SimulateConfig",
    density: Density,
    stack: MapStack,
    rngs: tuple[np.random.Generator, np.random.Generator],
    beside: tuple[str, ...],
) -> Path:
    from emspatialvae.io.mrc import StackWriter

    for_noise, for_junk = rngs
    microscope, box = stack.microscope, config.box
    with folder_when_whole(config.out, config.force, beside) as folder:
        before, after = clean_variances(stack)
        stack = replace(stack, height=NOISE_SD * np.sqrt(config.snr / (after if config.snr_after_ctf else before)))
        aggregate_rms = stack.height * np.sqrt(before)
        with StackWriter(folder / "particles.mrcs", config.particles, box, config.pixel_size_A) as writer:
            for rows in stack.portions():
                images = stack.images(rows, aggregate_rms, for_junk).astype(np.float32)
                writer.append(images + microscope[rows].draw_noise(for_noise))
        seen = {"rlnAngleRot": stack.views.rot_rad, "rlnAngleTilt": stack.views.tilt_rad}
        known = {label: np.degrees(angle_rad) for label, angle_rad in seen.items()}
        write_stars(folder, stack.pose, microscope, stack.is_junk, known)
        facts = facts_of(stack, density) | {"symmetry": 1, "cramer_rao": None}
        _write_facts(folder, config, microscope, stack.height, facts)
    return config.out


def _write_facts(
    folder: Path, config: "SimulateConfig", microscope: Microscope, height: float, known: dict[str, Any]
) -> None:
    """simulation.json: what was asked for, but for where it was written, and what came of it."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del settings["out"], settings["force"]
    facts = settings | {
        "map": None if config.map is None else str(config.map),
        "noise_sd": NOISE_SD,
        "noise": [dataclasses.asdict(spectrum) for spectrum in microscope.noise],
        "signal_scale": height,
    }
    (folder / "simulation.json").write_text(json.dumps(facts | known, indent=2) + "\n")


def _draw_microscope(config: "SimulateConfig", rng: np.random.Generator) -> Microscope:
    group = rng.integers(config.optics_groups, size=config.particles)
    ctf = None
    if config.ctf:
        ctf = draw_ctf(group, (config.defocus_min_A, config.defocus_max_A), config.astigmatism_A, rng)
    noise = spectra_of(config.noise_colour, config.optics_groups)
    return Microscope(config.box, config.pixel_size_A, group, noise, ctf)


def _check(config: "SimulateConfig") -> None:
    _check_map(config)
    size_A = config.map_pixel_size_A
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
        ("map-pixel-size-a", size_A is None or 0 < size_A < np.inf, "a positive number of angstrom"),
        ("crowding", 0 <= config.crowding <= 1, "a share from 0 to 1"),
    ]
    for option, holds, wanted in rules:
        if not holds:
            name = option.replace("-", "_")
            found = getattr(config, f"{name[:-2]}_A" if name.endswith("_a") else name)
            raise EmsvaeError(f"simulate: {option} is {found}; it must be {wanted}")


def _check_map(config: "SimulateConfig") -> None:
    """Refuse what needs a map and has none, and a map where nobody looks at it."""
    if config.map is None:
        needing = {
            "--views all": config.views == "all",
            f"--map-pixel-size-a {config.map_pixel_size_A}": config.map_pixel_size_A is not None,
            f"--crowding {config.crowding}": config.crowding != 0,
            "--snr-after-ctf": config.snr_after_ctf,
        }
        for flag, asked in needing.items():
            if asked:
                raise EmsvaeError(f"simulate: {flag} needs a 3-D map; add --map map.mrc or leave it out")
    elif config.kind != "views" or config.views != "all":
        raise EmsvaeError(
            f"simulate: --map is not used by {config.kind} with --views {config.views}; expected emsvae simulate views --map"
            " map.mrc --views all"
        )
    elif config.span_deg is not None:
        raise EmsvaeError("simulate: --span-deg belongs to the built-in objects; leave it or --map out")


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
