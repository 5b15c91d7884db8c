"""Searches of poses, and the likelihood that they sum, against brute force over explicitly turned and moved references."""

import itertools
import math

import numpy as np
import pytest
import torch

from emspatialvae.imaging import ctf, geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable import global_search
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.global_search import ANGLES_EVERYWHERE, COARSE_STEP_PX, Turns, turned
from emspatialvae.model.steerable.lattice import HEX_AREA, hexagon, lattice
from emspatialvae.model.steerable.observation import Observation, Spectra, half_norm
from emspatialvae.model.steerable.pose_search import PoseSearch
from emspatialvae.model.steerable.poses import LocalPosterior, Poses
from emspatialvae.simulation.stack import clean_image, hinge_object

BOX = 33
"""Odd: the highest frequency of an even box has no sign, so that a shift by part of a pixel is not exact there."""


def make_search(box: int = BOX, limit: float = 0.3, **settings) -> PoseSearch:
    basis = SteerableBasis.full(Disk(box, box / 2 - 0.5), limit)
    plane = FourierPlane(box)
    options = {"rotate": True, "translate": True, "shift_sd_px": 1.5, "max_shift_px": 8.0, **settings}
    return PoseSearch(basis, plane, **options)


@pytest.fixture(scope="module")
def search() -> PoseSearch:
    return make_search()


def hinge_images(box: int, z, theta, shift, height: float = 1.0) -> torch.Tensor:
    """Clean images of zero mean, within the disk for small shifts; [n, box, box].

    A wide blob that moves with the particle takes the mean out, so that sums over pixels and over components can be compared:
    the level of an image is not known.
    """
    n = len(np.atleast_1d(theta))
    pose = Pose2D(np.atleast_1d(theta).astype(float), np.reshape(shift, (n, 2)).astype(float))
    images = clean_image(hinge_object(), np.broadcast_to(z, n), pose, box)
    x, y = geometry.pixel_grid(box)
    apart = [(x - dx) ** 2 + (y - dy) ** 2 for dx, dy in pose.shift_px]
    halo = np.exp(-np.array(apart) / (2 * (box / 8) ** 2))
    halo *= images.sum((1, 2), keepdims=True) / halo.sum((1, 2), keepdims=True)
    return torch.from_numpy(height * (images - halo)).float()


def reference(search: PoseSearch, z: float = 0.3, height: float = 0.2) -> torch.Tensor:
    """Coefficients [2 R] of the hinge at pose zero."""
    return search.basis.coefficients(hinge_images(search.basis.box, z, 0.0, (0, 0), height))[0]


def seen(search: PoseSearch, images: torch.Tensor) -> Observation:
    """White noise, no CTF."""
    return Observation(search.plane.transform(images), None, None)


