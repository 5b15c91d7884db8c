"""The oracle: the Bayes estimator that knows the true generator, the yardstick for everything that has to learn it.

Given an image it returns posterior means of z, angle and shift under the priors of the simulation, its noise and the
particle's CTF. No estimator has a smaller mean square error; one that learned the object from noisy data comes close at
best.

Everything happens on the few hundred Fourier pixels in which the object has power (`oracle_band`). There

    log p = Re <y CTF / N, T> - |T CTF / sqrt(N)|^2 / 2 + const

for a template T, and a shift is a phase factor that leaves the second term alone. The posterior is summed over a grid
of all parameters whose steps are about one posterior s.d.; sums of Gaussian-like functions on such a grid are exact to
four digits (z, which ends at -1 and 1, sits on the nodes of Gauss and Legendre, which keeps them exact there). A shift moves the image instead of the template, and templates live in about a hundred principal components,
so the sum is a chain of matrix products. Where the signal is so strong that the grid would be huge, the grid is made
coarse and its best point is refined by Gauss-Newton; the posterior is then summed over points drawn from its Gaussian
approximation, each weighted by its true probability over its probability of being drawn.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special
from scipy.stats import qmc

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D, wrap_rad
from emspatialvae.simulation.microscope import Microscope, half_plane_weights
from emspatialvae.simulation.phantom import Phantom, chunks, clean_image, derivatives
from emspatialvae.simulation.stack import draw_truth
from emspatialvae.simulation.truth import load_simulation, read_truth

Singles = NDArray[np.float32]
Complexes = NDArray[np.complexfloating]

STEP = 1.4  # grid step, in conditional posterior s.d.
REACH = 3.7  # radius of the shift grid, in s.d. of the prior: 0.1 % of the particles lie outside
MAX_CELLS = 10_000_000  # of a grid summed for every particle: 25 s for 500 particles
COARSE_CELLS = 4_000_000  # of a grid that only has to find a start
MAX_TEMPLATES = 40_000  # drawn once for all particles
LOST_LOG_LIKELIHOOD = 0.02  # r.m.s. change of the log likelihood by leaving out Fourier pixels, and components
PCA_SAMPLE = 300  # templates that the principal components are taken from; 80 to 100 components are kept at any SNR
DRAWS = 256  # points per particle where the posterior is sampled instead


def oracle_estimates(
    obj: Phantom, images: NDArray[np.floating], microscope: Microscope, shift_px: float = 0.0
) -> tuple[Floats, Pose2D]:
    """Posterior means (theta: circular mean) of every image, for ``z ~ U(-1, 1)``, theta uniform, Gaussian shifts.

    Where the object is symmetric, theta is defined, averaged and reported modulo 360 / symmetry degrees.

    Parameters
    ----------
    obj
        The true object, at the height it has in the images.
    images
        Shape [n, box, box]; as simulated, not normalised.
    microscope
        Noise and CTF of these n images.
    shift_px
        S.d. of the shift along each axis, in pixels; 0: there is none, and none is estimated.

    Returns
    -------
    z [n, d] and the poses.
    """
    problem = _Problem.build(obj, images, microscope, shift_px)
    steps = STEP * problem.conditional_sd()
    softening = problem.softening(steps)
    grid = _Grid.build(problem, steps * softening, softening)
    summed = [grid.posterior(data, gain) for data, gain in zip(problem.data, problem.gain, strict=True)]
    if softening == 1.0:
        return problem.unpack(np.stack([mean for mean, _ in summed]))
    modes, covariance = problem.gauss_newton(np.stack([best for _, best in summed]))
    return problem.unpack(problem.sampled_means(modes, covariance))


def oracle_of_stack(folder: Path, n: int = 500) -> tuple[NDArray[np.int64], Floats, Pose2D]:
    """The oracle's ``(rows, z, pose)`` of ``n`` particles spread over a simulated stack; poses in its own pixels.

    ``folder`` is what `simulate_stack` wrote; rows count from 0 in the order of its ``truth.star``, junk is passed over.

    Raises
    ------
    EmsvaeError
        ``simulation.json``, the truth or the stack is missing or not ours, or there is nothing but noise in it.
    """
    from emspatialvae.io import mrc

    simulation = load_simulation(folder / "simulation.json")
    if not simulation.has_signal:
        raise EmsvaeError(f"{folder} holds nothing but noise; there is nothing for an oracle to find")
    truth = read_truth(folder / "truth.star", simulation)
    header = mrc.read_header(folder / "particles.mrcs")
    if (header.height, header.width) != (simulation.box, simulation.box):
        raise EmsvaeError(
            f"{header.path} holds images of {header.height} x {header.width} pixels, the simulation.json beside it says"
            f" {simulation.box}; simulate the stack again"
        )
    real = np.flatnonzero(~truth.is_junk[: header.n_images])
    rows = real[np.unique(np.linspace(0, len(real) - 1, min(n, len(real))).round().astype(np.int64))]
    chosen = mrc.read_images(header, rows)
    return rows, *oracle_estimates(simulation.obj, chosen, truth.microscope[rows], simulation.shift_px)


# ------------------------------------------------------------------------------------------------------------ the problem


@dataclass(frozen=True, eq=False)
class _Band:
    """The Fourier pixels that matter. ``of(a)`` and ``of(b)`` have the real inner product of the images a and b."""

    box: int
    keep: NDArray[np.bool_]  # [box, box // 2 + 1]

    def of(self, images: NDArray[np.floating]) -> NDArray[np.complex128]:
        """Images [..., box, box] on the band, [..., pixels]."""
        scale = np.sqrt(half_plane_weights(self.box)[self.keep]) / self.box
        return np.fft.rfft2(images)[..., self.keep] * scale

    def shifts(self, shifts_px: Floats) -> NDArray[np.complex64]:
        """Factors [n, pixels] that move an image back by each shift [n, 2]."""
        fy, fx = np.meshgrid(np.fft.fftfreq(self.box), np.fft.rfftfreq(self.box), indexing="ij")
        turns = shifts_px[:, :1] * fx[self.keep] + shifts_px[:, 1:] * fy[self.keep]
        return np.exp(2j * np.pi * turns).astype(np.complex64)


def _real(values: Complexes) -> NDArray[Any]:
    """Complex [..., m] as real [..., 2 m] with the same inner products."""
    return np.ascontiguousarray(values).view(values.real.dtype)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The images and all that the oracle knows of them. Parameters are (z_1 .. z_d, theta, shift_x, shift_y)."""

    obj: Phantom
    band: _Band
    shift_px: float
    data: NDArray[np.complex128]  # [n, band], whitened images
    gain: Floats  # [n, band], CTF / sqrt(N)

    @classmethod
    def build(cls, obj: Phantom, images: NDArray[np.floating], microscope: Microscope, shift_px: float) -> "_Problem":
        box = microscope.box
        sensitivity = microscope.sensitivity()
        drawn = clean_image(obj, *draw_truth(PCA_SAMPLE, 0.0, np.random.default_rng(1), obj.z_dim), box)
        power = np.mean(np.abs(np.fft.rfft2(drawn)) ** 2, 0) * half_plane_weights(box) / box**2
        power *= np.max(sensitivity**2, 0)
        order = np.argsort(power, axis=None)
        keep = np.ones(power.size, dtype=bool)
        keep[order[np.cumsum(power.ravel()[order]) <= LOST_LOG_LIKELIHOOD**2]] = False
        band = _Band(box, keep.reshape(power.shape))
        inside = band.keep
        whitened = band.of(images) / np.sqrt(microscope.noise_power()[:, inside])
        return cls(obj, band, shift_px, whitened, sensitivity[:, inside])

    @property
    def z_dim(self) -> int:
        return self.obj.z_dim

    @property
    def used(self) -> int:
        """How many of the parameters are estimated: all, or all but the shifts."""
        return self.z_dim + (3 if self.shift_px > 0 else 1)

    @property
    def prior(self) -> Floats:
        """Information of the priors on the estimated parameters, [used]."""
        prior = np.zeros(self.used)
        prior[self.z_dim + 1 :] = self.shift_px**-2 if self.shift_px > 0 else 0.0
        return prior

    def unpack(self, parameters: Floats) -> tuple[Floats, Pose2D]:
        """The latents z and the poses in parameters [n, d + 3]."""
        d = self.z_dim
        return parameters[:, :d], Pose2D(wrap_rad(parameters[:, d]), parameters[:, d + 1 :])

    def drawn(self, parameters: Floats) -> NDArray[np.complex128]:
        """Noise-free projections, before CTF and whitening; [n, band]."""
        return self.band.of(clean_image(self.obj, *self.unpack(parameters), self.band.box))

    def information(self, parameters: Floats, gain: Floats) -> tuple[Floats, Floats]:
        """Whitened derivatives [n, used, 2 band] and Fisher information [n, used, used]."""
        moved = derivatives(self.obj, *self.unpack(parameters), self.band.box)[:, : self.used]
        j = _real(self.band.of(moved) * gain[:, None])
        return j, (j @ j.swapaxes(1, 2)).astype(np.float64)

    def conditional_sd(self) -> Floats:
        """Posterior s.d. of each estimated parameter when the others are known; [used].

        Nine of ten particles have a larger one: defocus and noise differ, and the grid has to serve the sharpest.
        """
        z, pose = draw_truth(100, 0.0, np.random.default_rng(0), self.z_dim)
        parameters = _packed(z, pose)
        gain = self.gain[np.linspace(0, len(self.gain) - 1, 100).round().astype(int)]
        _, information = self.information(parameters, gain)
        return 1 / np.sqrt(np.quantile(np.diagonal(information, axis1=1, axis2=2), 0.9, axis=0))

    def softening(self, steps: Floats) -> float:
        """Factor on the steps (and the noise) that keeps the grid affordable; 1 where it is as it is."""
        d = self.z_dim
        templates = float(np.prod(np.pi / steps[:d]) * 2 * np.pi / self.obj.symmetry / steps[d])
        cells = templates
        if self.shift_px > 0:
            cells *= np.pi * (REACH * self.shift_px) ** 2 / (steps[d + 1] * steps[d + 2])
        if cells <= MAX_CELLS and templates <= MAX_TEMPLATES:
            return 1.0
        coarse = min(COARSE_CELLS, MAX_CELLS)
        return max(1.01, (cells / coarse) ** (1 / self.used), (templates / MAX_TEMPLATES) ** (1 / (d + 1)))

    def gauss_newton(self, start: Floats, steps: int = 6) -> tuple[Floats, Floats]:
        """Posterior modes [n, d + 3] from nearby points, and the inverse information there [n, used, used]."""
        used, modes = self.used, start.copy()
        covariance = np.zeros((len(start), used, used))
        for rows in chunks(len(start)):
            some, gain = modes[rows], self.gain[rows]
            for _ in range(steps):
                j, information = self.information(some, gain)
                residual = _real(self.data[rows] - self.drawn(some) * gain)
                slope = (j @ residual[..., None])[..., 0] - some[:, :used] * self.prior
                some[:, :used] += np.linalg.solve(information + np.diag(self.prior), slope[..., None])[..., 0]
                some[:, : self.z_dim] = np.clip(some[:, : self.z_dim], -1, 1)
            _, information = self.information(some, gain)
            covariance[rows] = np.linalg.inv(information + np.diag(self.prior))
        return modes, covariance

    def sampled_means(self, modes: Floats, covariance: Floats) -> Floats:
        """Posterior means [n, d + 3] by importance sampling from N(modes, covariance), with quasi-random points."""
        d, used = self.z_dim, self.used
        uniform = qmc.Sobol(used, rng=np.random.default_rng(2)).random(DRAWS)
        normal = special.ndtri(uniform.clip(1e-12, 1 - 1e-12))
        wider = 1.2  # than the Gaussian approximation, so that no tail is missed
        means = modes.copy()
        for i, (mode, cov) in enumerate(zip(modes, covariance, strict=True)):
            points = np.tile(mode, (DRAWS, 1))
            points[:, :used] += wider * normal @ np.linalg.cholesky(cov).T
            residual = self.data[i] - self.drawn(points) * self.gain[i]
            log_w = -np.sum(np.abs(residual) ** 2, -1) / 2 + np.sum(normal**2, -1) / 2
            log_w -= points[:, :used] ** 2 @ self.prior / 2
            log_w[(np.abs(points[:, :d]) > 1).any(1)] = -np.inf
            weights = np.exp(log_w - log_w.max())
            means[i, : d + 1] = _means(weights, points[:, : d + 1], self.obj.symmetry)
            means[i, d + 1 :] = weights @ points[:, d + 1 :] / weights.sum()
        return means


