"""The contrast transfer function, with RELION's constants and conventions.

    CTF(k) = sin(pi lambda d(k) |k|^2 - pi / 2 Cs lambda^3 |k|^4 + phase_shift + asin(amplitude_contrast))

with ``d(k) = (u + v) / 2 + (u - v) / 2 cos(2 (angle(k) - astigmatism_angle))``, underfocus positive, the astigmatism angle
measured from the x axis (towards +y as stored). Positive at the origin: bright particles.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats, Images

BLOCK = 1 << 17
"""Numbers worked on at once, so that they stay in the processor's cache and memory stays bounded."""
MAX_DEFOCUS_A = 200_000.0
"""20 um; nobody collects particles beyond it."""
USUAL_VOLTAGE_KV, USUAL_CS_MM, USUAL_DEFOCUS_A = (30.0, 1500.0), 10.0, (500.0, 150_000.0)
"""What microscopes have; beyond it numbers are most likely in another unit."""
NEEDED = ("defocus_u_A", "voltage_kV", "cs_mm")
"""There is no CTF without these; RELION refuses a file without voltage or Cs (``ObservationModel``)."""


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

    def turned(self, angle_rad: Floats) -> "CtfParams":
        """The CTFs of the same images turned by angles [n], from +x towards +y: astigmatism turns along, all else is round."""
        return replace(self, astigmatism_rad=self.astigmatism_rad + angle_rad)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """True for particles whose parameters are all there and none of which is absurd; shape [n]."""
        usable = self.known
        for bad, _, _ in self.absurdities():
            usable = usable & ~bad
        return usable

    def with_typical(self, rows: NDArray[np.bool_]) -> "CtfParams":
        """The same with parameters that any formula can take in some of the rows [n]."""
        typical = CtfParams(*(np.full(len(self), value) for value in (15_000.0, 15_000.0, 0.0, 0.0, 300.0, 2.7, 0.1)))
        columns: dict[str, Floats] = {
            name: np.where(rows, getattr(typical, name), values) for name, values in vars(self).items()
        }
        return CtfParams(**columns)

    def oddities(self) -> Iterator[tuple[NDArray[np.bool_], Floats, str]]:
        """Whatever is possible but unusual, as a wrong unit makes it: which particles, the values [n], and a remark on them."""
        defocus_A = (self.defocus_u_A + self.defocus_v_A) / 2
        if not np.nan_to_num(defocus_A).any():
            return  # projections, which have no CTF
        low_kV, high_kV = USUAL_VOLTAGE_KV
        low_A, high_A = USUAL_DEFOCUS_A
        volts = "; if it is in volts, divide it by 1,000" if np.nanmax(self.voltage_kV, initial=0) > high_kV else ""
        small = np.nanmax(np.abs(defocus_A)) < low_A
        unit = "; if it is in micrometres, multiply it by 10,000, if in nanometres, by 10" if small else ""
        for values, odd, remark in (
            (
                self.voltage_kV,
                ~((self.voltage_kV >= low_kV) & (self.voltage_kV <= high_kV)),
                f"kV as voltage, expected {low_kV:g} to {high_kV:,g} kV{volts}",
            ),
            (self.cs_mm, np.abs(self.cs_mm) > USUAL_CS_MM, f"mm as Cs, expected at most {USUAL_CS_MM:g} mm"),
            (self.cs_mm, self.cs_mm < 0, "mm as Cs: negative, as only a corrector makes it"),
            (
                defocus_A,
                ~((defocus_A >= low_A) & (defocus_A <= high_A)),
                f"A as mean defocus, expected {low_A:g} to {high_A:,.0f} A (underfocus is positive){unit}",
            ),
        ):
            odd = odd & np.isfinite(values)
            if odd.any():
                yield odd, values, remark

    def absurdities(self) -> Iterator[tuple[NDArray[np.bool_], Floats, str]]:
        """Whatever no microscope has: which particles (at least one of [n]), the values [n], and what is wrong with them."""
        usual = f"above 0 and at most {MAX_DEFOCUS_A:.0f} A"
        for values, low, high, expected in (
            (self.defocus_u_A, np.nextafter(0, 1), MAX_DEFOCUS_A, f"as defocus U, expected {usual}"),
            (self.defocus_v_A, np.nextafter(0, 1), MAX_DEFOCUS_A, f"as defocus V, expected {usual}"),
            (self.voltage_kV, np.nextafter(0, 1), np.inf, "as voltage in kV, expected a number above 0"),
            (self.amplitude_contrast, 0, 1, "as amplitude contrast, expected 0 to 1"),
        ):
            bad = (values < low) | (values > high)
            if bad.any():
                yield bad, values, expected


