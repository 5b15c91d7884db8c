"""The Cramer-Rao bound: how small the errors of z, angle and shift can be, particle by particle."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.simulation.microscope import Microscope, half_plane_weights
from emspatialvae.simulation.phantom import Phantom, as_columns, chunks, derivatives


@dataclass(frozen=True)
class CramerRao:
    """Smallest possible s.d. of an unbiased estimate, per particle.

    Attributes
    ----------
    z_sd
        Shape [n, d]; in units of z.
    theta_sd_rad
        Shape [n]; in radians.
    shift_sd_px
        Shape [n, 2]; along x and y, in pixels; zero where the shift is known to be zero.
    """

    z_sd: Floats
    theta_sd_rad: Floats
    shift_sd_px: Floats

    def summary(self) -> dict[str, float]:
        """Root mean squares over the particles, and the correlation with the truth that such a z has.

        ``z_corr = sqrt(v / (v + z_rms^2))`` with v = 1/3, the variance of z uniform on [-1, 1]; hence
        ``z_noise = sqrt(1 / z_corr^2 - 1) = z_rms / sqrt(v)``. With several coordinates ``z_corr_1, z_noise_1, ...``
        say it for each, and ``z_corr``, ``z_noise`` for all of them together.
        """
        facts = _z_facts(self.z_sd)
        if self.z_sd.shape[1] > 1:
            for k, sd in enumerate(self.z_sd.T, 1):
                facts |= {f"{name}_{k}": value for name, value in _z_facts(sd).items()}
        theta_rms, shift_rms = (float(np.sqrt(np.mean(sd**2))) for sd in (self.theta_sd_rad, self.shift_sd_px))
        return {**facts, "theta_deg": float(np.degrees(theta_rms)), "shift_px": shift_rms}


def _z_facts(z_sd: Floats) -> dict[str, float]:
    noise = float(np.sqrt(np.mean(z_sd**2))) * np.sqrt(3.0)
    return {"z_corr": float(1 / np.sqrt(1 + noise**2)), "z_noise": float(noise)}


def cramer_rao(obj: Phantom, z: ArrayLike, pose: Pose2D, microscope: Microscope, shift_px: float = 0.0) -> CramerRao:
    """Bound the errors of (z, theta, shift) by the inverse Fisher information ``(J^T J + prior)^-1``.

    J are the derivatives of the whitened image: by the object's Fourier transform, times CTF / sqrt(noise power).

    Parameters
    ----------
    z, pose, microscope
        Of the same n particles; shifts in pixels of the microscope's images.
    shift_px
        S.d. of the shift's Gaussian prior along each axis, in pixels; its information 1 / shift_px^2 is added (the
        Bayesian form of the bound, van Trees 1968). With 0 the shift is known and leaves the parameters.
    """
    z, box = as_columns(z), microscope.box
    d = z.shape[1]
    used = d + 3 if shift_px > 0 else d + 1
    prior = np.zeros(used)
    prior[d + 1 :] = shift_px**-2 if shift_px > 0 else 0.0
    weights = np.sqrt(half_plane_weights(box)) / box  # Parseval
    sd = np.zeros((len(z), d + 3))
    for rows in chunks(len(z)):
        transform = np.fft.rfft2(derivatives(obj, z[rows], pose[rows], box)[:, :used])
        transform *= (microscope[rows].sensitivity() * weights)[:, None]
        j = transform.reshape(len(transform), used, -1).view(np.float64)
        information = j @ j.swapaxes(1, 2) + np.diag(prior)
        sd[rows, :used] = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
    return CramerRao(sd[:, :d], sd[:, d], sd[:, d + 1 :])
