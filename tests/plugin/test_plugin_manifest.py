"""The manifest: what napari learns of the plugin without importing it."""

import subprocess
import sys

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
    ("name", "ours"), [("a/b.star", True), ("J1_003.CS", True), ("x.mrcs", True), ("x.mrc", False)]
)
def test_napari_asks_us_for_our_files_only(manifest, name, ours):
    manager = npe2.PluginManager()
    manager.register(manifest)
    assert [reader.command for reader in manager.iter_compatible_readers(name)] == ["emspatialvae.get_reader"] * ours


def test_napari_asks_us_for_folders(manifest, tmp_path):
    manager = npe2.PluginManager()
    manager.register(manifest)
    assert [reader.command for reader in manager.iter_compatible_readers(str(tmp_path))] == ["emspatialvae.get_reader"]
