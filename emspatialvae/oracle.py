"""The oracle: the Bayes estimator that knows the true generator, the yardstick for everything that has to learn it.

Given an image it returns posterior means of hinge, angle and shift under the priors of the simulation and white
noise. No estimator has a smaller mean square error; one that learned the object from noisy data comes close at best.

The posterior is summed over a grid of all four parameters whose steps are about one posterior s.d.; sums of
Gaussian-like functions on such a grid are exact to four digits. A shift moves the image instead of the template (in
the Fourier plane, which leaves white noise white), and templates live in about a hundred principal components, so the
sum is a chain of matrix products. Where the signal is so strong that the grid would be huge, the grid is made coarse
and its best point is refined by Gauss-Newton; the posterior is then summed over points drawn from its Gaussian
approximation, each weighted by its true probability over its probability of being drawn.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special
from scipy.stats import qmc

from emspatialvae.errors import EmsvaeError
from emspatialvae.geometry import Pose2D, wrap_rad
from emspatialvae.simulate import (
    CHUNK,
    NOISE_SD,
    HingeObject,
    clean_image,
    derivatives,
    draw_truth,
    load_simulation,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

STEP = 1.4  # grid step, in conditional posterior s.d.
REACH = 3.7  # radius of the shift grid, in s.d. of the prior: 0.1 % of the particles lie outside
MAX_CELLS = 4_000_000  # of a grid summed for every particle
LOST_LOG_LIKELIHOOD = 0.02  # r.m.s. change of the log likelihood by leaving out principal components
PCA_SAMPLE = 300  # templates that the principal components are taken from; 80 to 100 components are kept at any SNR
DRAWS = 256  # points per particle where the posterior is sampled instead


def oracle_estimates(
    obj: HingeObject, images: NDArray[np.floating], noise_sd: float = NOISE_SD, shift_px: float = 0.0
) -> tuple[Floats, Pose2D]:
    """Posterior means (theta: circular mean) of every image, for ``z ~ U(-1, 1)``, theta uniform, Gaussian shifts.

    Parameters
    ----------
    obj
        The true object, at the height it has in the images.
    images
        Shape [n, box, box]; as simulated: white noise of s.d. ``noise_sd``, not normalised.
    shift_px
        S.d. of the shift along each axis, in pixels; 0: there is none, and none is estimated.

    Returns
    -------
    z [n] and the poses.
    """
    box = images.shape[-1]
    steps = STEP * _conditional_sd(obj, box, noise_sd)
    softening = _softening(steps, shift_px)
    grid = _Grid.build(obj, box, steps * softening, noise_sd * softening, shift_px)
    summed = [grid.posterior(image) for image in images]
    if softening == 1.0:
        return _unpack(np.stack([mean for mean, _ in summed]))
    modes = np.stack([best for _, best in summed])
    modes, covariance = _gauss_newton(obj, images, modes, noise_sd, shift_px)
    return _unpack(_sampled_means(obj, images, modes, covariance, noise_sd, shift_px))


def oracle_of_stack(folder: Path, n: int = 500) -> tuple[NDArray[np.int64], Floats, Pose2D]:
    """The oracle's ``(rows, z, pose)`` of ``n`` particles spread over a simulated stack; poses in its own pixels.

    ``folder`` is what `simulate_stack` wrote; rows count from 0 in the order of its ``truth.star``.

    Raises
    ------
    EmsvaeError
        ``simulation.json`` or the stack is missing or not ours.
    """
    from emspatialvae.io import mrc

    simulation = load_simulation(folder / "simulation.json")
    header = mrc.read_header(folder / "particles.mrcs")
    if (header.height, header.width) != (simulation.box, simulation.box):
        raise EmsvaeError(
            f"{header.path} holds images of {header.height} x {header.width} pixels, the simulation.json beside it says"
            f" {simulation.box}; simulate the stack again"
        )
    rows = np.unique(np.linspace(0, header.n_images - 1, min(n, header.n_images)).round().astype(np.int64))
    chosen = mrc.read_images(header, rows)
    return rows, *oracle_estimates(simulation.obj, chosen, simulation.noise_sd, simulation.shift_px)


def _unpack(parameters: Floats) -> tuple[Floats, Pose2D]:
    return parameters[:, 0], Pose2D(wrap_rad(parameters[:, 1]), parameters[:, 2:])


def _information(obj: HingeObject, z: Floats, pose: Pose2D, box: int, noise_sd: float) -> tuple[Floats, Floats]:
    """Derivatives [n, 4, pixels] and Fisher information [n, 4, 4] of (z, theta, shift_x, shift_y)."""
    j = derivatives(obj, z, pose, box).reshape(len(z), 4, -1)
    return j, j @ j.swapaxes(1, 2) / noise_sd**2


def _conditional_sd(obj: HingeObject, box: int, noise_sd: float) -> Floats:
    """Posterior s.d. of each of the four parameters when the others are known, typical over poses."""
    z, pose = draw_truth(100, 0.0, np.random.default_rng(0))
    _, information = _information(obj, z, pose, box, noise_sd)
    return 1 / np.sqrt(np.diagonal(information, axis1=1, axis2=2).mean(0))


def _softening(steps: Floats, shift_px: float) -> float:
    """Factor on the steps (and the noise) that keeps the grid affordable; 1 where it is as it is."""
    cells = 2 / steps[0] * 2 * np.pi / steps[1]
    dimensions = 2
    if shift_px > 0:
        cells *= np.pi * (REACH * shift_px) ** 2 / (steps[2] * steps[3])
        dimensions = 4
    return max(1.0, float(cells / MAX_CELLS) ** (1 / dimensions))


@dataclass(frozen=True, eq=False)
class _Grid:
    """Templates at all (z, theta) in principal components, and all shifts."""

    z_theta: Floats  # [templates, 2]
    shifts: Floats  # [shifts, 2]
    log_prior: Singles  # [shifts, 1]
    phases: NDArray[np.complex64]  # [shifts, box, box // 2 + 1]: move an image back by each shift
    basis: Singles  # [pixels, components]
    templates: Singles  # [components, templates], over noise variance
    half_norms: Singles  # [templates], over noise variance

    @classmethod
    def build(cls, obj: HingeObject, box: int, steps: Floats, noise_sd: float, shift_px: float) -> "_Grid":
        n_z, n_theta = int(np.ceil(2 / steps[0])) + 1, int(np.ceil(2 * np.pi / steps[1]))
        z = (np.arange(n_z) + 0.5) * 2 / n_z - 1
        theta = np.arange(n_theta) * 2 * np.pi / n_theta
        z_theta = np.stack([axis.ravel() for axis in np.meshgrid(z, theta, indexing="ij")], -1)
        basis = _principal_components(obj, box, noise_sd)
        coefficients, half_norms = [], []
        for start in range(0, len(z_theta), CHUNK):
            some = z_theta[start : start + CHUNK]
            drawn = clean_image(obj, some[:, 0], Pose2D(some[:, 1], np.zeros((len(some), 2))), box)
            drawn = drawn.reshape(len(some), -1)
            coefficients.append(drawn @ basis)
            half_norms.append(np.einsum("np,np->n", drawn, drawn) / 2)
        shifts = _disk(REACH * shift_px, steps[2:])
        log_prior = -np.sum(shifts**2, -1) / (2 * shift_px**2) if shift_px > 0 else np.zeros(1)
        fx, fy = np.fft.rfftfreq(box), np.fft.fftfreq(box)
        turns = shifts[:, :1, None] * fx + shifts[:, 1:, None] * fy[:, None]
        return cls(
            z_theta,
            shifts,
            log_prior[:, None].astype(np.float32),
            np.exp(2j * np.pi * turns).astype(np.complex64),
            basis.astype(np.float32),
            (np.concatenate(coefficients).T / noise_sd**2).astype(np.float32),
            (np.concatenate(half_norms) / noise_sd**2).astype(np.float32),
        )

    def posterior(self, image: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Posterior mean and best grid point of (z, theta, shift_x, shift_y)."""
        transform = np.fft.rfft2(image).astype(np.complex64)
        moved = np.fft.irfft2(self.phases * transform, s=image.shape).astype(np.float32)
        log_p = moved.reshape(len(moved), -1) @ self.basis @ self.templates
        log_p -= self.half_norms
        log_p += self.log_prior
        best_shift, best = np.unravel_index(np.argmax(log_p), log_p.shape)
        log_p -= log_p[best_shift, best]
        weights = np.exp(log_p, out=log_p)
        of_template = weights.sum(0, dtype=np.float64)
        of_shift = weights.sum(1, dtype=np.float64)
        mean_z, mean_theta = _means(of_template, self.z_theta[:, 0], self.z_theta[:, 1])
        mean = np.array([mean_z, mean_theta, *(of_shift @ self.shifts / of_shift.sum())])
        return mean, np.concatenate([self.z_theta[best], self.shifts[best_shift]])


