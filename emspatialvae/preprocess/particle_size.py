"""How large the particle is and whether it is bright or dark, read from the images before any of them is aligned.

Two radial profiles say it, both of low-passed images:

* the mean over the particles. With the CTF known it is ``H rho``: the average |CTF| acting on the mean density rho of particles in
  all directions. Density is not negative, so rho is fitted by non-negative least squares with either sign, and the sign that
  explains the profile is the contrast. Fringes and hollow shells cannot turn it round, because the CTF is part of the fit;
* the spread from particle to particle. Particles differ (in angle, view, shift) only where there is particle, so beyond the edge
  the spread falls to that of the noise. In a crowded field it rises again where the neighbours begin: the edge is the
  first floor that one comes to when walking outwards from where the mean density ends.

Both need no pose, and neither is misled by the box, by the picker's distance or by neighbours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats, Images

LOW_PASS_RINGS = 6.0
"""S.d. of the Gaussian low-pass filter in Fourier pixels of a box of `MODEL_BOX`: 1.7 px wide there."""
MODEL_BOX = 64
PARTS = 8
"""Parts of the particles whose scatter gives the errors of the profiles."""
CLIPPED_SD = 3.0
"""Pixels farther from the median of all particles are drawn in: ice and carbon must not rule the spread."""
LEAST_DENSITY = 0.1
"""Of the greatest mean density: where it falls below, the walk outwards begins."""
INNER = 0.75
"""Share of the half box within which the particle's density is greatest."""
SMOOTHNESS = 0.3
"""Weight of the density's second differences in the fit, in units of a ring's own."""
LEAST_SPREAD = 0.03
"""Of the greatest spread above that of the noise: the particle ends where the spread falls below it."""
MOSTLY_FALLEN = 0.35
"""Where no floor is reached within the box, the mean density alone says where the particle ends if the spread has fallen below that share."""
CERTAIN = 3.0
"""Standard errors by which one sign must explain the profile better than the other."""
SMALLEST_RADIUS_PX = 4.0


@dataclass(frozen=True, eq=False)
class ParticleSize:
    """What the profiles say. Radii are in pixels of the images that were looked at, from the box's centre.

    Attributes
    ----------
    radius_px
        Of the circle that holds the particle; NaN where no edge was seen, or no particle.
    sign
        +1 for bright particles, -1 for dark ones, 0 where neither sign explains the images clearly better.
    contrast_z
        By how many standard errors the chosen sign explains the mean profile better than the other one.
    mean, spread, density
        Profiles over the rings 0, 1, ...; shape [box // 2 + 1]. ``spread`` is the standard deviation over the particles beyond that of the
        noise; ``density`` the mean density that was fitted, positive, up to a factor.
    """

    radius_px: float
    sign: int
    contrast_z: float
    mean: Floats
    spread: Floats
    density: Floats

    @property
    def found(self) -> bool:
        """An edge was seen."""
        return bool(np.isfinite(self.radius_px))

    def table(self, pixel_size_A: float) -> dict[str, list[float]]:
        """The profiles as columns, with ``radius_A`` of each ring."""
        density = np.pad(self.density, (0, len(self.mean) - len(self.density)))
        radius_A = np.arange(len(self.mean)) * pixel_size_A
        columns = {"radius_A": radius_A, "mean": self.mean, "spread": self.spread, "density": density}
        return {name: values.tolist() for name, values in columns.items()}


def measure_particle(images: Images, transfer: Floats | None = None) -> ParticleSize:
    """Find size and contrast of the particle that images have in common.

    Parameters
    ----------
    images
        Shape [n, box, box], n >= 2, each with its background at about 0 and of s.d. about 1. Where the CTF is known its phases
        are flipped or the images are multiplied by it.
    transfer
        What then still acts on the density, averaged over the particles (mean |CTF| or mean CTF^2), on the grid of
        ``numpy.fft.rfft2``; shape [box, box // 2 + 1]. None: nothing is known of it.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.meshgrid(np.arange(48) - 24, np.arange(48) - 24)
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(0, np.pi, 400)[:, None, None]
    >>> rods = (abs(np.cos(angle) * x + np.sin(angle) * y) < 4) & (abs(np.cos(angle) * y - np.sin(angle) * x) < 10)
    >>> size = measure_particle((rng.standard_normal((400, 48, 48)) - 2 * rods).astype(np.float32))
    >>> size.sign, 9 < size.radius_px < 13
    (-1, True)
    """
    box = images.shape[-1]
    low_pass = _low_pass(box)
    mean, variance = _profiles(images, low_pass)
    imaged = _ring_images(box, low_pass if transfer is None else low_pass * transfer)
    sign, contrast_z = _contrast(mean, imaged)
    density = _density(mean.mean(0), imaged, sign or 1)[0]
    floor = variance.mean(0)[: box // 2].min()
    excess = variance.mean(0) - floor
    few = len(variance) < 2
    error = np.full(len(excess), np.inf) if few else variance.std(0, ddof=1) / np.sqrt(len(variance))
    return ParticleSize(
        radius_px=_edge(density, excess, error) if sign else np.nan,  # noise has edges, too
        sign=sign,
        contrast_z=contrast_z,
        mean=mean.mean(0),
        spread=np.sqrt(excess.clip(min=0)),
        density=density,
    )


def _low_pass(box: int) -> Floats:
    """A Gaussian filter on the grid of ``numpy.fft.rfft2``, as wide in every box as it is in `MODEL_BOX` px over the same field."""
    ring = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)) * box
    return np.exp(-((ring / min(LOW_PASS_RINGS, LOW_PASS_RINGS * box / MODEL_BOX)) ** 2) / 2)