def _packed(z: Floats, pose: Pose2D) -> Floats:
    """Parameters [n, d + 3]: the inverse of `_Problem.unpack`."""
    return np.column_stack([z, pose.theta_rad, pose.shift_px]).astype(np.float64)


def _means(weights: Floats, z_theta: Floats, symmetry: int) -> Floats:
    """Means of z and circular mean of theta, [d + 1]; ``z_theta`` is [points, d + 1]."""
    theta = np.angle(weights @ np.exp(1j * symmetry * z_theta[:, -1])) / symmetry
    return np.append(weights @ z_theta[:, :-1] / weights.sum(), theta)


# --------------------------------------------------------------------------------------------------------------- the grid


@dataclass(frozen=True, eq=False)
class _Grid:
    """Templates at all (z, theta) in principal components, and all shifts.

    Templates are multiplied by the particles' typical gain, which makes their errors comparable with the noise; the
    particle's own gain over the typical one goes to the image, and to the norm.
    """

    z_theta: Floats  # [templates, d + 1]
    shifts: Floats  # [shifts, 2]
    log_prior: Singles  # [shifts, 1]
    phases: NDArray[np.complex64]  # [shifts, band]
    basis: Singles  # [2 band, components]
    templates: Singles  # [components, templates]
    half_powers: Singles  # [templates, band], of the templates
    log_weights: Singles  # [templates], of the nodes of z
    typical: Floats  # [band]
    symmetry: int
    temper: float  # factor on the log likelihood: 1 / softening^2

    @classmethod
    def build(cls, problem: _Problem, steps: Floats, softening: float) -> "_Grid":
        d, symmetry = problem.z_dim, problem.obj.symmetry
        counts = np.ceil(np.pi / steps[:d]).astype(int)  # the nodes are furthest apart in the middle: by pi / n
        axes, node_weights = (list(parts) for parts in zip(*map(np.polynomial.legendre.leggauss, counts), strict=True))
        n_theta = int(np.ceil(2 * np.pi / symmetry / steps[d]))
        axes.append(np.arange(n_theta) * 2 * np.pi / symmetry / n_theta)
        z_theta = np.array(list(product(*axes)))
        log_weights = np.log([np.prod(nodes) for nodes in product(*node_weights, np.ones(n_theta))])
        typical = np.sqrt(np.mean(problem.gain**2, 0))
        basis = _principal_components(problem, typical, softening)
        coefficients, half_powers = [], []
        for rows in chunks(len(z_theta)):
            parameters = np.pad(z_theta[rows], ((0, 0), (0, 2)))
            drawn = problem.drawn(parameters) * typical
            coefficients.append((_real(drawn) @ basis).astype(np.float32))
            half_powers.append((np.abs(drawn) ** 2 / 2).astype(np.float32))
        shifts = _disk(REACH * problem.shift_px, steps[d + 1 :]) if problem.shift_px > 0 else np.zeros((1, 2))
        log_prior = -np.sum(shifts**2, -1) / (2 * problem.shift_px**2) if problem.shift_px > 0 else np.zeros(1)
        return cls(
            z_theta,
            shifts,
            log_prior[:, None].astype(np.float32),
            problem.band.shifts(shifts),
            basis.astype(np.float32),
            np.ascontiguousarray(np.concatenate(coefficients).T),
            np.concatenate(half_powers),
            log_weights.astype(np.float32),
            typical,
            symmetry,
            softening**-2,
        )

    def posterior(self, data: NDArray[np.complex128], gain: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and best grid point [d + 3] of one whitened image, seen through its own gain (both [band])."""
        own = gain / self.typical
        moved = _real(self.phases * (self.temper * data * own).astype(np.complex64))
        log_p = moved @ self.basis @ self.templates
        log_p += self.log_weights - self.half_powers @ (self.temper * own**2).astype(np.float32)
        log_p += self.log_prior
        best_shift, best = np.unravel_index(np.argmax(log_p), log_p.shape)
        log_p -= log_p[best_shift, best]
        weights = np.exp(log_p, out=log_p)
        of_template = weights.sum(0, dtype=np.float64)
        of_shift = weights.sum(1, dtype=np.float64)
        mean = _means(of_template, self.z_theta, self.symmetry)
        mean_shift = of_shift @ self.shifts / of_shift.sum()
        return np.append(mean, mean_shift), np.append(self.z_theta[best], self.shifts[best_shift])


def _disk(radius: float, steps: Floats) -> Floats:
    """Lattice points [n, 2] within ``radius`` of the origin."""
    axes = [np.arange(-np.floor(radius / step), np.floor(radius / step) + 1) * step for step in steps]
    x, y = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    inside = np.hypot(x, y) <= radius
    return np.stack([x[inside], y[inside]], -1)


def _principal_components(problem: _Problem, typical: Floats, softening: float) -> Floats:
    """Orthonormal [2 band, components] that hold every unshifted template as exactly as the noise can tell."""
    sample = PCA_SAMPLE * problem.z_dim
    z, pose = draw_truth(sample, 0.0, np.random.default_rng(1), problem.z_dim)
    drawn = _real(problem.drawn(_packed(z, pose)) * typical)
    energy, vectors = linalg.eigh(drawn @ drawn.T)
    energy, vectors = energy[::-1], vectors[:, ::-1]
    lost = np.append(np.cumsum(energy[::-1])[::-1], 0) / sample  # mean square, by number of components kept
    keep = int(np.argmax(lost <= (LOST_LOG_LIKELIHOOD * softening) ** 2))
    return drawn.T @ (vectors[:, :keep] / np.sqrt(energy[:keep]))
