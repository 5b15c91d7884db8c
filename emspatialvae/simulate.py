"""Stacks whose truth is known: a hinged particle, its poses, white noise, and the Cramer-Rao bound of every particle.

The object is a cloud of Gaussian blobs, so an image at any pose is drawn from the posed blob centres themselves:
nothing is interpolated, and the derivatives with respect to hinge, angle and shift are exact. A blob is separable, so
one image is one matrix product ``rows^T columns``.

The signal-to-noise ratio is the variance of the clean stack over all its pixels, divided by the variance of the
noise. The noise is white with s.d. 1 and the signal is scaled to match; particles are bright (positive).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.geometry import Pose2D, object_to_image_xy, pixel_axis, rotate_xy, to_relion, wrap_rad

if TYPE_CHECKING:
    from emspatialvae.config import SimulateConfig

Floats = NDArray[np.float64]

NOISE_SD = 1.0
BOUND_SAMPLE = 500  # particles over which the bounds are averaged
CHUNK = 500  # images drawn at once: about 100 MB of blobs at 40 px
PER_MICROGRAPH = 100


# ----------------------------------------------------------------------------------------------------------- the object


@dataclass(frozen=True, eq=False)
class HingeObject:
    """A rigid body and a rigid arm that turns about the origin; lengths are fractions of the box.

    Attributes
    ----------
    body_xy, arm_xy
        Shapes [a, 2] and [b, 2]; blob centres at z = 0, x to the right and y downwards, hinge at the origin.
    blob_sigma
        S.d. of every blob.
    span_rad
        The hinge coordinate z in [-1, 1] turns the arm by ``z * span_rad / 2``, from +x towards +y.
    height
        Value at the centre of a lone blob: the signal scale.
    """

    body_xy: Floats
    arm_xy: Floats
    blob_sigma: float
    span_rad: float
    height: float = 1.0

    def atoms(self, z: ArrayLike) -> tuple[Floats, Floats]:
        """``(x, y)`` of all blobs in the object's frame, body first; two arrays [n, a + b], fractions of the box."""
        turn = np.asarray(z, dtype=np.float64)[:, None] * self.span_rad / 2
        arm = rotate_xy(self.arm_xy[:, 0], self.arm_xy[:, 1], np.cos(turn), np.sin(turn))
        body = (np.broadcast_to(axis, (len(turn), len(self.body_xy))) for axis in self.body_xy.T)
        x, y = (np.concatenate(parts, 1) for parts in zip(body, arm, strict=True))
        return x, y


def hinge_object(span_deg: float = 90.0) -> HingeObject:
    """The built-in hinge: a body like a boot, an arm like a hook, joined at the ankle; the same atoms every time.

    No atom is further than 0.35 box from the hinge, which leaves six pixels of 40 for shifts. At no angle but its own
    does the particle look like itself (correlation below 0.8 with any other, whatever the hinge and shift): with
    0.88, tried first, one image in 500 at SNR 0.1 was taken upside down even by the oracle, and those few ruled every
    r.m.s.
    """
    rng = np.random.default_rng(20191111)

    def ellipse(n: int, centre: tuple[float, float], axes: tuple[float, float], tilt_deg: float) -> Floats:
        radius, phi = np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
        x, y = axes[0] * radius * np.cos(phi), axes[1] * radius * np.sin(phi)
        tilt = np.radians(tilt_deg)
        x, y = rotate_xy(x, y, np.cos(tilt), np.sin(tilt))
        return np.stack([x + centre[0], y + centre[1]], -1)

    def hook(n: int, width: float) -> Floats:
        t = rng.random(n)
        spine = np.stack([1.0 + 12.0 * t - 3.5 * t**2, -2.5 * t + 9.5 * t**3], -1)
        return spine + width * (rng.random((n, 2)) - 0.5)

    body = [ellipse(80, (-5.2, 1.4), (6.6, 3.2), -14.0), ellipse(70, (-6.5, -5.5), (5.2, 3.0), 70.0)]
    arm = [hook(45, 2.6), ellipse(14, (8.6, 6.6), (2.6, 2.0), 60.0)]
    return HingeObject(np.concatenate(body) / 40, np.concatenate(arm) / 40, 1.5 / 40, np.radians(span_deg))


