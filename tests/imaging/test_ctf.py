"""The contrast transfer function against values worked out by hand."""

import math

import numpy as np
import pytest

from emspatialvae.imaging import ctf
from emspatialvae.imaging.ctf import CtfParams, ctf_2d, flip_phases, multiply, ring_power, ring_sizes, wavelength_A


def params(n=1, **values):
    """Parameters of n particles; what is not given is a round number."""
    usual = {
        "defocus_u_A": 15000.0,
        "defocus_v_A": 15000.0,
        "astigmatism_rad": 0.0,
        "phase_shift_rad": 0.0,
        "voltage_kV": 300.0,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
    }
    return CtfParams(**{key: np.full(n, value, float) for key, value in (usual | values).items()})


@pytest.mark.parametrize(("voltage_kV", "expected_A"), [(300, 0.019687), (200, 0.025079), (100, 0.037014)])
def test_wavelengths_are_those_of_the_textbook(voltage_kV, expected_A):
    np.testing.assert_allclose(wavelength_A(np.array([voltage_kV], float)), expected_A, rtol=5e-5)


def test_the_origin_holds_the_amplitude_contrast():
    np.testing.assert_allclose(ctf_2d(params(), 8, 1.0)[0, 0, 0], 0.1, rtol=1e-6)
    shifted = ctf_2d(params(phase_shift_rad=math.pi / 2), 8, 1.0)[0, 0, 0]
    np.testing.assert_allclose(shifted, math.cos(math.asin(0.1)), rtol=1e-6)


@pytest.mark.parametrize("box", [32, 33])
def test_values_by_hand(box):
    """At 1/16 per A along x, 300 kV, 1.5 um: each term worked out with nothing but numbers."""
    pixel_size_A = 16 * 5 / box  # frequency index 5 lies at 5 / (box * pixel size) = 1/16
    found = ctf_2d(params(), box, pixel_size_A)[0]
    wavelength = 12.2643247 / math.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))
    of_defocus = math.pi * wavelength * 15000 / 16**2  # 3.62 rad
    of_cs = math.pi / 2 * 2.7e7 * wavelength**3 / 16**4  # 0.005 rad
    expected = math.sin(of_defocus - of_cs + math.asin(0.1))
    assert abs(of_defocus - 3.6239) < 1e-3
    assert abs(expected + 0.5461) < 1e-4
    np.testing.assert_allclose(found[0, 5], expected, atol=1e-6)
    np.testing.assert_allclose((found[5, 0], found[-5, 0], found[3, 4], found[-3, 4]), expected, atol=1e-6)


def test_cs_turns_the_phase_back():
    wavelength = float(wavelength_A(np.array([300.0]))[0])
    k = 0.25
    found = ctf_2d(params(defocus_u_A=0.0, defocus_v_A=0.0, amplitude_contrast=0.0), 8, 1.0)[0, 0, 2]
    np.testing.assert_allclose(found, -math.sin(math.pi / 2 * 2.7e7 * wavelength**3 * k**4), rtol=1e-4)


@pytest.mark.parametrize(("angle_deg", "row", "column"), [(0, 0, 6), (90, 6, 0), (45, 4, 4), (-45, -4, 4)])
def test_the_astigmatism_angle_counts_from_x_towards_y(angle_deg, row, column):
    """Along its angle the defocus is U, across it V; rows count downwards like y."""
    astigmatic = params(defocus_v_A=13000.0, astigmatism_rad=math.radians(angle_deg))
    along, across = (params(defocus_u_A=d, defocus_v_A=d) for d in (15000.0, 13000.0))
    found = ctf_2d(astigmatic, 32, 2.0)[0]
    np.testing.assert_allclose(found[row, column], ctf_2d(along, 32, 2.0)[0, row, column], atol=1e-6)
    crossed = (-column, row) if row > 0 or column == 0 else (column, -row)
    crossed = (crossed[0], crossed[1]) if crossed[1] >= 0 else (-crossed[0], -crossed[1])
    np.testing.assert_allclose(found[crossed], ctf_2d(across, 32, 2.0)[0][crossed], atol=1e-6)


def test_particles_are_independent_and_can_be_chosen():
    many = params(3, defocus_u_A=0.0)
    many = CtfParams(**{**vars(many), "defocus_u_A": np.array([1e4, 2e4, 3e4])})
    together = ctf_2d(many, 16, 2.0)
    assert together.shape == (3, 16, 9)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[[2, 0]], ctf_2d(many[[2, 0]], 16, 2.0))
    assert len(many[1:]) == 2


@pytest.mark.parametrize("field", list(vars(params())))
def test_a_particle_is_known_only_with_every_parameter(field):
    some = params(3)
    values = vars(some)[field].copy()
    values[1] = np.nan
    assert CtfParams(**{**vars(some), field: values}).known.tolist() == [True, False, True]


@pytest.mark.parametrize("box", [24, 25])
def test_flipping_makes_every_frequency_positive(box):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(2, box, box))
    given = params(2, defocus_v_A=13500.0, astigmatism_rad=0.4)
    transfer = ctf_2d(given, box, 2.0)
    seen = np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=(box, box)).astype(np.float32)
    flipped = flip_phases(seen, given, 2.0)
    expected = np.fft.irfft2(np.fft.rfft2(clean) * np.abs(transfer), s=(box, box))
    assert flipped.dtype == np.float32
    # On the Nyquist lines of an even box +k and -k share one number, and astigmatism may give them different signs.
    inner = np.abs(np.fft.fftfreq(box))[:, None] + 0 * np.fft.rfftfreq(box) < 0.499
    inner &= np.fft.rfftfreq(box)[None, :] < 0.499
    np.testing.assert_allclose((np.fft.rfft2(flipped) * inner), np.fft.rfft2(expected) * inner, atol=2e-4)


