"""One frame for all latents: registrations of known poses, their smooth function of z, and the algebra of frames."""

import math

import numpy as np
import pytest
import torch

from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.gauge import Gauge, register
from emspatialvae.model.steerable.pose_search import PoseSearch
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.simulation.phantom import JointedPhantom, Part
from emspatialvae.simulation.stack import clean_image, hinge_object

BOX = 32


def make_search(box: int = BOX, **settings) -> PoseSearch:
    options = {"rotate": True, "translate": True, "shift_sd_px": 1.5, "max_shift_px": 8.0, **settings}
    return PoseSearch(SteerableBasis.full(Disk(box, box / 2 - 0.5), 0.35), FourierPlane(box), **options)


@pytest.fixture(scope="module")
def search() -> PoseSearch:
    return make_search()


def drawn(search: PoseSearch, obj, z, theta, shift) -> torch.Tensor:
    """Coefficients of an object at poses; [n, 2 R]."""
    n = len(theta)
    box = search.basis.box
    pose = Pose2D(np.asarray(theta, dtype=float), np.asarray(shift, dtype=float).reshape(n, 2))
    images = clean_image(obj, np.broadcast_to(np.asarray(z, dtype=float), n), pose, box)
    return search.basis.coefficients(torch.from_numpy(images).float())


