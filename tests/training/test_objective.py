"""What the steerable engine's training remembers and learns beside the weights: poses, shift prior, noise, anchors."""

import copy
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.inference.infer import load_model
from emspatialvae.model.batch import Batch
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.inference import Inference
from emspatialvae.model.steerable.initialise import new_model
from emspatialvae.model.steerable.pose_search import PoseSearch
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import clean_image, hinge_object
from emspatialvae.training.latent_count import LatentTrials
from emspatialvae.training.particle_table import ParticleTable
from emspatialvae.training.steerable import SearchedObjective
from emspatialvae.training.stopping import PARTS
from emspatialvae.training.trainer import Trainer
from emspatialvae.workflows.train import LEAST_GAIN_BY_ANGLES, _check_angles

BOX, N = 24, 300
NOISE = torch.ones(2, BOX // 2 + 1)
MODEL = ModelConfig(z_dim=1, hidden=32, encoder_hidden=32)
SPEC = ImageSpec(BOX, 10.8, shift_prior_px=2.4, max_shift_px=4.8)


def hinges(
    n: int = N, snr: float = 1.0, shift_px: float = 1.0, span: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Pose2D]:
    """Clean images of variance ``snr``, their z and poses."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(-span, span, n)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, n), shift_px * rng.normal(size=(n, 2)))
    images = clean_image(hinge_object(), z, pose, BOX)
    return (images * math.sqrt(snr) / images.std()).astype(np.float32), z, pose


def prepared(images: np.ndarray) -> PreparedImages:
    return PreparedImages(images.astype(np.float32), np.ones(len(images), dtype=bool), np.zeros(len(images), np.int32))


@pytest.fixture(scope="module")
def truth() -> tuple[PreparedImages, np.ndarray, Pose2D]:
    clean, z, pose = hinges()
    return prepared(clean + np.random.default_rng(1).normal(size=clean.shape)), z, pose


@pytest.fixture(scope="module")
def images(truth) -> PreparedImages:
    return truth[0]


def fresh_model(images: PreparedImages, config: ModelConfig = MODEL) -> SteerableVAE:
    rows = np.arange(len(images))

    def batches() -> Iterator[Batch]:
        for part in np.array_split(rows, 2):
            some = images.portion(part)
            yield Batch.of(some.images, some.group, some.ctf_power)

    torch.manual_seed(0)
    return new_model(config, SPEC, int(images.group.max()) + 1, batches)


@pytest.fixture(scope="module")
def blank(images) -> SteerableVAE:
    """An untrained model of `images`; copy it."""
    return fresh_model(images)


def trainer(path, images, model, start=None, learn_shift_prior=True, **settings) -> Trainer:
    config = TrainConfig(**{"epochs": 4, "batch_size": 64, "device": "cpu", **settings})
    if (path / "config.json").exists():
        run = RunDir(path)
    else:
        preparation = Preparation(BOX, 4.0, SPEC.mask_radius_px, False, "none", 0.0, True)
        whole = RunConfig(InputConfig(path / "none.star"), model=MODEL, train=config)
        run = RunDir.create(path, Manifest(whole, preparation, SPEC, len(images), ()))
    names = np.arange(len(images))
    torch.manual_seed(config.seed)  # as the workflow does
    return Trainer(model, images, names, config, run, start=start, learn_shift_prior=learn_shift_prior)


def searched(t: Trainer) -> SearchedObjective:
    assert isinstance(t.objective, SearchedObjective)
    return t.objective


def state(t: Trainer) -> torch.Tensor:
    """All weights and buffers of the model, and the table of poses."""
    return torch.cat(
        [
            *(p.flatten().double() for p in t.model.state_dict().values()),
            *(values.flatten().double() for values in searched(t).table.state_dict().values()),
        ]
    )


def errors(found: ParticleTable, pose: Pose2D) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a table of poses after one best turn and one offset: degrees [n], pixels [n, 2]."""
    theta, shift = found.theta_rad.numpy(), found.shift_px.numpy()
    turn = np.angle(np.exp(1j * (theta - pose.theta_rad)).mean())
    moved = (shift - pose.shift_px) @ np.array([1, 1j])
    own = np.exp(-1j * theta)
    rest = moved - (moved * own).mean() / own
    return np.degrees(geometry.wrapped(theta - pose.theta_rad - turn)), np.stack([rest.real, rest.imag], 1)


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def whole(images, blank, tmp_path_factory) -> Trainer:
    """A run of four epochs that was never stopped."""
    t = trainer(tmp_path_factory.mktemp("whole") / "run", images, copy.deepcopy(blank))
    assert t.fit()
    return t


@pytest.mark.parametrize(
    "killed_at", [1, pytest.param(6, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow), 19]
)
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path, images, blank, whole, killed_at):
    """Weights, noise, anchors, shift prior and the table of poses; killed in the first epoch, later, in the last step."""

    class Killed(Exception):
        pass

    killed = trainer(tmp_path / "run", images, copy.deepcopy(blank), checkpoint_minutes=0.0)
    steps = []

    def die(*_):
        steps.append(1)
        if len(steps) == killed_at:
            raise Killed

    killed.show = die
    with pytest.raises(Killed):
        killed.fit()
    run = RunDir(tmp_path / "run")
    resumed = trainer(run.path, images, load_model(run).train())
    resumed.resume()
    assert resumed.fit()
    for name, values in searched(whole).table.state_dict().items():
        assert torch.equal(searched(resumed).table.state_dict()[name], values), name
    assert torch.equal(state(resumed), state(whole))
    assert run.metrics() == whole.run.metrics()


