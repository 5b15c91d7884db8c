"""Size and contrast of particles that are known: drawn with sharp outlines, in noise, and seen through a microscope."""

import math

import numpy as np
import pytest

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.imaging import ctf, geometry
from emspatialvae.imaging.ctf import CtfParams
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess.particle_size import ParticleSize, measure_particle
from emspatialvae.preprocess.plan import decide

BOX, PARTICLES = 65, 800
PIXEL_A = 3.5
X, Y = geometry.pixel_grid(BOX)


def outline(inside: np.ndarray) -> np.ndarray:
    """Edges one pixel wide from signed distances to them (px), positive inside."""
    return (inside + 0.5).clip(0, 1)


def moved(n: int, spread_px: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates about the centre of each of n particles, which shifts have moved; two of [n, box, box]."""
    dx, dy = rng.normal(0, spread_px, (2, n, 1, 1))
    return X - dx, Y - dy


def disks(
    n: int, radius_px: float, rng: np.random.Generator, spread_px: float = 0.0, *, sharp: bool = False
) -> np.ndarray:
    """Particles that differ in what is inside: lumps at random places within one outline, that of a ball or of a sharp disk."""
    x, y = moved(n, spread_px, rng)
    r = np.hypot(x, y)
    whole = outline(radius_px - r) if sharp else np.sqrt((radius_px**2 - r**2).clip(0)) / radius_px
    angle, far = rng.uniform(-np.pi, np.pi, (3, n, 1, 1)), (radius_px - 3) * rng.uniform(0, 1, (3, n, 1, 1)) ** 0.5
    lumps = sum(
        np.exp(-((x - r * np.cos(a)) ** 2 + (y - r * np.sin(a)) ** 2) / 8) for a, r in zip(angle, far, strict=True)
    )
    return whole * (0.6 + lumps)


def rods(n: int, long_px: float, wide_px: float, rng: np.random.Generator) -> np.ndarray:
    """Projections of round rods of half length and radius with rounded ends, at random angles."""
    angle = rng.uniform(0, np.pi, (n, 1, 1))
    u, v = np.cos(angle) * X + np.sin(angle) * Y, np.cos(angle) * Y - np.sin(angle) * X
    off = np.hypot((np.abs(u) - (long_px - wide_px)).clip(0), v)
    return np.sqrt((wide_px**2 - off**2).clip(0)) / wide_px


def shells(n: int, radius_px: float, wall_px: float, rng: np.random.Generator) -> np.ndarray:
    """Projections of hollow balls with patches on their walls."""
    r = np.hypot(X, Y)
    through = 2 * (np.sqrt((radius_px**2 - r**2).clip(0)) - np.sqrt(((radius_px - wall_px) ** 2 - r**2).clip(0)))
    angle = np.arctan2(Y, X)
    patches = 1 + 0.5 * np.cos(3 * (angle - rng.uniform(-np.pi, np.pi, (n, 1, 1))))
    return through / through.max() * patches


def noisy(clean: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """Images with noise of s.d. 1 (and background about 0, as they are when they are prepared)."""
    return (height * clean + rng.standard_normal(clean.shape)).astype(np.float32)


def seen_through_a_microscope(
    clean: np.ndarray, rng: np.random.Generator, defocus_A: float
) -> tuple[np.ndarray, np.ndarray]:
    """Particles (dark ones are negative) as images with phases flipped, and the mean CTF that acted on them."""
    n = len(clean)
    defocus = defocus_A + rng.uniform(-2000, 2000, n)
    usual = {
        "astigmatism_rad": 0.0,
        "phase_shift_rad": 0.0,
        "voltage_kV": 300.0,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
    }
    params = CtfParams(defocus_u_A=defocus, defocus_v_A=defocus, **{k: np.full(n, v) for k, v in usual.items()})
    transfer = ctf.ctf_2d(params, BOX, PIXEL_A)
    images = np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=(BOX, BOX))
    flipped = ctf.flip_phases((images + 0.3 * rng.standard_normal(images.shape)).astype(np.float32), params, PIXEL_A)
    return flipped / 0.3, np.abs(transfer).mean(0).astype(float)


def assert_is(size: ParticleSize, radius_px: float, sign: int) -> None:
    assert size.sign == sign
    assert size.found
    assert size.radius_px == pytest.approx(radius_px, abs=1.5)
    assert size.contrast_z > 3


# ------------------------------------------------------------------------------------------------------------- known sizes


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("radius_px", [9.0, 16.0, 24.0])
def test_disk(radius_px, sign):
    rng = np.random.default_rng(0)
    assert_is(measure_particle(noisy(disks(PARTICLES, radius_px, rng), sign * 1.0, rng)), radius_px, sign)


@pytest.mark.parametrize("radius_px", [9.0, 16.0, 24.0])
def test_sharp_disk(radius_px):
    """An outline that no projection has is found where the low-pass filter (1.7 px) has spread it: never within the particle."""
    rng = np.random.default_rng(0)
    size = measure_particle(noisy(disks(PARTICLES, radius_px, rng, sharp=True), -1.0, rng))
    assert size.sign == -1
    assert radius_px <= size.radius_px <= radius_px + 2.5


def test_all_particles_alike():
    """Nothing varies: the mean alone says where they end."""
    rng = np.random.default_rng(1)
    one = np.sqrt((14**2 - X**2 - Y**2).clip(0))[None] / 14
    assert_is(measure_particle(noisy(np.repeat(one, PARTICLES, 0), -0.3, rng)), 14, -1)


@pytest.mark.parametrize("sign", [1, -1])
def test_hollow_shell_through_a_microscope(sign):
    """Fringes about it, little density in the middle: the mean image is as often dark as bright."""
    rng = np.random.default_rng(2)
    clean = sign * shells(PARTICLES, 18.0, 4.0, rng)
    images, transfer = seen_through_a_microscope(clean, rng, 15_000.0)
    assert_is(measure_particle(images, transfer), 18.0, sign)


def test_the_ctf_of_fringes_is_part_of_the_fit():
    """The density that is found ends where the particle does, although the mean image swings on beyond it."""
    rng = np.random.default_rng(2)
    images, transfer = seen_through_a_microscope(-shells(PARTICLES, 14.0, 4.0, rng), rng, 25_000.0)
    size = measure_particle(images, transfer)
    assert size.sign == -1
    wave = size.mean - np.median(size.mean)
    assert wave.max() > 0.15 * -wave.min()  # fringes there are
    outside = size.density[18:28]
    assert outside.max() < 0.25 * size.density.max()


@pytest.mark.parametrize("sign", [1, -1])
def test_long_rod_at_random_angles(sign):
    """It is as large as it is long, though the mean over all angles fades away long before."""
    rng = np.random.default_rng(3)
    assert_is(measure_particle(noisy(rods(PARTICLES, 22.0, 3.5, rng), sign * 1.5, rng)), 22.0, sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_crowded_neighbours(sign):
    """Others all about, at 1.2 diameters from centre to centre: they are not part of it."""
    rng = np.random.default_rng(4)
    radius_px = 12.0
    clean = disks(PARTICLES, radius_px, rng)
    # Neighbours begin at 1.4 radii.
    angle = rng.uniform(-np.pi, np.pi, PARTICLES)
    for k in range(5):
        at = angle + 2 * np.pi * k / 5
        far = 2.4 * radius_px * (1 + 0.25 * rng.random(PARTICLES))
        there = rng.random(PARTICLES) < 0.7
        off = np.hypot(X - (far * np.cos(at))[:, None, None], Y - (far * np.sin(at))[:, None, None])
        clean += there[:, None, None] * outline(radius_px - off)
    assert_is(measure_particle(noisy(clean, sign * 1.0, rng)), radius_px, sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_of_two_pixels(sign):
    """S.d. 2 px along each axis: the circle about the box's centre that holds nearly all of them is larger by two of these."""
    rng = np.random.default_rng(5)
    assert_is(measure_particle(noisy(disks(PARTICLES, 15.0, rng, spread_px=2.0), sign * 1.0, rng)), 15 + 2 * 2, sign)


def test_the_radius_does_not_follow_the_noise():
    for height in (0.5, 1.0, 4.0):
        rng = np.random.default_rng(6)
        assert_is(measure_particle(noisy(disks(PARTICLES, 15.0, rng), height, rng)), 15.0, 1)


def test_a_few_bad_images_do_not_count():
    """Ice and carbon in one image of fifty, much stronger than particles."""
    rng = np.random.default_rng(7)
    images = noisy(disks(PARTICLES, 14.0, rng), -1.0, rng)
    images[::50] += 10 * (X > 12)
    assert_is(measure_particle(images), 14.0, -1)


# ------------------------------------------------------------------------------------------------------------ nothing there


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_neither_size_nor_sign(seed):
    size = measure_particle(np.random.default_rng(seed).standard_normal((PARTICLES, BOX, BOX)).astype(np.float32))
    assert size.sign == 0 and not size.found and math.isnan(size.radius_px)


def test_too_few_images_say_nothing():
    """Two of them, as few as there may be: no error, no claim."""
    size = measure_particle(np.random.default_rng(0).standard_normal((2, BOX, BOX)).astype(np.float32))
    assert size.sign == 0


def test_images_that_hold_nothing_at_all():
    size = measure_particle(np.zeros((40, BOX, BOX), np.float32))
    assert size.sign == 0 and not size.found


# ---------------------------------------------------------------------------------------------------------------- profiles


def test_profiles_are_those_of_the_particles():
    rng = np.random.default_rng(8)
    size = measure_particle(noisy(disks(PARTICLES, 15.0, rng), 1.0, rng))
    assert size.mean.shape == size.spread.shape == (BOX // 2 + 1,)
    assert size.density.shape == (BOX // 2,)
    assert (size.density >= 0).all() and (size.spread >= 0).all()
    assert size.mean[:12].mean() > 0.4 and abs(size.mean[22:].mean()) < 0.05
    assert size.spread[3:12].min() > 3 * size.spread[24:].max()
    assert size.density[20:].max() < 0.1 * size.density.max()


# --------------------------------------------------------------------------------------------------------------- real data


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "least_A", "most_A"),
    [("betagal_10017.star", 153, 207), ("apoferritin_10146.star", 113, 139)],
    ids=["beta-galactosidase", "apoferritin"],
)
def test_particles_of_known_size(real_data, name, least_A, most_A):
    file = real_data / "real" / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    stack = load_particles(InputConfig(file))
    decision = decide(stack, PrepareConfig(), engine="steerable")
    preparation = decision.preparation
    assert preparation.invert  # dark
    assert decision.particle is not None and decision.particle.sign == -1
    assert least_A <= 2 * preparation.particle_radius_px * preparation.pixel_size_A <= most_A
    # Apoferritin leaves no room about it: there the box's own size is taken.
    room = 2 * most_A < preparation.box * preparation.pixel_size_A
    assert decision.particle.found or not room


def test_one_image_is_no_measurement_and_no_warning(recwarn):
    """A file of one particle: nothing is known, and numpy's warnings are not the user's business."""
    found = measure_particle(np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32))
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    assert found.contrast_z == 0 or not np.isfinite(found.contrast_z)
