"""The parts of the coordinate engine: the contract that each family keeps, and their mathematics against independent sums."""

import math

import numpy as np
import pytest
import torch
from torch import distributions
from torch.autograd import gradcheck

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry
from emspatialvae.model.batch import Batch
from emspatialvae.model.coordinate.decoder import SpatialDecoder, VanillaDecoder
from emspatialvae.model.coordinate.encoder import MlpEncoder, align_images, turn_images
from emspatialvae.model.coordinate.likelihood import Bernoulli, FittedGaussian, UnitGaussian, build_likelihood
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.distributions import AmortisedPosterior, DiagonalGaussian, LatentAndPose, Prior
from emspatialvae.model.image_spec import ImageSpec

BOX = 17


def coordinate(**settings) -> ModelConfig:
    return ModelConfig(**{"engine": "coordinate", "z_dim": 2, **settings})


IMAGES = ImageSpec(BOX, 7.5, shift_prior_px=2.0, max_shift_px=6.0)

CONFIGS = {
    "paper": coordinate(hidden=24, encoder_hidden=24, z_view="image"),
    "canonical": coordinate(hidden=24, encoder_hidden=24),
    "z1": coordinate(z_dim=1, hidden=24, encoder_hidden=24),
    "three layers": coordinate(hidden=24, layers=3, encoder_hidden=24, encoder_layers=3),
    "one layer": coordinate(hidden=24, layers=1, encoder_hidden=24, encoder_layers=1),
    "residual": coordinate(hidden=24, residual=True, encoder_hidden=24),
    "squared": coordinate(hidden=24, squared_coordinates=True, encoder_hidden=24),
    "bilinear": coordinate(hidden=24, bilinear=True, encoder_hidden=24),
    "bilinear squared": coordinate(hidden=24, bilinear=True, squared_coordinates=True, encoder_hidden=24),
    "silu": coordinate(hidden=24, activation="silu", encoder_hidden=24),
    "fitted": coordinate(hidden=24, noise="fitted", encoder_hidden=24),
    "fitted non-negative": coordinate(hidden=24, noise="fitted", non_negative=True, encoder_hidden=24),
    "bernoulli": coordinate(hidden=24, noise="bernoulli", encoder_hidden=24),
    "non-negative": coordinate(hidden=24, non_negative=True, encoder_hidden=24),
    "full KL": coordinate(hidden=24, theta_kl="full", encoder_hidden=24),
    "no rotation": coordinate(hidden=24, rotate=False, encoder_hidden=24),
    "no shift": coordinate(hidden=24, translate=False, encoder_hidden=24),
    "fixed pose": coordinate(hidden=24, rotate=False, translate=False, encoder_hidden=24),
    "vanilla": coordinate(decoder="vanilla", hidden=24, encoder_hidden=24),
    "vanilla fitted": coordinate(decoder="vanilla", noise="fitted", hidden=24, encoder_hidden=24, layers=3),
}


def make(name: str, channels: int = 1) -> SpatialVAE:
    torch.manual_seed(1)
    spec = ImageSpec(BOX, 7.5, shift_prior_px=2.0, max_shift_px=6.0, channels=channels)
    return SpatialVAE(CONFIGS[name], spec)


def some_images(n: int = 5, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, BOX, BOX, generator=torch.Generator().manual_seed(2))


def batch_of(images: torch.Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.long))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_contract(name, channels):
    """Shapes; a gradient for every parameter; training equals evaluation; saved equals loaded; draws what it means."""
    model, images = make(name, channels), some_images(5, channels)
    turns = torch.linspace(0, 5, 5)
    elbo = model.elbo(batch_of(images), seeded(), turn_rad=turns)
    assert elbo.bound.shape == elbo.kl_z.shape == elbo.kl_theta.shape == elbo.kl_shift.shape == (5,)
    assert torch.isfinite(elbo.bound).all()
    (-elbo.bound.mean()).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without

    again = SpatialVAE(CONFIGS[name], model.images)
    again.load_state_dict(model.state_dict())
    again.eval()
    assert torch.equal(again.elbo(batch_of(images), seeded(), turn_rad=turns).bound, elbo.bound)

    estimate = again.infer(batch_of(images), turns=3)
    assert estimate.mean.z.shape == estimate.sd.z.shape == (5, CONFIGS[name].z_dim)
    assert estimate.mean.theta_rad.shape == (5,)
    assert estimate.mean.shift_px.shape == estimate.sd.shift_px.shape == (5, 2)
    drawn = again.render(estimate.mean)
    assert drawn.shape == (5, channels, BOX, BOX)
    mask = again.mask.view(BOX, BOX)
    meant = again.likelihood.mean(again.decode(estimate.mean)).transpose(1, 2)
    assert torch.allclose(drawn[:, :, mask], meant, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "canonical", "bilinear squared", "fitted", "residual"])
