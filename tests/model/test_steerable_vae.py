"""The steerable model: its contract with both decoders, what it draws, and what it says of objects whose posterior is known."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import alignment, ctf, geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.distributions import LatentAndPose, standard_normal
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.load import blank_model
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.inference import Inference
from emspatialvae.model.steerable.initialise import new_model
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.poses import LocalPosterior, Poses
from emspatialvae.model.steerable.vae import STEPS_IN_TRAINING, SteerableVAE, amplitude
from emspatialvae.simulation.kinds import phantom
from emspatialvae.simulation.stack import clean_image, hinge_object
from tests.tools.hinges import BOX, CONFIGS, SPEC, noisy_hinges, seeded


def batch_of(kind: str = "white", n: int = 6, groups: int = 1) -> Batch:
    images, group = noisy_hinges()[:n], np.arange(n) % groups
    if kind == "white":
        return Batch.of(images, group)
    same = np.ones(n)
    defocus = np.linspace(10_000, 20_000, n)
    params = ctf.CtfParams(defocus + 100, defocus - 100, 0.3 * same, 0 * same, 300 * same, 2.7 * same, 0.1 * same)
    return Batch.of(ctf.multiply(images, params, 4.0), group, ctf.ring_power(params, BOX, 4.0))


@pytest.fixture(scope="module")
def made():
    """Untrained models of hinges by name, made once; do not change them."""
    models: dict[str, SteerableVAE] = {}

    def of(name: str, groups: int = 1) -> SteerableVAE:
        key = f"{name} {groups}"
        if key not in models:
            torch.manual_seed(1)
            images = noisy_hinges()
            batch = Batch.of(images, np.arange(len(images)) % groups)
            models[key] = new_model(CONFIGS[name], SPEC, groups, lambda: [batch])
            models[key].decoder.start_from(models[key].basis.coefficients(batch.images[0, 0]) * models[key].basis.live)
        return models[key]

    return of


# --------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("kind", ["white", "ctf"])
@pytest.mark.parametrize("name", CONFIGS)
def test_contract(made, name, kind):
    """Shapes; a gradient for every parameter; training equals evaluation; saved equals loaded."""
    model, batch, config = made(name), batch_of(kind), CONFIGS[name]
    model.zero_grad()
    poses = Poses(torch.linspace(-3, 3, 6), torch.linspace(-1, 1, 12).view(6, 2))
    if not config.rotate:
        poses = Poses(torch.zeros(6), poses.shift_px)
    if not config.translate:
        poses = Poses(poses.theta_rad, torch.zeros(6, 2))
    observation = model.observe(batch)
    start = 0.1 * torch.arange(6.0)[:, None].expand(-1, model.z_dim)
    elbo, found = model.elbo(observation, poses, start, seeded())
    assert elbo.bound.shape == elbo.kl_z.shape == elbo.kl_theta.shape == elbo.kl_shift.shape == (6,)
    assert found.near.mean.theta_rad.shape == (6,) and found.near.mean.shift_px.shape == (6, 2)
    assert found.z.shape == (6, config.z_dim) and torch.allclose(found.log_evidence, elbo.bound, rtol=1e-5, atol=1e-3)
    assert torch.isfinite(elbo.bound).all()
    (-elbo.bound.mean()).backward()
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert any(key.startswith("encoder") for key in learned) and any(key.startswith("decoder") for key in learned)
    assert not [key for key, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0]

    again = blank_model(config, SPEC, model.state_dict())
    again.load_state_dict(model.state_dict())
    assert isinstance(again, SteerableVAE)
    again.eval()
    other, _ = again.elbo(again.observe(batch), poses, start, seeded())
    assert torch.equal(other.bound, elbo.bound)

    estimate = again.infer(batch)
    assert estimate.mean.z.shape == estimate.sd.z.shape == (6, config.z_dim)
    assert estimate.mean.theta_rad.shape == estimate.sd.theta_rad.shape == (6,)
    assert estimate.mean.shift_px.shape == estimate.sd.shift_px.shape == (6, 2)
    assert estimate.peak_weight is not None and estimate.peak_weight.shape == (6,)
    for values in (*vars(estimate.mean).values(), *vars(estimate.sd).values(), estimate.log_likelihood):
        assert torch.isfinite(values).all()
    assert ((estimate.peak_weight > 0) & (estimate.peak_weight <= 1 + 1e-6)).all()
    for part, values in (("rotate", estimate.mean.theta_rad), ("translate", estimate.mean.shift_px)):
        if not getattr(config, part):
            assert not values.any()
    drawn = again.render(estimate.mean)
    assert drawn.shape == (6, 1, BOX, BOX) and torch.isfinite(drawn).all()
    for theirs, ours in zip(vars(model.infer(batch).mean).values(), vars(estimate.mean).values(), strict=True):
        assert torch.equal(theirs, ours)


def test_the_other_engines_checkpoint_is_told_apart(made):
    with pytest.raises(KeyError):
        blank_model(CONFIGS["z1"], SPEC, {"decoder.weight": torch.zeros(1)})


def test_a_checkpoint_knows_its_sizes(made):
    """Components, rings, groups and anchors are those of the particles, not of the configuration."""
    model = made("coefficients", groups=2)
    state = model.state_dict() | {"anchors": torch.randn(11, 2)}
    again = SteerableVAE.of_state(CONFIGS["coefficients"], SPEC, state)
    again.load_state_dict(state)
    assert again.anchors.shape == (11, 2) and again.spectra.noise.shape[0] == 2
    assert torch.equal(again.basis.vectors, model.basis.vectors)


def test_each_particle_on_its_own(made):
    """What is said of a particle does not depend on the company it is in."""
    model, batch = made("coefficients"), batch_of()
    together = model.infer(batch)
    for row in (0, 4):
        alone = model.infer(batch[row : row + 1])
        assert torch.allclose(alone.mean.z[0], together.mean.z[row], atol=1e-3)
        assert torch.allclose(alone.mean.theta_rad[0], together.mean.theta_rad[row], atol=1e-3)
        assert torch.allclose(alone.mean.shift_px[0], together.mean.shift_px[row], atol=1e-3)


def test_frozen_z_is_out_of_the_bound(made):
    model, batch = made("coefficients"), batch_of()
    poses = Poses(torch.zeros(6), torch.zeros(6, 2))
    frozen, found = model.elbo(model.observe(batch), poses, torch.ones(6, 2), seeded(), freeze_z=True)
    assert not frozen.kl_z.any() and not found.z.any()
    expected = model.search.local_search(model.observe(batch), poses, model.decoder(torch.zeros(6, 2))).log_evidence
    assert torch.allclose(frozen.bound, expected, atol=1e-4)


@pytest.mark.parametrize("decoder", ["coefficients", "spatial"])
def test_start_from_an_image(made, decoder):
    """Before training every z means the consensus."""
    model = copy.deepcopy(made(decoder))
    image = torch.from_numpy(clean_image(hinge_object(), [0.0], Pose2D.identity(1), BOX)).float()
    wanted = (model.basis.coefficients(image / image.std())[0]) * model.basis.live
    model.decoder.start_from(wanted)
    found = model.decoder(torch.randn(20, 2, generator=seeded()))
    assert ((found - wanted).norm(dim=1).max() / wanted.norm()).item() < (0.05 if decoder == "coefficients" else 0.5)


# --------------------------------------------------------------------------------------------------------- what it draws


def of_one_image(
    image: np.ndarray, config: ModelConfig = CONFIGS["z1"], limit: float = 0.4, shift_sd_px: float = 1.5
) -> SteerableVAE:
    """A model that knows one image [box, box], whatever z."""
    torch.manual_seed(0)
    box = len(image)
    spec = ImageSpec(box, 0.45 * box, shift_sd_px, 5.0)
    model = SteerableVAE(config, spec, SteerableBasis.full(Disk(box, box / 2 - 0.5), limit), 1)
    wanted = model.basis.coefficients(torch.from_numpy(image).float()) * model.basis.live
    model.decoder.start_from(wanted)
    with torch.no_grad():
        model.decoder.output.weight.zero_()
    model.search.set_steps(wanted[None], None)
    return model.eval()


def hinge_image(
    box: int, height: float = 0.2, theta: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    return height * clean_image(hinge_object(), [0.2], Pose2D(np.array([theta]), np.array([shift])), box)[0]


def content(model: SteerableVAE, theta: float, shift: tuple[float, float]) -> LatentAndPose:
    return LatentAndPose(torch.zeros(1, model.z_dim), torch.tensor([theta]), torch.tensor([shift]))


@pytest.mark.parametrize("box", [24, 25])
def test_render_keeps_the_convention(box):
    """At pose zero the object, at a pose the object under ``image(p) = object(R(-theta) (p - shift))``."""
    model = of_one_image(hinge_image(box))
    for theta, shift in ((0.0, (0.0, 0.0)), (0.7, (2.5, -1.5)), (-2.0, (-1.0, 2.0))):
        drawn = model.render(content(model, theta, shift))[0, 0].numpy()
        expected = hinge_image(box, theta=theta, shift=shift)
        assert np.linalg.norm(drawn - expected) < 0.05 * np.linalg.norm(expected)
    undone = alignment.align(drawn[None], Pose2D(np.array([theta]), np.array([shift])))[0]
    assert np.linalg.norm(undone - hinge_image(box)) < 0.08 * np.linalg.norm(undone)


@pytest.mark.parametrize("box", [24, 25])
def test_render_at_another_sampling_shows_the_same_field_of_view(box):
    model = of_one_image(hinge_image(box))
    some = content(model, 0.3, (1.0, 2.0))
    coarse, fine = model.render(some), model.render(some, 2 * box)
    start = box - 2 * (box // 2)
    assert fine.shape == (1, 1, 2 * box, 2 * box)
    error = fine[..., start::2, start::2][..., :box, :box] - coarse
    assert float(error.abs().max()) < 0.01 * float(coarse.abs().max())


def test_render_of_reported_poses_is_the_image(made):
    """The gauge turns the frame that poses are reported in; what is drawn at them stays what it was."""
    model = of_one_image(hinge_image(24))
    raw = Poses(torch.tensor([0.4]), torch.tensor([[1.0, -0.5]]))
    z = torch.tensor([[0.7]])
    before = model.render(LatentAndPose(z, raw.theta_rad, raw.shift_px))
    for parameter in model.gauge.layers.parameters():
        parameter.mul_(2)
    model.gauge.fitted.fill_(True)
    common = model.gauge.into_common(raw, z)
    assert float((common.theta_rad - raw.theta_rad).abs()) > 0.05
    after = model.render(LatentAndPose(z, common.theta_rad, common.shift_px))
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


# --------------------------------------------------------------------------------------------------- what it says of them


@pytest.mark.parametrize("box", [24, 25])
def test_poses_of_a_known_object(box):
    """Noise-free images at known poses; signs included."""
    model = of_one_image(hinge_image(box))
    rng = np.random.default_rng(0)
    theta, shift = rng.uniform(-np.pi, np.pi, 16), rng.uniform(-2, 2, (16, 2))
    images = np.stack([hinge_image(box, theta=t, shift=tuple(s)) for t, s in zip(theta, shift, strict=True)])
    found = model.infer(Batch.of(images, np.zeros(16)))
    turn = np.degrees(geometry.wrapped(found.mean.theta_rad.numpy() - theta))
    assert np.abs(turn).max() < 3
    assert np.abs(found.mean.shift_px.numpy() - shift).max() < 0.3
    # Nothing is known of z: its posterior is the prior.
    assert found.mean.z.abs().max() < 0.2
    assert (found.log_likelihood > 10).all()


def test_uncertainties_are_those_of_the_noise():
    """One known object in white noise: errors of theta are as large as said, those of the shift up to an eighth larger.

    A reference without its mean ends in a step at the edge of the disk, and the disk moves with the shift: the step meets other noise
    at each shift, which the likelihood does not know of. The less of the disk the particle fills the smaller the step.
    """
    box, n = 24, 300
    clean = hinge_image(box, 0.1)
    model = of_one_image(clean, shift_sd_px=1.0)
    rng = np.random.default_rng(0)
    theta, shift = rng.uniform(-np.pi, np.pi, n), rng.normal(size=(n, 2))
    pose = Pose2D(theta, shift)
    images = 0.1 * clean_image(hinge_object(), np.full(n, 0.2), pose, box) + rng.normal(size=(n, box, box))
    found = model.infer(Batch.of(images, np.zeros(n)))
    turn = geometry.wrapped(found.mean.theta_rad.numpy() - theta) / found.sd.theta_rad.numpy()
    move = (found.mean.shift_px.numpy() - shift) / found.sd.shift_px.numpy()
    assert np.mean(np.abs(turn) < 1) == pytest.approx(0.683, abs=0.08)
    assert 0.59 < np.mean(np.abs(move) < 1) < 0.72
    assert np.sqrt(np.mean(np.clip(turn, -4, 4) ** 2)) == pytest.approx(1, abs=0.12)
    assert 0.94 < np.sqrt(np.mean(np.clip(move, -4, 4) ** 2)) < 1.2


def test_a_symmetric_object_has_two_poses():
    """Nobody can tell which: half the weight for the one reported; all of it where the object is like itself at no other angle."""
    box, angles = 32, np.linspace(-3, 3, 8)
    pose = Pose2D(angles, np.zeros((8, 2)))
    weights = {}
    for kind in ("symmetric", "hinge"):
        obj = phantom(kind)
        model = of_one_image(0.3 * clean_image(obj, np.zeros((1, obj.z_dim)), Pose2D.identity(1), box)[0])
        images = 0.3 * clean_image(obj, np.zeros((8, obj.z_dim)), pose, box)
        found = model.infer(Batch.of(images, np.zeros(8)))
        weights[kind] = found.peak_weight
        fold = 2 if kind == "symmetric" else 1
        turn = geometry.wrapped(fold * (found.mean.theta_rad.numpy() - angles)) / fold
        assert np.degrees(np.abs(turn)).max() < 3
    assert torch.allclose(weights["symmetric"], torch.full((8,), 0.5), atol=0.05)
    assert float(weights["hinge"].min()) > 0.99


def test_weights_of_a_nearly_symmetric_object_are_honest():
    """A dimer with a few atoms more on one side, in noise: of those with weight p a share p is the right way round."""
    box, n = 32, 400
    obj = phantom("pseudo-symmetric")
    height = 0.12
    clean = height * clean_image(obj, np.zeros((1, obj.z_dim)), Pose2D.identity(1), box)[0]
    model = of_one_image(clean, shift_sd_px=0.5)
    rng = np.random.default_rng(1)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, n), 0.5 * rng.normal(size=(n, 2)))
    images = height * clean_image(obj, np.zeros((n, obj.z_dim)), pose, box) + rng.normal(size=(n, box, box))
    found = model.infer(Batch.of(images, np.zeros(n)))
    right = np.abs(geometry.wrapped(found.mean.theta_rad.numpy() - pose.theta_rad)) < np.pi / 2
    weight = found.peak_weight.numpy()
    assert 0.55 < right.mean() < 0.99
    assert weight.mean() == pytest.approx(right.mean(), abs=0.06)
    sure = weight > np.median(weight)
    assert right[sure].mean() > right[~sure].mean()
    assert right[weight > 0.99].mean() > 0.985  # nobody who is sure is wrong: the other way round was looked at, too


# ------------------------------------------------------------------------------------------------------------- the bound


def test_jitter_looks_elsewhere_but_not_far(made):
    """The encoder learns from images a little off the pose; the bound is that of the pose itself."""
    model, batch = made("coefficients"), batch_of()
    observation, poses, start = model.observe(batch), Poses(torch.zeros(6), torch.zeros(6, 2)), torch.zeros(6, 2)
    learned = list(model.encoder.parameters())
    bounds, gradients = [], []
    for jitter in (False, True):
        bound = model.elbo(observation, poses, start, seeded(), jitter=jitter)[0]
        bounds.append(bound)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(bound.bound.sum(), learned)]))
    calm, shaken = bounds
    assert torch.equal(calm.kl_z, shaken.kl_z)
    assert torch.allclose(calm.bound, shaken.bound, atol=1e-4)
    assert not torch.equal(*gradients)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert float(cosine) > 0.5


def test_the_encoder_learns_to_propose_what_the_decoder_says(made):
    """Its gradient is that of its log density at samples of the decoder's posterior, and nothing of the bound's value is its own."""
    model, batch = made("coefficients"), batch_of()
    observation, poses, start = model.observe(batch), Poses(torch.zeros(6), torch.zeros(6, 2)), torch.zeros(6, 2)
    learned = list(model.encoder.parameters())
    bound = model.elbo(observation, poses, start, seeded(), jitter=False)[0].bound.sum()
    found = torch.autograd.grad(bound, learned)
    q = model.inference.q(observation, poses, start, STEPS_IN_TRAINING)
    z, _ = q.samples(standard_normal((6, 1, 2), seeded(), observation.plane))
    proposed = model.inference.proposal(observation, poses)
    density = torch.distributions.Normal(proposed.mean, proposed.sd).log_prob(z[:, 0]).sum()
    for ours, theirs in zip(found, torch.autograd.grad(density, learned), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    # Another encoder, the same bound.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.encoder.parameters():
            p.mul_(0.3)
        again = other.elbo(observation, poses, start, seeded(), jitter=False)[0].bound.sum()
    assert float(again) == pytest.approx(bound.item(), rel=1e-5)


@pytest.fixture(scope="module")
def open_question() -> tuple[SteerableVAE, Observation, Poses]:
    """A model whose latents differ, an image that leaves z open between some of them, and an encoder that does not know."""
    torch.manual_seed(2)
    model = of_one_image(hinge_image(24, 0.1))
    with torch.no_grad():
        model.decoder.output.weight.normal_(std=0.3)
    image = hinge_image(24, 0.1) + 0.5 * np.random.default_rng(4).normal(size=(24, 24))
    return model, model.observe(Batch.of(image[None], np.zeros(1))), Poses(torch.zeros(1), torch.zeros(1, 2))


def log_evidence(model: SteerableVAE, observation: Observation, poses: Poses) -> float:
    """log of the neighbourhood's evidence of one image, summed over the prior of z on a fine grid."""
    grid = torch.linspace(-5, 5, 401)[:, None]
    with torch.no_grad():
        each = torch.cat(
            [model.search.local_search(observation, poses, model.decoder(z[None])).log_evidence for z in grid]
        )
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid[:, 0])
    return float(torch.logsumexp(each + prior, 0)) + math.log(10 / 400)