def noisy(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return images + torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of angles."""
    return float(geometry.wrapped(a - b).abs().max())


def rows_of(n: int, theta: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Poses:
    return Poses(torch.full((n,), theta), torch.tensor([shift]).repeat(n, 1))


def at_pose(search: PoseSearch, coefficients: torch.Tensor, theta: float, x: float, y: float) -> torch.Tensor:
    """The image of coefficients [2 R], turned and then moved, in float64 on the pixels."""
    basis = search.basis
    turned = basis.rotate(coefficients.double(), torch.tensor(theta, dtype=torch.float64))
    image = (turned @ basis.vectors.double()).view(basis.box, basis.box)
    frequency = torch.fft.fftfreq(basis.box, dtype=torch.float64)
    phase = -2 * math.pi * (frequency[None] * x + frequency[:, None] * y)
    return torch.fft.ifft2(torch.fft.fft2(image) * torch.exp(1j * phase)).real


# ------------------------------------------------------------------------------------------------------------- lattices


def test_hexagon():
    for reach, count in ((1, 7), (2, 19), (3, 37)):
        points = hexagon(reach)
        assert len(points) == count and points[0].tolist() == [0, 0]
        assert float(points.norm(dim=1).max()) <= reach + 1e-5
        gaps = torch.cdist(points, points) + 10 * torch.eye(count)
        assert torch.allclose(gaps.min(1).values, torch.ones(count), atol=1e-5)
        assert torch.allclose(points.mean(0), torch.zeros(2), atol=1e-6)
    # One point per cell of HEX_AREA.
    assert len(hexagon(20)) == pytest.approx(math.pi * 20**2 / HEX_AREA, rel=0.05)


def test_lattice():
    points = lattice(3.0, 1.5)
    assert len(points) == 19 and points[0].tolist() == [0, 0]
    assert torch.allclose(points, 1.5 * hexagon(2))
    assert lattice(0.4, 1.5).tolist() == [[0, 0]]
    # None within the radius is farther from all of them than the corners of a cell, 1 / sqrt(3) of a step.
    rng = np.random.default_rng(0)
    somewhere = torch.from_numpy(rng.uniform(-4, 4, (2000, 2))).float()
    somewhere = somewhere[somewhere.norm(dim=1) < 4]
    assert float(torch.cdist(somewhere, lattice(6.0, 1.5)).min(1).values.max()) <= 1.5 / math.sqrt(3) + 1e-5


# ----------------------------------------------------------------------------------------------------------- everywhere


@pytest.mark.parametrize("box", [32, 33])
def test_everywhere_finds_known_poses(box):
    """Signs included: images drawn at poses by the simulation are found there, to the grid's steps."""
    search = make_search(box)
    rng = np.random.default_rng(0)
    n = 24
    theta, shift = rng.uniform(-np.pi, np.pi, n), rng.uniform(-3, 3, (n, 2))
    images = hinge_images(box, 0.3, theta, shift, 0.3)
    candidates = search.global_search(seen(search, images), reference(search, height=0.3)[None], 5.0)
    found = candidates.poses
    assert found.theta_rad.shape == candidates.score.shape == candidates.template.shape == (n, 1)
    assert found.shift_px.shape == (n, 1, 2) and not candidates.template.any()
    assert apart(found.theta_rad[:, 0], torch.from_numpy(theta).float()) < 1.01 * 2 * math.pi / ANGLES_EVERYWHERE
    error = (found.shift_px[:, 0] - torch.from_numpy(shift).float()).norm(dim=1)
    assert float(error.max()) < COARSE_STEP_PX / 3**0.5 + 0.1


def test_everywhere_is_exact_on_its_grid(search):
    angle = 2 * math.pi * 7 / ANGLES_EVERYWHERE
    x, y = lattice(4.0, COARSE_STEP_PX)[11].tolist()
    b = reference(search, height=1.0)
    image = at_pose(search, b, angle, x, y).float()[None]
    found = search.global_search(seen(search, image), b[None], 4.0).poses
    assert apart(found.theta_rad, torch.tensor([[angle]])) < 1e-5
    assert torch.allclose(found.shift_px[0, 0], torch.tensor([x, y]), atol=1e-5)


def test_everywhere_takes_the_reference_that_fits(search):
    """Several latents: the best candidate is that of the right one, its score what it is without the others."""
    references = torch.stack([reference(search, z) for z in (-1, 0, 1)])
    images = hinge_images(BOX, 1.0, 0.5, (1.0, 0.0), 0.2)
    observation = seen(search, images)
    all_three = search.global_search(observation, references, 3.0, 1, 2)
    assert int(all_three.template[0, 0]) == 2
    assert sorted(all_three.template[0].tolist()) == [0, 1, 2]
    assert (all_three.score[0].diff() <= 0).all()
    for template, score in zip(all_three.template[0].tolist(), all_three.score[0].tolist(), strict=True):
        alone = search.global_search(observation, references[template, None], 3.0)
        # Alone, its own strongest components are looked at; together, those of all.
        assert score == pytest.approx(float(alone.score), rel=0.02)
    assert float(all_three.score[0, 0] - all_three.score[0, 2]) > 5


@pytest.mark.parametrize("coloured", [False, True])
def test_everywhere_gives_its_score(search, coloured):
    """The best angle and shift's fit, norm and prior, each by hand: of the components and the frequencies that it looks at."""
    b, image = reference(search), noisy(hinge_images(BOX, 0.3, 0.7, (1.0, -1.0), 0.2))
    observation = seen(search, image)
    if coloured:
        information = 1 + 0.8 * torch.sin(torch.arange(search.plane.rings))[None]
        observation = Observation(observation.plane, information, None)
    found = search.global_search(observation, b[None], 3.0)
    coarse = search._global._hypotheses(b[None], 3.0, search.log_shift_prior)
    # Nearly all of the reference and of the plane is among them.
    assert float((coarse.whole**2).sum() / (b**2).sum()) > 0.99
    looked_at = torch.zeros_like(observation.plane)
    some = coarse.coefficients.frequencies
    both_parts = torch.cat([some, some + len(search.plane.ring)])
    looked_at[:, both_parts] = observation.plane[:, both_parts]
    image = search.plane.images(looked_at)
    drawn = at_pose(search, coarse.whole[0], float(found.poses.theta_rad), *found.poses.shift_px[0, 0].tolist())
    prior = float(search.log_shift_prior(found.poses.shift_px[0, 0]))
    half = float(half_norm(coarse.whole, observation, search.metric))
    expected = float((image[0] * drawn).sum()) - half + prior
    # A reference moved within the disk loses what little it has at the edge.
    assert float(found.score) == pytest.approx(expected, rel=1e-3)


def test_modes_are_apart_and_in_order(search):
    image = noisy(hinge_images(BOX, 0.3, 0.7, (0.0, 0.0), 0.1))
    found = search.global_search(seen(search, image), reference(search)[None], 3.0, modes=3)
    assert found.poses.theta_rad.shape == (1, 3)
    assert (found.score[0].diff() <= 0).all()
    for i, j in itertools.combinations(range(3), 2):
        assert (
            float(geometry.wrapped(found.poses.theta_rad[0, i] - found.poses.theta_rad[0, j]).abs()) > 2 * math.pi / 12
        )


def test_others_are_the_best_poses_of_the_remaining_templates(search):
    """Beside the modes, which may all be of one template: each at the pose that it explains the image with by itself."""
    references = torch.stack([reference(search, z) for z in np.linspace(-1, 1, 6)])
    observation = seen(search, noisy(hinge_images(BOX, 0.3, [0.7, -2.0], [(1.0, -1.0), (0.4, 0.8)], 0.2)))
    every = search.global_search(observation, references, 3.0, 1, 5)
    assert all(sorted(row) == list(range(6)) for row in every.template.tolist())
    assert (every.score.diff(dim=1) <= 0).all()
    some = search.global_search(observation, references, 3.0, 1, 3)
    assert torch.equal(some.template, every.template[:, :4]) and torch.equal(some.score, every.score[:, :4])
    assert torch.equal(some.poses.shift_px, every.poses.shift_px[:, :4])
    # With two modes: these, and the two best of the templates that are not among them.
    modes, found = (search.global_search(observation, references, 3.0, 2, others) for others in (0, 2))
    assert found.template.shape == (2, 4) and (found.score.diff(dim=1) <= 0).all()
    for n in range(2):
        taken = set(modes.template[n].tolist())
        left = [k for k, template in enumerate(every.template[n].tolist()) if template not in taken][:2]
        expected = torch.cat([modes.score[n], every.score[n, left]]).sort(descending=True).values
        assert torch.allclose(found.score[n], expected)


def test_everywhere_in_parts_is_everywhere_at_once(search, monkeypatch):
    """Memory is bounded by taking images and templates in parts; nothing else changes."""
    references = torch.stack([reference(search, z) for z in np.linspace(-1, 1, 7)])
    theta, shift = np.linspace(-3, 3, 9), np.linspace(-2, 2, 18).reshape(9, 2)
    observation = seen(search, noisy(hinge_images(BOX, 0.3, theta, shift, 0.2)))
    whole = search.global_search(observation, references, 3.0, 2, 3)
    monkeypatch.setattr(global_search, "COEFFICIENTS", 1)
    monkeypatch.setattr(global_search, "FEWEST_IMAGES", 4)
    monkeypatch.setattr(global_search, "CELLS", 1500)
    parts = search.global_search(observation, references, 3.0, 2, 3)
    assert torch.equal(parts.template, whole.template)
    assert torch.allclose(parts.score, whole.score, atol=1e-3)
    assert torch.equal(parts.poses.theta_rad, whole.poses.theta_rad)
    assert torch.equal(parts.poses.shift_px, whole.poses.shift_px)


def test_shifts_are_looked_for_within_the_radius(search):
    far = hinge_images(BOX, 0.3, 0.7, (6.0, 0.0), 0.5)
    found = search.global_search(seen(search, far), reference(search)[None], 2.5).poses
    assert float(found.shift_px.norm()) == pytest.approx(COARSE_STEP_PX, abs=1e-4)


def in_sequence(basis: SteerableBasis) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of coefficients order by order, real parts before imaginary ones, of some components; and their orders."""
    kept = torch.arange(basis.size)[::2]
    order = basis.order[kept]
    columns = [torch.cat([kept[order == m], kept[order == m] + basis.size]) for m in order.unique()]
    return torch.cat(columns), order


def test_fits_are_inner_products_with_turned_templates(search):
    basis = search.basis
    columns, order = in_sequence(basis)
    generator = torch.Generator().manual_seed(0)
    images, templates = (torch.randn(n, 2 * basis.size, generator=generator) for n in (5, 3))
    only = torch.zeros(2 * basis.size)
    only[columns] = 1
    angles = torch.tensor([0.0, 0.3, -2.0, 3.1])
    turns = Turns(templates[:, columns], order, angles)
    found = turns.fits(images[:, columns].T)
    assert found.shape == (4, 3, 5)
    assert torch.allclose(turns.fits(images[:, columns].T, slice(1, 3)), found[:, 1:], atol=1e-4)
    expected = basis.correlate((images * only)[None], (templates * only)[:, None], angles)  # [J, n, G]
    assert torch.allclose(found, expected.permute(2, 0, 1), atol=1e-3)
    for g, angle in enumerate(angles):
        turned = basis.rotate(templates * only, angle.expand(3))
        assert torch.allclose(found[g], turned @ images.T, atol=1e-3)


def test_turned_templates_are_those_of_rotate(search):
    basis = search.basis
    columns, order = in_sequence(basis)
    templates = torch.randn(3, 2 * basis.size, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([[2, 0], [1, 1], [0, 2], [2, 2]])
    angles = torch.tensor([[0.0, 0.5], [-1.0, 3.0], [2.0, -2.5], [0.1, -0.1]])
    found = turned(templates[:, columns], order, which, angles)
    assert found.shape == (4, 2, len(columns))
    assert torch.allclose(found, basis.rotate(templates[which], angles)[..., columns], atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- nearby


def brute_nearby(search: PoseSearch, images, poses: Poses, references, *, zoom=1.0, reach=1, count=32):
    """The same sum, every hypothesis drawn on the pixels in float64: log evidence, posterior means and variances."""
    step_px = search._quantised(zoom * float(search.shift_step_px))
    step_rad = min(zoom * float(search.theta_step_rad), 2 * math.pi / count)
    sd = float(search.shift_sd_px)
    answers = []
    for image, theta, shift, b in zip(images.double(), poses.theta_rad, poses.shift_px, references, strict=True):
        terms, where = [], []
        norm = 0.5 * float((b.double() ** 2).sum())
        for point in hexagon(reach) * step_px:
            x, y = (shift + point).tolist()
            prior = -(x**2 + y**2) / (2 * sd**2) - math.log(2 * math.pi * sd**2) + math.log(HEX_AREA * step_px**2)
            for g in range(count):
                angle = (g - count // 2) * step_rad
                drawn = at_pose(search, b, float(theta) + angle, x, y)
                terms.append(float((image * drawn).sum()) - norm + prior + math.log(step_rad / (2 * math.pi)))
                where.append((angle, x, y))
        terms, where = np.array(terms), np.array(where)
        evidence = np.logaddexp.reduce(terms)
        weight = np.exp(terms - evidence)
        mean = weight @ where
        answers.append((evidence, mean, weight @ where**2 - mean**2))
    return answers


@pytest.fixture
def fine(search) -> PoseSearch:
    b = reference(search)
    search.set_steps(b[None], None)
    return search


@pytest.mark.parametrize(("box", "tolerance"), [(33, 1e-3), (32, 0.05)])
@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_nearby_is_the_sum_over_its_neighbourhood(box, tolerance, zoom):
    """Exactly for an odd box; of an even one the highest frequency is lost, some hundredths of some hundred nats."""
    fine = make_search(box)
    fine.set_steps(reference(fine)[None], None)
    b = torch.stack([reference(fine, z) for z in (0.3, 0.0)])
    images = noisy(hinge_images(box, 0.3, [0.7, -2.0], [(1.0, -1.0), (0.4, 0.8)], 0.2))
    poses = Poses(torch.tensor([0.72, -1.95]), torch.tensor([[0.8, -0.9], [0.5, 0.5]]))
    found = fine.local_search(seen(fine, images), poses, b, zoom=zoom)
    expected = brute_nearby(fine, images, poses, b, zoom=zoom)
    for row, (evidence, mean, _) in enumerate(expected):
        assert float(found.log_evidence[row]) == pytest.approx(evidence, abs=tolerance)
        assert float(found.mean.theta_rad[row] - poses.theta_rad[row]) == pytest.approx(mean[0], abs=tolerance / 10)
        assert found.mean.shift_px[row].tolist() == pytest.approx(list(mean[1:]), abs=tolerance / 10)


def test_the_square_of_the_shift_is_a_posterior_mean(fine):
    """Of the length from the origin, spread included: what the prior of shifts is learned from."""
    b, poses = reference(fine)[None], Poses(torch.tensor([0.72]), torch.tensor([[0.8, -0.9]]))
    images = noisy(hinge_images(BOX, 0.3, [0.7], [(1.0, -1.0)], 0.1))
    found = fine.local_search(seen(fine, images), poses, b, zoom=2.0)
    ((_, mean, variance),) = brute_nearby(fine, images, poses, b, zoom=2.0)
    points = (hexagon(1) * fine._quantised(2.0 * float(fine.shift_step_px)) + poses.shift_px).numpy()
    assert mean[1:].tolist() == pytest.approx(found.mean.shift_px[0].tolist(), abs=1e-3)
    assert float(variance[1:].sum()) > 1e-3
    assert float(found.shift_square) == pytest.approx(float((mean[1:] ** 2 + variance[1:]).sum()), abs=1e-3)
    assert float(found.shift_square) <= (points**2).sum(1).max()


def test_several_references_are_a_mixture(fine):
    """The evidence sums over references with their weights; means are those of the mixture of what each says alone."""
    many = torch.stack([torch.stack([reference(fine, z) for z in zs]) for zs in ((0.3, 0.2, -0.5), (0.0, 0.3, 0.4))])
    images = noisy(hinge_images(BOX, 0.3, [0.7, -2.0], [(1.0, -1.0), (0.4, 0.8)], 0.06))
    observation = seen(fine, images)
    poses = Poses(torch.tensor([0.72, -1.95]), torch.tensor([[0.8, -0.9], [0.5, 0.5]]))
    log_weight = torch.tensor([[-1.0, 0.5, 2.0], [0.0, -2.0, -0.3]])
    found = fine.local_search(observation, poses, many, log_weight)
    each = [fine.local_search(observation, poses, many[:, k]) for k in range(3)]
    evidence = torch.stack([one.log_evidence for one in each], 1) + log_weight
    assert torch.allclose(found.log_evidence, torch.logsumexp(evidence, 1), atol=1e-3)
    share = torch.softmax(evidence, 1)
    assert float(share.max(1).values.max()) < 0.99  # a mixture indeed
    for name in ("shift_square", "cross", "norm"):
        expected = (share * torch.stack([getattr(one, name) for one in each], 1)).sum(1)
        assert torch.allclose(getattr(found, name), expected, rtol=1e-3)
    theta = (share * torch.stack([one.mean.theta_rad for one in each], 1)).sum(1)
    shift = (share[..., None] * torch.stack([one.mean.shift_px for one in each], 1)).sum(1)
    assert torch.allclose(found.mean.theta_rad, theta, atol=1e-4)
    assert torch.allclose(found.mean.shift_px, shift, atol=1e-4)


def test_one_reference_in_either_shape(fine):
    """Of weight 1 if nothing is said."""
    images = noisy(hinge_images(BOX, 0.3, [0.7], [(1.0, -1.0)], 0.2))
    observation, poses, b = seen(fine, images), rows_of(1, 0.7, (1.0, -1.0)), reference(fine)[None]
    one = fine.local_search(observation, poses, b)
    for other in (
        fine.local_search(observation, poses, b[:, None]),
        fine.local_search(observation, poses, b, torch.zeros(1, 1)),
    ):
        assert torch.equal(one.log_evidence, other.log_evidence)
        assert torch.equal(one.mean.shift_px, other.mean.shift_px)


def test_references_differ_in_the_information_of_each_image():
    """With CTF or coloured noise the norms of K references are those under each particle's own information."""
    search = make_search()
    spectra = Spectra(2, search.plane.rings)
    rings = torch.arange(search.plane.rings)
    spectra.set_noise(torch.stack([0.5 + 3 * torch.exp(-rings / 4.0), 1 + rings / 10.0]))
    images = noisy(hinge_images(BOX, 0.3, [0.7, -2.0], [(1.0, -1.0), (0.4, 0.8)], 0.1))
    observation = spectra.observe(Batch.of(images.numpy(), np.array([0, 1])), search.plane)
    poses = Poses(torch.tensor([0.72, -1.95]), torch.tensor([[0.8, -0.9], [0.5, 0.5]]))
    many = torch.stack([reference(search, z, 0.1) for z in (0.3, -0.5)]).expand(2, -1, -1)
    found = search.local_search(observation, poses, many)
    each = [search.local_search(observation, poses, many[:, k]).log_evidence for k in (0, 1)]
    assert torch.allclose(found.log_evidence, torch.logaddexp(*each), atol=1e-3)


def test_the_chosen_one_of_two_neighbourhoods():
    """Particle by particle, all that was found there."""
    rows = torch.arange(3.0)

    def nearby(evidence: list[float], offset: float) -> LocalPosterior:
        values = rows + offset
        return LocalPosterior(
            torch.tensor(evidence), Poses(values, torch.stack([values, -values], 1)), values + 1, values + 2, values + 3
        )

    found = nearby([1.0, 5.0, 3.0], 0.0).chosen(torch.tensor([False, True, True]), nearby([2.0, 4.0, 3.5], 10.0))
    expected = torch.tensor([10.0, 1.0, 2.0])
    assert found.log_evidence.tolist() == [2.0, 5.0, 3.0]
    assert torch.equal(found.mean.theta_rad, expected)
    assert torch.equal(found.mean.shift_px, torch.stack([expected, -expected], 1))
    for k, values in enumerate((found.shift_square, found.cross, found.norm), start=1):
        assert torch.equal(values, expected + k)


def test_gradient_of_nearby_with_respect_to_references(fine):
    images = noisy(hinge_images(BOX, 0.3, [0.7, -2.0], [(1.0, -1.0), (0.4, 0.8)], 0.2))
    observation = seen(fine, images)
    poses = Poses(torch.tensor([0.72, -1.95]), torch.tensor([[0.8, -0.9], [0.5, 0.5]]))
    b = torch.stack([reference(fine, z) for z in (0.3, 0.0)]).requires_grad_()
    found = fine.local_search(observation, poses, b).log_evidence.sum()
    (gradient,) = torch.autograd.grad(found, b)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        step = 0.05 * torch.randn(b.shape, generator=generator) * (gradient.abs() > 0)
        with torch.no_grad():
            up, down = (
                fine.local_search(observation, poses, b + s * step).log_evidence.double().sum() for s in (1, -1)
            )
        assert float(up - down) / 2 == pytest.approx(float((gradient * step).sum()), rel=0.02, abs=0.02)


def test_gradient_is_the_posterior_mean_residual(fine):
    """In closed form: d log p / d b = E[image with the pose taken out] - b."""
    images = noisy(hinge_images(BOX, 0.3, [0.7], [(1.0, -1.0)], 0.2))
    poses = Poses(torch.tensor([0.7]), torch.tensor([[1.0, -1.0]]))
    b = reference(fine)[None].requires_grad_()
    # So sharp a posterior that one pose has all the weight: the gradient is that pose's residual.
    (gradient,) = torch.autograd.grad(
        fine.local_search(seen(fine, images), poses, b, zoom=1e-4, reach=0).log_evidence.sum(), b
    )
    upright = fine.upright(seen(fine, images), poses)
    assert torch.allclose(gradient, upright - b, atol=2e-2)


def test_a_particle_beyond_the_largest_shift_is_not_lost():
    """Content at 5.5 px, where 5 are allowed, after a search with wide steps: the evidence stays a number that one can average."""
    search = make_search(max_shift_px=5.0)
    b = reference(search)[None]
    search.shift_step_px.fill_(0.1)
    search.theta_step_rad.fill_(0.05)
    observation = seen(search, noisy(hinge_images(BOX, 0.3, [0.7], [(5.5, 0.0)], 0.2)))
    poses = Poses(torch.tensor([0.7]), torch.tensor([[4.9, 0.0]]))
    evidence = []
    for zoom in (8.0, 8.0, 1.0, 1.0):
        found = search.local_search(observation, poses, b, zoom=zoom)
        poses = found.mean
        evidence.append(float(found.log_evidence))
    assert evidence[-1] > 100, evidence


# -------------------------------------------------------------------------------------------------------------- jointly


def test_jointly_is_nearby_for_many_references(fine):
    """The same neighbourhood for each of K references, with variances."""
    b = torch.stack([reference(fine, z) for z in (0.3, 0.0, -0.4)])[None]
    images = noisy(hinge_images(BOX, 0.3, [0.7], [(1.0, -1.0)], 0.2))
    poses = Poses(torch.tensor([0.75]), torch.tensor([[0.8, -0.9]]))
    found = fine.joint_search(seen(fine, images), poses, b)
    for k in range(3):
        ((evidence, mean, variance),) = brute_nearby(fine, images, poses, b[:, k], zoom=1.5, reach=2, count=20)
        assert float(found.log_evidence[0, k]) == pytest.approx(evidence, abs=2e-3)
        assert float(found.mean.theta_rad[0, k] - 0.75) == pytest.approx(mean[0], abs=1e-4)
        assert found.mean.shift_px[0, k].tolist() == pytest.approx(list(mean[1:]), abs=1e-4)
        assert float(found.theta_var[0, k]) == pytest.approx(variance[0], rel=2e-3)
        assert found.shift_var[0, k].tolist() == pytest.approx(list(variance[1:]), rel=2e-3)


def test_jointly_is_the_posterior_itself(fine):
    """Against a grid so fine and wide that it is the integral: evidence, means and s.d. of theta and shift."""
    b = reference(fine)
    images = noisy(hinge_images(BOX, 0.3, [0.7], [(1.0, -1.0)], 0.2), seed=3)
    start = Poses(torch.tensor([0.7]), torch.tensor([[1.0, -1.0]]))
    settled = fine.local_search(seen(fine, images), start, b[None]).mean
    settled = fine.local_search(seen(fine, images), settled, b[None]).mean
    found = fine.joint_search(seen(fine, images), settled, b[None, None])
    sd_theta, sd_shift = float(fine.theta_step_rad), float(fine.shift_step_px)
    axis = torch.linspace(-6, 6, 49)
    angles = settled.theta_rad + axis * sd_theta
    terms = torch.zeros(49, 49, 49, dtype=torch.float64)
    transform = fine.plane.transform(images)
    x, y = torch.meshgrid(axis * sd_shift, axis * sd_shift, indexing="ij")
    shifts = settled.shift_px + torch.stack([x.flatten(), y.flatten()], 1)
    moved = fine.coefficients(fine.plane.move_back(transform, shifts))[0][:, 0]
    fit = fine.basis.correlate(moved, b[None], angles).double() - 0.5 * float((b**2).sum())
    terms = fit + fine.log_shift_prior(shifts).double()[:, None]
    cell = (0.25 * sd_shift) ** 2 * (0.25 * sd_theta) / (2 * math.pi)
    evidence = torch.logsumexp(terms.flatten(), 0) + math.log(cell)
    weight = torch.softmax(terms.flatten(), 0).view_as(terms)
    mean_theta = float((weight.sum(0) * angles).sum())
    var_theta = float((weight.sum(0) * (angles - mean_theta) ** 2).sum())
    mean_shift = (weight.sum(1)[:, None] * shifts).sum(0)
    var_shift = (weight.sum(1)[:, None] * (shifts - mean_shift) ** 2).sum(0)
    assert float(found.log_evidence) == pytest.approx(float(evidence), abs=0.1)
    assert float(found.mean.theta_rad) == pytest.approx(mean_theta, abs=0.1 * sd_theta)
    assert float(found.theta_var) ** 0.5 == pytest.approx(var_theta**0.5, rel=0.1)
    assert torch.allclose(found.mean.shift_px[0, 0], mean_shift.float(), atol=0.1 * sd_shift)
    assert torch.allclose(found.shift_var[0, 0].sqrt(), var_shift.float().sqrt(), rtol=0.15)


# -------------------------------------------------------------------------------------------------------- parts of a pose


@pytest.mark.parametrize("part", ["rotate", "translate"])
def test_a_part_that_is_not_inferred_stays_at_zero(part):
    search = make_search(**{part: False})
    images = noisy(hinge_images(BOX, 0.3, [0.7, -1.0], [(2.0, -1.0), (0.0, 3.0)], 0.2))
    b = reference(search)
    search.set_steps(b[None], None)
    everywhere = search.global_search(seen(search, images), b[None], 4.0, modes=2).poses
    nearby = search.local_search(seen(search, images), everywhere[:, 0], b.expand(2, -1)).mean
    jointly = search.joint_search(seen(search, images), nearby, b.expand(2, 3, -1))
    for poses in (everywhere, nearby, jointly.mean):
        values = poses.theta_rad if part == "rotate" else poses.shift_px
        others = poses.shift_px if part == "rotate" else poses.theta_rad
        assert not values.any()
        assert others.any()
    assert not (jointly.theta_var if part == "rotate" else jointly.shift_var).any()
    assert (jointly.shift_var if part == "rotate" else jointly.theta_var).all()


def test_nothing_to_infer():
    search = make_search(rotate=False, translate=False)
    images = noisy(hinge_images(BOX, 0.3, [0.0], [(0.0, 0.0)], 0.2))
    b = reference(search)[None]
    found = search.local_search(seen(search, images), rows_of(1), b)
    expected = (search.basis.coefficients(images) * b).sum() - 0.5 * (b**2).sum()
    assert float(found.log_evidence) == pytest.approx(float(expected), abs=1e-2)


def test_canonical_is_upright_without_a_filter(search):
    """Whatever is in the Fourier plane, images or latents; and the inverse of drawing at a pose."""
    b = reference(search)
    image = at_pose(search, b, 0.9, 1.5, -2.0).float()[None]
    poses = rows_of(1, 0.9, (1.5, -2.0))
    found = search.canonical(search.plane.transform(image), poses)
    assert torch.equal(found, search.upright(seen(search, image), poses))
    assert float((found[0] - b).norm() / b.norm()) < 3e-3  # orders are not quite orthogonal on pixels
    still = make_search(translate=False)
    moved = still.canonical(still.plane.transform(image), poses)
    assert torch.equal(moved, still.canonical(still.plane.transform(image), rows_of(1, 0.9)))


def test_upright_takes_the_pose_out(search):
    """Images of one content at many poses all look like the content at pose zero."""
    theta, shift = [0.0, 1.0, -2.5], [(0.0, 0.0), (2.0, -1.0), (-1.5, 2.5)]
    images = hinge_images(BOX, 0.3, theta, shift)
    poses = Poses(torch.tensor(theta), torch.tensor(shift))
    found = search.upright(seen(search, images), poses)
    assert float((found - found[0]).norm(dim=1).max() / found[0].norm()) < 0.03


# ------------------------------------------------------------------------------------------------------------------ CTF


def microscope(n: int, astigmatism_A: float, seed: int = 0) -> ctf.CtfParams:
    rng = np.random.default_rng(seed)
    defocus = rng.uniform(8_000, 20_000, n)
    same = np.ones(n)
    return ctf.CtfParams(
        defocus + astigmatism_A / 2, defocus - astigmatism_A / 2, rng.uniform(0, np.pi, n), 0 * same, 300 * same, 2.7 * same,
        0.1 * same,
    )  # fmt: skip


def direct_ratio(y: torch.Tensor, transfer: np.ndarray, noise: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``1/2 sum |y|^2 / N - 1/2 sum |y - CTF x|^2 / N`` over the Fourier plane; y is the image before any multiplication."""
    box = y.shape[-1]
    plane = FourierPlane(box)
    weight = plane.weight.double().view(box, -1)
    power = noise[plane.ring].double().view(box, -1)
    fy, fx = torch.fft.rfft2(y.double()), torch.from_numpy(transfer).double() * torch.fft.rfft2(x.double())
    return 0.5 * ((fy.abs() ** 2 - (fy - fx).abs() ** 2) * weight / power).sum((1, 2))


@pytest.mark.parametrize(("astigmatism_A", "tolerance"), [(0.0, 0.05), (500.0, 0.05), (2000.0, 0.07)])
def test_likelihood_ratio_with_ctf_and_coloured_noise(astigmatism_A, tolerance):
    """Against the sum over Fourier pixels: off by less than ``tolerance`` of the norm term, at any pose.

    Three hundredths are there without astigmatism: within a ring an object has more power where CTF^2 is still small.
    """
    box, n, pixel_A = 48, 12, 3.0
    search = make_search(box, 0.3)
    params = microscope(n, astigmatism_A)
    transfer = ctf.ctf_2d(params, box, pixel_A)
    rings = torch.arange(search.plane.rings)
    noise = 0.5 + 4 * torch.exp(-rings / 4.0)
    spectra = Spectra(1, search.plane.rings)
    spectra.set_noise(noise[None])
    generator = torch.Generator().manual_seed(0)
    shape = search.plane.by_ring(noise.sqrt())
    background = search.plane.images(search.plane.transform(torch.randn(n, box, box, generator=generator)) * shape)
    rng = np.random.default_rng(1)
    theta, shift = rng.uniform(-3, 3, n), rng.normal(0, 1, (n, 2))
    b = reference(search, height=0.4)
    x = torch.stack([at_pose(search, b, t, *s) for t, s in zip(theta, shift, strict=True)]).float()
    y = ctf.multiply(x.numpy(), params, pixel_A) + background.numpy()
    power = ctf.ring_power(params, box, pixel_A)
    batch = Batch.of(ctf.multiply(y.astype(np.float32), params, pixel_A), np.zeros(n), power)
    observation = spectra.observe(batch, search.plane)
    assert observation.information is not None
    poses = Poses(torch.from_numpy(theta).float(), torch.from_numpy(shift).float())
    plane = search.plane.move_back(observation.plane, poses.shift_px)
    upright = search.basis.rotate(search.coefficients(plane)[0][:, 0], -poses.theta_rad)
    norm = half_norm(b.expand(n, -1), observation, search.metric)
    found = (upright * b).sum(1) - norm
    expected = direct_ratio(torch.from_numpy(y), transfer, noise, x)
    error = (found.double() - expected).abs() / norm.double()
    assert float(error.max()) < tolerance, f"off by {float(error.max()):.4f} of the norm"


def test_noise_of_each_optics_group():
    """Twice the noise in one group halves what its images say."""
    search = make_search()
    spectra = Spectra(2, search.plane.rings)
    noise = torch.ones(2, search.plane.rings)
    noise[1] = 2
    spectra.set_noise(noise)
    images = noisy(torch.zeros(2, BOX, BOX))
    images[1] = images[0]
    found = spectra.observe(Batch.of(images.numpy(), np.array([0, 1])), search.plane)
    assert torch.allclose(found.plane[1], found.plane[0] / 2)
    assert found.information is not None
    assert torch.allclose(found.information[1], 0.5 * found.information[0])
    one, two = half_norm(reference(search).expand(2, -1), found, search.metric)
    assert float(two) == pytest.approx(float(one) / 2)


def test_noise_close_to_white_is_taken_as_white():
    plane = FourierPlane(32)
    spectra = Spectra(1, plane.rings)
    spectra.set_noise(1 + 0.02 * torch.cos(torch.arange(plane.rings))[None])
    batch = Batch.of(np.ones((1, 32, 32)), np.zeros(1))
    assert spectra.white and spectra.observe(batch, plane).information is None
    spectra.set_noise(1 + 0.2 * torch.cos(torch.arange(plane.rings))[None])
    assert not spectra.white and spectra.observe(batch, plane).information is not None


def test_noise_is_measured():
    """From images of nothing else, with and without CTF."""
    plane, n = FourierPlane(32), 1000
    noise = 0.5 + 4 * torch.exp(-torch.arange(plane.rings) / 4.0)
    white = plane.transform(torch.randn(n, 32, 32, generator=torch.Generator().manual_seed(0)))
    images = plane.images(white * plane.by_ring(noise.sqrt()))
    params = microscope(n, 0.0)
    multiplied = torch.from_numpy(ctf.multiply(images.numpy(), params, 3.0))
    power = ctf.ring_power(params, 32, 3.0)
    spectra = Spectra(1, plane.rings)
    for shown, ring_power in ((images, None), (multiplied, power)):
        batch = Batch.of(shown.numpy(), np.zeros(n), ring_power)
        found = spectra.estimate_noise([batch], plane)[0]
        # Ring 0 is one pixel, and the last one holds the corners, whose CTF is not that of the ring.
        assert torch.allclose(found[1:-1], noise[1:-1], rtol=0.07)


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("coloured", [False, True])
def test_information_is_the_curvature_of_the_likelihood(search, coloured):
    """Against the norm of differences between the reference at two poses a little apart."""
    b = reference(search)
    rings = search.plane.rings
    factors = torch.linspace(2, 0.5, rings) if coloured else torch.ones(rings)
    found = search.information(b[None], factors if coloured else None)[0]
    weight = search.plane.weight * factors[search.plane.ring]
    steps = (2e-2, 0.1, 0.1)
    slopes = []
    for k, step in enumerate(steps):
        sides = []
        for sign in (1, -1):
            pose = [0.0, 0.0, 0.0]
            pose[k] = sign * step
            sides.append(search.plane.transform(at_pose(search, b, *pose)[None].float())[0])
        slopes.append((sides[0] - sides[1]) / (2 * step))
    slopes = torch.stack(slopes)
    expected = (slopes * torch.cat([weight, weight])) @ slopes.T
    scale = expected.diagonal().sqrt()
    assert float(((found - expected) / (scale[:, None] * scale)).abs().max()) < 0.05


def test_steps_follow_the_sharpness_of_the_reference(search):
    b = reference(search)
    search.set_steps(b[None], None)
    theta, shift = float(search.theta_step_rad), float(search.shift_step_px)
    search.set_steps(2 * b[None], None)
    assert float(search.theta_step_rad) == pytest.approx(theta / 2, rel=1e-3)
    assert float(search.shift_step_px) == pytest.approx(shift / 2, rel=1e-3)
    search.set_steps(0 * b[None], None)
    assert float(search.theta_step_rad) == pytest.approx(2 * math.pi / 32)
    assert float(search.shift_step_px) == pytest.approx(1.5)


def test_evidence_at_all_angles_is_the_integral_over_them():
    """Against shifts one by one and ten times as many angles; at which angle one begins is nothing to it."""
    search = make_search()
    search.set_steps(reference(search)[None], None)
    truth = Poses(torch.tensor([0.4, -2.0, 1.1]), torch.tensor([[0.5, -1.0], [0.0, 0.0], [-1.5, 2.0]]))
    noisy = hinge_images(BOX, 0.3, truth.theta_rad.numpy(), truth.shift_px.numpy(), 0.2)
    noisy = noisy + torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    observation, image = seen(search, noisy), reference(search).expand(3, -1)
    found = search.evidence_at_all_angles(observation, truth, image)
    coefficients, _, log_prior = search.around(observation, truth, search._quantised(float(search.shift_step_px)), 1)
    angles = 2 * math.pi * torch.arange(2000) / 2000
    terms = [
        log_prior[:, s, None] + search.basis.correlate(coefficients[:, s], image, angles)
        for s in range(log_prior.shape[1])
    ]
    expected = torch.logsumexp(torch.cat(terms, 1), 1) - math.log(2000) - half_norm(image, observation, search.metric)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    elsewhere = Poses(truth.theta_rad + 1.234, truth.shift_px)
    torch.testing.assert_close(search.evidence_at_all_angles(observation, elsewhere, image), found, atol=0.02, rtol=0)
