"""The contrast transfer function, with RELION's constants and conventions.

    CTF(k) = sin(pi lambda d(k) |k|^2 - pi / 2 Cs lambda^3 |k|^4 + phase_shift + asin(amplitude_contrast))

with ``d(k) = (u + v) / 2 + (u - v) / 2 cos(2 (angle(k) - astigmatism_angle))``, underfocus positive, the astigmatism angle
measured from the x axis (towards +y as stored). Positive at the origin: bright particles.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class CtfParams:
    """CTF parameters of n particles, each an array of shape [n]; NaN where the file does not say."""

    defocus_u_A: Floats
    defocus_v_A: Floats
    astigmatism_rad: Floats
    phase_shift_rad: Floats
    voltage_kV: Floats
    cs_mm: Floats
    amplitude_contrast: Floats

    def __len__(self) -> int:
        return len(self.defocus_u_A)

    def __getitem__(self, rows: Any) -> "CtfParams":
        return CtfParams(**{name: values[rows] for name, values in vars(self).items()})

    @property
    def known(self) -> NDArray[np.bool_]:
        """True for particles with every parameter present; shape [n]."""
        return np.asarray(np.isfinite(np.stack(list(vars(self).values()))).all(0))


def wavelength_A(voltage_kV: Floats) -> Floats:
    """Relativistic electron wavelength in angstrom, with RELION's constants (``CTF::initialise``)."""
    volts = 1e3 * voltage_kV
    return 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))


def ctf_2d(params: CtfParams, box: int, pixel_size_A: float) -> NDArray[np.float32]:
    """The CTF on the grid of ``numpy.fft.rfft2``; shape [n, box, box // 2 + 1]."""
    kx = np.fft.rfftfreq(box, pixel_size_A)[None, :]
    ky = np.fft.fftfreq(box, pixel_size_A)[:, None]
    k2, angle = kx**2 + ky**2, np.arctan2(ky, kx)

    def each(values: Floats) -> Floats:
        return np.asarray(values, dtype=np.float64)[:, None, None]

    wavelength = each(wavelength_A(params.voltage_kV))
    mean_defocus = each(params.defocus_u_A + params.defocus_v_A) / 2
    astigmatism = each(params.defocus_u_A - params.defocus_v_A) / 2
    defocus = mean_defocus + astigmatism * np.cos(2 * (angle - each(params.astigmatism_rad)))
    cs_A = 1e7 * each(params.cs_mm)
    phase = np.pi * wavelength * defocus * k2 - np.pi / 2 * cs_A * wavelength**3 * k2**2
    return np.sin(phase + each(params.phase_shift_rad) + np.arcsin(each(params.amplitude_contrast))).astype(np.float32)


def flip_phases(images: NDArray[np.float32], params: CtfParams, pixel_size_A: float) -> NDArray[np.float32]:
    """Make every spatial frequency of images [n, box, box] positive: multiply by the sign of the CTF."""
    sign = np.where(ctf_2d(params, images.shape[-1], pixel_size_A) < 0, np.float32(-1), np.float32(1))
    return np.fft.irfft2(np.fft.rfft2(images) * sign, s=images.shape[-2:]).astype(np.float32)