@pytest.mark.slow
def test_more_epochs_after_the_end(tmp_path, images, blank, whole):
    trainer(tmp_path / "run", images, copy.deepcopy(blank), epochs=2, cooling=False).fit()
    run = RunDir(tmp_path / "run")
    more = trainer(run.path, images, load_model(run).train(), cooling=False)
    more.resume()
    assert more.fit()
    straight = trainer(tmp_path / "straight", images, copy.deepcopy(blank), cooling=False)
    straight.fit()
    assert torch.equal(state(more), state(straight))
    assert len(run.metrics()) == 4


def test_a_run_killed_before_the_number_of_latents_was_found_still_finds_it(tmp_path, images, monkeypatch):
    """Its first checkpoint holds a model with as many as there may be; so few particles get two."""
    config = dataclasses.replace(MODEL, z_dim=None)

    class Killed(Exception):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SearchedObjective, "begin_epoch", die)
        t = trainer(tmp_path / "run", images, fresh_model(images, config), epochs=2)
        with pytest.raises(Killed):
            t.fit()
    run = RunDir(tmp_path / "run")
    file = run.path / "config.json"
    file.write_text(file.read_text().replace('"z_dim": 1', '"z_dim": null'))
    resumed = trainer(run.path, images, load_model(run).train(), epochs=2)
    resumed.resume()
    assert resumed.fit()
    straight = trainer(tmp_path / "straight", images, fresh_model(images, config), epochs=2)
    straight.fit()
    assert resumed.model.z_dim == straight.model.z_dim == 2
    assert searched(resumed).table.z.shape == (N, 2)
    assert load_model(run).z_dim == 2


def test_metrics_add_up(whole):
    rows = whole.run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        for kind in ("train", "test"):
            parts = [row[f"{kind}_{part}"] for part in PARTS]
            assert math.isfinite(parts[0]) and all(part >= 0 for part in parts[1:])
    assert rows[0]["train_kl_z"] == 0 < rows[1]["train_kl_z"]
    assert rows[0]["train_elbo"] > 50, "the consensus alone explains a good part"


def test_looking_at_held_out_particles_twice_changes_nothing_that_counts(tmp_path, images, blank):
    """The same numbers again, but for what a step nearer to the posterior mean makes of them."""
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank), epochs=2)
    t.fit()
    one, two = t.held_out(), t.held_out()
    assert one is not None and two is not None
    assert two[0] == pytest.approx(one[0], rel=0.01)
    before = torch.cat([p.flatten() for p in t.model.parameters()])
    t.evidences()
    assert torch.equal(before, torch.cat([p.flatten() for p in t.model.parameters()]))


# ---------------------------------------------------------------------------------------------------------------- poses


