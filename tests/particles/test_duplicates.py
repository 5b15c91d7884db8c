"""Particles picked twice: where they lie, which of them stays."""

import numpy as np
import pandas as pd
import pytest

from emspatialvae.errors import ParticleFileError
from emspatialvae.io.cs import write_cs
from emspatialvae.io.star import write_new
from emspatialvae.particles.duplicates import (
    Centers,
    close_pairs,
    duplicate_groups,
    particle_centers,
    ranks,
    representatives,
)
from emspatialvae.particles.table import open_table

OPTICS = {"rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["a", "b"], "rlnImagePixelSize": [2.0, 4.0]}
PICKS = {
    "rlnImageName": [f"{i}@a.mrcs" for i in (1, 2, 3)],
    "rlnMicrographName": ["m2", "m1", "m2"],
    "rlnCoordinateX": [100.0, 200, 300],
    "rlnCoordinateY": [10.0, 20, 30],
    "rlnOpticsGroup": [1, 2, 1],
}
SHIFTED = {"rlnAnglePsi": 90.0, "rlnOriginXAngst": [6.0, 0, 0], "rlnOriginYAngst": [0, -8.0, 0]}


def star(folder, optics=None, **particles):
    file = folder / "particles.star"
    optics = {**OPTICS, **(optics or {})}
    write_new(file, {"optics": pd.DataFrame(optics), "particles": pd.DataFrame({**PICKS, **particles})}, overwrite=True)
    return open_table(file)


def brute(centers, distance_A, rank):
    """Best first, each kept one takes away all near it."""
    stands_for = np.full(len(rank), -1)
    for row in np.argsort(rank):
        if stands_for[row] >= 0:
            continue
        near = (centers.micrograph == centers.micrograph[row]) & (
            np.hypot(*(centers.xy_A - centers.xy_A[row]).T) <= distance_A
        )
        stands_for[near & (stands_for < 0)] = row
    return stands_for


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distance_A", [0.5, 30, 100, 1000])
def test_the_best_stays_and_takes_away_what_is_near_it(seed, distance_A):
    rng = np.random.default_rng(seed)
    centers = Centers(rng.integers(0, 5, 300), rng.uniform(0, 1000, (300, 2)), "")
    rank = rng.permutation(300)
    found = representatives(centers, distance_A, rank)
    np.testing.assert_array_equal(found, brute(centers, distance_A, rank))
    groups = duplicate_groups(found)
    assert sum(map(len, groups)) - len(groups) == np.count_nonzero(found != np.arange(300))
    for group in groups:
        assert len(group) > 1
        assert np.all(found[group] == group[0])
        assert np.all(centers.micrograph[group] == centers.micrograph[group[0]])


def test_a_pair_at_just_the_distance_is_one_particle_and_micrographs_are_apart():
    xy = np.array([[0.0, 0], [30, 0], [0, 0], [60.001, 0]])
    centers = Centers(np.array([0, 0, 1, 0]), xy, "")
    assert np.concatenate(list(close_pairs(centers, 30.0))).tolist() == [[0, 1]]
    assert representatives(centers, 30.0, np.array([1, 0, 2, 3])).tolist() == [1, 1, 2, 3]


def test_no_duplicates():
    assert duplicate_groups(np.arange(4)) == []
    assert representatives(Centers(np.zeros(0, int), np.zeros((0, 2)), ""), 3.0, np.zeros(0, int)).tolist() == []


def test_the_center_is_the_pick_less_the_origin_in_micrograph_pixels(tmp_path):
    centers = particle_centers(star(tmp_path, **SHIFTED))
    assert centers.micrograph.tolist() == [0, 1, 0]
    np.testing.assert_allclose(centers.xy_A, [[194, 20], [800, 88], [600, 60]])
    assert "2 to 4 A (that of the particle images" in centers.pixel_size_from
    binned = {"rlnMicrographOriginalPixelSize": [0.5, 0.5]}
    centers = particle_centers(star(tmp_path, binned, **SHIFTED))
    np.testing.assert_allclose(centers.xy_A, [[44, 5], [100, 18], [150, 15]])
    assert centers.pixel_size_from == "0.5 A (rlnMicrographOriginalPixelSize)"
    # Movies of 0.5 A were binned to micrographs of 1 A, and those are what was picked on.
    binned |= {"rlnMicrographPixelSize": [1.0, 1.0]}
    centers = particle_centers(star(tmp_path, binned, **SHIFTED))
    np.testing.assert_allclose(centers.xy_A, [[94, 10], [200, 28], [300, 30]])
    np.testing.assert_allclose(particle_centers(star(tmp_path, binned), 3.0).xy_A, [[300, 30], [600, 60], [900, 90]])


def test_our_shifts_beside_a_3d_refinement(tmp_path):
    protected = {"emsvaeOriginXAngst": [0.0, 1, 2], "emsvaeOriginYAngst": [3.0, 4, 5]}
    centers = particle_centers(star(tmp_path, **SHIFTED, rlnAngleTilt=50.0, **protected), 1.0)
    np.testing.assert_allclose(centers.xy_A, [[100, 7], [199, 16], [298, 25]])


def test_relion_30_has_pixels_in_the_particles(tmp_path):
    columns = {name: values for name, values in PICKS.items() if name != "rlnOpticsGroup"}
    columns |= {
        "rlnMagnification": 10000.0,
        "rlnDetectorPixelSize": 2.0,
        "rlnAnglePsi": 0.0,
        "rlnOriginX": 1.0,
        "rlnOriginY": 2.0,
    }
    write_new(tmp_path / "old.star", {"": pd.DataFrame(columns)})
    centers = particle_centers(open_table(tmp_path / "old.star"))
    np.testing.assert_allclose(centers.xy_A, [[198, 16], [398, 36], [598, 56]])


def test_cryosparc(tmp_path):
    table = np.zeros(
        2,
        [
            ("uid", "<u8"),
            ("blob/path", "S9"),
            ("blob/idx", "<u4"),
            ("blob/psize_A", "<f4"),
            ("location/micrograph_path", "S9"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
            ("location/micrograph_psize_A", "<f4"),
            ("alignments2D/pose", "<f4"),
            ("alignments2D/shift", "<f4", (2,)),
            ("alignments2D/psize_A", "<f4"),
        ],
    )
    table["blob/psize_A"], table["alignments2D/psize_A"], table["location/micrograph_psize_A"] = 2, 4, 1
    table["location/micrograph_shape"] = (3000, 4000)  # rows, columns
    table["location/center_x_frac"], table["location/center_y_frac"] = 0.5, 0.25
    table["alignments2D/shift"] = [(2, 3), (0, 0)]
    write_cs(tmp_path / "p.cs", table)
    centers = particle_centers(open_table(tmp_path / "p.cs"))
    np.testing.assert_allclose(centers.xy_A, [[2000 - 8, 750 - 12], [2000, 750]])
    assert "location/micrograph_psize_A" in centers.pixel_size_from


def test_which_is_better(tmp_path):
    def order(**columns):
        rank, why = ranks(star(tmp_path, **columns))
        return np.argsort(rank).tolist(), why

    assert order() == ([0, 1, 2], "the first in the file")
    weights = {"rlnMaxValueProbDistribution": [0.5, 0.9, 0.5], "rlnLogLikeliContribution": [9.0, 8, 7]}
    assert order(**weights) == ([1, 0, 2], "the higher rlnMaxValueProbDistribution")
    assert order(**weights, emsvaeJunk=[0.5, 0.9, 0.1]) == ([2, 0, 1], "the lower emsvaeJunk")
    assert order(rlnLogLikeliContribution=[-9.0, 8, 7]) == ([1, 2, 0], "the higher rlnLogLikeliContribution")
    assert order(emsvaeJunk=[0.0, 0.9, 0.1], emsvaeUsed=[0, 1, 1])[0] == [2, 1, 0]


@pytest.mark.parametrize("lacking", ["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"])
def test_no_coordinates(tmp_path, lacking):
    particles = pd.DataFrame({name: values for name, values in PICKS.items() if name != lacking})
    write_new(tmp_path / "p.star", {"optics": pd.DataFrame(OPTICS), "particles": particles})
    with pytest.raises(ParticleFileError, match="has not all of them"):
        particle_centers(open_table(tmp_path / "p.star"))


def test_no_pixel_size(tmp_path):
    with pytest.raises(ParticleFileError, match="--micrograph-pixel-size-a"):
        particle_centers(star(tmp_path, {"rlnImagePixelSize": [0.0, 0.0]}))
    assert particle_centers(star(tmp_path, {"rlnImagePixelSize": [0.0, 0.0]}), 1.0).xy_A[0, 0] == 100