@torch.no_grad()
def mean_bound(question: tuple[SteerableVAE, Observation, Poses], draws: int, n: int = 2000) -> tuple[float, float]:
    """Mean of n estimates of the bound, and its standard error."""
    model, observation, _ = question
    many, still = observation[torch.zeros(n, dtype=torch.long)], Poses(torch.zeros(n), torch.zeros(n, 2))
    found = model.elbo(many, still, torch.zeros(n, 1), seeded(), jitter=False, draws=draws)[0].bound
    return float(found.mean()), float(found.std()) / math.sqrt(n)


@pytest.mark.slow
def test_elbo_is_a_bound_and_rises_with_draws(open_question):
    """E[bound of K] <= E[bound of more] <= log of the evidence."""
    evidence = log_evidence(*open_question)
    bounds = [mean_bound(open_question, draws) for draws in (1, 2, 4, 16, 64)]
    for (low, low_error), (high, high_error) in pairwise(bounds):
        assert low < high + 2 * math.hypot(low_error, high_error)
    assert all(bound < evidence + 3 * error + 1e-3 for bound, error in bounds)
    # They differ by much more than chance, and many draws leave little out: q is one Gaussian at one of two modes.
    assert bounds[0][0] < bounds[2][0] - 10 * bounds[0][1]
    assert bounds[-1][0] == pytest.approx(evidence, abs=0.5 * (evidence - bounds[0][0]))