def test_poses_are_found(whole, truth):
    """From nothing, to a few degrees and a fraction of a pixel."""
    _, _, pose = truth
    turn, move = errors(searched(whole).table, pose)
    assert np.median(np.abs(turn)) < 15
    assert np.median(np.abs(move)) < 0.75 * np.median(np.abs(pose.shift_px)), "what answering 0 would give"


def test_init_poses_are_kept_and_refined(tmp_path, truth, blank, monkeypatch):
    """Given poses are where the search begins: nothing is searched everywhere, and their errors shrink."""
    images, _, pose = truth
    rng = np.random.default_rng(3)
    rough = Pose2D(pose.theta_rad + np.radians(12) * rng.normal(size=N), pose.shift_px + 0.8 * rng.normal(size=(N, 2)))
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank), start=rough, epochs=3)
    table = copy.deepcopy(searched(t).table)
    np.testing.assert_allclose(table.theta_rad, rough.theta_rad, atol=1e-5)
    np.testing.assert_allclose(table.shift_px, rough.shift_px, atol=1e-5)

    def never(*_, **__):
        raise AssertionError("searched everywhere")

    monkeypatch.setattr(PoseSearch, "global_search", never)
    assert t.fit()
    before, after = errors(table, pose), errors(searched(t).table, pose)
    assert np.sqrt(np.mean(after[0] ** 2)) < 0.8 * np.sqrt(np.mean(before[0] ** 2))
    assert np.sqrt(np.mean(after[1] ** 2)) < 0.7 * np.sqrt(np.mean(before[1] ** 2))
    # No particle was thrown far from where it was said to be.
    turn = geometry.wrapped(searched(t).table.theta_rad - table.theta_rad).abs()
    assert float((turn < 1).float().mean()) > 0.97


def test_particles_without_an_init_pose_are_searched(tmp_path, truth, blank):
    """Where the file says -999 the pose is found as in a run without --init-poses, by the consensus of the others."""
    images, _, pose = truth
    unset = np.arange(N) % 4 == 0
    start = Pose2D(np.where(unset, np.nan, pose.theta_rad), np.where(unset[:, None], np.nan, pose.shift_px))
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank), start=start, epochs=3)
    assert np.isfinite(searched(t).table.theta_rad.numpy()).all()
    assert t.fit()
    turn, move = errors(searched(t).table, pose)
    assert np.median(np.abs(turn[unset])) < 15
    assert np.median(np.abs(move[unset])) < 0.6


def test_init_poses_come_back_with_a_resumed_run(tmp_path, truth, blank):
    images, _, pose = truth
    trainer(tmp_path / "run", images, copy.deepcopy(blank), start=pose, epochs=1).fit()
    run = RunDir(tmp_path / "run")
    again = trainer(run.path, images, load_model(run).train(), epochs=2)
    assert not searched(again).given
    again.resume()
    assert searched(again).given


# ----------------------------------------------------------------------------------------------------------- what it learns


@pytest.mark.parametrize("shift_px", [pytest.param(0.5, marks=pytest.mark.slow), 1.5])
def test_the_shift_prior_is_learned(tmp_path, shift_px):
    """From the poses that are found and how uncertain they are; a first guess of 2.4 px was wrong.

    Each search takes a step of expectation maximisation: from a prior that is too wide it ends a little above the truth.
    """
    clean, _, pose = hinges(shift_px=shift_px, span=1e-3, seed=4)  # of a hinge the canonical image moves with z
    images = prepared(clean + np.random.default_rng(5).normal(size=clean.shape))
    ratios = []
    for epochs in (1, 3):
        t = trainer(tmp_path / str(epochs), images, fresh_model(images), epochs=epochs)
        t.fit()
        ratios.append(float(t.model.search.shift_sd_px) / pose.shift_px.std())
    assert 0.97 < ratios[0] < 1.1
    assert ratios[1] == pytest.approx(1, abs=0.05)


def test_a_shift_prior_that_was_given_stays(tmp_path, images, blank):
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank), learn_shift_prior=False, epochs=1)
    t.fit()
    assert float(t.model.search.shift_sd_px) == pytest.approx(2.4)


