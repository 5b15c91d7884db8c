"""The loop, with the coordinate engine: it learns, resumes as if it had never stopped, stops when settled, and says what went wrong."""

import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, TrainConfig, train_for
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model import distributions
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import clean_image, hinge_object
from emspatialvae.training.stopping import PARTS
from emspatialvae.training.trainer import Trainer, split

BOX, N = 16, 60
MODEL = ModelConfig(engine="coordinate", z_dim=1, hidden=16, encoder_hidden=16)
SPEC = ImageSpec(BOX, 7.2, shift_prior_px=1.0, max_shift_px=3.0)


@pytest.fixture(scope="module")
def images() -> PreparedImages:
    rng = np.random.default_rng(0)
    pose = Pose2D(rng.uniform(-np.pi, np.pi, N), rng.normal(size=(N, 2)))
    pixels = 0.3 * clean_image(hinge_object(), rng.uniform(-1, 1, N), pose, BOX) + rng.normal(size=(N, BOX, BOX))
    return PreparedImages(pixels.astype(np.float32), np.ones(N, dtype=bool), np.zeros(N, np.int32))


def trainer(path, images, names=None, **settings) -> Trainer:
    config = TrainConfig(**{"epochs": 3, "batch_size": 10, "device": "cpu", **settings})
    if (path / "config.json").exists():
        run = RunDir(path)
    else:
        preparation = Preparation(BOX, 4.0, 7.2, False, "none", 0.0, True)
        whole = RunConfig(InputConfig(path / "none.star"), model=MODEL, train=config)
        run = RunDir.create(path, Manifest(whole, preparation, SPEC, len(images), ()))
    torch.manual_seed(config.seed)
    return Trainer(SpatialVAE(MODEL, SPEC), images, np.arange(len(images)) if names is None else names, config, run)


def weights(t: Trainer) -> torch.Tensor:
    return torch.cat([p.flatten() for p in t.model.state_dict().values()])


def test_it_learns(tmp_path, images):
    t = trainer(tmp_path / "run", images, epochs=12, learning_rate=3e-3)
    assert t.fit()
    rows = t.run.metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train_elbo"] > rows[0]["train_elbo"] + 5
    assert rows[-1]["test_elbo"] > rows[0]["test_elbo"]
    for row in rows:
        parts = [row[f"train_{part}"] for part in PARTS]
        assert all(part >= 0 for part in parts[1:])
    assert rows[0]["train_kl_z"] == rows[1]["train_kl_z"] == 0 < rows[2]["train_kl_z"]


@pytest.mark.parametrize(("killed_at", "settings"), [(1, {}), (4, {}), (7, {}), (13, {}), (7, {"epochs": None})])
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path, images, monkeypatch, killed_at, settings):
    """Killed at any step, even between checkpoints: nothing of the last moments may count twice. The last one in a part of a pass."""
    monkeypatch.setattr("emspatialvae.training.stopping.EPOCH_STEPS", 3)
    settings = {"max_epochs": 4, **settings}
    whole = trainer(tmp_path / "whole", images, **settings)
    whole.fit()

    class Killed(Exception):
        pass

    killed = trainer(tmp_path / "killed", images, checkpoint_minutes=0.0, **settings)
    steps = []

    def die(*_):
        steps.append(1)
        if len(steps) == killed_at:
            raise Killed

    killed.show = die
    with pytest.raises(Killed):
        killed.fit()
    resumed = trainer(tmp_path / "killed", images, **settings)
    resumed.resume()
    per_epoch = 6 // resumed.portions
    assert resumed.portions == (2 if settings.get("epochs", 3) is None else 1)
    assert resumed.progress.epoch * per_epoch + resumed.progress.step == killed_at - 1
    resumed.fit()
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.run.metrics() == whole.run.metrics()


def test_more_epochs_after_the_end(tmp_path, images):
    whole = trainer(tmp_path / "whole", images, epochs=4)
    whole.fit()
    trainer(tmp_path / "first", images, epochs=2).fit()
    more = trainer(tmp_path / "first", images, epochs=4)
    more.resume()
    assert more.fit()
    assert torch.equal(weights(more), weights(whole))
    assert (tmp_path / "first" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_interrupt_ends_after_a_whole_step(tmp_path, images):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    whole = trainer(tmp_path / "whole", images)
    whole.fit()
    t = trainer(tmp_path / "run", images)
    steps = []

    def press(*_):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    t.show = press
    assert t.fit() is False
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = trainer(tmp_path / "run", images)
    again.resume()
    again.fit()
    assert torch.equal(weights(again), weights(whole))


def test_kl_warm_up_is_the_engines_own():
    """The coordinate engine needs it, the steerable one has none; a number that was given is kept."""
    for engine, steps in (("coordinate", 1000), ("steerable", 0)):
        assert train_for(TrainConfig(), engine).kl_warmup_steps == steps
        assert train_for(TrainConfig(kl_warmup_steps=7), engine).kl_warmup_steps == 7


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, [1 / 60, 2 / 60, 3 / 60]), (0, [1, 1, 1]), (3, [1 / 3, 2 / 3, 1])]
)
def test_the_weight_of_the_kl_terms_rises_step_by_step(tmp_path, images, steps, expected):
    """A thousand steps of the coordinate engine are ten epochs at most, of six steps each here."""
    t = trainer(tmp_path / "run", images, kl_warmup_steps=steps)
    found = []
    for step in range(3):
        t.progress.step = step
        found.append(t._kl_weight())
    assert found == pytest.approx(expected)