def completed(
    found: Mapping[str, Floats], spelled: Mapping[str, str], usual: tuple[str, ...] = ()
) -> tuple[CtfParams | None, list[str]]:
    """The CTF from the columns [n] that a file has, by the names of `CtfParams`; the others by RELION's rule.

    Defocus V counts as U; astigmatism angle, phase shift and amplitude contrast count as 0 (``CTF::readByGroup``). RELION has
    no rule for voltage and Cs: NaN.

    Parameters
    ----------
    spelled
        What the file calls each parameter.
    usual
        Columns that a file may leave out without a word.

    Returns
    -------
    None without any defocus; and a sentence for each column that was assumed.
    """
    if "defocus_u_A" not in found:
        return None, []
    u = found["defocus_u_A"]
    assumed = {"defocus_v_A": u} | dict.fromkeys(
        ("astigmatism_rad", "phase_shift_rad", "amplitude_contrast"), np.zeros(len(u))
    )
    columns: dict[str, Floats] = {
        **assumed,
        **dict.fromkeys(("voltage_kV", "cs_mm"), np.full(len(u), np.nan)),
        **found,
    }
    params = CtfParams(**columns)
    # Projections without a CTF have a defocus of 0 and may lack all the rest.
    if not set(NEEDED) <= set(found) or not np.nan_to_num(u).any():
        return params, []
    silent = set(usual)
    if np.array_equal(u, params.defocus_v_A, equal_nan=True):
        silent.add("astigmatism_rad")  # nothing depends on it
    return params, [
        f"the file has no {spelled[name]}: taken as {spelled['defocus_u_A'] if name == 'defocus_v_A' else '0'}, as RELION does"
        for name in assumed
        if name not in found and name not in silent
    ]


def wavelength_A(voltage_kV: Floats) -> Floats:
    """Relativistic electron wavelength in angstrom, with RELION's constants (``CTF::initialise``)."""
    volts = 1e3 * voltage_kV
    return 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))


def ctf_2d(params: CtfParams, box: int, pixel_size_A: float) -> NDArray[np.float32]:
    """The CTF on the grid of ``numpy.fft.rfft2``; shape [n, box, box // 2 + 1]."""
    kx, ky = _grid(box)
    out = np.empty((len(params), kx.size), dtype=np.float32)
    for rows, block in _blocks(params, kx.ravel() / pixel_size_A, ky.ravel() / pixel_size_A):
        out[rows] = block
    return out.reshape(len(params), *kx.shape)