def colour(rings: int) -> torch.Tensor:
    return 0.6 + 2 * torch.exp(-torch.arange(rings) / 4.0)


@pytest.mark.slow
def test_noise_is_learned_from_what_is_left(tmp_path):
    """A rigid particle in coloured noise: after a few epochs the noise's spectrum is known, ring by ring."""
    clean, _, _ = hinges(800, 0.5, span=1e-3, seed=6)
    plane = FourierPlane(BOX)
    power = colour(plane.rings)
    white = plane.transform(torch.randn(len(clean), BOX, BOX, generator=torch.Generator().manual_seed(7)))
    noise = plane.images(white * plane.by_ring(power.sqrt())).numpy()
    images = prepared(clean + noise)
    t = trainer(tmp_path / "run", images, fresh_model(images), epochs=5)
    t.fit()
    found = t.model.spectra.noise[0]
    assert not t.model.spectra.white
    assert torch.allclose(found[1:-1], power[1:-1], rtol=0.15)
    assert float((found / power - 1)[1:-1].abs().mean()) < 0.06


@pytest.mark.parametrize("scale", ["group", pytest.param("particle", marks=pytest.mark.slow)])
def test_the_amplitudes_of_optics_groups_are_learned(tmp_path, scale):
    """Of two groups the second is stronger by 1.5 (its noise was weaker before normalisation)."""
    clean, _, _ = hinges(900, 0.3, seed=8)
    group = (np.arange(900) % 3 == 0).astype(np.int32)
    noisy = clean * np.where(group, 1.5, 1.0)[:, None, None] + np.random.default_rng(9).normal(size=clean.shape)
    images = PreparedImages(noisy.astype(np.float32), np.ones(900, dtype=bool), group)
    t = trainer(tmp_path / "run", images, fresh_model(images, dataclasses.replace(MODEL, scale=scale)), epochs=4)
    t.fit()
    with torch.no_grad():
        t.objective.begin_epoch(4)
    found = searched(t)._scale(np.arange(900))
    assert found is not None
    of_group = [float(found[torch.from_numpy(group == g)].mean()) for g in (0, 1)]
    assert of_group[1] / of_group[0] == pytest.approx(1.5, rel=0.06 if scale == "group" else 0.15)
    assert float(found.mean()) == pytest.approx(1, abs=0.02)
    again = trainer(tmp_path / "again", images, copy.deepcopy(t.model)).objective
    again.load_state_dict(t.objective.state_dict())  # as in the middle of an epoch that a killed run goes on with
    assert isinstance(again, SearchedObjective)
    assert torch.equal(again._scale(np.arange(900)), found)


def test_one_group_has_the_amplitude_of_the_decoder(images):
    """So there is nothing to look at more slowly."""
    for asked, expected in (("group", "none"), ("particle", "particle")):
        assert fresh_model(images, dataclasses.replace(MODEL, scale=asked)).scale == expected


def test_signal_never_becomes_noise(tmp_path):
    """Few particles, 160 nats each: before the model fits, what it leaves over is not all noise (which is 1 here)."""
    clean, _, _ = hinges(48, 1.0, seed=8)
    images = prepared(clean + np.random.default_rng(9).normal(size=clean.shape))
    t = trainer(tmp_path / "run", images, fresh_model(images), epochs=4)
    t.fit()
    rows = t.run.metrics()
    assert float(t.model.spectra.noise.max()) < 2
    assert rows[-1]["test_elbo"] > 0.5 * rows[0]["test_elbo"]


def test_far_particles_do_not_rule_the_held_out_mean(tmp_path):
    """Shifts of 1.8 px s.d. where 4.8 are allowed: one in thirty lies beyond, and each is worth about as much as the others."""
    clean, _, _ = hinges(shift_px=1.8, seed=4)
    images = prepared(clean + np.random.default_rng(5).normal(size=clean.shape))
    t = trainer(tmp_path / "run", images, fresh_model(images), epochs=1)
    t.fit()
    with torch.no_grad():
        total = t._each(np.arange(N))[0]
    assert float(total.min()) > -500
    assert float(total.mean()) > 0.8 * float(total.median())