def _means(weights: Floats, z: Floats, theta: Floats) -> tuple[float, float]:
    """Mean of z and circular mean of theta, radians."""
    return float(weights @ z / weights.sum()), float(np.angle(weights @ np.exp(1j * theta)))


def _disk(radius: float, steps: Floats) -> Floats:
    """Lattice points [n, 2] within ``radius`` of the origin; the origin alone for radius 0."""
    axes = [np.arange(-np.floor(radius / step), np.floor(radius / step) + 1) * step for step in steps]
    x, y = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    inside = np.hypot(x, y) <= radius
    return np.stack([x[inside], y[inside]], -1)


def _principal_components(obj: HingeObject, box: int, noise_sd: float) -> Floats:
    """Orthonormal [pixels, components] that hold every unshifted template as exactly as the noise can tell."""
    z, pose = draw_truth(PCA_SAMPLE, 0.0, np.random.default_rng(1))
    drawn = clean_image(obj, z, pose, box).reshape(PCA_SAMPLE, -1)
    energy, vectors = linalg.eigh(drawn @ drawn.T)
    energy, vectors = energy[::-1], vectors[:, ::-1]
    lost = np.append(np.cumsum(energy[::-1])[::-1], 0) / PCA_SAMPLE  # mean square, by number of components kept
    keep = int(np.argmax(lost <= (LOST_LOG_LIKELIHOOD * noise_sd) ** 2))
    return drawn.T @ (vectors[:, :keep] / np.sqrt(energy[:keep]))


