"""The manifest: what napari learns of the plugin without importing it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

npe2 = pytest.importorskip("npe2")


@pytest.fixture(scope="module")
def manifest():
    return npe2.PluginManifest.from_distribution("emspatialvae")


def test_every_name_in_it_can_be_imported(manifest):
    manifest.validate_imports()


def test_names_follow_npe2s_rules(manifest):
    assert manifest.name == "emspatialvae"
    assert all(command.id.startswith("emspatialvae.") for command in manifest.contributions.commands)


def test_npe2_validates_it():
    done = subprocess.run([sys.executable, "-m", "npe2", "validate", "emspatialvae"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "ours"),
    [("a/b.star", True), ("J1_003.CS", True), ("J1_003.csg", True), ("x.mrcs", True), ("x.mrc", False)],
)
def test_napari_asks_us_for_our_files_only(manifest, name, ours):
    manager = npe2.PluginManager()
    manager.register(manifest)
    assert [reader.command for reader in manager.iter_compatible_readers(name)] == ["emspatialvae.get_reader"] * ours


def test_napari_asks_us_for_folders(manifest, tmp_path):
    manager = npe2.PluginManager()
    manager.register(manifest)
    assert [reader.command for reader in manager.iter_compatible_readers(str(tmp_path))] == ["emspatialvae.get_reader"]


@pytest.fixture
def small_samples(monkeypatch, tmp_path):
    """Samples that take no time."""
    from napari_emsvae import samples

    monkeypatch.setattr(samples, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(samples, "HINGE", replace(samples.HINGE, particles=20, box=16))
    monkeypatch.setattr(samples, "TWO_HINGES", replace(samples.TWO_HINGES, particles=20, box=16))
    monkeypatch.setattr(samples.jobs, "start", lambda *_, **__: None)
    monkeypatch.setattr(samples, "_dock", lambda _: None)


def test_every_command_runs(manifest, viewer, small_samples, simulated, tmp_path):
    """Each is called as napari does, with the arguments of its kind of contribution."""
    execute = npe2.PluginManager.instance().commands.execute
    image = (np.zeros((2, 8, 8)), {})
    arguments = {
        "emspatialvae.get_reader": (str(simulated / "particles.star"),),
        "emspatialvae.explore": (viewer,),
        "emspatialvae.train": (viewer,),
        "emspatialvae.write_stack": (str(tmp_path / "x.mrcs"), *image),
        "emspatialvae.sample_hinge": (),
        "emspatialvae.sample_trained": (),
    }
    assert {command.id for command in manifest.contributions.commands} == set(arguments)
    made = {command: execute(command, args=args) for command, args in arguments.items()}
    ((particles, _, kind),) = made["emspatialvae.get_reader"](str(simulated / "particles.star"))
    assert particles.shape == (60, 32, 32) and kind == "image"
    for widget in ("explore", "train"):
        viewer.window.add_dock_widget(made[f"emspatialvae.{widget}"])
    assert made["emspatialvae.write_stack"] == [str(tmp_path / "x.mrcs")]
    for sample in ("hinge", "trained"):
        ((images, _, _),) = made[f"emspatialvae.sample_{sample}"]
        assert images.shape == (20, 16, 16)
