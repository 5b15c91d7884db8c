"""What one image says: latents as nodes of an integral over the prior, and the weights of a few draws."""

import math

import pytest
import torch

from emspatialvae.model.steerable import latent_nodes
from emspatialvae.model.steerable.latent_nodes import CLOSE_NODES, close_latents, drawn_latents, tempered
from emspatialvae.model.steerable.latent_posterior import LatentPosterior
from tests.tools.hinges import seeded


def first_latents(z_dim: int, mean: float, sd: float) -> tuple[torch.Tensor, torch.Tensor]:
    q = LatentPosterior(torch.full((2, z_dim), mean), torch.eye(z_dim).expand(2, -1, -1) / sd)
    return latent_nodes.first_latents(q) if z_dim == 1 else drawn_latents(q, 30)


@pytest.mark.parametrize(("z_dim", "tolerance"), [(1, 0.03), (2, 0.06), (5, 0.15)])
def test_nodes_sum_over_the_prior(z_dim, tolerance):
    """``sum exp(log weight) f(z) = E f`` for z ~ N(0, I), when q is the prior itself."""
    z, log_weight = first_latents(z_dim, 0.0, 1.0)
    assert z.shape == (2, log_weight.shape[1], z_dim)
    weight = log_weight.exp()[..., None]
    assert float(weight[0].sum()) == pytest.approx(1, abs=tolerance)
    assert torch.allclose((weight * z).sum(1), torch.zeros(2, z_dim), atol=1.5 * tolerance)
    assert torch.allclose((weight * z.cos()).sum(1), torch.full((2, z_dim), math.exp(-0.5)), atol=1.5 * tolerance)


@pytest.mark.parametrize(("z_dim", "tolerance"), [(1, 0.045), (2, 0.05), (5, 0.15)])
@pytest.mark.parametrize("s", [0.1, 0.5])
def test_latents_give_the_evidence_of_a_gaussian(z_dim, tolerance, s):
    """A likelihood N(m; z, s^2) per coordinate: the evidence N(m; 0, 1 + s^2), and the posterior's mean and s.d."""
    m = 0.8
    mean, sd = m / (1 + s**2), s / math.sqrt(1 + s**2)
    normal = torch.distributions.Normal

    def log_likelihood(z):
        return normal(z, s).log_prob(torch.tensor(m)).sum(-1)

    z, log_weight = first_latents(z_dim, mean, sd)
    if z_dim == 1:
        z, log_weight = close_latents(z[..., 0], log_weight + log_likelihood(z))
    total = log_weight + log_likelihood(z)
    expected = z_dim * float(normal(0.0, math.sqrt(1 + s**2)).log_prob(torch.tensor(m)))
    assert float(torch.logsumexp(total, 1)[0]) == pytest.approx(expected, abs=tolerance)
    weight = torch.softmax(total, 1)[..., None]
    found = (weight * z).sum(1)
    assert torch.allclose(found, torch.full((2, z_dim), mean), atol=2 * tolerance * sd)
    spread = ((weight * (z - found[:, None]) ** 2).sum(1)).sqrt()
    assert torch.allclose(spread, torch.full((2, z_dim), sd), atol=(0.06 if z_dim == 1 else 0.25) * sd)


@pytest.mark.parametrize(("encoder_mean", "encoder_sd"), [(0.8, 0.1), (0.5, 0.1), (1.2, 0.3), (0.8, 0.6), (-1.0, 0.4)])
@pytest.mark.parametrize("s", [0.15, 0.5])
def test_close_latents_make_up_for_what_the_encoder_said(encoder_mean, encoder_sd, s):
    """Posterior mean and s.d. of a Gaussian, whatever the encoder's mean and s.d. were: off by less than a fifteenth of the s.d."""
    z, log_weight = first_latents(1, encoder_mean, encoder_sd)
    normal = torch.distributions.Normal
    m, sd = 0.8 / (1 + s**2), s / math.sqrt(1 + s**2)
    z, log_weight = close_latents(z[..., 0], log_weight + normal(z, s).log_prob(torch.tensor(0.8))[..., 0])
    weight = torch.softmax(log_weight + normal(z, s).log_prob(torch.tensor(0.8))[..., 0], 1)
    found = (weight * z[..., 0]).sum(1)
    assert torch.allclose(found, torch.full((2,), m), atol=0.07 * sd)
    spread = (weight * (z[..., 0] - found[:, None]) ** 2).sum(1).sqrt()
    assert torch.allclose(spread, torch.full((2,), sd), atol=0.06 * sd)


def test_close_latents_go_to_both_of_two_places():
    z = torch.linspace(-2, 2, 9)[None]
    log_weight = torch.tensor([[-30.0, 0, -30, -30, -30, -30, -30, 0, -30]])
    found, _ = close_latents(z, log_weight)
    assert found.shape == (1, CLOSE_NODES, 1)
    assert int((found < -1).sum()) >= 5 and int((found > 1).sum()) >= 5


def test_tempered():
    """Flat weights stay as they are; of steep ones at least a quarter count."""
    generator = seeded()
    flat, steep = (scale * torch.randn(50, 30, generator=generator) for scale in (0.3, 20.0))
    assert torch.equal(tempered(flat), torch.softmax(flat, 1))
    found = tempered(steep)
    assert torch.allclose(found.sum(1), torch.ones(50), atol=1e-5)
    count = 1 / (found**2).sum(1)
    assert float(count.min()) >= 30 / 4 and float(count.max()) < 30 / 4 + 0.5
    assert torch.equal(found.argmax(1), steep.argmax(1))


def test_close_latents_are_not_fooled_by_the_width_of_cells():
    """A flat posterior looked at densely in one place: as many latents anywhere."""
    z = torch.cat([torch.linspace(-2, -1, 3), torch.linspace(-0.2, 0.2, 21), torch.linspace(1, 2, 3)])[None]
    edges = torch.cat([z[:, :1] - 0.25, (z[:, 1:] + z[:, :-1]) / 2, z[:, -1:] + 0.25], 1)
    found, _ = close_latents(z, edges.diff(dim=1).log())
    gaps = found[0, :, 0].diff()
    assert torch.allclose(gaps, torch.full_like(gaps, 4.5 / CLOSE_NODES), rtol=1e-3)


def test_latents_at_one_and_the_same_place():
    """An encoder that is certain: nothing is divided by zero."""
    z, log_weight = first_latents(1, 0.3, 1e-9)
    found, close_weight = close_latents(z[..., 0], log_weight)
    for values in (z, log_weight, found, close_weight):
        assert torch.isfinite(values).all()
    assert (found[..., 0].diff(dim=1) >= 0).all()