def _posed_atoms(obj: HingeObject, z: ArrayLike, pose: Pose2D, box: int) -> tuple[Floats, Floats]:
    """Blob centres in the image, in pixels from its centre; two arrays [n, atoms]."""
    x, y = obj.atoms(z)
    cos_t, sin_t = np.cos(pose.theta_rad)[:, None], np.sin(pose.theta_rad)[:, None]
    return object_to_image_xy(x * box, y * box, cos_t, sin_t, pose.shift_px[:, :1], pose.shift_px[:, 1:])


def _profiles(centre_px: Floats, box: int, sigma_px: float) -> tuple[Floats, Floats]:
    """Gaussians along one axis and their derivatives by the centre; both [n, atoms, box]."""
    u = (pixel_axis(box) - centre_px[..., None]) / sigma_px
    g = np.exp(-0.5 * u**2)
    return g, g * u / sigma_px


def clean_image(obj: HingeObject, z: ArrayLike, pose: Pose2D, box: int) -> Floats:
    """Noise-free images [n, box, box] of the object with hinge z [n] at n poses (shifts in pixels of this box)."""
    x, y = _posed_atoms(obj, z, pose, box)
    columns, rows = (_profiles(axis, box, obj.blob_sigma * box)[0] for axis in (x, y))
    return obj.height * (rows.swapaxes(1, 2) @ columns)


def derivatives(obj: HingeObject, z: ArrayLike, pose: Pose2D, box: int) -> Floats:
    """Derivatives of `clean_image` by (z, theta_rad, shift_x_px, shift_y_px); shape [n, 4, box, box], exact.

    Every parameter moves blob centres: with velocity (vx, vy) the image changes by ``sum vx dI/dx + vy dI/dy``.
    """
    x, y = _posed_atoms(obj, z, pose, box)
    (columns, d_columns), (rows, d_rows) = (_profiles(axis, box, obj.blob_sigma * box) for axis in (x, y))
    about_x, about_y = (
        x - pose.shift_px[:, :1],
        y - pose.shift_px[:, 1:],
    )  # hinge and pivot are both the object's origin
    is_arm = np.arange(x.shape[1]) >= len(obj.body_xy)
    one, zero = np.ones_like(x), np.zeros_like(x)
    velocities = [
        (-about_y * is_arm * obj.span_rad / 2, about_x * is_arm * obj.span_rad / 2),
        (-about_y, about_x),
        (one, zero),
        (zero, one),
    ]
    moved = [
        rows.swapaxes(1, 2) @ (vx[..., None] * d_columns) + d_rows.swapaxes(1, 2) @ (vy[..., None] * columns)
        for vx, vy in velocities
    ]
    return obj.height * np.stack(moved, 1)


# ------------------------------------------------------------------------------------------------------------ the bound


@dataclass(frozen=True)
class CramerRao:
    """Smallest possible s.d. of an unbiased estimate, per particle.

    Attributes
    ----------
    z_sd, theta_sd_rad
        Shape [n]; the hinge in units of z, the angle in radians.
    shift_sd_px
        Shape [n, 2]; along x and y, in pixels; zero where the shift is known to be zero.
    """

    z_sd: Floats
    theta_sd_rad: Floats
    shift_sd_px: Floats

    def summary(self) -> dict[str, float]:
        """Root mean squares over the particles, and the correlation with the truth that such a z has.

        ``z_corr = sqrt(v / (v + z_rms^2))`` with v = 1/3, the variance of z uniform on [-1, 1]; hence
        ``z_noise = sqrt(1 / z_corr^2 - 1) = z_rms / sqrt(v)``.
        """
        z_rms, theta_rms, shift_rms = (
            float(np.sqrt(np.mean(sd**2))) for sd in (self.z_sd, self.theta_sd_rad, self.shift_sd_px)
        )
        noise = z_rms * np.sqrt(3.0)
        return {
            "z_corr": float(1 / np.sqrt(1 + noise**2)),
            "z_noise": float(noise),
            "theta_deg": float(np.degrees(theta_rms)),
            "shift_px": shift_rms,
        }


