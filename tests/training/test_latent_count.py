"""How many latent coordinates: the trials, and models that get more or fewer of them."""

import numpy as np
import pytest
import torch

from emspatialvae.config import ModelConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable.initialise import new_model
from emspatialvae.results.read_run import read_run
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import clean_image, hinge_object
from emspatialvae.training.latent_count import FEWEST_EPOCHS, FIRST_EPOCHS, TRIAL_EPOCHS, LatentTrials
from emspatialvae.training.trainer import Trainer

RNG = np.random.default_rng(0)


def gain(mean, n=500):
    """Of n held-out particles, about as scattered as they are."""
    noise = RNG.normal(size=n)
    return mean + noise - noise.mean()


def decided(gains, most=8, epochs=1000):
    """The number that is kept when each trial gains so much, and the epoch in which that is clear."""
    trials, epoch = LatentTrials(most, epochs), 0
    while not trials.over:
        epoch += 1
        if not trials.due(epoch):
            continue
        if trials.size > trials.kept:
            trials.judge(gain(gains[trials.size]), elbo=20.0)
        if not trials.over:
            trials.begin(epoch)
    return trials.kept, epoch


@pytest.mark.parametrize(
    ("gains", "kept", "trials"),
    [
        ({2: 0.0}, 1, 1),
        ({2: -0.3}, 1, 1),
        ({2: 0.05}, 1, 1),  # too little for the scatter of the particles
        ({2: 0.5, 4: 0.0}, 2, 2),
        ({2: 0.5, 4: 0.5, 8: -0.1}, 4, 3),
        ({2: 0.5, 4: 0.5, 8: 0.5}, 8, 3),
    ],
)
def test_coordinates_stay_where_held_out_particles_profit(gains, kept, trials):
    assert decided(gains) == (kept, FIRST_EPOCHS + trials * TRIAL_EPOCHS)


def test_a_small_gain_counts_where_it_is_sure():
    trials = LatentTrials(8, size=2)
    assert trials.judge(np.full(5000, 0.06), elbo=20.0)
    trials = LatentTrials(8, size=2)
    assert not trials.judge(np.full(5000, 0.04), elbo=20.0)


def test_a_gain_that_is_nothing_beside_what_images_say_does_not_count():
    """Measured: one hinge at SNR 1, where the first coordinate has not settled yet."""
    assert not LatentTrials(8, size=2).judge(np.full(5000, 0.09), elbo=784.0)
    assert LatentTrials(8, size=2).judge(np.full(5000, 0.46), elbo=70.0)  # two hinges at SNR 0.1


@pytest.mark.parametrize(("best", "kept"), [(396.4, 1), (397.0, 1), (398.0, 2)])
def test_held_out_particles_must_be_more_likely_than_before_the_trial(best, kept):
    """Measured: 200,000 particles of one hinge. Two coordinates share what one said; held at 0 the second is missed, yet with both nothing is gained."""
    trials = LatentTrials(8)
    for elbo in (395.9, 396.6, 396.0):
        trials.watch(elbo)
    trials.begin(FIRST_EPOCHS)
    for elbo in (393.8, best, 395.6):
        trials.watch(elbo)
    trials.judge(gain(2.6), elbo=395.6)
    assert trials.kept == kept
    assert trials.story == [(2, pytest.approx(min(2.6, best - 396.6)))]
    if kept == 2:
        trials.begin(14)
        assert (trials.best_before, trials.size) == (best, 4)


def test_trials_end_where_too_few_epochs_are_left():
    assert decided({2: 1.0, 4: 1.0, 8: 1.0}, epochs=FEWEST_EPOCHS) == (2, FIRST_EPOCHS + TRIAL_EPOCHS)
    assert decided({2: 1.0}, epochs=FEWEST_EPOCHS - 1) == (1, FIRST_EPOCHS)


@pytest.fixture(params=["coefficients", "spatial"])
def model(request):
    """An untrained model of two latent coordinates, with either decoder."""
    pose = Pose2D(RNG.uniform(-np.pi, np.pi, 200), np.zeros((200, 2)))
    images = clean_image(hinge_object(), RNG.uniform(-1, 1, 200), pose, 24).astype(np.float32)
    config = ModelConfig(
        z_dim=2, hidden=16, encoder_hidden=16, decoder=request.param, bilinear=request.param == "spatial"
    )
    spec = ImageSpec(24, 10.8, shift_prior_px=1.0, max_shift_px=4.0)
    torch.manual_seed(0)
    noisy = images + RNG.normal(size=images.shape).astype(np.float32)
    return new_model(config, spec, 1, lambda: [Batch.of(noisy, np.zeros(200, dtype=int))])


def seen(model, n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2 * model.basis.size, generator=generator)


def test_new_coordinates_change_nothing_at_zero(model):
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    before, proposed = model.decoder(z), model.encoder(seen(model)).mean
    model.resize_latents(4, torch.Generator().manual_seed(0))
    assert model.z_dim == 4
    torch.testing.assert_close(model.decoder(torch.cat([z, torch.zeros(7, 2)], 1)), before)
    found = model.encoder(seen(model))
    torch.testing.assert_close(found.mean[:, :2], proposed)
    assert not found.mean[:, 2:].any() and torch.allclose(found.sd[:, 2:], torch.ones(5, 2))
    moved = model.decoder(torch.cat([z, torch.ones(7, 2)], 1)) - before
    assert 0 < moved.norm().item() < before.norm().item()


def test_coordinates_that_are_taken_out_are_as_if_they_were_zero(model):
    z = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    expected = model.decoder(torch.cat([z, torch.zeros(7, 1)], 1))
    model.resize_latents(1)
    torch.testing.assert_close(model.decoder(z), expected)


def test_the_same_seed_makes_the_same_networks(model):
    torch.manual_seed(5)
    model.set_z_dim(3, seed=2)
    first = model.decoder(torch.ones(1, 3))
    torch.manual_seed(6)
    state = torch.get_rng_state()
    model.set_z_dim(3, seed=2)
    torch.testing.assert_close(model.decoder(torch.ones(1, 3)), first)
    assert torch.equal(torch.get_rng_state(), state)  # a resumed run draws the same numbers afterwards


@pytest.mark.parametrize("asked", [("--z-dim", "3"), ()], ids=["given", "found"])
def test_a_run_interrupted_while_it_has_fewer_latents_is_whole_and_goes_on(
    clear_stack, emsvae, tmp_path, monkeypatch, asked
):
    """Its results have as many coordinates as its model had by then; the number that was asked for stays."""
    monkeypatch.setattr(LatentTrials, "judge", lambda self, *_: setattr(self, "kept", self.size) or True)
    star, run = clear_stack / "particles.star", tmp_path / "run"
    small = ("--hidden", "16", "--encoder-hidden", "16", "--device", "cpu", "--epochs", str(FEWEST_EPOCHS))
    fit = Trainer.fit

    def for_three_epochs(trainer):
        trainer.limit = 3
        fit(trainer)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", for_three_epochs)
        interrupted = emsvae("train", star, "--out", run, *asked, *small)
    assert interrupted.code == 130, interrupted.err
    first = read_run(run)[1]
    assert first.z.shape == (200, 1)
    emsvae.done("export", run, "--star", tmp_path / "out.star")
    told = emsvae.done("train", star, "--out", run, "--resume", *asked).out
    manifest, second = RunDir(run).manifest, read_run(run)[1]
    assert second.z.shape == (200, 3 if asked else 2)
    assert manifest.z_dim == second.z.shape[1]
    assert manifest.config.model.z_dim == (3 if asked else None)
    assert ("latent coordinate(s) found" in told) is not bool(asked)
