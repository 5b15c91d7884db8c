"""What a simulated microscope does to clean images: every particle's CTF, and noise with a spectrum per optics group.

    image = CTF * clean + noise,      E |noise(k)|^2 = box^2 N(k)

The CTF acts in the Fourier plane of the box itself, so what it spreads beyond one edge comes in at the opposite one.
Frequencies are in cycles per pixel. The mean of N over all Fourier pixels is the variance of a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.ctf import CtfParams, ctf_2d


@dataclass(frozen=True)
class NoiseSpectrum:
    """Stationary Gaussian noise, ``N(k) ~ (1 + low_height exp(-(k / low_width)^2)) / (1 + fall (k / 0.5)^2)``.

    Attributes
    ----------
    sd
        S.d. of a pixel.
    low_height
        By how much the power at low frequencies stands out; with this and ``fall`` zero the noise is white.
    low_width
        Up to where it does, in cycles per pixel.
    fall
        1: the power at the Nyquist frequency has fallen to half of the plateau.
    """

    sd: float = 1.0
    low_height: float = 0.0
    low_width: float = 0.08
    fall: float = 0.0

    @property
    def is_white(self) -> bool:
        """The same power everywhere."""
        return self.low_height == 0 and self.fall == 0

    def power(self, box: int) -> Floats:
        """N on the grid of ``numpy.fft.rfft2``, [box, box // 2 + 1]; its mean over the whole plane is sd^2."""
        k2 = np.fft.rfftfreq(box) ** 2 + np.fft.fftfreq(box)[:, None] ** 2
        power = (1 + self.low_height * np.exp(-k2 / self.low_width**2)) / (1 + self.fall * k2 / 0.25)
        return self.sd**2 * power / np.average(power, weights=half_plane_weights(box))


WHITE = NoiseSpectrum()
COLOURED = NoiseSpectrum(low_height=9.0, low_width=0.08, fall=1.0)
COLOURED_OTHER = NoiseSpectrum(low_height=5.0, low_width=0.13, fall=2.0)


def half_plane_weights(box: int) -> Floats:
    """How often each pixel of ``rfft2`` occurs in the whole plane (1 or 2); shape [box, box // 2 + 1]."""
    column = np.full(box // 2 + 1, 2.0)
    column[0] = 1
    if box % 2 == 0:
        column[-1] = 1
    return np.broadcast_to(column, (box, len(column)))


@dataclass(frozen=True, eq=False)
class Microscope:
    """The imaging of n particles.

    Attributes
    ----------
    box, pixel_size_A
        Of the images.
    group
        Shape [n]; optics group of each particle, counted from 0.
    noise
        Spectrum of each group.
    ctf
        Parameters of the n particles, or None: images are projections.
    """

    box: int
    pixel_size_A: float
    group: NDArray[np.int64]
    noise: tuple[NoiseSpectrum, ...] = (WHITE,)
    ctf: CtfParams | None = None

    @classmethod
    def plain(cls, n: int, box: int, noise_sd: float = 1.0) -> "Microscope":
        """White noise of one s.d. for n particles and no CTF."""
        return cls(box, 1.0, np.zeros(n, dtype=np.int64), (NoiseSpectrum(noise_sd),))

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, rows: Any) -> "Microscope":
        ctf = None if self.ctf is None else self.ctf[rows]
        return Microscope(self.box, self.pixel_size_A, self.group[rows], self.noise, ctf)

    def image(self, clean: Floats) -> Floats:
        """Clean images [n, box, box] multiplied by the CTF in the Fourier plane; themselves where there is none."""
        if self.ctf is None:
            return clean
        return np.fft.irfft2(np.fft.rfft2(clean) * self.contrast(), s=clean.shape[-2:])

    def contrast(self) -> NDArray[np.float32]:
        """The CTF, 1 where there is none; broadcasts to [n, box, box // 2 + 1]."""
        if self.ctf is None:
            return np.ones((1, self.box, self.box // 2 + 1), np.float32)
        return ctf_2d(self.ctf, self.box, self.pixel_size_A)

    def noise_power(self) -> Floats:
        """N of every particle, [n, box, box // 2 + 1]."""
        return np.stack([spectrum.power(self.box) for spectrum in self.noise])[self.group]

    def draw_noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Noise images [n, box, box]."""
        shape = (len(self), self.box, self.box)
        noise = rng.standard_normal(shape, dtype=np.float32)
        if all(spectrum.is_white for spectrum in self.noise):
            sd = np.array([spectrum.sd for spectrum in self.noise], dtype=np.float32)
            return noise * sd[self.group][:, None, None]
        colour = np.sqrt(self.noise_power()).astype(np.float32)
        return np.fft.irfft2(np.fft.rfft2(noise) * colour, s=shape[-2:]).astype(np.float32)

    def sensitivity(self) -> Floats:
        """``CTF / sqrt(N)``: what whitened images hold of the object's Fourier transform; [n, box, box // 2 + 1]."""
        return self.contrast() / np.sqrt(self.noise_power())


def spectra_of(colour: str, groups: int) -> tuple[NoiseSpectrum, ...]:
    """The noise of each optics group: the second is louder by 1.4 and, where coloured, of another colour."""
    first, second = (COLOURED, COLOURED_OTHER) if colour == "coloured" else (WHITE, WHITE)
    louder = NoiseSpectrum(1.4, second.low_height, second.low_width, second.fall)
    return (first, louder)[:groups]


VOLTAGE_KV = (300.0, 200.0)  # of the optics groups
CS_MM = 2.7
AMPLITUDE_CONTRAST = 0.1


def draw_ctf(
    group: NDArray[np.int64], defocus_A: tuple[float, float], astigmatism_A: float, rng: np.random.Generator
) -> CtfParams:
    """CTF parameters: mean defocus uniform in a range, u - v = ``astigmatism_A`` at any angle; voltage by group."""
    n = len(group)
    defocus = rng.uniform(*defocus_A, n)
    return CtfParams(
        defocus_u_A=defocus + astigmatism_A / 2,
        defocus_v_A=defocus - astigmatism_A / 2,
        astigmatism_rad=np.radians(rng.uniform(0, 180, n)),
        phase_shift_rad=np.zeros(n),
        **ctf_constants(group),
    )


def ctf_constants(group: Sequence[int] | NDArray[np.int64]) -> dict[str, Floats]:
    """Voltage, Cs and amplitude contrast of particles by their optics group."""
    n = len(group)
    return {
        "voltage_kV": np.array(VOLTAGE_KV)[np.asarray(group)],
        "cs_mm": np.full(n, CS_MM),
        "amplitude_contrast": np.full(n, AMPLITUDE_CONTRAST),
    }