def ring_power(params: CtfParams, box: int, pixel_size_A: float) -> NDArray[np.float32]:
    """Mean of CTF^2 over each ring of the Fourier plane; shape [n, box // 2 + 1].

    Ring r holds the pixels of the whole plane whose distance from the origin rounds to r Fourier pixels; the corners beyond
    ``box // 2`` belong to none.
    """
    kx, ky = _grid(box)
    ring, weight = rings(box)
    order = np.flatnonzero(ring.ravel() <= box // 2)
    order = order[np.argsort(ring.ravel()[order], kind="stable")]
    starts = np.searchsorted(ring.ravel()[order], np.arange(box // 2 + 1))
    share = weight.ravel()[order] / np.repeat(ring_sizes(box), np.diff([*starts, len(order)]))
    out = np.empty((len(params), box // 2 + 1), dtype=np.float32)
    for rows, block in _blocks(params, kx.ravel()[order] / pixel_size_A, ky.ravel()[order] / pixel_size_A):
        np.square(block, out=block)
        block *= share
        out[rows] = np.add.reduceat(block, starts, axis=1)
    return out


def ring_sizes(box: int) -> NDArray[np.int64]:
    """Pixels in each ring of `ring_power`; shape [box // 2 + 1]."""
    ring, weight = rings(box)
    return np.bincount(ring.ravel(), weight.ravel())[: box // 2 + 1].astype(np.int64)


def flip_phases(images: Images, params: CtfParams, pixel_size_A: float) -> Images:
    """Make every spatial frequency of images [n, box, box] positive: multiply by the sign of the CTF."""
    return _filter(images, params, pixel_size_A, lambda ctf: np.where(ctf < 0, np.float32(-1), np.float32(1)))


def multiply(images: Images, params: CtfParams, pixel_size_A: float, *, absolute: bool = False) -> Images:
    """Multiply every spatial frequency of images [n, box, box] by the CTF; with ``absolute`` by its magnitude."""
    return _filter(images, params, pixel_size_A, np.abs if absolute else lambda ctf: ctf)


def _filter(
    images: Images, params: CtfParams, pixel_size_A: float, of_ctf: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> Images:
    box = images.shape[-1]
    size = max(1, 4 * BLOCK // box**2)
    out = np.empty(images.shape, dtype=np.float32)
    for start in range(0, len(images), size):
        some = slice(start, start + size)
        transfer = of_ctf(ctf_2d(params[some], box, pixel_size_A))
        out[some] = np.fft.irfft2(np.fft.rfft2(images[some]) * transfer, s=(box, box))
    return out


def _grid(box: int) -> tuple[Floats, Floats]:
    """Frequencies kx, ky in cycles per pixel on the grid of ``numpy.fft.rfft2``, each [box, box // 2 + 1]."""
    kx, ky = np.meshgrid(np.fft.rfftfreq(box), np.fft.fftfreq(box))
    return kx, ky


def rings(box: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """On the grid of ``numpy.fft.rfft2``: the ring of each pixel, and how often it occurs in the whole plane (1 or 2)."""
    kx, ky = _grid(box)
    twice = (kx > 0) & (2 * kx < 1)
    return np.rint(box * np.hypot(kx, ky)).astype(np.int64), np.where(twice, 2, 1)


def _blocks(params: CtfParams, kx: Floats, ky: Floats) -> Iterator[tuple[slice, Floats]]:
    """The CTF of a few particles at a time at p frequencies in cycles per angstrom: rows and values [k, p].

    The values are overwritten by the next block. The phase is a sum of four fields with a number per particle before each, so
    the only function to be worked out at every point is the sine. It is done in float64: the phase reaches hundreds of radians.
    """
    k2 = kx**2 + ky**2
    # |k|^2 cos(2 (angle - a)) = (kx^2 - ky^2) cos 2a + 2 kx ky sin 2a
    fields = (k2, kx**2 - ky**2, 2 * kx * ky, k2**2)
    wavelength = np.asarray(wavelength_A(params.voltage_kV), dtype=np.float64)
    astigmatism = np.pi * wavelength * (params.defocus_u_A - params.defocus_v_A) / 2
    factors = (
        np.pi * wavelength * (params.defocus_u_A + params.defocus_v_A) / 2,
        astigmatism * np.cos(2 * params.astigmatism_rad),
        astigmatism * np.sin(2 * params.astigmatism_rad),
        -np.pi / 2 * 1e7 * params.cs_mm * wavelength**3,
    )
    constant = params.phase_shift_rad + np.arcsin(params.amplitude_contrast)
    size = min(len(params), max(1, BLOCK // kx.size))
    phases, terms = np.empty((size, kx.size)), np.empty((size, kx.size))
    for start in range(0, len(params), size or 1):
        rows = slice(start, min(start + size, len(params)))
        phase, term = phases[: rows.stop - start], terms[: rows.stop - start]
        phase[:] = constant[rows, None]
        for factor, field in zip(factors, fields, strict=True):
            phase += np.multiply(factor[rows, None], field, out=term)
        yield rows, np.sin(phase, out=phase)
