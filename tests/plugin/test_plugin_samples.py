"""Sample data: simulated, trained in the background, kept."""

from dataclasses import replace

import pytest

pytest.importorskip("napari")

from emspatialvae.config import ModelConfig, TrainConfig
from emspatialvae.jobs import background as jobs
from napari_emsvae import samples

PATIENCE_MS = 120_000


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Samples of a size for tests, in a cache folder of their own."""
    monkeypatch.setattr(samples, "cache_folder", lambda: tmp_path / "cache")
    for name in ("HINGE", "TWO_HINGES"):
        monkeypatch.setattr(samples, name, replace(getattr(samples, name), particles=48, box=24, snr=1.0))
    monkeypatch.setattr(samples, "MODEL", ModelConfig(hidden=16, encoder_hidden=16))
    monkeypatch.setattr(samples, "TRAIN", TrainConfig(epochs=1, device="cpu", infer_turns=1))
    return tmp_path / "cache"


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr(samples.platformdirs, "user_cache_path", lambda name, **_: tmp_path / name)
    assert samples.cache_folder() == tmp_path / "emspatialvae" / "samples"


def test_the_stack_has_as_many_particles_as_the_menu_says():
    assert samples.HINGE.particles == 2000


def test_particles_open_at_once_and_are_kept(model, small):
    (layer,) = model.open_sample("emspatialvae", "hinge")
    assert layer.data.shape == (48, 24, 24)
    stack = small / "hinge" / "particles.mrcs"
    stamp = stack.stat().st_mtime_ns
    model.open_sample("emspatialvae", "hinge")
    assert stack.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_the_run_is_trained_in_the_background_then_opens_itself(viewer, small, qtbot):
    layers = viewer.open_sample("emspatialvae", "trained")
    assert [layer.name for layer in layers] == ["particles"]
    form = viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]
    assert form.training.is_running
    viewer.open_sample("emspatialvae", "trained")  # asked again meanwhile: nothing is started twice
    qtbot.waitUntil(lambda: not form.training.is_running, timeout=PATIENCE_MS)
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
    qtbot.waitUntil(lambda: explorer.session.is_read, timeout=PATIENCE_MS)
    assert len(explorer.session.data) == 48

    # From then on it is simply there.
    viewer.layers.clear()
    stamp = (small / "two_hinges_emsvae" / "latents.csv").stat().st_mtime_ns
    assert len(viewer.open_sample("emspatialvae", "trained")) == 3
    assert (small / "two_hinges_emsvae" / "latents.csv").stat().st_mtime_ns == stamp
    qtbot.waitUntil(lambda: not explorer._opening.running, timeout=PATIENCE_MS)


def test_a_run_of_an_older_version_is_trained_anew(model, small, monkeypatch):
    out = small / "two_hinges_emsvae"
    out.mkdir(parents=True)
    (out / "config.json").write_text('{"format": 1, "emspatialvae": "0.0.1"}')
    (out / "latents.csv").touch()
    started = []

    def start(config, where, *, force):
        started.append((where, force))

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(samples, "_dock", lambda name: None)
    model.open_sample("emspatialvae", "trained")
    assert started == [(out, True)]
