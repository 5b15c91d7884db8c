"""A start from templates: particles of clearly different shapes find their own, similar ones lie alike, and places follow likeness."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable import template_start
from emspatialvae.model.steerable.initialise import new_model
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.template_start import (
    Templates,
    find_templates,
    lay_out,
    mean_evidence,
    places,
    shared_particles,
    synchronised,
    teach_decoder,
    template_count,
)
from emspatialvae.model.steerable.vae import SteerableVAE

BOX, SHAPES, PARTICLES, TEMPLATES = 33, 6, 600, 13
SHIFT_PRIOR_PX = 1.5
ATOMS: list[list[tuple[float, float]]] = [
    [(0, 0), (4, 0), (-4, 0), (8, 0), (-8, 0)],
    [(0, 0), (4, 0), (8, 0), (0, 4), (0, 8)],
    [(6, 0), (-3, 5.2), (-3, -5.2)],
    [(6, 3), (6, -3), (-6, 3), (-6, -3), (0, 3), (0, -3)],
    [(0, 0), (7, 0), (4, 3), (4, -3)],
    [(7, 0), (5, 5), (0, 7), (-5, 5), (-7, 0)],
]
"""Where the atoms of each shape lie, in pixels."""


def drawn(shape: np.ndarray, theta: np.ndarray, shift: np.ndarray, width_px: float = 1.7) -> np.ndarray:
    """Images [n, box, box] of shapes [n] at poses."""
    x, y = geometry.pixel_grid(BOX)
    images = np.zeros((len(shape), BOX, BOX))
    for image, s, t, (dx, dy) in zip(images, shape, theta, shift, strict=True):
        for ax, ay in np.array(ATOMS[s]) - np.mean(ATOMS[s], 0):
            px, py = geometry.rotate_xy(ax, ay, math.cos(t), math.sin(t))
            image += np.exp(-((x - px - dx) ** 2 + (y - py - dy) ** 2) / (2 * width_px**2))
    return images


@dataclass(frozen=True)
class Stack:
    model: SteerableVAE
    observation: Observation
    shape: np.ndarray
    pose: Pose2D

    @property
    def poses(self) -> Poses:
        return Poses(torch.from_numpy(self.pose.theta_rad).float(), torch.from_numpy(self.pose.shift_px).float())


@pytest.fixture(scope="module")
def stack() -> Stack:
    rng = np.random.default_rng(0)
    shape = rng.integers(0, SHAPES, PARTICLES)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, PARTICLES), rng.normal(0, 1, (PARTICLES, 2)))
    images = 1.2 * drawn(shape, pose.theta_rad, pose.shift_px)
    images += rng.standard_normal(images.shape)
    batch = Batch.of(images, np.zeros(PARTICLES))
    spec = ImageSpec(BOX, 12.0, SHIFT_PRIOR_PX, 6.0, particle_radius_px=12.0)
    torch.manual_seed(0)
    model = new_model(ModelConfig(hidden=32, encoder_hidden=32, z_dim=4), spec, 1, lambda: [batch])
    return Stack(model, model.observe(batch), shape, pose)


@pytest.fixture(scope="module")
def found(stack) -> Templates:
    return find_templates(stack.model, stack.observation, TEMPLATES, torch.Generator().manual_seed(0))


def template_of(stack: Stack, found: Templates) -> tuple[np.ndarray, np.ndarray]:
    """The template that explains each particle best, and at which angle."""
    best = stack.model.search.global_search(stack.observation, found.coefficients, stack.model.search_radius_px)
    return best.template[:, 0].numpy(), best.poses.theta_rad[:, 0].numpy()


def shape_of(stack: Stack, found: Templates) -> np.ndarray:
    """The shape that most particles of each template have."""
    template, _ = template_of(stack, found)
    counts = np.zeros((len(found), SHAPES))
    np.add.at(counts, (template, stack.shape), 1)
    return counts.argmax(1)


# --------------------------------------------------------------------------------------------------- finding templates


def test_as_many_templates_as_particles_are_worth():
    assert template_count(8 * 45 - 1) == 0
    assert template_count(8 * 45) == 8
    assert template_count(45 * 20 + 3) == 20
    assert template_count(10**6) == 128


def test_particles_of_one_shape_share_templates(stack, found):
    template, _ = template_of(stack, found)
    counts = np.zeros((len(found), SHAPES))
    np.add.at(counts, (template, stack.shape), 1)
    assert counts.max(1).sum() / PARTICLES > 0.9
    assert set(counts.argmax(1)) == set(range(SHAPES))  # none is lost
    assert found.coefficients.shape == (len(found), 2 * stack.model.basis.size)
    assert SHAPES <= len(found) <= TEMPLATES
    assert float(found.count.sum()) > 0.98 * PARTICLES and float(found.count.min()) >= template_start.FEWEST_MEMBERS


def test_templates_are_as_strong_as_the_particles(stack, found):
    """Restored means of whole particles: correlated with the shape at its best angle, and of its size."""
    basis = stack.model.basis
    of = shape_of(stack, found)
    clean = 1.2 * drawn(of, np.zeros(len(of)), np.zeros((len(of), 2)))
    # What the model sees: without the level of the image, white noise.
    wanted = stack.model.search.coefficients(
        stack.model.spectra.observe(Batch.of(clean, np.zeros(len(of))), stack.model.plane).plane
    )
    expected = wanted[0][:, 0]
    angles = 2 * math.pi * torch.arange(360) / 360
    fit = basis.correlate(found.coefficients, expected, angles).max(1).values
    cosine = fit / found.coefficients.norm(dim=1) / expected.norm(dim=1)
    many = found.count > 25
    assert float(cosine[many].median()) > 0.9
    ratio = fit / (expected**2).sum(1)
    assert 0.8 < float(ratio[many].median()) < 1.1


def test_templates_explain_particles_better_than_one_mean_of_all(stack, found):
    one = stack.model.wiener_mean(stack.observation, stack.poses)
    some = stack.observation[:200]
    several, alone = mean_evidence(stack.model, some, found.coefficients), mean_evidence(stack.model, some, one[None])
    assert several > alone + 5
    # All of them are as likely beforehand: one that explains nothing costs its share.
    twice = mean_evidence(stack.model, some, torch.cat([found.coefficients, found.coefficients]))
    assert twice == pytest.approx(several - math.log(2), abs=1e-3)


def test_the_same_seed_finds_the_same(stack, found):
    width = float(stack.model.search.shift_sd_px)  # the prior follows the shifts that are found
    stack.model.search.shift_sd_px.fill_(SHIFT_PRIOR_PX)
    again = find_templates(stack.model, stack.observation, TEMPLATES, torch.Generator().manual_seed(0))
    assert float(stack.model.search.shift_sd_px) == pytest.approx(width, rel=1e-4)
    assert width == pytest.approx(1, abs=0.2)
    assert torch.allclose(again.coefficients, found.coefficients, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- layout


def test_templates_of_one_shape_share_particles(stack, found):
    relation = np.abs(shared_particles(stack.model, stack.observation, found.coefficients))
    np.testing.assert_allclose(relation, relation.T, atol=1e-6)
    assert not relation.diagonal().any()
    of = shape_of(stack, found)
    alike = of[:, None] == of
    np.fill_diagonal(alike, False)
    assert alike.any(1).sum() >= 4
    assert relation[alike].mean() > 3 * relation[of[:, None] != of].mean()


def test_similar_templates_are_turned_alike(stack):
    """Copies of one shape at angles of their own come back to one angle, whatever these were."""
    basis, rng = stack.model.basis, np.random.default_rng(1)
    seen = stack.model.search.canonical(stack.observation.plane, stack.poses)
    means = torch.stack([seen[stack.shape == s].mean(0) for s in (0, 1)])
    turn = torch.from_numpy(rng.uniform(-np.pi, np.pi, 6)).float()
    templates = basis.rotate(means[[1, 1, 1, 1, 1, 1]], turn)
    some = stack.observation[torch.from_numpy(np.flatnonzero(stack.shape == 1))]
    relation = shared_particles(stack.model, some, templates)
    left = turn + torch.from_numpy(synchronised(relation)).float()
    assert float(geometry.wrapped(left - left[0]).abs().max()) < 0.1


def test_angles_of_a_known_relation_come_back():
    rng = np.random.default_rng(0)
    angle = rng.uniform(-np.pi, np.pi, 20)
    # b_k turned by angle_k is what b_l turned by angle_l is: b_k is b_l turned by angle_l - angle_k; unsure pairs, one of them wrong.
    weight = rng.uniform(0.2, 1, (20, 20))
    weight = weight + weight.T
    relation = weight * np.exp(1j * (angle[None] - angle[:, None]))
    relation[3, 5] *= -1
    relation[5, 3] *= -1
    np.fill_diagonal(relation, 0)
    off = geometry.wrapped(synchronised(relation) - angle)
    assert np.abs(geometry.wrapped(off - off[0])).max() < 0.2


def test_layout_of_the_stack(stack, found):
    layout = lay_out(stack.model, stack.observation, found)
    assert layout.z.shape == (len(found), 4) and layout.turned.shape == found.coefficients.shape
    share = found.count / found.count.sum()
    assert torch.allclose(share @ layout.z, torch.zeros(4), atol=1e-4)
    assert float(share @ layout.z[:, 0] ** 2) == pytest.approx(1, abs=1e-4)
    assert float(layout.axes[0]) == pytest.approx(1) and (layout.axes.diff() <= 1e-9).all()
    # Turned, not changed.
    assert torch.allclose(layout.turned.norm(dim=1), found.coefficients.norm(dim=1), rtol=1e-4)
    # Templates of one shape lie closer together than those of two.
    of, apart = shape_of(stack, found), torch.cdist(layout.z, layout.z).numpy()
    alike = (of[:, None] == of) & ~np.eye(len(of), dtype=bool)
    assert apart[alike].mean() < 0.7 * apart[of[:, None] != of].mean()


def similarity_of(points: np.ndarray, width: float) -> np.ndarray:
    """As `shared_particles` would find it of points [K, 3]: it falls off with the distance, and is zero of a point with itself."""
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    similarity = np.exp(-((apart / width) ** 2))
    np.fill_diagonal(similarity, 0)
    return similarity


def on_a_sphere(count: int) -> np.ndarray:
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    around = np.sqrt(1 - height**2)
    return np.stack([around * np.cos(angle), around * np.sin(angle), height], 1)


LINE = np.linspace(0, 4, 40)[:, None] * [[1.0, 0, 0]]
CIRCLE = np.array([[math.cos(t), math.sin(t), 0] for t in 2 * np.pi * np.arange(60) / 60])


@pytest.mark.parametrize(
    ("points", "width", "expected"),
    [(LINE, 0.3, 1), (CIRCLE, 0.3, 2), (on_a_sphere(100), 0.6, 3)],
    ids=["line", "circle", "sphere"],
)
def test_points_take_as_many_axes_as_they_need(points, width, expected):
    z, axes = places(similarity_of(points, width), np.ones(len(points)), 8)
    assert z.shape == (len(points), 8) and axes.shape == (len(points),)
    assert (axes > 0.4).sum() == expected
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-9)
    assert (z[:, 0] ** 2).mean() == pytest.approx(1)
    far = np.linalg.norm(points[:, None] - points, axis=-1)
    placed = np.linalg.norm(z[:, None] - z, axis=-1)
    assert np.corrcoef(far.ravel(), placed.ravel())[0, 1] > 0.95


def test_the_order_along_a_line_is_kept():
    z, _ = places(similarity_of(LINE, 0.3), np.ones(len(LINE)), 2)
    steps = np.diff(z[:, 0])
    assert (steps > 0).all() or (steps < 0).all()
    assert not z[:, 1].any()  # it holds little and is left to training


def test_points_with_many_particles_count_more():
    count = np.where(np.arange(len(LINE)) < 10, 50.0, 1.0)
    z, _ = places(similarity_of(LINE, 0.3), count, 2)
    share = count / count.sum()
    assert share @ z[:, 0] == pytest.approx(0, abs=1e-9)
    assert share @ z[:, 0] ** 2 == pytest.approx(1)
    assert np.abs(z[:10, 0]).max() < np.abs(z[-1, 0])


def test_islands_lie_apart():
    """Points that nothing connects: farther from each other than any two that are connected."""
    points = np.concatenate([LINE[:20], LINE[:20] + np.array([0, 50.0, 0])])
    z, _ = places(similarity_of(points, 0.3), np.ones(40), 3)
    placed = np.linalg.norm(z[:, None] - z, axis=-1)
    assert placed[:20, 20:].min() > 0.9 * placed[:20, :20].max()


def test_the_decoder_draws_templates_at_their_places(stack, found):
    layout = lay_out(stack.model, stack.observation, found)
    torch.manual_seed(0)
    stack.model.set_z_dim(4)
    teach_decoder(stack.model, layout.z, layout.turned, found.count, torch.Generator().manual_seed(0))
    off = (stack.model.decoder(layout.z) - layout.turned).detach().norm(dim=1) / layout.turned.norm(dim=1)
    assert float(off.median()) < 0.35
    mean = (found.count[:, None] * layout.turned).sum(0) / found.count.sum()
    whole = (mean - layout.turned).norm(dim=1) / layout.turned.norm(dim=1)
    assert float(off.median()) < 0.5 * float(whole.median())
    assert all(p.grad is None or not p.grad.any() for p in stack.model.decoder.parameters())