def test_many_draws_leave_nothing_out_where_there_is_one_mode(open_question):
    model, observation, poses = copy.deepcopy(open_question)
    with torch.no_grad():
        model.decoder.output.weight.mul_(1 / 3)
    question = model, observation, poses
    evidence = log_evidence(*question)
    (one, _), (many, error) = mean_bound(question, 1), mean_bound(question, 128, 500)
    assert evidence - one > 0.1
    assert many == pytest.approx(evidence, abs=0.1 * (evidence - one) + 3 * error)
    assert error < 0.05 * (evidence - one)


def test_the_bound_of_several_draws_by_hand(open_question):
    """``log 1/K sum_k p(y | z_k) p(z_k) / q(z_k)``, draw by draw; in the parts of the metrics KL stays that of q."""
    model, observation, poses = open_question
    with torch.no_grad():
        start = torch.full((1, 1), 0.2)
        found, settled = model.elbo(observation, poses, start, seeded(), jitter=False, draws=3)
        q = model.inference.q(observation, poses, start, STEPS_IN_TRAINING)
        unit = standard_normal((1, 3, 1), seeded(), observation.plane)
        weights = []
        for k in range(3):
            z = q.mean + q.sd * unit[:, k]
            ours, prior = torch.distributions.Normal(q.mean, q.sd), torch.distributions.Normal(0.0, 1.0)
            log_p = model.search.local_search(observation, poses, model.decoder(z)).log_evidence
            weights.append(log_p + (prior.log_prob(z) - ours.log_prob(z)).sum(1))
        expected = torch.logsumexp(torch.stack(weights), 0) - math.log(3)
    assert torch.allclose(found.bound, expected, atol=2e-3)
    assert torch.allclose(found.kl_z, q.kl_to_normal())
    assert torch.equal(settled.z, q.mean)