def some_poses(n: int, theta: float = math.pi, shift: float = 2.0, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    return Poses(
        torch.from_numpy(rng.uniform(-theta, theta, n)).float(),
        torch.from_numpy(rng.uniform(-shift, shift, (n, 2))).float(),
    )


def degrees_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(geometry.wrapped(a - b).abs())


def boots(span_deg: float = 80.0) -> JointedPhantom:
    """Two parts apart from each other; only the second one moves."""
    rng = np.random.default_rng(5)
    still = np.stack([-0.17 + 0.05 * rng.normal(size=40), 0.03 + 0.08 * rng.normal(size=40)], 1)
    moving = np.stack([0.03 + 0.24 * rng.random(40), 0.03 * rng.normal(size=40) + 0.05 * (rng.random(40) > 0.6)], 1)
    span = (math.radians(span_deg),)
    return JointedPhantom(blob_sigma=1.5 / 40, parts=(Part(still, (0.0,)), Part(moving, span, (0.03, 0.0))))


# ------------------------------------------------------------------------------------------------------------- register


@pytest.mark.parametrize("box", [32, 33])
def test_register_recovers_turns_and_moves(box):
    """``content(q) = reference(R(-theta) (q - shift))``, for any turn and moves of a few pixels."""
    search = make_search(box)
    poses = some_poses(20)
    images = drawn(search, hinge_object(), 0.2, poses.theta_rad, poses.shift_px)
    (reference,) = drawn(search, hinge_object(), 0.2, [0.0], [(0.0, 0.0)])
    found = register(search, images, reference)
    assert float(degrees_apart(found.theta_rad, poses.theta_rad).max()) < 0.5
    assert float((found.shift_px - poses.shift_px).abs().max()) < 0.05


@pytest.mark.parametrize("part", ["rotate", "translate"])
def test_register_leaves_alone_what_is_not_inferred(part):
    search = make_search(**{part: False})
    poses = some_poses(6)
    zero = torch.zeros_like
    poses = (
        Poses(zero(poses.theta_rad), poses.shift_px)
        if part == "rotate"
        else Poses(poses.theta_rad, zero(poses.shift_px))
    )
    images = drawn(search, hinge_object(), 0.2, poses.theta_rad, poses.shift_px)
    (reference,) = drawn(search, hinge_object(), 0.2, [0.0], [(0.0, 0.0)])
    found = register(search, images, reference)
    assert float(degrees_apart(found.theta_rad, poses.theta_rad).max()) < 0.5
    assert float((found.shift_px - poses.shift_px).abs().max()) < 0.05
    still = make_search(rotate=False, translate=False)
    assert not register(still, images, reference).theta_rad.any()


def test_register_of_another_latent_is_the_least_squares_pose(search):
    """No small turn or move makes the difference smaller."""
    images = drawn(search, hinge_object(), [-0.6, 0.7], [0.3, -2.0], [(1.0, 0.0), (0.0, -1.0)])
    (reference,) = drawn(search, hinge_object(), 0.0, [0.0], [(0.0, 0.0)])
    found = register(search, images, reference)

    def misfit(theta: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        transform = search.plane.transform(search.basis.images(images))
        upright = search.coefficients(search.plane.move_back(transform, shift))[0][:, 0]
        return ((search.basis.rotate(upright, -theta) - reference) ** 2).sum(1)

    best = misfit(found.theta_rad, found.shift_px)
    for turn, x, y in ((0.08, 0, 0), (-0.08, 0, 0), (0, 0.4, 0), (0, -0.4, 0), (0, 0, 0.4), (0, 0, -0.4)):
        assert (misfit(found.theta_rad + turn, found.shift_px + torch.tensor([x, y])) > best).all()


def test_a_mask_holds_its_part_still(search):
    """Of two parts the masked one is registered as if the other were not there; the whole follows both."""
    z = np.linspace(-1, 1, 9)
    obj = boots()
    images = drawn(search, obj, z, np.zeros(9), np.zeros((9, 2)))
    (reference,) = drawn(search, obj, 0.0, [0.0], [(0.0, 0.0)])
    x, y = geometry.pixel_grid(BOX)
    mask = torch.from_numpy(np.hypot(x + 0.17 * BOX, y - 0.03 * BOX) < 0.17 * BOX).float()
    held, whole = register(search, images, reference, mask), register(search, images, reference)
    assert float(torch.rad2deg(held.theta_rad.abs()).max()) < 2.5
    assert float(held.shift_px.abs().max()) < 0.4
    assert float(torch.rad2deg(whole.theta_rad.abs()).max()) > 8


def test_a_mask_holds_its_part_still_at_any_pose(search):
    """The mask lies in the reference's frame, the content anywhere."""
    poses = some_poses(12, theta=0.6, shift=1.5)
    obj = boots(40.0)
    images = drawn(search, obj, np.linspace(-1, 1, 12), poses.theta_rad, poses.shift_px)
    (reference,) = drawn(search, obj, 0.0, [0.0], [(0.0, 0.0)])
    x, y = geometry.pixel_grid(BOX)
    mask = torch.from_numpy(np.hypot(x + 0.17 * BOX, y - 0.03 * BOX) < 0.17 * BOX).float()
    found = register(search, images, reference, mask)
    assert float(degrees_apart(found.theta_rad, poses.theta_rad).max()) < 3
    assert float((found.shift_px - poses.shift_px).abs().max()) < 0.5


# ---------------------------------------------------------------------------------------------------------------- frames


def fitted_gauge(z_dim: int = 2) -> Gauge:
    torch.manual_seed(0)
    gauge = Gauge(z_dim, 4)
    for parameter in gauge.layers.parameters():
        parameter.mul_(2)
    gauge.fitted.fill_(True)
    return gauge


def test_into_and_out_of_the_common_frame():
    gauge, raw = fitted_gauge(), some_poses(50)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    assert float(gauge(z).theta_rad.abs().max()) > 0.1
    for one, other in ((gauge.into_common, gauge.out_of_common), (gauge.out_of_common, gauge.into_common)):
        again = other(one(raw, z), z)
        assert float(degrees_apart(again.theta_rad, raw.theta_rad).max()) < 1e-3
        assert torch.allclose(again.shift_px, raw.shift_px, atol=1e-5)


def test_an_unfitted_gauge_changes_nothing():
    gauge, raw = Gauge(2, 4), some_poses(5)
    common = gauge.into_common(raw, torch.randn(5, 2))
    assert torch.allclose(common.theta_rad, raw.theta_rad, atol=1e-6) and torch.equal(common.shift_px, raw.shift_px)


def test_the_common_frame_is_a_grid_of_latents_too():
    """Contents per particle, [n, K, z_dim], as inference has them."""
    gauge, raw = fitted_gauge(), some_poses(12)
    z = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    flat = gauge.into_common(raw, z)
    square = gauge.into_common(Poses(raw.theta_rad.view(3, 4), raw.shift_px.view(3, 4, 2)), z.view(3, 4, 2))
    assert torch.allclose(square.theta_rad.flatten(), flat.theta_rad)
    assert torch.allclose(square.shift_px.flatten(0, 1), flat.shift_px)


def test_poses_compose_as_images_do():
    """An object at an inner pose, whose image is then posed again, lies at `composed_xy`; by drawing it."""
    inner, outer = (0.8, 2.0, -1.0), (-1.7, 1.5, 0.5)
    theta, x, y = geometry.composed_xy(*outer, *inner, math.cos(outer[0]), math.sin(outer[0]))
    expected = clean_image(hinge_object(), [0.3], Pose2D(np.array([theta]), np.array([[x, y]])), BOX)[0]
    search = make_search(BOX)
    basis, plane = search.basis, search.plane
    once = drawn(search, hinge_object(), 0.3, [inner[0]], [inner[1:]])
    turned = plane.transform(basis.images(basis.rotate(once, torch.tensor([outer[0]]))))
    image = plane.images(plane.move_back(turned, -torch.tensor([outer[1:]])))[0].numpy()
    assert np.linalg.norm(image - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("z_dim", [1, 3])
def test_fit_is_a_smooth_function(z_dim):
    """A turn and move that bend with z are found everywhere, not only where they were seen."""
    generator = torch.Generator().manual_seed(0)

    def truth(z: torch.Tensor) -> Poses:
        u, w = z[:, 0], z[:, -1]
        theta = 0.5 + 0.4 * u - 0.1 * w**2
        return Poses(theta, torch.stack([0.5 * torch.sin(u), 0.3 - 0.2 * w], 1))

    seen, fresh = (torch.randn(n, z_dim, generator=generator) for n in (4000, 500))
    fresh = fresh[fresh.norm(dim=1) < 2]
    gauge = Gauge(z_dim, 4)
    gauge.fit(seen, truth(seen))
    assert gauge.fitted
    found, expected = gauge(fresh), truth(fresh)
    assert float(degrees_apart(found.theta_rad, expected.theta_rad).mean()) < 0.5
    assert float((found.shift_px - expected.shift_px).abs().mean()) < 0.05
    assert not any(p.requires_grad for p in gauge.parameters())


def test_fit_goes_across_the_back_of_the_circle():
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    theta = geometry.wrapped(math.pi + 0.3 * z[:, 0])
    gauge = Gauge(1, 4)
    gauge.fit(z, Poses(theta, torch.zeros(2000, 2)))
    assert float(degrees_apart(gauge(z).theta_rad, theta).mean()) < 0.5


def test_a_few_wrong_registrations_do_not_pull():
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    theta = 0.2 * z[:, 0]
    seen = theta.clone()
    seen[::20] += math.pi  # upside down
    gauge = Gauge(1, 4)
    gauge.fit(z, Poses(seen, torch.zeros(2000, 2)))
    assert float(degrees_apart(gauge(z).theta_rad, theta).mean()) < 1.5


@pytest.mark.parametrize("part", ["turn", "move"])
def test_what_is_not_inferred_does_not_appear(part):
    """Registrations of a model without rotation are not turned, those of one without shifts not moved: exactly."""
    z, poses = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)), some_poses(200)
    still = torch.zeros_like(poses.theta_rad), torch.zeros_like(poses.shift_px)
    gauge = Gauge(2, 4)
    gauge.fit(z, Poses(still[0], poses.shift_px) if part == "turn" else Poses(poses.theta_rad, still[1]))
    found = gauge(torch.randn(50, 2, generator=torch.Generator().manual_seed(4)))
    zero, other = (found.theta_rad, found.shift_px) if part == "turn" else (found.shift_px, found.theta_rad)
    assert not zero.any()
    assert other.any()


def test_the_same_fit_twice(monkeypatch):
    monkeypatch.setattr("emspatialvae.model.steerable.gauge.FIT_STEPS", 100)
    z, poses = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), some_poses(300, 0.3)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        gauge = Gauge(2, 4)
        gauge.fit(z, poses)
        found.append(gauge(z).theta_rad)
    assert torch.equal(*found)