def _gauss_newton(
    obj: HingeObject, images: NDArray[np.floating], start: Floats, noise_sd: float, shift_px: float, steps: int = 6
) -> tuple[Floats, Floats]:
    """Posterior modes [n, 4] from nearby points, and the inverse information there [n, 4, 4] (0 for known shifts)."""
    used = 4 if shift_px > 0 else 2
    prior = np.diag([0, 0, shift_px**-2, shift_px**-2]) if shift_px > 0 else np.zeros((2, 2))
    modes, covariance = start.copy(), np.zeros((len(start), 4, 4))
    for begin in range(0, len(start), CHUNK):
        rows = slice(begin, begin + CHUNK)
        some = modes[rows]
        for _ in range(steps):
            z, pose = _unpack(some)
            j, information = _information(obj, z, pose, images.shape[-1], noise_sd)
            residual = (images[rows] - clean_image(obj, z, pose, images.shape[-1])).reshape(len(z), -1, 1)
            slope = (j @ residual)[:, :used, 0] / noise_sd**2 - some[:, :used] @ prior
            step = np.linalg.solve(information[:, :used, :used] + prior, slope[..., None])[..., 0]
            some[:, :used] += step
            some[:, 0] = np.clip(some[:, 0], -1, 1)
        _, information = _information(obj, *_unpack(some), images.shape[-1], noise_sd)
        covariance[rows, :used, :used] = np.linalg.inv(information[:, :used, :used] + prior)
    return modes, covariance


def _sampled_means(
    obj: HingeObject,
    images: NDArray[np.floating],
    modes: Floats,
    covariance: Floats,
    noise_sd: float,
    shift_px: float,
) -> Floats:
    """Posterior means [n, 4] by importance sampling from N(modes, covariance), with quasi-random points."""
    used = 4 if shift_px > 0 else 2
    normal = special.ndtri(qmc.Sobol(used, rng=np.random.default_rng(2)).random(DRAWS).clip(1e-12, 1 - 1e-12))
    wider = 1.2  # than the Gaussian approximation, so that no tail is missed
    means = modes.copy()
    for i, (image, mode, cov) in enumerate(zip(images, modes, covariance, strict=True)):
        points = np.tile(mode, (DRAWS, 1))
        points[:, :used] += wider * normal @ np.linalg.cholesky(cov[:used, :used]).T
        drawn = clean_image(obj, points[:, 0], Pose2D(points[:, 1], points[:, 2:]), len(image))
        log_w = -np.sum((image - drawn) ** 2, (1, 2)) / (2 * noise_sd**2) + np.sum(normal**2, -1) / 2
        if shift_px > 0:
            log_w -= np.sum(points[:, 2:] ** 2, -1) / (2 * shift_px**2)
        log_w[np.abs(points[:, 0]) > 1] = -np.inf
        weights = np.exp(log_w - log_w.max())
        means[i, :2] = _means(weights, points[:, 0], points[:, 1])
        means[i, 2:] = weights @ points[:, 2:] / weights.sum()
    return means