def test_one_draw_is_the_bound_with_its_kl_in_closed_form(open_question):
    model, observation, poses = open_question
    with torch.no_grad():
        start = torch.full((1, 1), 0.2)
        (one, _), (plain, _) = (
            model.elbo(observation, poses, start, seeded(), jitter=False, **settings) for settings in ({"draws": 1}, {})
        )
        q = model.inference.q(observation, poses, start, STEPS_IN_TRAINING)
        z = q.mean + q.sd * standard_normal((1, 1, 1), seeded(), observation.plane)[:, 0]
        expected = model.search.local_search(observation, poses, model.decoder(z)).log_evidence - q.kl_to_normal()
    assert torch.equal(one.bound, plain.bound)
    assert torch.allclose(one.bound, expected, atol=1e-3)


@pytest.fixture
def in_double_precision():
    """Angles and other numbers made on the way, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("draws", [1, 4])
def test_gradients_of_the_bound_are_those_of_finite_differences(open_question, draws, monkeypatch):
    """With respect to the decoder, for the same q and the same draws; in double precision."""
    model, observation, _ = open_question
    model = copy.deepcopy(model).double()
    observation = Observation(observation.plane.double().expand(3, -1), None, None)
    poses = Poses(torch.tensor([0.0, 0.05, -0.1]).double(), torch.zeros(3, 2).double())
    learned = list(model.decoder.parameters())
    start = torch.tensor([[0.3], [-0.5], [0.0]])
    q = model.inference.q(observation, poses, start, STEPS_IN_TRAINING)
    monkeypatch.setattr(Inference, "q", lambda *_: q)

    def bound() -> torch.Tensor:
        return model.elbo(observation, poses, start, seeded(), jitter=False, draws=draws)[0].bound.sum()

    gradient = torch.autograd.grad(bound(), learned)
    for direction in range(3):
        torch.manual_seed(direction)
        steps = [1e-5 * torch.randn_like(p) for p in learned]
        expected = float(sum((g * step).sum() for g, step in zip(gradient, steps, strict=True)))
        sides = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, step in zip(learned, steps, strict=True):
                    p += sign * step
                sides.append(float(bound()))
        with torch.no_grad():
            for p, step in zip(learned, steps, strict=True):
                p += step
        assert (sides[0] - sides[1]) / 2 == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_no_draws_for_a_frozen_z(made):
    """The consensus alone, however many are asked for."""
    model, batch = made("coefficients"), batch_of()
    poses = Poses(torch.zeros(6), torch.zeros(6, 2))
    one, four = (
        model.elbo(model.observe(batch), poses, torch.zeros(6, 2), seeded(), freeze_z=True, draws=draws)[0].bound
        for draws in (1, 4)
    )
    assert torch.equal(one, four)


@pytest.mark.parametrize("box", [24, 48])
def test_pictures_are_black_at_the_edge(box):
    """The level that nobody knows is the one of an empty surrounding, at any sampling; nothing else changes."""
    model = of_one_image(hinge_image(24))
    coefficients = model.decoder(torch.zeros(1, 1)).detach() - 5 * model.search.metric.level
    drawn, shown = model.basis.draw(coefficients, box), model.pictures(coefficients, box)
    x, y = geometry.pixel_grid(box)
    radius = np.hypot(x, y) * 24 / box
    inside = torch.from_numpy(radius <= model.basis.radius_px)
    levels = (shown - drawn)[:, inside]
    assert float(levels.std()) < 1e-5 and float(levels.mean()) > 0.1
    assert not (shown - drawn)[:, ~inside].any()
    edge = inside & torch.from_numpy(radius > 0.9 * model.basis.radius_px)
    assert float(shown[:, edge].mean().abs()) < 1e-5


def test_images_without_any_rival_pose():
    """Coloured noise or CTF, and poses beyond doubt: no particle has a second mode to look at."""
    model = of_one_image(hinge_image(24, 2.0))
    model.spectra.set_noise(1 + 0.5 * torch.cos(torch.arange(model.spectra.noise.shape[1]))[None])
    found = model.infer(Batch.of(hinge_image(24, 2.0)[None], np.zeros(1)))
    assert float(found.peak_weight) == pytest.approx(1)


# ----------------------------------------------------------------------------------------------------------- amplitudes


@pytest.mark.parametrize("strength", [0.7, 1.0, 1.4])
def test_the_amplitude_of_a_particle_is_found(made, strength):
    """An image of the model's own object, so many times as strong, at a known pose: found from a look with amplitude 1, and again."""
    model = copy.deepcopy(made("z1"))
    model.scale = "particle"
    z = torch.zeros(3, 1)
    poses = Poses(torch.tensor([0.0, 1.0, -2.0]), torch.zeros(3, 2))
    images = 6 * strength * model.basis.images(model.basis.rotate(model.decoder(z), poses.theta_rad))
    batch = Batch(images.detach()[:, None], torch.zeros(3, dtype=torch.long))
    scale = torch.ones(3)
    for _ in range(2):
        found = model.search.local_search(model.observe(batch, scale), poses, 6 * model.decoder(z))
        scale = amplitude(found.of_unit_amplitude(scale))
        assert torch.allclose(scale, torch.full((3,), strength), rtol=0.05)


