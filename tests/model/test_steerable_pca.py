"""Which components are kept: those of the particles, none of the noise's."""

import numpy as np
import pytest
import torch

from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.pca import FullDisk
from emspatialvae.simulation.stack import clean_image, draw_truth, hinge_object

BOX = 32


@pytest.fixture(scope="module")
def disk() -> FullDisk:
    return FullDisk(Disk(BOX, BOX / 2 - 0.5), 0.5)


def hinges(n: int, seed: int) -> torch.Tensor:
    """Clean images with a variance of 1 per pixel; [n, box, box]."""
    z, pose = draw_truth(n, 1.0, np.random.default_rng(seed))
    images = clean_image(hinge_object(), z, pose, BOX)
    return torch.from_numpy(images / images.std()).float()


def white(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def coloured(images: torch.Tensor) -> torch.Tensor:
    """White noise made strong at low frequencies."""
    plane = FourierPlane(BOX)
    factors = 1 + 3 * torch.exp(-torch.arange(plane.rings) / 3)
    return plane.images(plane.transform(images) * plane.by_ring(factors))


def kept_energy(basis: SteerableBasis, images: torch.Tensor) -> float:
    """Share of the images' squares that the basis holds."""
    return float((basis.coefficients(images) ** 2).sum() / (images**2).sum())


@pytest.mark.parametrize("snr", [10.0, 1.0, 0.1])
def test_a_hundred_components_hold_the_particles(disk, snr):
    noisy = hinges(3000, 0) * snr**0.5 + white(3000, 0)
    basis, ratio = disk.principal(disk.covariances(noisy.split(500)), least=10, most=192)
    assert basis.size < 150
    assert kept_energy(basis, hinges(300, 1)) > (0.98 if snr >= 1 else 0.96)
    assert ratio.shape == (basis.size,)
    assert float(ratio.max()) > 10 * snr


def test_they_hold_them_shifted_and_turned(disk):
    """The same particle at poses that were never seen: components are steerable."""
    basis, _ = disk.principal(disk.covariances([hinges(3000, 0) + 0.3 * white(3000, 0)]), least=10, most=192)
    n = 40
    pose = Pose2D(np.linspace(-3, 3, n), np.stack([np.linspace(-1.5, 1.5, n), np.linspace(1, -1, n)], 1))
    images = torch.from_numpy(clean_image(hinge_object(), np.full(n, 0.3), pose, BOX)).float()
    assert kept_energy(basis, images) > 0.98
    still = basis.coefficients(images[:1])
    turned = basis.images(basis.rotate(still, torch.tensor([1.1])))
    pose = Pose2D(pose.theta_rad[:1] + 1.1, pose.shift_px[:1])
    x, y = geometry.rotate_xy(*pose.shift_px[0], np.cos(1.1), np.sin(1.1))
    expected = clean_image(hinge_object(), [0.3], Pose2D(pose.theta_rad, np.array([[x, y]])), BOX)
    expected = torch.from_numpy(expected).float()
    assert float((turned - expected).norm() / expected.norm()) < 0.15


def test_components_stay_orthonormal(disk):
    basis, _ = disk.principal(disk.covariances([hinges(1000, 0) + white(1000, 0)]), least=60, most=80)
    re, im = basis.vectors.double().chunk(2)
    for m in basis.order.unique():
        functions = torch.complex(re[basis.order == m], -im[basis.order == m])
        gram = functions @ functions.conj().T / (1 if m == 0 else 2)
        assert float((gram - torch.eye(len(gram))).abs().max()) < 1e-5


def test_noise_has_no_components(disk):
    seen = disk.covariances(white(4000, 3).split(500))
    basis, ratio = disk.principal(seen, least=7, most=192)
    assert basis.size <= 7 + 3  # one in some orders may stand out by chance
    assert float(ratio.max()) < 0.8


def test_coloured_noise_must_be_whitened_first(disk):
    """The components are those that rise above white noise: what comes here has to be whitened, and then there are none."""
    blind, _ = disk.principal(disk.covariances([coloured(white(4000, 4))]), least=7, most=500)
    assert blind.size > 30


def test_bounds_on_their_number(disk):
    seen = disk.covariances([hinges(500, 0)])
    assert disk.principal(seen, least=5, most=20)[0].size == 20
    assert disk.principal(disk.covariances([white(500, 0)]), least=50, most=60)[0].size >= 50


def test_batches_change_nothing_and_the_same_images_give_the_same(disk):
    images = hinges(400, 0) + white(400, 0)
    one, many = disk.covariances([images]), disk.covariances(images.split(37))
    assert one.n == many.n == 400
    for a, b in zip(one.per_order, many.per_order, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(a, a.conj().T, atol=1e-4)
    (first, ratio), (second, again) = (disk.principal(disk.covariances([images]), least=20, most=40) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors) and torch.equal(ratio, again)


def test_a_basis_can_be_drawn_at_any_sampling(disk):
    basis, _ = disk.principal(disk.covariances([hinges(1000, 0) + white(1000, 0)]), least=30, most=60)
    coefficients = basis.coefficients(hinges(2, 1))
    fine = basis.draw(coefficients, 2 * BOX)
    assert torch.allclose(fine[:, ::2, ::2], basis.images(coefficients), atol=2e-4)
