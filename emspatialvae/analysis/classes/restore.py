"""From sums over particles to averages: the CTF taken out, and how far two halves agree."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import ctf, masks, normalisation, resolution
from emspatialvae.imaging.arrays import Floats, Images

LEAST_POWER = 0.1
"""Added to the mean of CTF^2 where a half set is divided by it, so that the zeros of the CTF do not drown the rest."""
LEAST_NOISE = 1e-4
"""Noise over signal of one image that is reckoned with at least: without any noise, the zeros of the CTF would be divided by."""
SOFT_EDGE = 0.1
"""Width of the edge of the mask under which halves are compared, in boxes."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What was added up over the particles, for k averages and two half sets of each."""

    images: Images
    """[k, 2, box, box]; weight x image with its pose taken out, multiplied by the CTF where ``ctf_power`` is there."""
    ctf_power: Images | None
    """[k, 2, box, box // 2 + 1]; weight x CTF^2 in the same frame, on the grid of ``numpy.fft.rfft2``."""
    weight: Floats
    """[k, 2]"""
    squares: Floats
    """[k, 2]; of the weights."""
    count: NDArray[np.integer]
    """[k, 2]; particles that count more than nothing."""


@dataclass(frozen=True, eq=False)
class Averages:
    """k averages of particles in the frame of the object, and what they are worth."""

    images: Images
    """[k, box, box]; background mean 0, its s.d. in one particle 1; zero where there was no particle."""
    halves: Images
    """[k, 2, box, box]; averages of the half sets, without the filter that holds noise down."""
    frc: Floats
    """[k, box // 2 + 1]; Fourier ring correlation of the halves under a soft mask; NaN where a half is empty."""
    count: NDArray[np.integer]
    """[k]; particles."""
    n_eff: Floats
    """[k]; effective number of particles, ``(sum w)^2 / sum w^2``."""
    pixel_size_A: float
    ctf_corrected: bool
    """The CTF was taken out by a Wiener filter; else these are plain averages."""

    def __len__(self) -> int:
        return len(self.images)

    def resolution_A(self, threshold: float) -> Floats:
        """Where the halves' correlation falls below a threshold (0.143, 0.5), in angstrom; NaN where it never was above; [k]."""
        return resolution.resolution_A(self.frc, threshold, self.images.shape[-1] * self.pixel_size_A)


def restore(sums: Sums, pixel_size_A: float, radius_px: float) -> Averages:
    """Averages from sums.

    With the CTF, ``sum(CTF x image) / (sum(CTF^2) + noise power / signal power)``, the two powers known per ring from what half
    sets have in common and what they have not, over all averages together. So few particles give a smooth average rather
    than a noisy one. Without the CTF, sums over weights.

    Parameters
    ----------
    radius_px
        Of the circle outside which lies background.
    """
    k, _, box, _ = sums.images.shape
    images, halves = np.zeros((k, box, box), np.float32), np.zeros((k, 2, box, box), np.float32)
    weight, squares = sums.weight.sum(1), sums.squares.sum(1)
    against_noise = None if sums.ctf_power is None else noise_over_signal(sums)
    ring = ctf.rings(box)[0]
    for n in np.flatnonzero(weight > 0):
        if sums.ctf_power is None or against_noise is None:
            images[n] = sums.images[n].sum(0) / weight[n]
            halves[n] = sums.images[n] / np.maximum(sums.weight[n], 1e-12)[:, None, None]
            continue
        spread = squares[n] / weight[n]  # 1 for classes: noise adds up by squares of weights
        power = sums.ctf_power[n].sum(0) + spread * against_noise[ring]
        images[n] = _divided(sums.images[n].sum(0), power)
        halves[n] = _divided(sums.images[n], sums.ctf_power[n] + LEAST_POWER * sums.weight[n][:, None, None])
    if sums.ctf_power is not None:
        # The background was brought to 0 in every particle, so what the CTF hides of the mean is not known.
        images -= normalisation.background(images, radius_px)[0][:, None, None]
    mask = masks.soft_mask(box, min(radius_px, (0.5 - SOFT_EDGE) * box), SOFT_EDGE * box)
    return Averages(
        images=images,
        halves=halves,
        frc=resolution.fourier_ring_correlation(halves[:, 0] * mask, halves[:, 1] * mask),
        count=sums.count.sum(1),
        n_eff=np.divide(weight**2, squares, out=np.zeros(k), where=squares > 0),
        pixel_size_A=pixel_size_A,
        ctf_corrected=sums.ctf_power is not None,
    )


def noise_over_signal(sums: Sums) -> Floats:
    """Noise power of one image over signal power, for each ring up to the corners; infinite where no signal is seen.

    A sum N of w CTF x image is D S + noise, with D the sum of w CTF^2 and S the object. Independent halves share the object only:
    ``N1 N2* = D1 D2 |S|^2`` on average, and what ``|N|^2`` holds beyond ``D^2 |S|^2`` is noise, ``sum(w^2 CTF^2)`` of it.
    """
    assert sums.ctf_power is not None
    box = sums.images.shape[-1]
    ring, twice = (values.ravel() for values in ctf.rings(box))
    shared, seen, total, self_seen, noise_seen = np.zeros((5, ring.max() + 1))

    def summed(values: Floats) -> Floats:
        return np.bincount(ring, twice * values.ravel()).astype(np.float64)

    spread = np.divide(sums.squares, sums.weight, out=np.zeros(sums.weight.shape), where=sums.weight > 0)
    for images, power, share in zip(sums.images, sums.ctf_power, spread, strict=True):
        (one, other), (d1, d2) = np.fft.rfft2(images), power.astype(np.float64)
        shared += summed((one * other.conj()).real)
        seen += summed(d1 * d2)
        total += summed(np.abs(one) ** 2 + np.abs(other) ** 2)
        self_seen += summed(d1**2 + d2**2)
        noise_seen += summed(share[0] * d1 + share[1] * d2)
    if not seen.any():  # no average has two particles: nothing tells signal from noise
        return np.ones(len(seen))
    signal = np.divide(shared, seen, out=np.zeros(len(seen)), where=seen > 0).clip(min=0)
    noise = np.divide(total - signal * self_seen, noise_seen, out=np.zeros(len(seen)), where=noise_seen > 0).clip(min=0)
    return np.divide(noise, signal, out=np.full(len(seen), np.inf), where=signal > 0).clip(min=LEAST_NOISE)


def _divided(images: Floats, power: Floats) -> Images:
    """Images [..., b, b] with their Fourier transform divided by ``power`` [..., b, b // 2 + 1]; 0 where that is infinite."""
    spectrum = np.fft.rfft2(images)
    spectrum = np.divide(spectrum, power, out=np.zeros_like(spectrum), where=power > 0)
    return np.asarray(np.fft.irfft2(spectrum, s=images.shape[-2:]), dtype=np.float32)
