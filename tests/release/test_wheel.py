"""A wheel out of the sdist, installed in a new environment, works far from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: object, folder: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_trains(tmp_path):
    pytest.importorskip("build")
    run(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT, folder=tmp_path)  # the wheel is made from the sdist
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"emspatialvae/analysis/report/page.css", "emspatialvae/py.typed", "napari_emsvae/napari.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    assert sdist.stat().st_size < 20e6
    # Dependencies are this environment's, so that no torch has to be fetched; the package itself must come from the wheel.
    run(sys.executable, "-m", "venv", tmp_path / "env", folder=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", folder=tmp_path).strip()
    theirs = run(sys.executable, "-c", "import numpy; print(numpy.__path__[0])", folder=tmp_path).strip()
    (Path(site) / "dependencies.pth").write_text(f"{Path(theirs).parent}\n")
    where = run(python, "-c", "import emspatialvae; print(emspatialvae.__file__)", folder=tmp_path)
    assert str(tmp_path) in where
    emsvae = tmp_path / "env" / "bin" / "emsvae"
    assert run(emsvae, "--version", folder=tmp_path).startswith("emsvae 0.")
    run(emsvae, "simulate", "hinge", "--out", "sim", "--particles", 80, "--box", 24, "--snr", 1, folder=tmp_path)
    run(emsvae, "train", "sim/particles.star", "--out", "run", "--epochs", 2, "--z-dim", 1, folder=tmp_path)
    assert (tmp_path / "run" / "particles.star").is_file()