def test_anchors_stand_for_all_latents(tmp_path, images, blank):
    """Centres of clusters of z, as many as were asked for."""
    for asked, expected in ((None, 8), (3, 3)):
        t = trainer(tmp_path / str(asked), images, copy.deepcopy(blank), anchors=asked)
        searched(t).table.z.copy_(torch.randn(N, 1, generator=torch.Generator().manual_seed(0)))
        with torch.no_grad():
            found = searched(t)._anchors(np.arange(N), 0)
            z = searched(t).z(np.arange(N))
        assert found.shape == (expected, 1)
        assert float(found.min()) > float(z.min()) and float(found.max()) < float(z.max())
        assert float(torch.cdist(z, found).min(1).values.mean()) < 0.5 * float(z.std())


def test_anchors_of_latents_that_are_all_the_same(tmp_path, images, blank):
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank))
    searched(t).table.z.fill_(0.3)
    with torch.no_grad():
        found = searched(t)._anchors(np.arange(N), 0)
    assert found.tolist() == [[pytest.approx(0.3)]]


def test_everything_is_searched_again_now_and_then(tmp_path, images, blank, monkeypatch):
    """Before the first epoch, with latents, and every eighth one; the table is what remembers in between."""
    epochs = []
    search = SearchedObjective._search_globally

    def noticed(objective, rows, *, frozen, known):
        epochs.append((t.progress.epoch, frozen))
        assert len(rows) == N
        assert known == (t.progress.epoch > 0)
        search(objective, rows, frozen=frozen, known=known)

    monkeypatch.setattr(SearchedObjective, "_search_globally", noticed)
    t = trainer(tmp_path / "run", images, copy.deepcopy(blank), epochs=9, batch_size=300)
    t.fit()
    assert epochs[0] == (0, True)
    assert epochs[-1] == (8, False)
    assert any(0 < epoch < 8 and not frozen for epoch, frozen in epochs)


def test_some_that_were_visited_are_searched_before_all(whole, monkeypatch):
    """Of a large stack only a part has been seen since z is free; whether a search is worth it is asked of these."""
    objective = copy.deepcopy(searched(whole))
    looks, worth = [], [False]
    monkeypatch.setattr("emspatialvae.training.steerable.SEARCH_FIRST", 5)
    monkeypatch.setattr(
        SearchedObjective, "_search_some", lambda self, rows, *, frozen, known: looks.append(rows) or worth[0]
    )
    objective.table.z.fill_(0)
    objective.table.z[::3] = 0.1
    objective._search_globally(np.arange(N), frozen=False, known=True)
    assert len(looks) == 1 and len(set(looks[0])) == 5
    assert (looks[0] % 3 == 0).all()
    worth[0] = True
    objective._search_globally(np.arange(N), frozen=False, known=True)
    assert np.array_equal(np.sort(np.concatenate(looks[1:])), np.arange(N))
    looks.clear()
    objective._search_globally(np.arange(N), frozen=False, known=False)
    assert len(looks) == 1 and len(looks[0]) == N


def test_noise_is_measured_with_likely_z_and_poses(whole, monkeypatch):
    """The best ones explain a part of the noise, and what is left is too weak."""
    objective = copy.deepcopy(searched(whole))
    found = []
    monkeypatch.setattr(
        type(objective.model), "residual_noise", lambda self, residuals: found.append(residuals) or NOISE
    )
    objective._look_at_noise(np.arange(N))
    monkeypatch.setattr(
        type(objective.model), "sample_posterior", lambda self, observation, poses, z, generator: (z, poses)
    )
    objective._look_at_noise(np.arange(N))
    likely, best = (torch.cat([batch.images for batch in residuals]).square().mean() for residuals in found)
    left = float(likely - best) * BOX**2
    assert 1 < left < 4  # nats, doubled: about one for each of z, theta and the two of the shift