def cramer_rao(
    obj: HingeObject, z: ArrayLike, pose: Pose2D, box: int, noise_sd: float = NOISE_SD, shift_px: float = 0.0
) -> CramerRao:
    """Bound the errors of (z, theta, shift) by the inverse Fisher information ``(J^T J / noise_sd^2 + prior)^-1``.

    Parameters
    ----------
    shift_px
        S.d. of the shift's Gaussian prior along each axis, in pixels; its information 1 / shift_px^2 is added (the
        Bayesian form of the bound, van Trees 1968). With 0 the shift is known and leaves the parameters.
    """
    z = np.asarray(z, dtype=np.float64)
    used = 4 if shift_px > 0 else 2
    prior = np.diag([0.0, 0.0, shift_px**-2, shift_px**-2]) if shift_px > 0 else np.zeros((2, 2))
    sd = np.zeros((len(z), 4))
    for rows in _chunks(len(z)):
        j = derivatives(obj, z[rows], pose[rows], box)[:, :used].reshape(-1, used, box * box)
        information = j @ j.swapaxes(1, 2) / noise_sd**2 + prior
        sd[rows, :used] = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
    return CramerRao(sd[:, 0], sd[:, 1], sd[:, 2:])


# ------------------------------------------------------------------------------------------------------------ the stack


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def draw_truth(particles: int, shift_px: float, rng: np.random.Generator) -> tuple[Floats, Pose2D]:
    """Hinge z uniform on [-1, 1], theta uniform on the circle, shift Gaussian with s.d. ``shift_px`` per axis."""
    z = rng.uniform(-1, 1, particles)
    theta_rad = wrap_rad(rng.uniform(0, 2 * np.pi, particles))
    return z, Pose2D(theta_rad, shift_px * rng.standard_normal((particles, 2)))


def scale_to_snr(obj: HingeObject, z: Floats, pose: Pose2D, box: int, snr: float) -> HingeObject:
    """The object as high as gives these particles' clean images the variance ``snr * NOISE_SD^2`` over all pixels."""
    total, squares = 0.0, 0.0
    for rows in _chunks(len(z)):
        images = clean_image(obj, z[rows], pose[rows], box)
        total += images.sum()
        squares += np.vdot(images, images)
    pixels = len(z) * box * box
    variance = squares / pixels - (total / pixels) ** 2
    return replace(obj, height=float(obj.height * NOISE_SD * np.sqrt(snr / variance)))


def simulate_stack(config: "SimulateConfig") -> Path:
    """Write a stack with known truth and return its folder ``config.out``.

    In it: ``particles.mrcs``; ``particles.star`` (RELION 3.1, no poses, no CTF); ``truth.star`` (the same rows with
    RELION's pose labels, by which RELION itself aligns the stack, and ``emsvaeTrueZ1``); ``simulation.json``
    (settings, noise s.d., signal scale, bounds). The same settings give the same bytes. The folder appears under its
    name when it is whole.

    Raises
    ------
    EmsvaeError
        A setting that makes no sense.
    OutputExistsError
        ``config.out`` exists and ``config.force`` is not set.
    """
    _check(config)
    for_truth, for_noise = (np.random.default_rng(seed) for seed in np.random.SeedSequence(config.seed).spawn(2))
    z, pose = draw_truth(config.particles, config.shift_px, for_truth)
    with _folder_when_whole(config.out, config.force) as folder:
        obj = scale_to_snr(hinge_object(config.span_deg), z, pose, config.box, config.snr)
        _write_images(folder / "particles.mrcs", config, obj, z, pose, for_noise)
        _write_stars(folder, config, z, pose)
        some = slice(0, BOUND_SAMPLE)
        bound = cramer_rao(obj, z[some], pose[some], config.box, NOISE_SD, config.shift_px)
        settings = {name: getattr(config, name) for name in _SETTINGS}
        facts = {"noise_sd": NOISE_SD, "signal_scale": obj.height, "cramer_rao": bound.summary()}
        (folder / "simulation.json").write_text(json.dumps({**settings, **facts}, indent=2) + "\n")
    return config.out