def _profiles(images: Images, low_pass: Floats) -> tuple[Floats, Floats]:
    """Mean and variance over the particles of low-passed images, averaged over rings, for `PARTS` parts; two of [parts, rings]."""
    box = images.shape[-1]
    smooth = np.fft.irfft2(np.fft.rfft2(images) * low_pass, s=(box, box)).astype(np.float32)
    middle = np.median(smooth, 0)
    reach = CLIPPED_SD * 1.4826 * np.median(np.abs(smooth - middle), 0)
    smooth = smooth.clip(middle - reach, middle + reach)
    parts = [smooth[k::PARTS] for k in range(min(PARTS, len(smooth)))]
    of_several = [part for part in parts if len(part) > 1]
    nothing = np.full_like(smooth[0], np.nan)  # one image does not say how images differ
    return (
        np.stack([_rings(part.mean(0)) for part in parts]),
        np.stack([_rings(variance) for variance in [part.var(0, ddof=1) for part in of_several] or [nothing]]),
    )


def _rings(image: NDArray[np.floating]) -> Floats:
    """Mean over rings one pixel wide about the centre; [box, box] to [box // 2 + 1]."""
    ring = np.rint(np.hypot(*geometry.pixel_grid(image.shape[-1]))).astype(int)
    kept = ring <= image.shape[-1] // 2
    return np.bincount(ring[kept], image[kept]) / np.bincount(ring[kept])


def _ring_images(box: int, transfer: Floats) -> Floats:
    """Radial profiles [rings, rings] of density on one ring each (a column), as it is imaged."""
    radius = np.hypot(*geometry.pixel_grid(box))
    columns = []
    for ring in range(box // 2):  # what lies on the last ring is cut off by the box
        density = (1 - np.abs(radius - ring)).clip(min=0)
        columns.append(_rings(np.fft.irfft2(np.fft.rfft2(density) * transfer, s=(box, box))))
    return np.stack(columns, 1)


def _density(mean: Floats, imaged: Floats, sign: int) -> tuple[Floats, float]:
    """The non-negative density [rings - 1] that with the given sign explains a mean profile [rings] best, and the squared residual.

    The level of the background is free. Residuals count by the number of pixels in a ring.
    """
    weight = np.sqrt(np.arange(len(mean)).clip(min=0.5))[:, None]
    level = np.ones((len(mean), 1))
    columns = np.concatenate([sign * imaged, level, -level], 1) * weight
    scale = float(np.abs(mean * weight[:, 0]).max()) or 1.0
    rings = imaged.shape[1]
    # Without a little smoothness a non-negative fit is all spikes.
    bend = (
        np.diff(np.eye(rings, columns.shape[1]), 2, axis=0)
        * SMOOTHNESS
        * np.linalg.norm(columns[:, :rings], axis=0).mean()
    )
    wanted = np.concatenate([mean * weight[:, 0] / scale, np.zeros(len(bend))])
    found, _ = optimize.nnls(np.concatenate([columns, bend]), wanted, maxiter=50 * columns.shape[1])
    residual = (columns @ found - wanted[: len(mean)]) * scale
    return found[:rings] * scale, float(residual @ residual)


def _contrast(mean: Floats, imaged: Floats) -> tuple[int, float]:
    """The sign of the density, 0 where it is unclear, and by how many standard errors it explains the profiles [parts, rings] better."""
    bright, dark = (np.array([_density(own, imaged, sign)[1] for own in mean]) for sign in (1, -1))
    whole = np.array([_density(mean.mean(0), imaged, sign)[1] for sign in (1, -1)])
    gain = dark - bright
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    if not error > 0:
        error = 1e-12 * max(float(whole.max()), 1e-300)
    z = float(gain.mean() / error)
    agreed = np.sign(whole[1] - whole[0]) == np.sign(z)
    return (int(np.sign(z)) if abs(z) >= CERTAIN and agreed else 0), abs(z)


def _edge(density: Floats, excess: Floats, error: Floats) -> float:
    """Radius of the particle (px) from its mean density and the excess variance with its error [rings]; NaN where none is seen."""
    last = len(density) - 1
    peak = int(density[: round(INNER * last)].argmax())  # neighbours lie farther out
    beyond = np.flatnonzero(density[peak:] < LEAST_DENSITY * density.max())
    start = peak + int(beyond[0]) if len(beyond) else last
    significant = excess > 3 * error
    if not significant[1:last].any():  # all particles look alike, or there are none: the mean alone decides
        return float(start) if SMALLEST_RADIUS_PX <= start < last else np.nan
    # The spread that the particle has inside; neighbours may have more.
    limit = LEAST_SPREAD * excess[: start + 1].max()
    radius = start
    while radius < last and excess[radius] > max(limit, 2 * error[radius]):
        if excess[radius + 1] > excess[radius] and excess[radius + 1 :].max() > excess[radius] + 2 * error[radius]:
            break  # the neighbours begin
        radius += 1
    if radius >= last and excess[start] < MOSTLY_FALLEN * excess[: start + 1].max():
        radius = start  # neighbours hide the floor, but the particle has ended
    return float(radius) if SMALLEST_RADIUS_PX <= radius < last else np.nan