def odd_ones(n=3):
    """Parameters that differ in everything, astigmatic, with a phase plate."""
    rng = np.random.default_rng(5)
    return CtfParams(
        defocus_u_A=rng.uniform(1e4, 3e4, n),
        defocus_v_A=rng.uniform(1e4, 3e4, n),
        astigmatism_rad=rng.uniform(-3, 3, n),
        phase_shift_rad=rng.uniform(0, 2, n),
        voltage_kV=rng.choice([200.0, 300.0], n),
        cs_mm=rng.uniform(0.01, 2.7, n),
        amplitude_contrast=rng.uniform(0.05, 0.15, n),
    )


def by_formula(given, i, kx, ky):
    """The formula of the module's docstring, one particle and one frequency at a time."""
    volts, k = 1e3 * given.voltage_kV[i], math.hypot(kx, ky)
    wavelength = 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))
    u, v, angle = given.defocus_u_A[i], given.defocus_v_A[i], math.atan2(ky, kx) - given.astigmatism_rad[i]
    phase = math.pi * wavelength * ((u + v) / 2 + (u - v) / 2 * math.cos(2 * angle)) * k**2
    phase -= math.pi / 2 * 1e7 * given.cs_mm[i] * wavelength**3 * k**4
    return math.sin(phase + given.phase_shift_rad[i] + math.asin(given.amplitude_contrast[i]))


@pytest.mark.parametrize("block", [1, 1000, 1 << 17])
@pytest.mark.parametrize("box", [12, 13])
def test_every_value_is_that_of_the_formula(box, block, monkeypatch):
    monkeypatch.setattr(ctf, "BLOCK", block)
    given, step = odd_ones(), 1 / (box * 1.3)
    found = ctf_2d(given, box, 1.3)
    for i in range(len(given)):
        expected = [
            [by_formula(given, i, step * column, step * (row if row < (box + 1) // 2 else row - box))]
            for row in range(box)
            for column in range(box // 2 + 1)
        ]
        np.testing.assert_allclose(found[i].ravel(), np.ravel(expected), atol=1e-6)


@pytest.mark.parametrize("block", [1, 1000, 1 << 17])
@pytest.mark.parametrize("box", [12, 13])
def test_ring_power_is_the_mean_over_the_pixels_of_a_ring(box, block, monkeypatch):
    monkeypatch.setattr(ctf, "BLOCK", block)
    given, step = odd_ones(), 1 / (box * 1.3)
    found = ring_power(given, box, 1.3)
    assert (found.shape, found.dtype) == ((3, box // 2 + 1), np.float32)
    sizes = np.zeros(box // 2 + 1, int)
    for i in range(len(given)):
        rings = [[] for _ in range(box)]
        for row in range(-(box // 2), (box + 1) // 2):
            for column in range(-(box // 2), (box + 1) // 2):
                # On an even box's row of the Nyquist frequency, rfft2 stands for -kx with the value at kx.
                kx = abs(column) if 2 * row == -box else column
                rings[round(math.hypot(row, column))].append(by_formula(given, i, step * kx, step * row) ** 2)
        np.testing.assert_allclose(found[i], [np.mean(ring) for ring in rings[: box // 2 + 1]], atol=1e-6)
        sizes = [len(ring) for ring in rings[: box // 2 + 1]]
    assert ring_sizes(box).tolist() == sizes
    assert len(ring_power(given[:0], box, 1.3)) == len(ctf_2d(given[:0], box, 1.3)) == 0


@pytest.mark.parametrize("block", [1, 1 << 17])
@pytest.mark.parametrize("flipped", [False, True])
def test_an_image_times_its_ctf_is_the_clean_one_times_the_square(flipped, block, monkeypatch):
    monkeypatch.setattr(ctf, "BLOCK", block)
    box, given = 25, odd_ones()
    clean = np.random.default_rng(0).normal(size=(3, box, box)).astype(np.float32)
    transfer = ctf_2d(given, box, 2.0)

    def filtered(by):
        return np.fft.irfft2(np.fft.rfft2(clean) * by, s=(box, box)).astype(np.float32)

    seen = filtered(np.abs(transfer) if flipped else transfer)
    found = multiply(seen, given, 2.0, absolute=flipped)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, filtered(transfer**2), atol=1e-5)
    assert np.abs(multiply(seen, given, 2.0, absolute=not flipped) - found).max() > 0.3


@pytest.mark.parametrize("name", ["phase_shift_rad", "astigmatism_rad", "defocus_v_A", "cs_mm", "amplitude_contrast"])
def test_no_parameter_is_ignored(name):
    given = odd_ones()
    other = CtfParams(**(vars(given) | {name: vars(given)[name] * 1.1 + 0.05}))
    images = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    assert np.abs(multiply(images, given, 1.0) - multiply(images, other, 1.0)).max((1, 2)).min() > 0.01
    assert np.abs(ring_power(given, 32, 1.0) - ring_power(other, 32, 1.0)).max(1).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("defocus_u_A", 0.0, "defocus U"),
        ("defocus_v_A", -5e3, "defocus V"),
        ("defocus_u_A", 3e5, "defocus U"),
        ("voltage_kV", 0.0, "voltage"),
        ("amplitude_contrast", -0.1, "amplitude contrast"),
        ("amplitude_contrast", 7.0, "amplitude contrast"),
    ],
)
def test_what_no_microscope_has_is_found(name, value, words):
    given = odd_ones()
    assert not list(given.absurdities())
    vars(given)[name][1] = value
    [(bad, values, wrong)] = given.absurdities()
    assert bad.tolist() == [False, True, False]
    assert values[1] == value
    assert words in wrong