def test_a_step_finds_the_way_back_from_a_wrong_z(whole):
    """Measured: with steps from the last z alone, decoders of large stacks fold, and held-out particles lose 20 nats from one epoch to the next."""
    objective, model = copy.deepcopy((searched(whole), whole.model))
    objective.model = model
    rows = np.arange(N)
    good = objective.table.z.clone()
    with torch.no_grad():
        objective.templates = objective._anchors(rows, 0)
        objective.table.z.copy_(-good - 1.5 * good.sign())
        objective.elbo(rows, torch.Generator().manual_seed(0), freeze_z=False, training=False)
    far = good[:, 0].abs() > good[:, 0].abs().quantile(0.8)
    found = objective.table.z
    assert float(((found - good)[far].abs() < good[far].abs()).float().mean()) > 0.9  # nearer to it than to 0


def evidence_at(t: Trainer, table: ParticleTable) -> torch.Tensor:
    """Log evidence [n] of the neighbourhoods of poses and z, brought to precision."""
    rows = np.arange(N)
    objective = searched(t)
    with torch.no_grad():
        poses = Poses(table.theta_rad, table.shift_px)
        found = t.model.inference.refine(objective._observe(rows), poses, table.z, fine=False)
    return found.log_evidence


def test_a_known_pose_gives_way_only_to_one_with_more_evidence(tmp_path, whole, monkeypatch):
    """A search that ends beside the particle changes nothing where poses are good, and one that ends well mends the bad ones."""
    t = copy.copy(whole)
    t.objective, t.model = copy.deepcopy((whole.objective, whole.model))
    objective = searched(t)
    objective.model, objective.learn_shift_prior = t.model, False
    rows, good = np.arange(N), copy.deepcopy(objective.table)
    bad = copy.deepcopy(good)
    bad.shift_px[:, 0] -= 4 * torch.where(good.shift_px[:, 0] > 0, 1, -1)  # further than a look nearby can bring back
    better = evidence_at(t, good) > evidence_at(t, bad) + 1
    assert float(better.float().mean()) > 0.9
    answer = []

    def everywhere(inference, observation, templates, radius_px, *, freeze_z):
        some, answer[:] = answer[: len(observation)], answer[len(observation) :]
        theta, shift, z = (torch.stack(column) for column in zip(*some, strict=True))
        return Poses(theta[:, None], shift[:, None]), z[:, None], torch.zeros(len(some), 1)

    monkeypatch.setattr(Inference, "search_globally", everywhere)

    def after(table: ParticleTable, found: ParticleTable, *, known: bool) -> ParticleTable:
        objective.table, answer[:] = copy.deepcopy(table), zip(found.theta_rad, found.shift_px, found.z, strict=True)
        with torch.no_grad():
            objective._search_globally(rows, frozen=False, known=known)
        return copy.deepcopy(objective.table)

    def apart(a: ParticleTable, b: ParticleTable) -> torch.Tensor:
        return (a.shift_px - b.shift_px).norm(dim=1)

    kept, mended = after(good, bad, known=True), after(bad, good, known=True)
    assert float(apart(kept, good)[better].max()) < 0.5
    assert torch.equal(kept.theta_rad, mended.theta_rad) and torch.equal(kept.shift_px, mended.shift_px)
    assert torch.equal(kept.z, mended.z) and torch.equal(kept.evidence, mended.evidence)
    # With nothing known the search's word is all there is.
    lost = after(good, bad, known=False)
    assert float((apart(lost, good)[better] > 1).float().mean()) > 0.9


def test_several_latents_are_drawn_in_a_step(tmp_path, images, blank, monkeypatch):
    """As many as the settings say; if they say nothing four, or more where particles say little, and then that is told."""
    seen = []
    elbo = SteerableVAE.elbo

    def noticed(model, *values, draws, **settings):
        seen.append(draws)
        return elbo(model, *values, draws=draws, **settings)

    monkeypatch.setattr(SteerableVAE, "elbo", noticed)
    for little, settings, expected in ((0.0, {}, {4}), (1e9, {"draws": 2}, {2}), (1e9, {}, {4, 16})):
        monkeypatch.setattr("emspatialvae.training.steerable.LITTLE_EVIDENCE", little)
        t = trainer(tmp_path / str(len(expected) + max(expected)), images, copy.deepcopy(blank), epochs=2, **settings)
        t.fit()
        assert set(seen) == expected  # four while z is held at zero, and what is drawn does not matter
        assert t.objective.remark.count("16 latents were drawn") == (16 in expected)
        seen.clear()
    resumed = trainer(tmp_path / "resumed", images, copy.deepcopy(blank), epochs=3)
    resumed.objective.load_state_dict(t.objective.state_dict())
    assert resumed.objective.remark == t.objective.remark