def test_another_seed_another_run(tmp_path, images):
    one, two = (trainer(tmp_path / str(seed), images, seed=seed, epochs=1) for seed in (0, 1))
    one.fit(), two.fit()
    assert not torch.equal(weights(one), weights(two))


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path, images, monkeypatch):
    """Taking a batch in small parts changes memory, not the gradient (noise off: it is drawn part by part)."""
    monkeypatch.setattr(distributions, "standard_normal", lambda shape, generator, like: like.new_zeros(shape))
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, 0.3))
    gradients = []
    for part in (10, 3):
        t = trainer(tmp_path / str(part), images, precision="float32")
        monkeypatch.setattr(t.objective, "part", lambda size, part=part: part)
        monkeypatch.setattr(t.optimiser, "step", lambda: None)
        monkeypatch.setattr(t.optimiser, "zero_grad", lambda: None)
        t.step(np.arange(10))
        gradients.append(torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_stops_when_settled(tmp_path, images):
    t = trainer(tmp_path / "run", images, epochs=None, patience=2, learning_rate=1e-12, z_delay=0, kl_warmup_steps=0)
    t.fit()
    assert t.progress.stopped.startswith("settled")
    assert t.progress.epoch < 10


def test_hard_limit(tmp_path, images):
    t = trainer(tmp_path / "run", images, epochs=None, max_epochs=2)
    t.fit()
    assert t.progress.epoch == 2
    assert "--max-epochs" in t.progress.stopped


@pytest.mark.parametrize(("steps", "portions"), [(2, 3), (1, 4), (6, 1)])
def test_an_epoch_of_a_large_stack_is_a_part_of_a_pass(tmp_path, images, monkeypatch, steps, portions):
    """Every particle once per pass, another shuffle in the next one; --epochs counts whole passes."""
    monkeypatch.setattr("emspatialvae.training.stopping.EPOCH_STEPS", steps)
    t = trainer(tmp_path / "run", images, epochs=None, max_epochs=portions + 1)
    seen = [np.concatenate(t._batches(epoch)) for epoch in range(2 * portions)]
    assert {len(rows) for rows in seen} <= {54 // portions, -(-54 // portions)}
    passes = np.concatenate(seen[:portions]), np.concatenate(seen[portions:])
    for rows in passes:
        assert np.array_equal(np.sort(rows), t.train_rows)
    assert not np.array_equal(*passes)
    elbo = t._elbo(t.train_rows, torch.Generator().manual_seed(0), training=False).bound.detach().mean()
    t.fit()
    assert t.progress.epoch == portions + 1
    assert [row["train_elbo"] for row in t.run.metrics()] == pytest.approx([float(elbo)] * (portions + 1), rel=0.5)
    whole = trainer(tmp_path / "whole", images, epochs=2)
    assert len(np.concatenate(whole._batches(1))) == 54


def test_nan_names_the_particle(tmp_path, images):
    pixels = np.array(images.pixels)
    pixels[17, 8, 8] = np.nan
    names = np.array([f"{i + 1:06d}@stack.mrcs" for i in range(N)], dtype=object)
    t = trainer(tmp_path / "run", PreparedImages(pixels, images.usable, images.group), names, holdout=0.0)
    with pytest.raises(EmsvaeError, match=r"000018@stack\.mrcs") as error:
        t.fit()
    assert "\n" not in str(error.value)
    assert torch.isfinite(weights(t)).all()


def test_checkpoint_is_plain(tmp_path, images):
    t = trainer(tmp_path / "run", images, epochs=1)
    t.fit()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert set(state) == {"format", "model", "optimiser", "generator", "objective", "progress"}
    assert set(state["model"]) == set(t.model.state_dict())


def test_damaged_and_foreign_checkpoints(tmp_path, images):
    t = trainer(tmp_path / "run", images, epochs=1)
    t.fit()
    file = tmp_path / "run" / "checkpoint.pt"
    shutil.copy(file, tmp_path / "good.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match="damaged"):
        trainer(tmp_path / "run", images).resume()
    shutil.copy(tmp_path / "good.pt", file)
    other = trainer(tmp_path / "run", images)
    other.model = SpatialVAE(ModelConfig(engine="coordinate", z_dim=3, hidden=16, encoder_hidden=16), SPEC)
    with pytest.raises(RunFolderError, match="another model"):
        other.resume()


def test_split():
    usable = np.ones(100, dtype=bool)
    usable[:10] = False
    train, test = split(usable, TrainConfig(holdout=0.1))
    assert len(test) == 9
    assert sorted([*train, *test]) == list(range(10, 100))
    assert len(split(np.ones(19, dtype=bool), TrainConfig(holdout=0.5))[1]) == 0
    assert np.array_equal(test, split(usable, TrainConfig(holdout=0.1))[1])


def test_of_a_large_stack_some_are_trained_on_by_chance():
    usable = np.ones(1000, dtype=bool)
    usable[:100] = False
    train, test = split(usable, TrainConfig(holdout=0.2, train_particles=300))
    assert (len(train), len(test)) == (240, 60)
    both = np.concatenate([train, test])
    assert len(set(both.tolist())) == 300 and both.min() >= 100
    assert abs(both.mean() - 550) < 60  # from everywhere in the file


def test_bfloat16_gives_the_same_elbo(tmp_path, images):
    """The goal of the issue: the ELBO agrees to 0.1 %."""
    exact, fast = (trainer(tmp_path / p, images, epochs=6, precision=p) for p in ("float32", "bfloat16"))
    exact.fit(), fast.fit()
    a, b = (t.run.metrics()[-1]["test_elbo"] for t in (exact, fast))
    assert math.isclose(a, b, rel_tol=1e-3)
