"""Real RELION reads what ``emsvae select`` writes, and finds the same duplicates."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from emspatialvae.io.mrc import read_header, read_images
from emspatialvae.io.star import StarFile, write_new, write_with_columns
from emspatialvae.particles.duplicates import close_pairs, particle_centers, representatives
from emspatialvae.particles.table import open_table
from emspatialvae.workflows.select import select

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed"),
]


def relion(program, *arguments, cwd):
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def names(file):
    return StarFile.read(file).block("particles").columns("rlnImageName")["rlnImageName"]


@pytest.fixture
def halves(tiny_run, easy_stack, tmp_path):
    """Two parts of a run's particles beside their stack; the folder."""
    shutil.copy(easy_stack / "particles.mrcs", tmp_path)
    shutil.copy(tiny_run / "particles.star", tmp_path / "whole.star")
    z = StarFile.read(tmp_path / "whole.star").block("particles").read(numbers=["emsvaeZ1"])[1]["emsvaeZ1"]
    where = f"z1 > {float(np.median(z))!r}"
    select(tiny_run, tmp_path / "kept.star", where=where, excluded=tmp_path / "rest.star", say=lambda _: None)
    return tmp_path


def test_relion_puts_kept_and_excluded_together_again(halves):
    said = relion("relion_star_handler", "--i", "kept.star rest.star", "--combine", "--o", "both.star", cwd=halves)
    assert "could not read optics groups" not in said
    whole, kept, rest = (names(halves / f"{name}.star") for name in ("whole", "kept", "rest"))
    assert 0 < len(kept) < len(whole)
    assert sorted(names(halves / "both.star")) == sorted(whole) == sorted(kept + rest)
    words = ("--compare", "whole.star", "--label1", "rlnImageName")
    said = relion("relion_star_handler", "--i", "both.star", *words, cwd=halves)
    assert f"{len(whole)} entries occur in both input STAR files" in said
    assert said.count("\n0 entries occur only in") == 2


def test_relion_stacks_the_subset(halves):
    relion("relion_stack_create", "--i", "kept.star", "--o", "copy", "--one_by_one", cwd=halves)
    images = read_images(read_header(halves / "copy.mrcs"), range(len(names(halves / "kept.star"))))
    rows = [int(name.partition("@")[0]) - 1 for name in names(halves / "kept.star")]
    np.testing.assert_array_equal(images, read_images(read_header(halves / "particles.mrcs"), rows))


def picks(file, n=400, seed=0):
    """Particles binned twofold in crowded micrographs."""
    rng = np.random.default_rng(seed)
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnVoltage": [300.0]}
    optics |= {"rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [2.4]}
    optics |= {"rlnImageSize": [32], "rlnImageDimensionality": [2], "rlnMicrographOriginalPixelSize": [1.2]}
    table = {
        "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(n)],
        "rlnMicrographName": [f"mic{m:02d}.mrc" for m in np.sort(rng.integers(0, 8, n))],
        "rlnCoordinateX": rng.uniform(0, 1000, n).round(2),
        "rlnCoordinateY": rng.uniform(0, 1000, n).round(2),
        "rlnAnglePsi": 0.0,
        "rlnOriginXAngst": rng.normal(0, 40, n).round(2),
        "rlnOriginYAngst": rng.normal(0, 40, n).round(2),
        "rlnOpticsGroup": 1,
    }
    write_new(file, {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(table)})


@pytest.mark.parametrize("distance_A", [40, 90, 200])
def test_relion_finds_the_same_duplicates(tmp_path, distance_A):
    """RELION drops every particle that has a later one within reach, even if that one is dropped itself; ours keeps one of each heap."""
    picks(tmp_path / "p.star")
    words = ("--remove_duplicates", distance_A, "--image_angpix", 1.2)
    relion("relion_star_handler", "--i", "p.star", "--o", "single.star", *words, cwd=tmp_path)
    theirs = set(names(tmp_path / "single.star"))
    table = open_table(tmp_path / "p.star")
    centers = particle_centers(table)
    earlier = {int(pair[0]) for pairs in close_pairs(centers, distance_A) for pair in pairs}
    assert len(earlier) > 3
    by_their_rule = {name for row, name in enumerate(names(tmp_path / "p.star")) if row not in earlier}
    assert by_their_rule == theirs
    later_is_better = np.arange(len(table))[::-1]
    kept = representatives(centers, distance_A, later_is_better) == np.arange(len(table))
    ours = {name for name, single in zip(names(tmp_path / "p.star"), kept, strict=True) if single}
    assert theirs <= ours


def test_relion_leaves_as_many_where_duplicates_are_pairs(tmp_path):
    """200 particles far apart, half of them picked twice: no heaps, so both rules leave one of each pair."""
    picks(tmp_path / "p.star", n=300)
    rng = np.random.default_rng(1)
    particle = np.arange(300) % 200
    center_px = np.stack([particle % 15, particle // 15], 1) * 100.0 + rng.normal(0, 3, (300, 2))
    shift_A = rng.normal(0, 30, (300, 2))
    columns = {
        "rlnMicrographName": ["mic.mrc"] * 300,
        "rlnCoordinateX": center_px[:, 0] - shift_A[:, 0] / 1.2,
        "rlnCoordinateY": center_px[:, 1] - shift_A[:, 1] / 1.2,
        "rlnOriginXAngst": -shift_A[:, 0],
        "rlnOriginYAngst": -shift_A[:, 1],
        "rlnMaxValueProbDistribution": np.arange(300) / 300,  # RELION keeps the later one
    }
    cells = {label: [str(value) for value in values] for label, values in columns.items()}
    write_with_columns(StarFile.read(tmp_path / "p.star"), "particles", cells, tmp_path / "q.star")
    words = ("--remove_duplicates", 40, "--image_angpix", 1.2)
    relion("relion_star_handler", "--i", "q.star", "--o", "theirs.star", *words, cwd=tmp_path)
    said: list[str] = []
    select(tmp_path / "q.star", tmp_path / "ours.star", drop_duplicates_A=40, say=said.append)
    assert names(tmp_path / "ours.star") == names(tmp_path / "q.star")[100:]
    assert sorted(names(tmp_path / "ours.star")) == sorted(names(tmp_path / "theirs.star"))
    assert "1.2 A (rlnMicrographOriginalPixelSize)" in said[0]