def test_gradients_against_finite_differences(name):
    """d ELBO / d parameters in float64, along random directions."""
    model, images = make(name).double(), some_images().double()
    # The pose network's gradient leaves out, on purpose, what the pose does to the view of the z network.
    stopped = "encoder.layers" if model.encoder.z_layers is not None else "nothing"
    parameters = [p for key, p in model.named_parameters() if not key.startswith(stopped)]
    generator = seeded(7)

    def value() -> torch.Tensor:
        return model.elbo(batch_of(images), seeded(), turn_rad=torch.linspace(0, 5, 5).double()).bound.sum()

    gradients = torch.autograd.grad(value(), parameters)
    for _ in range(3):
        steps = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        expected = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True))
        values = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for p, s in zip(parameters, steps, strict=True):
                    p += sign * s
                values.append(value())
                for p, s in zip(parameters, steps, strict=True):
                    p -= sign * s
        assert float((values[0] - values[1]) / 2e-5) == pytest.approx(float(expected), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- posterior


def test_kl_is_the_textbook_one():
    q = DiagonalGaussian(torch.tensor([[0.3, -2.0], [0.0, 1.0]]), torch.tensor([[0.1, -1.0], [0.0, 0.5]]))
    normal = distributions.Normal
    expected = distributions.kl_divergence(normal(q.mean, q.sd), normal(0.0, 1.7)).sum(1)
    assert torch.allclose(q.kl_to_normal(1.7), expected, atol=1e-6)
    centred = DiagonalGaussian(torch.zeros_like(q.mean), q.log_sd)
    assert torch.allclose(q.kl_without_mean(1.7), centred.kl_to_normal(1.7), atol=1e-6)


@pytest.mark.parametrize("theta_kl", ["no-mean", "full"])
def test_kl_of_theta_in_both_forms(theta_kl):
    theta = DiagonalGaussian(torch.tensor([[2.0], [-1.0]]), torch.tensor([[-1.0], [0.2]]))
    q = AmortisedPosterior(DiagonalGaussian(torch.zeros(2, 1), torch.zeros(2, 1)), theta, None, torch.zeros(2))
    kl = q.kl(Prior(math.pi, 1.0, theta_kl))
    s = torch.tensor([-1.0, 0.2]).exp()
    formula = math.log(math.pi) - s.log() + s**2 / (2 * math.pi**2) - 0.5
    if theta_kl == "full":
        formula = formula + torch.tensor([4.0, 1.0]) / (2 * math.pi**2)
    assert torch.allclose(kl.theta, formula)
    assert torch.equal(kl.z, torch.zeros(2))
    assert torch.equal(kl.shift, torch.zeros(2))


def test_samples_have_the_moments_they_should():
    n = 200_000
    z = DiagonalGaussian(torch.full((n, 1), 0.4), torch.full((n, 1), -0.5))
    theta = DiagonalGaussian(torch.full((n, 1), 1.0), torch.full((n, 1), -2.0))
    shift = DiagonalGaussian(torch.tensor([[3.0, -1.0]]).expand(n, 2), torch.tensor([[0.0, -1.0]]).expand(n, 2))
    turn = torch.full((n,), 0.7)
    q = AmortisedPosterior(z, theta, shift, turn)
    drawn, mean, sd = q.rsample(seeded()), q.mean, q.sd
    assert float(drawn.theta_rad.mean()) == pytest.approx(0.3, abs=1e-3)
    for part in ("z", "theta_rad", "shift_px"):
        found, m, s = (getattr(content, part) for content in (drawn, mean, sd))
        assert torch.allclose(found.mean(0), m[0], atol=8e-3)
        assert torch.allclose(found.std(0), s[0], rtol=1e-2)


def test_the_turn_is_taken_out_of_the_pose():
    """An encoder that sees the image turned by g sees an object at (theta + g, R(g) shift)."""
    pose = geometry.Pose2D(np.array([0.5]), np.array([[2.0, -3.0]]))
    g = 1.1
    seen = geometry.rotate_xy(*pose.shift_px[0], math.cos(g), math.sin(g))
    one = torch.zeros(1, 1)
    q = AmortisedPosterior(
        DiagonalGaussian(one, one),
        DiagonalGaussian(torch.tensor([[0.5 + g]]), one),
        DiagonalGaussian(torch.tensor([list(seen)], dtype=torch.float32), torch.zeros(1, 2)),
        torch.tensor([g]),
    )
    assert float(q.mean.theta_rad) == pytest.approx(0.5, abs=1e-6)
    assert q.mean.shift_px[0].tolist() == pytest.approx([2.0, -3.0], abs=1e-5)


# --------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("box", [32, 33])
def test_turn_images_moves_a_dot_from_x_towards_y(box):
    image = torch.zeros(1, 1, box, box)
    image[0, 0, box // 2, box // 2 + 8] = 1
    turned = turn_images(image, torch.tensor([math.pi / 2]))
    row, column = divmod(int(turned.flatten().argmax()), box)
    assert (row, column) == (box // 2 + 8, box // 2)
    assert float(turned.max()) == pytest.approx(1, abs=1e-4)


def test_turning_there_and_back():
    x, y = geometry.pixel_grid(48)
    smooth = torch.from_numpy(np.exp(-((x - 5) ** 2 + (y + 3) ** 2) / 18)).float()[None, None]
    there = turn_images(smooth, torch.tensor([0.8]))
    assert float((turn_images(there, torch.tensor([-0.8])) - smooth).abs().max()) < 0.03


@pytest.mark.parametrize("box", [24, 25])
def test_align_images_is_imaging_align(box):
    from emspatialvae.imaging import alignment

    x, y = geometry.pixel_grid(box)
    smooth = np.exp(-((x - 3) ** 2 + (y + 2) ** 2) / 18).astype(np.float32)[None]
    pose = geometry.Pose2D(np.array([0.8]), np.array([[1.5, -2.5]]))
    ours = align_images(torch.from_numpy(smooth)[None], torch.tensor([0.8]), torch.tensor([[1.5, -2.5]]))
    assert np.abs(ours[0].numpy() - alignment.align(smooth, pose)).max() < 0.03


def test_z_does_not_see_the_pose():
    """The same content at another pose gives the same z, when the pose network answers with the truth."""
    x, y = geometry.pixel_grid(33)
    images, poses = [], [(0.0, 0.0, 0.0), (0.9, 2.0, -1.0), (-2.0, -1.0, 3.0)]
    for theta, shift_x, shift_y in poses:
        u, v = geometry.image_to_object_xy(x, y, math.cos(theta), math.sin(theta), shift_x, shift_y)
        images.append(np.exp(-((u - 4) ** 2 + v**2) / 8) + 0.5 * np.exp(-(u**2 + (v + 5) ** 2) / 12))
    torch.manual_seed(0)
    model = SpatialVAE(coordinate(hidden=8, encoder_hidden=16), ImageSpec(33, 15.0, 1.0, math.inf))
    truth = torch.tensor([[theta, shift_x, shift_y] for theta, shift_x, shift_y in poses])
    model.encoder.layers = _Answers(torch.cat([truth, torch.zeros(3, 3)], 1))
    z = model.encoder(torch.from_numpy(np.stack(images)).float()[:, None]).z.mean
    assert torch.allclose(z[0], z[1], atol=0.02)
    assert torch.allclose(z[0], z[2], atol=0.02)


class _Answers(torch.nn.Module):
    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_shift_stays_within_its_limit():
    encoder = MlpEncoder(
        torch.ones(8, 8, dtype=torch.bool),
        1,
        2,
        rotate=True,
        translate=True,
        hidden=8,
        layers=1,
        shift_scale_px=3.0,
        max_shift_px=5.0,
    )
    q = encoder(1e4 * torch.randn(50, 1, 8, 8, generator=seeded()))
    assert q.shift is not None
    assert float(q.shift.mean.detach().abs().max()) <= 5.0


# --------------------------------------------------------------------------------------------------------- decoder


def test_decoder_is_a_function_of_the_point():
    """Each point is drawn on its own: order and number of the points change nothing."""
    torch.manual_seed(0)
    decoder = SpatialDecoder(2, 1, hidden=16, layers=2, bilinear=True, squared_coordinates=True)
    points, z = torch.randn(3, 50, 2), torch.randn(3, 2)
    order = torch.randperm(50)
    assert torch.allclose(decoder(points, z)[:, order[:9]], decoder(points[:, order[:9]], z), atol=1e-6)


def test_bilinear_layer_is_the_sum_it_stands_for():
    decoder = SpatialDecoder(3, 1, hidden=4, layers=1, bilinear=True)
    assert decoder.from_products is not None
    points, z = torch.randn(1, 6, 2), torch.randn(1, 3)
    products = decoder.from_products.weight.view(2, 4, 3)  # [feature, hidden, z]
    expected = (
        points @ decoder.from_points.weight.T
        + decoder.from_points.bias
        + decoder.from_z(z)[:, None]
        + torch.einsum("npf,fhz,nz->nph", points, products, z)
    )
    assert torch.allclose(decoder._first_layer(points, z), expected, atol=1e-5)


@pytest.mark.parametrize("bilinear", [False, True])
def test_finer_detail_at_the_start_is_the_same_first_layer_on_a_larger_field(bilinear):
    """Units change over so many times less: ``first(u) = first of usual weights(detail u)``, with the bias that places them."""
    decoders = []
    for detail in (1.0, 4.0):
        torch.manual_seed(0)
        decoders.append(SpatialDecoder(2, 1, hidden=16, layers=2, bilinear=bilinear, start_detail=detail))
    usual, fine = decoders
    points, z = torch.randn(3, 50, 2), torch.randn(3, 2)
    with torch.no_grad():
        bias = usual.from_points.bias
        assert torch.allclose(fine._first_layer(points, z), usual._first_layer(4 * points, z) + 3 * bias, atol=1e-5)


def test_an_odd_image_does_not_make_the_bound_infinite():
    """Networks without bounds (silu) say anything of an image unlike all others."""
    torch.manual_seed(0)
    model = SpatialVAE(coordinate(hidden=8, encoder_hidden=8, activation="silu"), IMAGES)
    odd = batch_of(1e3 * torch.randn(2, 1, BOX, BOX))
    with torch.no_grad():
        for weights in model.encoder.parameters():
            weights *= 3
        assert bool(torch.isfinite(model.elbo(odd, torch.Generator().manual_seed(0)).bound).all())


def test_vanilla_decoder_refuses_other_grids():
    with pytest.raises(ValueError, match="its own 10 pixels"):
        VanillaDecoder(2, 1, pixels=10, hidden=4, layers=1)(torch.zeros(1, 9, 2), torch.zeros(1, 2))


# ------------------------------------------------------------------------------------------------------ likelihood


def test_unit_gaussian_is_a_density():
    output, y = torch.randn(4, 7, 2), torch.randn(4, 7, 2)
    expected = distributions.Normal(output, 1.0).log_prob(y).sum((1, 2))
    assert torch.allclose(UnitGaussian(2).log_prob(output, y), expected, atol=1e-4)


def test_fitted_gaussian_keeps_mean_and_variance_apart():
    """The trap of the authors' ``--fit-noise``: pixel p's mean and log-variance must be outputs of pixel p."""
    mean, log_variance, y = torch.randn(4, 7, 3), torch.randn(4, 7, 3), torch.randn(4, 7, 3)
    likelihood = FittedGaussian(3)
    output = torch.cat([mean, log_variance], -1)
    expected = distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(y).sum((1, 2))
    assert torch.allclose(likelihood.log_prob(output, y), expected, atol=1e-4)
    assert torch.equal(likelihood.mean(output), mean)


def test_bernoulli():
    output, y = torch.randn(4, 7, 1), torch.rand(4, 7, 1).round()
    expected = distributions.Bernoulli(logits=output).log_prob(y).sum((1, 2))
    assert torch.allclose(Bernoulli(1).log_prob(output, y), expected, atol=1e-4)


@pytest.mark.parametrize("noise", ["unit", "fitted"])
def test_non_negative_mean(noise):
    likelihood = build_likelihood(noise, 1, non_negative=True)
    assert float(likelihood.mean(torch.randn(10, 20, likelihood.outputs)).min()) > 0


@pytest.mark.parametrize("noise", ["unit", "fitted", "bernoulli"])
def test_likelihood_gradients(noise):
    likelihood = build_likelihood(noise, 2, non_negative=False)
    y = torch.rand(2, 3, 2).double()
    output = torch.randn(2, 3, likelihood.outputs, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda o: likelihood.log_prob(o, y), output)


# ------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("box", [24, 25])
def test_render_keeps_the_convention(box):
    """The image at a pose is the canonical image under ``image(p) = object(R(-theta) (p - shift))``."""
    from emspatialvae.imaging import alignment, masks

    torch.manual_seed(0)
    model = SpatialVAE(coordinate(hidden=32, encoder_hidden=8), ImageSpec(box, box / 2, 2.0, 6.0))
    z = torch.tensor([[0.3, -0.8]])
    pose = geometry.Pose2D(np.array([0.7]), np.array([[2.5, -1.5]]))
    posed = LatentAndPose(z, torch.tensor([0.7]), torch.tensor([[2.5, -1.5]]))
    still = LatentAndPose(z, torch.zeros(1), torch.zeros(1, 2))
    undone = alignment.align(model.render(posed)[:, 0].numpy(), pose)
    inside = masks.circular_mask(box, box / 2 - 5)
    assert np.abs(undone - model.render(still)[:, 0].numpy())[0][inside].max() < 2e-3


def test_render_at_another_sampling_shows_the_same_field_of_view():
    torch.manual_seed(0)
    model = SpatialVAE(coordinate(hidden=32, encoder_hidden=8), IMAGES)
    content = LatentAndPose(torch.zeros(1, 2), torch.tensor([0.3]), torch.tensor([[1.0, 2.0]]))
    coarse, fine = model.render(content), model.render(content, 2 * BOX)
    # Pixel i of the coarse image sits at 2 (i - BOX // 2) on the fine one.
    start = BOX - 2 * (BOX // 2)
    assert torch.allclose(fine[..., start::2, start::2][..., :BOX, :BOX], coarse, atol=1e-5)


def test_frozen_z_is_out_of_the_bound():
    model = make("paper")
    frozen = model.elbo(batch_of(some_images()), seeded(), freeze_z=True)
    assert torch.equal(frozen.kl_z, torch.zeros(5))
    with torch.no_grad():
        model.decoder.from_z.weight.zero_()
    elbo = model.elbo(batch_of(some_images()), seeded())
    assert torch.allclose(elbo.bound + elbo.kl_z, frozen.bound, atol=1e-4)


def test_infer_takes_the_best_of_its_turns():
    model = make("paper")
    images = some_images(20)
    one, eight = (model.infer(batch_of(images), turns=turns) for turns in (1, 8))

    def score(estimate):
        return model.likelihood.log_prob(model.decode(estimate.mean), model._pixels(images))

    assert torch.allclose(score(eight), eight.log_likelihood, atol=1e-3)
    kl = model.encoder(images).kl(model.prior)
    assert (one.log_likelihood - kl.z - kl.theta - kl.shift).mean() < eight.log_likelihood.mean()


def test_elbo_is_a_bound():
    """For a model small enough to sum by hand, E[ELBO] <= log p(y) by importance sampling with many samples."""
    torch.manual_seed(0)
    model = SpatialVAE(
        coordinate(z_dim=1, hidden=8, encoder_hidden=8, translate=False, theta_kl="full"), ImageSpec(9, 4.0, 1.0, 3.0)
    )
    y = torch.randn(1, 1, 9, 9)
    with torch.no_grad():
        bound = model.elbo(batch_of(y.expand(4000, -1, -1, -1)), seeded()).bound.mean()
        n = 20_000
        z, theta = torch.randn(n, 1), math.pi * torch.randn(n)
        content = LatentAndPose(z, theta, torch.zeros(n, 2))
        log_p = model.likelihood.log_prob(model.decode(content), model._pixels(y).expand(n, -1, -1))
        evidence = torch.logsumexp(log_p, 0) - math.log(n)
    assert float(bound) < float(evidence)
    assert float(evidence - bound) < 10
