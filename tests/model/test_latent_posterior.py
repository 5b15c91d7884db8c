"""``q(z | y)`` of a decoder against closed forms, quadrature and finite differences."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry
from emspatialvae.model.distributions import log_normal
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.latent_posterior import LatentPosterior, latent_posterior
from emspatialvae.model.steerable.networks import CanonicalDecoder, canonical_decoder
from emspatialvae.model.steerable.ring_metric import RingForm, RingMetric

BOX, D = 17, 3


class Linear(CanonicalDecoder):
    """``b(z) = mean + z W``, or any other function of z."""

    def __init__(self, mean: Tensor, weight: Tensor, bend: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.mean, self.weight, self.bend = nn.Parameter(mean), nn.Parameter(weight), bend

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.bend(z) @ self.weight

    def start_from(self, coefficients: Tensor, generator: torch.Generator | None = None) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def metric() -> RingMetric:
    return RingMetric(SteerableBasis.full(Disk(BOX, BOX / 2 - 0.5), 0.3), FourierPlane(BOX))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(metric: RingMetric, d: int = D, strength: float = 0.3) -> Linear:
    size = len(metric.level)
    return Linear(0.3 * random(size, seed=1), strength * random(d, size, seed=2))


def factors_of(metric: RingMetric, n: int, kind: str) -> Tensor | None:
    """Of the information: white noise; a CTF that all images share, of different strengths."""
    if kind == "white":
        return None
    rings = torch.arange(metric.rings)
    return (1 + 0.9 * torch.sin(rings / 2)) * torch.linspace(0.3, 1.7, n)[:, None]


def whole_metric(form: RingForm, k: int) -> Tensor:
    """That of image k, worked out by what it does to every unit vector; [2 R, 2 R]."""
    size = len(form.metric.level)
    n = 1 if form.factors is None else len(form.factors)
    return form.applied(torch.eye(size).expand(n, -1, -1))[min(k, n - 1)].double()


# ---------------------------------------------------------------------------------------------------- a linear decoder


@pytest.mark.parametrize("kind", ["white", "ctf"])
@pytest.mark.parametrize("steps", [4, 12])
def test_posterior_of_a_linear_decoder_is_the_exact_gaussian(metric, kind, steps):
    n, decoder = 5, linear(metric)
    form = metric.form(factors_of(metric, n, kind))
    upright = 2 * random(n, len(metric.level), seed=3)
    q, value = latent_posterior(decoder, upright, form, torch.zeros(n, D), steps)
    w, c = decoder.weight.detach().double(), decoder.mean.detach().double()
    for k in range(n):
        f = whole_metric(form, k)
        precision = w @ f @ w.T + torch.eye(D)
        mean = torch.linalg.solve(precision, w @ (upright[k].double() - f @ c))
        covariance = torch.linalg.inv(precision)
        assert torch.allclose(q.mean[k].double(), mean, atol=2e-4)
        assert torch.allclose(q.covariance[k].double(), covariance, rtol=1e-3, atol=1e-5)
        assert torch.allclose(q.sd[k].double(), covariance.diagonal().sqrt(), rtol=1e-3)
        b = c + mean @ w
        expected = upright[k].double() @ b - 0.5 * b @ f @ b - 0.5 * mean @ mean
        assert float(value[k]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_kl_and_volume_are_those_of_torch():
    root = torch.tril(0.3 * random(6, D, D)) + 2 * torch.eye(D)
    q = LatentPosterior(random(6, D, seed=1), root)
    theirs = torch.distributions.MultivariateNormal(q.mean, precision_matrix=root @ root.transpose(1, 2))
    normal = torch.distributions.MultivariateNormal(torch.zeros(D), torch.eye(D))
    assert torch.allclose(q.kl_to_normal(), torch.distributions.kl_divergence(theirs, normal), rtol=1e-4)
    assert torch.allclose(q.covariance, theirs.covariance_matrix, atol=1e-5)
    assert torch.allclose(q.sd, theirs.variance.sqrt(), rtol=1e-4)
    assert torch.allclose(q.log_volume, 0.5 * torch.logdet(theirs.covariance_matrix), atol=1e-5)
    some = q[torch.tensor([4, 1])]
    assert torch.equal(some.mean, q.mean[[4, 1]]) and torch.equal(some.root, root[[4, 1]])


def test_the_prior_has_no_kl():
    q = LatentPosterior(torch.zeros(1, D), torch.eye(D)[None])
    assert float(q.kl_to_normal()) == 0 and float(q.log_volume) == 0


def test_a_coordinate_that_is_not_listened_to_gets_its_prior_back(metric):
    n, decoder = 4, linear(metric)
    with torch.no_grad():
        decoder.weight[1] = 0
    upright = 3 * random(n, len(metric.level), seed=3)
    q, _ = latent_posterior(decoder, upright, metric.form(None), random(n, D, seed=5), 8)
    assert torch.allclose(q.mean[:, 1], torch.zeros(n), atol=1e-4)
    assert torch.allclose(q.covariance[:, 1], torch.eye(D)[1].expand(n, -1), atol=1e-5)
    assert float(q.sd[:, [0, 2]].max()) < 0.5  # the others are seen


def test_no_steps_leave_the_start(metric):
    n, decoder, start = 3, linear(metric), random(3, D, seed=5)
    q, value = latent_posterior(decoder, random(n, len(metric.level)), metric.form(None), start, 0)
    assert torch.equal(q.mean, start)
    _, after = latent_posterior(decoder, random(n, len(metric.level)), metric.form(None), start, 3)
    assert (after > value).all()


def test_an_image_that_says_more_has_a_narrower_posterior(metric):
    """Of images with different information each gets its own width, not that of the mean."""
    n, decoder = 4, linear(metric)
    strength = torch.tensor([0.1, 0.5, 1.0, 4.0])
    form = metric.form(strength[:, None].expand(n, metric.rings))
    q, _ = latent_posterior(decoder, random(n, len(metric.level)), form, torch.zeros(n, D), 4)
    assert (q.sd.diff(dim=0) < 0).all()
    seen = torch.linalg.inv(q.covariance) - torch.eye(D)
    assert torch.allclose(seen / strength[:, None, None], seen[2].expand(n, -1, -1), rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------------------------------------- a decoder that bends


def bent(metric: RingMetric) -> Linear:
    return Linear(0.1 * random(len(metric.level), seed=1), 0.25 * random(1, len(metric.level), seed=2), torch.sin)


def log_joint(decoder: CanonicalDecoder, upright: Tensor, form: RingForm, z: Tensor) -> Tensor:
    """Log density of images [n, 2 R] and latents [K, d], by hand; [n, K], the prior with its constant."""
    drawn = decoder(z).detach()
    f = whole_metric(form, 0).float()
    return upright @ drawn.T - 0.5 * ((drawn @ f) * drawn).sum(1) + log_normal(z)


def test_steps_climb_to_the_mode_of_a_decoder_that_bends(metric):
    n, decoder = 6, bent(metric)
    truth = torch.linspace(-1, 1, n)[:, None]
    upright = decoder(truth).detach() + 0.3 * random(n, len(metric.level), seed=4)
    q, value = latent_posterior(decoder, upright, metric.form(None), torch.zeros(n, 1), 12)
    grid = torch.linspace(-1.5, 1.5, 6001)[:, None]
    best = log_joint(decoder, upright, metric.form(None), grid).max(1)
    assert torch.allclose(q.mean[:, 0], grid[best.indices, 0], atol=2e-3)
    assert torch.allclose(value, best.values + 0.5 * math.log(2 * math.pi), atol=2e-3)


def test_a_step_never_makes_it_worse(metric):
    """Far from the mode the decoder bends back, and whole steps would overshoot."""
    decoder = bent(metric)
    upright = 3 * decoder(random(20, 1, seed=3)).detach()
    start = 4 * random(20, 1, seed=6)
    values = [latent_posterior(decoder, upright, metric.form(None), start, k)[1] for k in range(6)]
    assert all((b >= a).all() for a, b in pairwise(values))
    assert float((values[-1] - values[0]).min()) > 0
    moved = latent_posterior(decoder, upright, metric.form(None), start, 1)[0].mean - start
    assert float(moved.abs().max()) <= 1.5 + 1e-6


# ------------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("wider", [1.0, 1.4])
def test_samples_are_spread_like_the_posterior(wider):
    root = torch.tril(0.5 * random(2, D, D, seed=7)) + 1.5 * torch.eye(D)
    q = LatentPosterior(random(2, D, seed=8), root)
    z, log_weight = q.samples(random(1, 40_000, D, seed=9), wider)
    assert z.shape == (2, 40_000, D) and log_weight.shape == (2, 40_000)
    for k in range(2):
        assert torch.allclose(z[k].mean(0), q.mean[k], atol=0.02)
        assert torch.allclose(z[k].T.cov(), wider**2 * q.covariance[k], rtol=0.03, atol=0.02)


@pytest.mark.parametrize("wider", [1.0, 1.3])
def test_weights_of_samples_are_those_of_the_prior_over_the_density_drawn_from(wider):
    root = torch.tril(0.5 * random(2, D, D, seed=7)) + 1.5 * torch.eye(D)
    q = LatentPosterior(random(2, D, seed=8), root)
    z, log_weight = q.samples(random(2, 50, D, seed=9), wider)
    normal = torch.distributions.MultivariateNormal(torch.zeros(D), torch.eye(D))
    for k in range(2):
        drawn_from = torch.distributions.MultivariateNormal(q.mean[k], wider**2 * q.covariance[k])
        expected = normal.log_prob(z[k]) - drawn_from.log_prob(z[k]) - math.log(50)
        assert torch.allclose(log_weight[k], expected, atol=2e-3)


def test_weighted_samples_integrate_to_the_evidence(metric):
    """Of a linear decoder, where Laplace's method is exact as well; and of one that bends, against quadrature."""
    n, decoder = 3, linear(metric, 2, strength=0.1)
    form = metric.form(None)
    upright = decoder(random(n, 2, seed=3)).detach() + 0.5 * random(n, len(metric.level), seed=4)
    q, value = latent_posterior(decoder, upright, form, torch.zeros(n, 2), 8)
    exact = value + q.log_volume
    z, log_weight = q.samples(random(1, 8000, 2, seed=9), 1.2)
    likelihood = torch.stack(
        [log_joint(decoder, u[None], form, of)[0] - log_normal(of) for u, of in zip(upright, z, strict=True)]
    )
    assert torch.allclose(torch.logsumexp(likelihood + log_weight, 1), exact, atol=0.03)

    bending = bent(metric)
    upright = bending(random(n, 1, seed=3)).detach() + 0.3 * random(n, len(metric.level), seed=4)
    q, _ = latent_posterior(bending, upright, form, torch.zeros(n, 1), 8)
    grid = torch.linspace(-5, 5, 4001)[:, None]
    whole = torch.logsumexp(log_joint(bending, upright, form, grid), 1) + math.log(10 / 4000)
    z, log_weight = q.samples(random(1, 8000, 1, seed=9), 1.2)
    likelihood = torch.stack(
        [log_joint(bending, u[None], form, of)[0] - log_normal(of) for u, of in zip(upright, z, strict=True)]
    )
    # The bound of importance sampling: below the evidence, and hardly below it where sin(z) has but one mode that counts.
    assert torch.allclose(torch.logsumexp(likelihood + log_weight, 1), whole, atol=0.1)


