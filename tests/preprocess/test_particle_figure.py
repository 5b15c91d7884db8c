"""The profiles that the particle's size was read from are kept, and its circle is drawn on averages and single images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Circle

from emspatialvae.analysis.figures import galleries
from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.report import exhibits
from emspatialvae.preprocess.particle_size import ParticleSize
from emspatialvae.results.run_folder import RunDir

BOX, PIXEL_A = 24, 4.0


def size() -> ParticleSize:
    rings = BOX // 2 + 1
    return ParticleSize(8.0, 1, 9.0, np.linspace(1, 0, rings), np.full(rings, 0.25), np.linspace(2, 0, rings - 1))


def drawn(profiles: dict, background_px: float = 10.0):
    averages = {"one": np.zeros((BOX, BOX)), "other": np.eye(BOX)}
    centres = np.stack([np.arange(6.0), np.zeros(6)], 1)
    return galleries.particle_size(
        profiles, averages, np.ones((6, BOX, BOX)), centres, 8.0, background_px, PIXEL_A, "told"
    )


def test_profiles_come_back(tiny_run, tmp_path):
    run = RunDir(shutil.copytree(tiny_run, tmp_path / "run"))
    run.save_profiles(size().table(PIXEL_A))
    found = run.profiles()
    assert list(found) == ["radius_A", "mean", "spread", "density"]
    assert np.allclose(found["radius_A"], PIXEL_A * np.arange(BOX // 2 + 1))
    assert np.allclose(found["mean"], size().mean, atol=1e-6)
    assert np.allclose(found["density"], [*size().density, 0], atol=1e-5)


def test_a_run_keeps_profiles_and_draws_them(tiny_run):
    run = RunDir(tiny_run)
    assert len(run.profiles()["radius_A"]) == run.manifest.preparation.box // 2 + 1
    assert (run.figures / "particle_size.png").stat().st_size > 10_000
    assert "particle_size" in [exhibit.name for exhibit in exhibits.stored(run.figures)]


def test_nothing_to_keep_where_the_user_said_it_all(easy_stack, emsvae, tmp_path):
    words = ("--particle-diameter-a", 80, "--invert", "no", "--out", tmp_path / "run", *emsvae.TINY)
    emsvae.done("train", easy_stack / "particles.star", *words)
    assert RunDir(tmp_path / "run").profiles() == {}


@pytest.mark.parametrize("background_px", [10.0, 8.0])
def test_circles(background_px):
    figure = drawn(size().table(PIXEL_A), background_px)
    profile, *pictures = figure.axes
    assert "Radial profiles" in profile.get_title()
    assert [line.get_xdata()[0] for line in profile.lines if len(set(line.get_xdata())) == 1] == [
        PIXEL_A * r for r in sorted({8.0, background_px})
    ]
    assert len(pictures) == 8
    for number, axes in enumerate(pictures):
        circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
        assert [circle.radius for circle in circles] == sorted({8.0, background_px})
        assert circles[0].center == (BOX // 2 + max(0, number - 2), BOX // 2)
        assert circles[-1].center == (BOX // 2, BOX // 2) or background_px == 8.0
    assert "told" in figure.get_suptitle()
    assert ("dashed" in figure.get_suptitle()) == (background_px > 8)


def test_older_runs_have_no_profiles(tiny_run, tmp_path):
    run = RunDir(shutil.copytree(tiny_run, tmp_path / "run"))
    (run.path / "particle_size.csv").unlink()
    assert run.profiles() == {}
    assert len(drawn({}).axes) == 8
    figures.save(drawn({}), tmp_path / "some.png")
    assert Path(tmp_path / "some.png").stat().st_size > 5_000