def test_the_gauge_is_fitted_at_the_end(tmp_path, images, whole):
    """Poses of all latents in one frame: registered on the consensus they stand still."""
    t = copy.copy(whole)
    t.model = copy.deepcopy(whole.model)
    assert isinstance(t.model, SteerableVAE)
    model = t.model
    z = torch.linspace(-1.5, 1.5, 200)[:, None]
    model.fix_gauge(z)
    assert bool(model.gauge.fitted)
    from emspatialvae.model.steerable.gauge import register

    raw = register(model.search, model.decoder(z), model.gauge.reference)
    found = model.gauge(z)
    assert float(torch.rad2deg(geometry.wrapped(found.theta_rad - raw.theta_rad).abs()).median()) < 1
    assert float((found.shift_px - raw.shift_px).abs().median()) < 0.1
    still = model.gauge.out_of_common(Poses(torch.zeros(200), torch.zeros(200, 2)), z)
    assert torch.allclose(geometry.wrapped(still.theta_rad + found.theta_rad), torch.zeros(200), atol=1e-4)


@pytest.mark.slow
def test_the_number_of_latents_is_found_by_trials(tmp_path, images, monkeypatch):
    """One hinge: a second coordinate tells held-out particles nothing, so one is kept; a training that is resumed in a trial goes on alike."""
    monkeypatch.setattr(LatentTrials, "__init__", _early(LatentTrials.__init__, ends_after=4))
    wide = dataclasses.replace(MODEL, z_dim=None)
    whole = trainer(tmp_path / "whole", images, fresh_model(images, wide), epochs=26)
    whole.fit()
    trials = whole.objective.trials
    assert trials.over and trials.kept == 1 and [size for size, _ in trials.story] == [2]
    assert whole.model.z_dim == 1 and whole.objective.table.z.shape == (N, 1)
    assert "1 latent coordinate(s) found; held-out particles gain" in whole.objective.remark

    # Ended before the trial and in it, with what an ended run does: its gauge is fitted.
    for ended_after, z_dim in ((3, 1), (7, 2)):
        place = tmp_path / f"parts{ended_after}"
        first = trainer(place, images, fresh_model(images, wide), epochs=26)
        first.limit = ended_after
        first.fit()
        first.fix_gauge()
        assert first.model.z_dim == z_dim
        model = SteerableVAE.of_state(wide, SPEC, RunDir(place).load_checkpoint()["model"])
        second = trainer(place, images, model, epochs=26)
        second.resume()
        second.fit()
        assert second.objective.trials.story == trials.story
        for name, value in whole.model.state_dict().items():
            if not name.startswith("gauge."):
                assert torch.equal(value, second.model.state_dict()[name]), name


def _early(init, epochs=26, ends_after=2):
    """The first trial after so many epochs."""

    def start(self, *args, **settings):
        init(self, *args, **{"ends_after": ends_after, **settings, "epochs": epochs})

    return start


def test_more_coordinates_are_learned_together_from_the_poses_that_are_known(tmp_path, images, monkeypatch):
    monkeypatch.setattr(LatentTrials, "__init__", _early(LatentTrials.__init__, epochs=20))
    monkeypatch.setattr(LatentTrials, "judge", lambda self, gain, elbo: setattr(self, "kept", self.size) or True)
    made = trainer(tmp_path / "run", images, fresh_model(images, dataclasses.replace(MODEL, z_dim=None)), epochs=24)
    made.limit = 8
    made.fit()
    assert made.objective.trials.over and made.objective.trials.kept == 2 == made.model.z_dim
    before = made.objective.table
    assert float(before.z[:, 0].std()) == pytest.approx(1, abs=0.3)  # laid out anew
    assert before.theta_rad.std() > 1
    assert made.objective.unsettled_epochs == 14 == made.objective.noise_until