# -------------------------------------------------------------------------------------------------------------- slopes


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": "coefficients"},
        {"decoder": "coefficients", "layers": 3, "activation": "tanh"},
        {"decoder": "coefficients", "activation": "silu"},
        {"decoder": "coefficients", "residual": True, "layers": 3},
    ],
    ids=str,
)
def test_slopes_against_finite_differences(metric, settings):
    basis = SteerableBasis.full(Disk(BOX, BOX / 2 - 0.5), 0.3)
    torch.manual_seed(0)
    decoder = canonical_decoder(ModelConfig(hidden=12, **settings), basis, D).double()
    z = random(4, D, seed=3).double()
    drawn, slopes = decoder.with_slopes(z)
    assert slopes.shape == (4, D, 2 * basis.size)
    assert torch.allclose(drawn, decoder(z), atol=1e-6)
    step = 1e-6
    for k in range(D):
        move = step * torch.eye(D, dtype=torch.float64)[k]
        expected = (decoder(z + move) - decoder(z - move)) / (2 * step)
        assert float(slopes[:, k].detach().norm()) > 1e-3
        assert torch.allclose(slopes[:, k], expected, atol=1e-6)


def test_slopes_of_the_spatial_decoder():
    """It draws in single precision, so differences are those of a wider step."""
    basis = SteerableBasis.full(Disk(BOX, BOX / 2 - 0.5), 0.3)
    torch.manual_seed(0)
    decoder = canonical_decoder(ModelConfig(hidden=12, decoder="spatial"), basis, D)
    z, step = random(4, D, seed=3), 0.01
    drawn, slopes = decoder.with_slopes(z)
    assert torch.allclose(drawn, decoder(z), atol=1e-5)
    for k in range(D):
        expected = (decoder(z + step * torch.eye(D)[k]) - decoder(z - step * torch.eye(D)[k])) / (2 * step)
        assert float(((slopes[:, k] - expected).norm() / expected.norm()).detach()) < 3e-3


def test_a_particle_of_the_disk_is_the_decoders_own_image():
    """Coefficients with their pose taken out are those that the posterior expects: a decoder's image gives its own z back."""
    basis = SteerableBasis.full(Disk(BOX, BOX / 2 - 0.5), 0.3)
    metric = RingMetric(basis, FourierPlane(BOX))
    x, y = geometry.pixel_grid(BOX)
    bars = [np.exp(-((x - dx) ** 2) / 4 - y**2 / 9) for dx in (-2, 2)]
    shape = basis.coefficients(torch.from_numpy(np.stack(bars)).float())
    decoder = Linear(20 * shape.mean(0), 10 * (shape[1:] - shape[:1]))
    truth = torch.tensor([[-1.2], [0.0], [0.7]])
    drawn = decoder(truth).detach()
    upright = metric.form(None).applied(drawn)
    q, _ = latent_posterior(decoder, upright, metric.form(None), torch.zeros(3, 1), 6)
    seen = 1 / q.sd**2 - 1  # information of the image; the prior draws towards 0
    assert torch.allclose(q.mean, truth * seen / (seen + 1), atol=1e-3)
    assert float(seen.min()) > 20
