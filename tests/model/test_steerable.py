"""The steerable basis and the Fourier plane against sums over pixels, scipy's spline rotation, and single bright dots."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.model.steerable.basis import MAX_BYTES, Disk, SteerableBasis, affordable_frequency, bessel_rings
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.ring_metric import RingMetric, effective_ring
from emspatialvae.model.steerable.shifted_coefficients import ShiftedCoefficients

BOXES = [16, 33, 40, 65]


@pytest.fixture(scope="module")
def full():
    """The full basis of a box, made once."""
    made: dict[tuple[int, float], SteerableBasis] = {}

    def of(box: int, max_frequency: float = 0.5) -> SteerableBasis:
        if (box, max_frequency) not in made:
            made[box, max_frequency] = SteerableBasis.full(Disk(box, box / 2 - 0.5), max_frequency)
        return made[box, max_frequency]

    return of


def blobs(box: int, n: int = 4, sigma: float = 2.0, seed: int = 0) -> np.ndarray:
    """Smooth images that end well within the disk; [n, box, box]."""
    rng = np.random.default_rng(seed)
    x, y = geometry.pixel_grid(box)
    images = np.zeros((n, box, box))
    for image in images:
        for _ in range(5):
            reach = box / 2 - 4 * sigma
            r, phi = max(0.0, reach) * math.sqrt(rng.random()), 2 * np.pi * rng.random()
            cx, cy = r * math.cos(phi), r * math.sin(phi)
            image += rng.normal() * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return images


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values)).float()


def posed(image: np.ndarray, theta: float, shift_x: float = 0.0, shift_y: float = 0.0) -> np.ndarray:
    """``image(p) = object(R(-theta) (p - shift))`` by scipy's splines."""
    box = image.shape[-1]
    x, y = geometry.pixel_grid(box)
    u, v = geometry.image_to_object_xy(x, y, math.cos(theta), math.sin(theta), shift_x, shift_y)
    return ndimage.map_coordinates(image, [v + box // 2, u + box // 2], order=5, mode="constant")


def random_coefficients(basis: SteerableBasis, n: int, seed: int = 0) -> torch.Tensor:
    """Coefficients of images: order 0 has no imaginary part."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2 * basis.size, generator=generator) * basis.live


# ------------------------------------------------------------------------------------------------------------ the basis


@pytest.mark.parametrize("box", BOXES)
def test_components_of_one_order_are_orthonormal(full, box):
    basis = full(box)
    re, im = basis.vectors.double().chunk(2)
    for m in basis.order.unique():
        rows = basis.order == m
        functions = torch.complex(re[rows], -im[rows])
        gram = functions @ functions.conj().T
        expected = torch.eye(len(gram)) * (1 if m == 0 else 2)  # of real and imaginary part each 1
        assert float((gram - expected).abs().max()) < 1e-5
    assert not im[basis.order == 0].any()


@pytest.mark.parametrize("box", BOXES)
def test_components_live_on_the_disk(full, box):
    x, y = geometry.pixel_grid(box)
    outside = torch.from_numpy(np.hypot(x, y).ravel() > box / 2 - 0.5)
    assert not full(box).vectors[:, outside].any()


@pytest.mark.parametrize("box", BOXES)
def test_live_coefficients_are_those_of_images(full, box):
    basis = full(box)
    assert int(basis.live.sum()) == basis.size + int((basis.order > 0).sum())
    found = basis.coefficients(torch.randn(20, box, box, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found != 0, basis.live.bool().expand(20, -1))


@pytest.mark.parametrize("box", [33, 40])
def test_different_orders_are_nearly_orthonormal(full, box):
    """The grid's four-fold symmetry couples m and m + 4, hardly where angular and radial frequencies are low."""
    basis = full(box, 0.25)
    re, im = basis.vectors.double().chunk(2)
    functions = torch.complex(re, -im)
    gram = (functions @ functions.conj().T).abs()
    other = (basis.order[:, None] != basis.order) & (basis.order[:, None] < 8) & (basis.order < 8)
    assert float(gram[other].max()) < 0.3
    assert float((gram[other] ** 2).mean().sqrt()) < 0.02
    apart = (basis.order[:, None] - basis.order).abs() % 4 > 0
    assert float(gram[apart].max()) < 1e-5


@pytest.mark.parametrize("box", BOXES)
def test_smooth_images_come_back_and_keep_their_squares(full, box):
    basis, images = full(box), tensor(blobs(box, sigma=max(1.5, box / 20)))
    found = basis.coefficients(images)
    again = basis.images(found)
    assert float((again - images).norm() / images.norm()) < 0.02
    assert torch.allclose((found**2).sum(-1), (images**2).sum((-2, -1)), rtol=0.01)


@pytest.mark.parametrize("box", [32, 33])
def test_white_noise_stays_white(full, box):
    """Within an order exactly; a component's real and imaginary part share their variance of 2, not always evenly."""
    basis = full(box, 0.3)
    n = 2000
    found = basis.coefficients(torch.randn(n, box, box, generator=torch.Generator().manual_seed(0)))
    assert float((found**2).sum(1).mean()) / int((basis.order > 0).sum() + basis.size) == pytest.approx(1, abs=5e-3)
    a = torch.complex(*found.chunk(2, -1))
    for m in basis.order.unique():
        of_m = a[:, basis.order == m]
        covariance = of_m.T @ of_m.conj() / n / (1 if m == 0 else 2)
        assert float((covariance - torch.eye(len(covariance))).abs().max()) < 5 * n**-0.5


@pytest.mark.parametrize("box", [32, 33])
def test_rotation_moves_a_dot_from_x_towards_y(box):
    """The house's sign: a bright dot on the +x axis ends on the +y axis (downwards) after a quarter turn."""
    basis = SteerableBasis.full(Disk(box, box / 2 - 0.5))
    dot = torch.zeros(box, box)
    dot[box // 2, box // 2 + 8] = 1
    turned = basis.images(basis.rotate(basis.coefficients(dot), torch.tensor(math.pi / 2)))
    assert divmod(int(turned.argmax()), box) == (box // 2 + 8, box // 2)
    eighth = basis.images(basis.rotate(basis.coefficients(dot), torch.tensor(math.pi / 4)))
    assert divmod(int(eighth.argmax()), box) == (box // 2 + 6, box // 2 + 6)


@pytest.mark.parametrize("theta", [0.3, -1.2, 2.9])
@pytest.mark.parametrize("box", [33, 40])
def test_rotation_is_that_of_splines(full, box, theta):
    basis, images = full(box), blobs(box, sigma=2.5)
    turned = basis.images(basis.rotate(basis.coefficients(tensor(images)), torch.tensor(theta)))
    expected = np.stack([posed(image, theta) for image in images])
    assert float(np.abs(turned.numpy() - expected).max()) < 0.01 * np.abs(images).max()


def test_turns_add_up_and_keep_lengths(full):
    basis = full(33)
    a = random_coefficients(basis, 3)
    theta = torch.tensor([0.4, -2.0, 3.0])
    twice = basis.rotate(basis.rotate(a, theta), 0.7 - theta)
    assert torch.allclose(twice, basis.rotate(a, torch.full((3,), 0.7)), atol=1e-4)
    assert torch.allclose(basis.rotate(a, theta).norm(dim=1), a.norm(dim=1), rtol=1e-5)


def test_correlate_is_the_inner_product_at_every_angle(full):
    basis = full(33)
    a, b = random_coefficients(basis, 4, 1), random_coefficients(basis, 4, 2)
    angles = torch.linspace(-3, 3, 11)
    found = basis.correlate(a, b, angles)
    assert found.shape == (4, 11)
    for g, angle in enumerate(angles):
        expected = (a * basis.rotate(b, angle.expand(4))).sum(-1)
        assert torch.allclose(found[:, g], expected, atol=2e-3)
    pairs = basis.correlate(a[:, None], b[None], angles)
    assert pairs.shape == (4, 4, 11)
    assert torch.allclose(pairs[range(4), range(4)], found, atol=1e-3)


def test_correlate_of_smooth_images_is_that_of_their_pixels(full):
    basis = full(40)
    a, b = blobs(40, 1, 2.5, 3)[0], blobs(40, 1, 2.5, 4)[0]
    angles = [0.0, 0.5, -2.0]
    found = basis.correlate(basis.coefficients(tensor(a)), basis.coefficients(tensor(b)), torch.tensor(angles))
    expected = [(a * posed(b, angle)).sum() for angle in angles]
    assert found.tolist() == pytest.approx(expected, abs=0.01 * np.linalg.norm(a) * np.linalg.norm(b))


def test_turning_is_the_derivative_of_rotate(full):
    basis = full(33).double()
    try:
        a = random_coefficients(basis, 3).double()
        step = torch.full((3,), 1e-5, dtype=torch.float64)
        slope = (basis.rotate(a, step) - basis.rotate(a, -step)) / 2e-5
        assert torch.allclose(basis.turning(a), slope, atol=1e-6)
    finally:
        basis.float()


@pytest.mark.parametrize("box", [32, 33])
def test_drawn_on_a_finer_grid(full, box):
    """Any sampling: at the same box the images themselves, on a grid twice as fine they lie on every second pixel."""
    basis = full(box, 0.4)
    a = basis.coefficients(tensor(blobs(box, 3)))
    coarse = basis.images(a)
    assert torch.equal(basis.draw(a, box), coarse)
    fine = basis.draw(a, 2 * box)
    start = (2 * box) // 2 - 2 * (box // 2)
    assert torch.allclose(fine[:, start::2, start::2][:, :box, :box], coarse, atol=1e-4)
    third = basis.draw(a, 3 * box)
    start = (3 * box) // 2 - 3 * (box // 2)
    assert torch.allclose(third[:, start::3, start::3][:, :box, :box], coarse, atol=1e-4)


def test_a_box_of_256_pixels():
    """Real boxes: all that fits into memory, here a part of it that does not take long."""
    highest = affordable_frequency(256, 127.5)
    assert 0.1 < highest < 0.5
    functions = sum(len(k) for k in bessel_rings(256, 127.5, highest))
    assert 8 * functions * math.pi * 127.5**2 <= MAX_BYTES
    assert affordable_frequency(64, 31.5) == 0.5
    basis = SteerableBasis.full(Disk(256, 127.5), 0.03)
    images = tensor(blobs(256, 2, sigma=20))
    again = basis.images(basis.coefficients(images))
    assert float((again - images).norm() / images.norm()) < 0.02


def test_boxes_that_cannot_be():
    with pytest.raises(EmsvaeError, match="15 px is too small"):
        SteerableBasis.full(Disk(15, 7.0))
    with pytest.raises(EmsvaeError, match="--box 256"):
        affordable_frequency(1500, 750)


# ---------------------------------------------------------------------------------------------------- the Fourier plane


@pytest.mark.parametrize("box", BOXES)
def test_transform_and_back(box):
    plane = FourierPlane(box)
    images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plane.images(plane.transform(images)), images, atol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_inner_products_in_the_plane_are_those_of_pixels(box):
    plane = FourierPlane(box)
    a, b = torch.randn(2, box, box, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([plane.weight, plane.weight])
    assert float((plane.transform(a) * plane.transform(b) * weight).sum()) == pytest.approx(
        float((a * b).sum()), abs=1e-2
    )


@pytest.mark.parametrize("max_ring", [None, 9])
@pytest.mark.parametrize("box", BOXES)
def test_an_image_less_its_mean(box, max_ring):
    """In the plane and in components, whichever frequencies are looked at."""
    plane = FourierPlane(box, max_ring)
    images = 1 + torch.randn(3, box, box, generator=torch.Generator().manual_seed(0))
    found = plane.images(plane.without_level(plane.transform(images)))
    kept = plane.images(plane.transform(images))
    assert torch.allclose(found, kept - images.mean((1, 2), keepdim=True), atol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_moves_by_whole_pixels(box):
    """`move_back` takes a shift out: content at +shift comes to the centre."""
    plane = FourierPlane(box)
    images = torch.randn(2, box, box, generator=torch.Generator().manual_seed(0))
    moved = plane.images(plane.move_back(plane.transform(images), torch.tensor([[3.0, -2.0], [0.0, 5.0]])))
    assert torch.allclose(moved[0], torch.roll(images[0], (2, -3), (0, 1)), atol=1e-4)
    assert torch.allclose(moved[1], torch.roll(images[1], (-5, 0), (0, 1)), atol=1e-4)
    dot = torch.zeros(box, box)
    dot[box // 2 - 4, box // 2 + 6] = 1
    back = plane.images(plane.move_back(plane.transform(dot), torch.tensor([6.0, -4.0])))
    assert divmod(int(back.argmax()), box) == (box // 2, box // 2)


@pytest.mark.parametrize("box", [33, 40])
def test_moves_by_parts_of_a_pixel(box):
    plane, image = FourierPlane(box), blobs(box, 1, 2.5)[0]
    moved = plane.images(plane.move_back(plane.transform(tensor(image)), torch.tensor([1.3, -0.6])))
    expected = ndimage.shift(image, (0.6, -1.3), order=5)
    assert np.abs(moved.numpy() - expected).max() < 2e-3 * np.abs(image).max()


@pytest.mark.parametrize("max_ring", [None, 12])
@pytest.mark.parametrize("box", [33, 40])
def test_shifted_coefficients_are_those_of_images_moved_back(full, box, max_ring):
    """All of them, some of them, and without a shift; half of what they say comes from the opposite shifts."""
    basis, plane = full(box, 0.3), FourierPlane(box, max_ring)
    shifts = torch.tensor([[0.0, 0.0], [1.5, -2.25], [-1.5, 2.25], [3.0, 0.0], [-3.0, 0.0]])
    transform = plane.transform(torch.randn(3, box, box, generator=torch.Generator().manual_seed(1)))
    some = torch.arange(2 * basis.size)[::3].flip(0)
    shifted = ShiftedCoefficients(basis, plane, shifts)
    assert {tuple(shift) for shift in shifted.shifts.tolist()} == {tuple(shift) for shift in shifts.tolist()}
    found = shifted(transform)
    for s, shift in enumerate(shifted.shifts):
        expected = basis.coefficients(plane.images(plane.move_back(transform, shift)))
        # A frequency at the edge of an even box has no sign: half a pixel there is nobody's.
        assert float((found[:, s] - expected).norm() / expected.norm()) < (1e-4 if box % 2 else 2e-3)
    assert torch.allclose(ShiftedCoefficients(basis, plane, shifts, some)(transform), found[..., some], atol=1e-4)
    assert torch.allclose(ShiftedCoefficients(basis, plane, torch.zeros(1, 2))(transform), found[:, :1], atol=1e-4)


def test_frequencies_without_power_are_left_out(full):
    """Of white noise, coefficients then lose about the share of the functions' power that lies there."""
    basis, plane, shifts = full(33, 0.3), FourierPlane(33), torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    images = plane.transform(torch.randn(200, 33, 33, generator=torch.Generator().manual_seed(1)))
    whole, most = (ShiftedCoefficients(basis, plane, shifts, power=power) for power in (1.0, 0.95))
    assert len(most.frequencies) < 0.8 * len(whole.frequencies) == 0.8 * len(plane.ring)
    lost = float(((whole(images) - most(images)) ** 2).mean() / (whole(images) ** 2).mean())
    assert 0.005 < lost < 0.05


@pytest.mark.parametrize("box", BOXES)
def test_white_noise_has_ring_means_of_one(box):
    plane = FourierPlane(box)
    images = torch.randn(2000, box, box, generator=torch.Generator().manual_seed(2))
    means = plane.ring_means(plane.transform(images)).mean(0)
    pixels = torch.zeros(plane.rings).index_add_(0, plane.ring, plane.weight * box**2)
    assert means.shape == (box // 2 + 1,)
    assert float(((means - 1) / (2 / (2000 * pixels)).sqrt()).abs().max()) < 4


@pytest.mark.parametrize("box", [33, 40])
def test_ring_factors_are_filters(box):
    """A factor per ring: multiplying rings of white noise by s multiplies their power by s^2, and no other ring's."""
    plane = FourierPlane(box)
    transform = plane.transform(torch.randn(2, box, box, generator=torch.Generator().manual_seed(3)))
    factors = torch.linspace(0.5, 2, plane.rings)
    filtered = transform * plane.by_ring(factors)
    assert torch.allclose(plane.ring_means(filtered), factors**2 * plane.ring_means(transform), rtol=1e-4)
    image = plane.images(filtered)
    assert torch.allclose(plane.transform(image), filtered, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------- ring power


def drawn_ring_power(images: torch.Tensor) -> torch.Tensor:
    """Sum of |F|^2 / box^2 over each ring, by the whole FFT; [n, box // 2 + 1]."""
    box = images.shape[-1]
    squares = torch.fft.fft2(images.double()).abs() ** 2 / box**2
    axis = torch.fft.fftfreq(box) * box
    ring = torch.round(torch.hypot(axis[:, None], axis[None])).long().clamp(max=box // 2)
    return torch.stack([squares[:, ring == r].sum(1) for r in range(box // 2 + 1)], 1).float()


@pytest.mark.parametrize("box", [16, 33, 40])
def test_ring_power_is_that_of_the_drawn_image(full, box):
    """Of the image at all angles, on average; a ring of few pixels has more or less of it at one of them."""
    basis = full(box, 0.35)
    power = RingMetric(basis, FourierPlane(box)).ring_power
    a = basis.coefficients(tensor(blobs(box, 3, sigma=1.5)))
    angles = torch.arange(90) * (2 * math.pi / 90)
    turned = basis.rotate(a[:, None], angles)
    drawn = drawn_ring_power(basis.images(turned).flatten(0, 1)).unflatten(0, (3, 90))
    found = power(a)
    scale = float(found.max())
    assert float((found - drawn.mean(1)).abs().max()) < 1e-3 * scale
    assert float((found[:, None] - drawn).pow(2).mean().sqrt()) < 0.05 * scale
    assert torch.allclose(found.sum(1), (basis.images(a) ** 2).sum((1, 2)), rtol=0.01)


def test_ring_power_does_not_know_the_angle(full):
    basis = full(33, 0.35)
    power = RingMetric(basis, FourierPlane(33)).ring_power
    a = random_coefficients(basis, 20)
    assert torch.allclose(power(a), power(basis.rotate(a, torch.linspace(0.5, 3, 20))), rtol=2e-3)


def test_squares_weighted_by_ring(full):
    basis = full(33, 0.35)
    metric = RingMetric(basis, FourierPlane(33))
    factors = torch.rand(4, metric.rings, generator=torch.Generator().manual_seed(0)) + 0.1
    one, many = random_coefficients(basis, 4), random_coefficients(basis, 20).unflatten(0, (4, 5))
    expected = (factors * metric.ring_power(one)).sum(-1)
    assert torch.allclose(metric.square(one, factors), expected, rtol=1e-4)
    power = metric.ring_power(many.flatten(0, 1)).unflatten(0, (4, 5))
    assert torch.allclose(metric.square(many, factors), (factors[:, None] * power).sum(-1), rtol=1e-4)


def test_products_weighted_by_ring(full):
    """Against the Fourier planes of the drawn images; and they are the squares of sums."""
    basis, plane = full(33, 0.35), FourierPlane(33)
    metric = RingMetric(basis, plane)
    a, b = (basis.coefficients(tensor(blobs(33, 3, 2.0, seed))) for seed in (0, 1))
    factors = torch.linspace(2, 0.5, metric.rings).expand(3, -1)
    found = metric.products(a, b, factors)
    weight = torch.cat([plane.weight, plane.weight])
    left, right = plane.transform(basis.images(a)), plane.transform(basis.images(b))
    drawn = (left * right * plane.by_ring(factors) * weight).sum(1)
    norms = metric.square(a, factors).sqrt() * metric.square(b, factors).sqrt()
    assert float(((found - drawn) / norms).abs().max()) < 0.02
    whole = metric.square(a + b, factors)
    assert torch.allclose(whole, metric.square(a, factors) + 2 * found + metric.square(b, factors), rtol=1e-4)


@pytest.mark.parametrize("box", [33, 40])
def test_components_of_an_image_less_its_mean(full, box):
    """The square loses what the mean over the box had in it; so does the inner product with any other image."""
    basis = full(box, 0.3)
    metric = RingMetric(basis, FourierPlane(box))
    a, b = random_coefficients(basis, 6).chunk(2)
    pixels, other = (basis.images(c).double() for c in (a, b))
    means = pixels.mean((1, 2))
    assert torch.allclose((a @ metric.level).double(), means * box, atol=1e-4)
    expected = ((pixels - means[:, None, None]) * other).sum((1, 2))
    within = ((pixels * other).sum((1, 2)) - (a * b).sum(1)).abs().max()  # components are not quite orthonormal
    found = (metric.without_level(a) * b).sum(1)
    assert float((found - expected).abs().max()) < float(within) + 1e-3
    assert float((found - (a * b).sum(1)).abs().max()) > 1e-2


@pytest.mark.parametrize("box", [40, 65])
@pytest.mark.parametrize("limit", [0.15, 0.25, 0.35])
def test_effective_ring_keeps_particles_whole(full, box, limit):
    """What the components hold of a particle is within the ring, as a whole and where the particle is."""
    basis = full(box, limit)
    cut = FourierPlane(box, effective_ring(basis))
    assert effective_ring(basis) == math.floor(limit * box + 0.5) + 2
    held = basis.images(basis.coefficients(tensor(blobs(box, 10, sigma=0.5 / limit))))
    lost = held - cut.images(cut.transform(held))
    assert float((lost**2).sum() / (held**2).sum()) < 1e-3
    x, y = geometry.pixel_grid(box)
    inner = tensor(np.hypot(x, y) < 0.8 * basis.radius_px)
    assert float(((lost * inner) ** 2).sum() / (held**2).sum()) < 2e-4


def test_effective_ring_of_a_whole_basis_is_the_whole_plane(full):
    """The last ring stands for the corners as well, so it is all or nothing there."""
    for box in (33, 40):
        assert len(FourierPlane(box, effective_ring(full(box))).where) == box * (box // 2 + 1)


# ----------------------------------------------------------------------------------------------------- disks, soft edges


@pytest.mark.parametrize(("box", "radius_px", "edge_px"), [(33, 12.0, 4.0), (40, 15.3, 2.0), (33, 10.0, 0.0)])
def test_a_disk_with_a_soft_edge(box, radius_px, edge_px):
    """One in the middle, half in the middle of the edge, nothing at the radius and beyond, and never rising outwards."""
    disk = Disk(box, radius_px, edge_px)
    r = np.linspace(0, box / 2, 2001)
    window = disk.window(r)
    assert (window[r <= radius_px - edge_px] == 1).all()
    assert not window[r > radius_px + 1e-9].any()
    assert (np.diff(window) <= 0).all()
    if edge_px:
        assert float(disk.window(np.array(radius_px - edge_px / 2))) == pytest.approx(0.5)
        assert np.abs(np.diff(window)).max() < 2 * np.pi / 2 / edge_px * (r[1] - r[0])  # no step


@pytest.mark.parametrize(("radius_px", "edge_px"), [(12.0, 4.0), (14.5, 2.0)])
def test_components_of_a_disk_with_a_soft_edge(radius_px, edge_px):
    """Orthonormal within each order, zero outside, and hardly anything near the rim; drawn the same at any sampling."""
    box = 33
    basis = SteerableBasis.full(Disk(box, radius_px, edge_px), 0.35)
    re, im = basis.vectors.double().chunk(2)
    for m in basis.order.unique():
        rows = basis.order == m
        functions = torch.complex(re[rows], -im[rows])
        gram = functions @ functions.conj().T
        # Real and imaginary parts of an order above 0 are unit vectors each.
        assert torch.allclose(gram, (1 if m == 0 else 2) * torch.eye(int(rows.sum()), dtype=gram.dtype), atol=2e-4)
    x, y = geometry.pixel_grid(box)
    r = tensor(np.hypot(x, y)).flatten()
    assert not basis.vectors[:, r > radius_px].any()
    rim = (r > radius_px - edge_px / 4) & (r <= radius_px)
    inner = r < radius_px - edge_px
    assert float(basis.vectors[:, rim].square().mean()) < 0.15 * float(basis.vectors[:, inner].square().mean())
    c = random_coefficients(basis, 2)
    fine = basis.draw(c, 3 * box)
    start = (3 * box) // 2 - 3 * (box // 2)
    assert torch.allclose(fine[:, start::3, start::3], basis.images(c), atol=1e-3)


# ------------------------------------------------------------------------------------------------- a metric worked out once


@pytest.fixture(scope="module")
def formed(full) -> tuple[SteerableBasis, RingMetric, torch.Tensor]:
    """A basis, its metric, and factors of four images."""
    basis = full(33, 0.3)
    metric = RingMetric(basis, FourierPlane(33))
    factors = 0.2 + torch.rand(4, metric.rings, generator=torch.Generator().manual_seed(0))
    return basis, metric, factors


def test_a_form_is_the_metric_of_each_image(formed):
    basis, metric, factors = formed
    form = metric.form(factors)
    a, b = random_coefficients(basis, 4, 1), random_coefficients(basis, 4, 2)
    assert torch.allclose(form.applied(b), metric.applied(b, factors), atol=1e-3)
    assert torch.allclose((a * form.applied(b)).sum(-1), metric.products(a, b, factors), rtol=1e-4, atol=1e-2)
    assert torch.allclose(form.half_square(b), 0.5 * metric.square(b, factors), rtol=1e-4)


def test_a_form_of_several_references_for_each_image(formed):
    basis, metric, factors = formed
    form = metric.form(factors)
    many = random_coefficients(basis, 4 * 6).view(4, 2, 3, -1)
    applied, half = form.applied(many), form.half_square(many)
    assert applied.shape == many.shape and half.shape == (4, 2, 3)
    for j in range(2):
        for k in range(3):
            assert torch.allclose(applied[:, j, k], form.applied(many[:, j, k]), atol=1e-3)
            assert torch.allclose(half[:, j, k], form.half_square(many[:, j, k]), rtol=1e-4)
    some = form[torch.tensor([2, 0])]
    assert torch.allclose(some.applied(many[[2, 0]]), applied[[2, 0]], atol=1e-3)
    assert torch.allclose(some.half_square(many[[2, 0]]), half[[2, 0]], rtol=1e-4)


def test_the_gradient_of_half_a_square(formed):
    basis, metric, factors = formed
    for given in (factors, None):
        form = metric.form(given)
        b = random_coefficients(basis, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(form.half_square(b).sum(), b)
        assert torch.allclose(gradient, form.applied(b).detach(), atol=1e-3)


def test_a_form_of_white_noise_knows_no_level(formed):
    """As with factors of 1 but at frequency zero; there components of different orders are taken as orthonormal."""
    basis, metric, _ = formed
    form, b = metric.form(None), random_coefficients(basis, 4)
    assert torch.equal(form.applied(b), metric.without_level(b))
    assert torch.allclose(form.half_square(b), 0.5 * (metric.without_level(b) * b).sum(-1), rtol=1e-4)
    whole, strength = form.mean()
    assert torch.allclose(b @ whole, form.applied(b), atol=1e-3) and strength.tolist() == [1]
    assert form[torch.tensor([1])] is form


def test_the_mean_of_a_form(formed):
    """Exact where images differ in strength alone; else the mean matrix, with a strength of 1 on average."""
    basis, metric, factors = formed
    b = random_coefficients(basis, 4)
    strength = torch.tensor([0.2, 0.9, 1.1, 1.8])
    form = metric.form(factors[:1] * strength[:, None])
    whole, found = form.mean()
    assert torch.allclose(found, strength / strength.mean(), rtol=1e-4)
    assert torch.allclose((b @ whole) * found[:, None], form.applied(b), atol=2e-3)
    form = metric.form(factors)
    whole, found = form.mean()
    assert float(found.mean()) == pytest.approx(1, rel=1e-4)
    expected = torch.stack([metric.products(b[:1], b[:1], f[None])[0] for f in factors]).mean()
    assert float((b[:1] @ whole * b[:1]).sum()) == pytest.approx(float(expected), rel=1e-3)