_SETTINGS = ("kind", "particles", "box", "snr", "shift_px", "span_deg", "pixel_size_A", "seed")


@dataclass(frozen=True, eq=False)
class Simulation:
    """What ``simulation.json`` says: the generator that made a stack, ready to draw with."""

    obj: HingeObject
    box: int
    pixel_size_A: float
    shift_px: float
    noise_sd: float
    cramer_rao: dict[str, float]


def load_simulation(path: Path) -> Simulation:
    """Read ``simulation.json``; raises EmsvaeError when it is not one of ours."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        obj = replace(hinge_object(facts["span_deg"]), height=facts["signal_scale"])
        return Simulation(
            obj, facts["box"], facts["pixel_size_A"], facts["shift_px"], facts["noise_sd"], facts["cramer_rao"]
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EmsvaeError(
            f"{path} is not the simulation.json of a simulated stack ({error!r}); run `emsvae simulate`"
        ) from error


def _check(config: "SimulateConfig") -> None:
    rules = [
        ("kind", config.kind == "hinge", "hinge"),
        ("particles", config.particles >= 1, "at least 1"),
        ("box", config.box >= 16, "at least 16 px"),
        ("snr", 0 < config.snr < np.inf, "a positive number"),
        ("shift-px", 0 <= config.shift_px <= config.box / 4, "between 0 and a quarter of the box"),
        ("span-deg", 0 < config.span_deg <= 180, "between 0 and 180 degrees"),
        ("pixel-size-a", 0 < config.pixel_size_A < np.inf, "a positive number of angstrom"),
        ("seed", config.seed >= 0, "0 or more"),
    ]
    for option, holds, wanted in rules:
        if not holds:
            found = getattr(config, {"pixel-size-a": "pixel_size_A"}.get(option, option.replace("-", "_")))
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
    path: Path, config: "SimulateConfig", obj: HingeObject, z: Floats, pose: Pose2D, rng: np.random.Generator
) -> None:
    from emspatialvae.io.mrc import StackWriter

    with StackWriter(path, len(z), config.box, config.pixel_size_A, overwrite=False) as stack:
        for rows in _chunks(len(z)):
            images = clean_image(obj, z[rows], pose[rows], config.box).astype(np.float32)
            images += np.float32(NOISE_SD) * rng.standard_normal(images.shape, dtype=np.float32)
            stack.append(images)


def _write_stars(folder: Path, config: "SimulateConfig", z: Floats, pose: Pose2D) -> None:
    import pandas as pd

    from emspatialvae.io import star

    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [config.pixel_size_A],
            "rlnImageSize": [config.box],
            "rlnImageDimensionality": [2],
        }
    )
    n = len(z)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{i:06d}@particles.mrcs" for i in range(1, n + 1)],
            # zero-padded and in order: RELION sorts rows by micrograph
            "rlnMicrographName": [f"simulated_{i // PER_MICROGRAPH + 1:06d}.mrc" for i in range(n)],
            "rlnOpticsGroup": np.ones(n, dtype=np.int64),
        }
    )
    angle_deg, move_A = to_relion(pose, config.pixel_size_A)
    truth = particles.assign(
        rlnAnglePsi=angle_deg, rlnOriginXAngst=move_A[:, 0], rlnOriginYAngst=move_A[:, 1], emsvaeTrueZ1=z
    )
    star.write_new(folder / "particles.star", {"optics": optics, "particles": particles}, overwrite=False)
    star.write_new(folder / "truth.star", {"optics": optics, "particles": truth}, overwrite=False)