def test_the_prior_rules_the_amplitude_of_noise():
    """Where the image says nothing the amplitude is 1."""
    still = Poses(torch.zeros(2), torch.zeros(2, 2))
    nothing = LocalPosterior(
        torch.zeros(2), still, shift_square=torch.zeros(2), cross=torch.zeros(2), norm=torch.full((2,), 1e-3)
    )
    assert torch.allclose(amplitude(nothing.of_unit_amplitude(torch.ones(2))), torch.ones(2), atol=1e-3)


def test_the_misfit_tells_what_the_model_cannot_explain(made):
    """About 0, with s.d. 1, for the model's own particles; several for noise alone and for something else."""
    model = made("z1")
    n = 200
    poses = Poses(torch.zeros(n), torch.zeros(n, 2))
    z = torch.zeros(n, 1)
    clean = model.basis.images(model.basis.rotate(model.decoder(z), poses.theta_rad)).detach()
    noise = torch.randn(clean.shape, generator=seeded())
    other = 3 * clean.roll(6, 1).flip(2)

    def misfit(images: torch.Tensor) -> torch.Tensor:
        observation = model.observe(Batch(images[:, None], torch.zeros(n, dtype=torch.long)))
        return model.inference.misfit(observation, poses, z).detach()

    own = misfit(clean + noise)
    # A box of 24 px is nearly filled by the components, and one noisy image is no smooth object: a little is left.
    assert abs(float(own.mean())) < 2 and 0.7 < float(own.std()) < 1.4
    assert float(misfit(other + noise).median()) > float(own.quantile(0.95)) + 1
    strength = float((clean**2).sum((1, 2)).mean() / math.sqrt(2 * 2 * model.basis.size))
    assert float(misfit(noise).mean()) == pytest.approx(strength, rel=0.3, abs=2)