@pytest.fixture(scope="module")
def two_latents(images, tmp_path_factory) -> Trainer:
    """A run of a few epochs with two coordinates."""
    model = fresh_model(images, dataclasses.replace(MODEL, z_dim=2))
    t = trainer(tmp_path_factory.mktemp("two") / "run", images, model, epochs=18)
    t.limit = 5
    t.fit()
    return t


def test_latents_that_are_laid_out_anew_stand_for_the_same_images(two_latents, images):
    t = copy.deepcopy(two_latents)
    objective, rows = searched(t), np.arange(len(images))
    batch = objective.load(rows)

    def drawn() -> torch.Tensor:
        return t.model.drawn(objective.z(rows), objective.poses(rows), batch).flatten(1)

    before = drawn()
    objective._unfold_latents(5)
    after = drawn()
    off = (after - before).square().sum(1) / before.square().sum(1)
    assert float(off.median()) < 0.02
    consensus = (before.mean(0) - before).square().sum(1) / before.square().sum(1)
    assert float(consensus.median()) > 0.2


def test_latents_whose_number_is_given_are_added_to_a_first_one_and_laid_out(tmp_path, images, monkeypatch):
    monkeypatch.setattr(LatentTrials, "__init__", _early(LatentTrials.__init__))
    monkeypatch.setattr(LatentTrials, "judge", lambda *_: pytest.fail("nothing is to be judged"))
    made = trainer(tmp_path / "run", images, fresh_model(images, dataclasses.replace(MODEL, z_dim=3)), epochs=26)
    sizes, laid_out = [], []
    unfold = SearchedObjective._unfold_latents
    monkeypatch.setattr(
        SearchedObjective, "_unfold_latents", lambda self, epoch: laid_out.append(epoch) or unfold(self, epoch)
    )
    made.show = lambda epoch, *_: sizes.append((epoch, made.model.z_dim))
    made.limit = 10
    made.fit()
    assert dict(sizes) == {0: 1, 1: 1} | dict.fromkeys(range(2, 10), 3)
    assert laid_out == [8]
    assert "coordinate(s) found" not in made.objective.remark


@pytest.mark.parametrize(("z_dim", "epochs"), [(3, 12), (1, 40)])
def test_all_latents_are_there_from_the_beginning_where_there_is_no_time_to_add_some(tmp_path, images, z_dim, epochs):
    made = trainer(
        tmp_path / "run", images, fresh_model(images, dataclasses.replace(MODEL, z_dim=z_dim)), epochs=epochs
    )
    searched(made).begin_epoch(0)
    assert made.model.z_dim == z_dim
    assert searched(made).trials is None


def test_round_particles_gain_nothing_by_angles_and_hinges_do(tmp_path, images, whole):
    gain, error = whole.gain_by_angles()
    assert gain > max(10 * error, 5.0)
    x, y = geometry.pixel_grid(BOX)
    shell = np.exp(-((np.hypot(x, y) - 6) ** 2) / 3)
    noise = np.random.default_rng(2).normal(size=(N, BOX, BOX))
    round_ones = prepared(0.7 * (shell - shell.mean()) / shell.std() + noise)
    t = trainer(tmp_path / "round", round_ones, fresh_model(round_ones))
    t.fit()
    assert float(t.evidences().mean()) > 10  # they are seen
    gain, error = t.gain_by_angles()
    assert gain < max(LEAST_GAIN_BY_ANGLES, 3 * error)


def test_what_is_not_searched_gains_nothing_by_angles(whole):
    t = copy.deepcopy(whole)
    t.model.search.rotate = False
    assert t.gain_by_angles() is None
    t.test_rows = t.test_rows[:1]
    assert t.gain_by_angles() is None


@pytest.mark.parametrize(
    ("found", "said"),
    [(None, False), ((7.5, 0.3), False), ((0.4, 0.01), True), ((2.0, 0.9), True), ((-3.0, 0.1), True)],
)
def test_angles_that_mean_nothing_are_said(whole, monkeypatch, found, said):
    monkeypatch.setattr(Trainer, "gain_by_angles", lambda _: found)
    told: list[str] = []
    _check_angles(whole, told.append)
    assert [line.startswith("theta means nothing that can be confirmed") for line in told] == [True] * said
