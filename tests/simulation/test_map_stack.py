"""Stacks of projections of a map: where a point lands, how strong the signal is, who the neighbours are, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from emspatialvae.config import SimulateConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.geometry import pixel_axis, view_rotations
from emspatialvae.io import mrc
from emspatialvae.io.mrc import StackWriter
from emspatialvae.io.star import StarFile
from emspatialvae.simulation import oracle
from emspatialvae.simulation.crowd import NEAREST, annulus_px, draw_neighbours, draw_views
from emspatialvae.simulation.density import read_density
from emspatialvae.simulation.projection import MapProjector
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.simulation.truth import load_simulation
from tests.tools.simulations import BLOBS, SIGMA, blob_map


def blob_image(rotation, shift_px, box, pixels_per_voxel):
    """Its projection by the formula: centres are rotated, then shifted; a ball looks like a disk from everywhere."""
    x, y = np.meshgrid(pixel_axis(box), pixel_axis(box))
    image = np.zeros((box, box))
    width = SIGMA * pixels_per_voxel
    for *at, height in BLOBS:
        to_x, to_y, _ = rotation @ at * pixels_per_voxel
        to_x, to_y = to_x + shift_px[0], to_y + shift_px[1]
        image += height * np.exp(-((x - to_x) ** 2 + (y - to_y) ** 2) / (2 * width**2))
    return image * SIGMA * np.sqrt(2 * np.pi)  # the integral along the depth, in voxels


def drawn(projector, rotations, shifts, box):
    canvas = np.zeros((len(rotations), box, box))
    projector.draw(rotations, shifts, np.arange(len(rotations)), canvas)
    return canvas


@pytest.fixture(scope="module")
def map_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.mrc"
    with StackWriter(path, 24, 24, None) as writer:
        writer.append(blob_map(24, background=0.3))
    return path


def config(out, map_file, **options):
    settings = {"particles": 60, "box": 32, "seed": 3, "views": "all", "map": map_file}
    return SimulateConfig("views", Path(out), **settings | options)


def images_of(folder):
    header = mrc.read_header(folder / "particles.mrcs")
    return mrc.read_images(header, range(header.n_images)).astype(float)


def truth_of(folder, *labels):
    return StarFile.read(folder / "truth.star").block("particles").read(numbers=labels)[1]


# ------------------------------------------------------------------------------------------------------------ projections


@pytest.mark.parametrize("side", [24, 25])
@pytest.mark.parametrize(("box", "pixels_per_voxel"), [(32, 1.0), (33, 1.25), (22, 0.8), (19, 1.0)])
def test_a_projection_is_where_and_as_strong_as_the_formula_says(side, box, pixels_per_voxel):
    rng = np.random.default_rng(0)
    rotations, shifts = draw_views(6, rng).rotations, rng.uniform(-2, 2, (6, 2))
    found = drawn(MapProjector(blob_map(side), 3.0, 3.0 / pixels_per_voxel), rotations, shifts, box)
    wanted = np.stack([blob_image(*pose, box, pixels_per_voxel) for pose in zip(rotations, shifts, strict=True)])
    np.testing.assert_allclose(found / 3.0, wanted, atol=0.012 * wanted.max())
    mirrored = drawn(MapProjector(blob_map(side), 3.0, 3.0 / pixels_per_voxel), rotations.swapaxes(1, 2), shifts, box)
    assert np.abs(mirrored / 3.0 - wanted).max() > 0.3 * wanted.max()


def test_a_projection_is_the_sum_of_the_rotated_map():
    """By an interpolation in real space that shares nothing with ours, on a map that is no formula."""
    density = ndimage.gaussian_filter(np.random.default_rng(1).random((25, 25, 25)), 1.0)
    axis = pixel_axis(25)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    density *= np.exp(-((np.sqrt(x**2 + y**2 + z**2) / 8) ** 6))
    rotation = view_rotations([0.4], [1.0], [2.0])
    at = rotation[0].T @ np.stack([x, y, z]).reshape(3, -1)
    turned = ndimage.map_coordinates(density, at[::-1] + 12, order=5).reshape(x.shape)
    found = drawn(MapProjector(density, 1.0, 1.0), rotation, np.zeros((1, 2)), 25)[0]
    assert np.abs(found - turned.sum(0)).max() < 0.01 * found.max()


def test_what_is_moved_out_of_the_box_does_not_come_in_at_the_other_side():
    projector = MapProjector(blob_map(24), 1.0, 1.0)
    rotation = np.eye(3)[None]
    moved = drawn(projector, rotation, np.array([[20.4, -3.0]]), 32)[0]
    wide = drawn(projector, rotation, np.array([[0.4, 0.0]]), 96)[0]
    np.testing.assert_allclose(moved, wide[48 - 16 + 3 : 48 + 16 + 3, 48 - 16 - 20 : 48 + 16 - 20], atol=1e-12)
    assert not drawn(projector, rotation, np.array([[500.0, 0.0]]), 32).any()


def test_the_views_are_spread_evenly():
    views = draw_views(20_000, np.random.default_rng(2))
    assert np.abs(views.rotations.mean(0)).max() < 0.02
    # every direction, and every in-plane angle, is as frequent as any other
    second = np.einsum("nij,nkl->ijkl", views.rotations, views.rotations) / 20_000
    np.testing.assert_allclose(second, np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3, atol=0.015)


# ---------------------------------------------------------------------------------------------------------------- the map


def test_the_background_is_taken_away(map_file, tmp_path):
    density = read_density(map_file, None, 4.0)
    assert density.values[0, 0, 0] == pytest.approx(0, abs=1e-6)
    assert (density.voxel_A, "assumed" in density.voxel_from) == (4.0, True)
    with StackWriter(tmp_path / "sized.mrc", 24, 24, 2.5) as writer:
        writer.append(blob_map(24))
    assert read_density(tmp_path / "sized.mrc", None, 4.0).voxel_A == pytest.approx(2.5)
    assert read_density(tmp_path / "sized.mrc", 3.0, 4.0).voxel_A == 3.0


def test_the_diameter_of_a_ball():
    axis = pixel_axis(40)
    ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= 12**2).astype(float)
    from emspatialvae.simulation.density import Density

    assert Density(ball, 2.0, "").diameter_A() == pytest.approx(2 * 12 * 2.0, rel=0.03)


# ------------------------------------------------------------------------------------------------------------- neighbours


def test_neighbours_cover_the_share_of_the_surroundings_that_was_asked_for():
    n, diameter, box = 4000, 20.0, 48
    none = np.zeros(n, bool)
    near = draw_neighbours(0.3, none, none, diameter, box, np.random.default_rng(3))
    inner, outer = annulus_px(diameter, box)
    distance = np.hypot(*near.offset_px.T)
    assert inner == pytest.approx(NEAREST * diameter) and distance.min() >= inner and distance.max() <= outer
    covered = len(near.owner) * np.pi * (diameter / 2) ** 2 / (n * np.pi * (outer**2 - inner**2))
    assert covered == pytest.approx(0.3, rel=0.03)
    inside = distance < np.sqrt((inner**2 + outer**2) / 2)
    assert inside.mean() == pytest.approx(0.5, abs=0.02)  # as many on the inner half of the area as on the outer
    assert np.abs(near.offset_px.mean(0)).max() < 1
    assert near.of(slice(10, 20)).tolist() == np.flatnonzero((near.owner >= 10) & (near.owner < 20)).tolist()


def test_neighbours_leave_the_others_alone_and_stand_round_an_empty_place():
    n = 300
    alone, nothing = np.arange(n) % 3 == 0, np.arange(n) % 3 == 1
    near = draw_neighbours(0.0, alone, nothing, 20.0, 48, np.random.default_rng(4))
    assert set(near.owner) == set(np.flatnonzero(nothing))
    nearest = [np.hypot(*near.offset_px[near.owner == row].T).min() for row in np.flatnonzero(nothing)]
    assert max(nearest) <= NEAREST * 20 + 5


# -------------------------------------------------------------------------------------------------------------- the stack


def test_without_noise_the_images_are_projections_at_the_true_angles(map_file, tmp_path):
    folder = simulate_stack(config(tmp_path / "sim", map_file, snr=1e8, shift_px=1.5, map_pixel_size_A=5.0))
    images = images_of(folder)
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    rot, tilt, angle, x, y = truth_of(folder, *labels).values()
    assert tilt.min() >= 0 and tilt.max() <= 180
    rotations = view_rotations(np.radians(rot), np.radians(tilt), -np.radians(angle))
    shifts = -np.stack([x, y], -1) / 4.0
    wanted = np.stack([blob_image(*pose, 32, 1.25) for pose in zip(rotations, shifts, strict=True)])
    scale = (images * wanted).sum() / (wanted**2).sum()
    np.testing.assert_allclose(images / scale, wanted, atol=0.02 * wanted.max())
    assert np.std(shifts, axis=0) == pytest.approx([1.5, 1.5], rel=0.3)
    assert images.var() == pytest.approx(1e8, rel=1e-3)
    text = (folder / "particles.star").read_text()
    assert not any(word in text for word in ("Angle", "Origin", "True"))


@pytest.mark.parametrize("after", [False, True])
def test_the_signal_is_that_of_the_particles_alone(map_file, tmp_path, after):
    """Neighbours and junk do not make it weaker, and the CTF does only if asked."""
    options = {"particles": 200, "ctf": True, "snr": 400.0, "snr_after_ctf": after, "box": 24, "crowding": 0.2}
    folder = simulate_stack(config(tmp_path / "crowded", map_file, junk=0.3, map_pixel_size_A=2.0, **options))
    plain = simulate_stack(config(tmp_path / "plain", map_file, map_pixel_size_A=2.0, **options | {"crowding": 0.0}))
    variance = images_of(plain).var()
    assert variance == pytest.approx(401, rel=0.01) if after else variance < 360
    junk = truth_of(folder, "emsvaeTrueJunk")["emsvaeTrueJunk"] > 0
    scales = [json.loads((where / "simulation.json").read_text())["signal_scale"] for where in (folder, plain)]
    assert scales[0] == pytest.approx(scales[1], rel=0.05)
    images = images_of(folder)
    kinds = json.loads((folder / "simulation.json").read_text())["junk_kinds"]
    assert sum(kinds.values()) == junk.sum() and min(kinds.values()) > 5
    power = images.var((1, 2))
    assert (power[junk] < 2).sum() >= kinds["empty"]  # nothing but noise
    assert power[~junk].min() > 40
    assert images[~junk].var() > variance  # the neighbours come on top


def test_junk_is_nothing_or_stands_at_the_edge_or_lies_all_over(map_file, tmp_path):
    options = {"particles": 300, "snr": 400.0, "box": 24, "junk": 0.5, "map_pixel_size_A": 2.0, "shift_px": 0.0}
    folder = simulate_stack(config(tmp_path / "sim", map_file, **options))
    images = images_of(folder)
    junk = truth_of(folder, "emsvaeTrueJunk")["emsvaeTrueJunk"] > 0
    kinds = json.loads((folder / "simulation.json").read_text())["junk_kinds"]
    whole, middle = images.std((1, 2)), np.sqrt((images[:, 10:15, 10:15] ** 2).mean((1, 2)))
    assert middle[~junk].min() > 10
    nothing = junk & (whole < 1.5)
    at_the_edge = junk & ~nothing & (middle < 3)
    assert nothing.sum() == kinds["empty"]
    assert at_the_edge.sum() == pytest.approx(kinds["beside nothing"], abs=8)
    assert whole[at_the_edge].min() > 4


def test_same_seed_same_bytes_and_crowding_changes_only_the_crowd(map_file, tmp_path):
    options = {"ctf": True, "junk": 0.2, "crowding": 0.3, "noise_colour": "coloured", "optics_groups": 2, "box": 24}
    options |= {"map_pixel_size_A": 2.0}
    first, again = (simulate_stack(config(tmp_path / name, map_file, **options)) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    other = simulate_stack(config(tmp_path / "c", map_file, **options | {"seed": 4}))
    assert (first / "particles.mrcs").read_bytes() != (other / "particles.mrcs").read_bytes()
    lonely = simulate_stack(config(tmp_path / "d", map_file, **options | {"crowding": 0.0}))
    assert (first / "truth.star").read_bytes() == (lonely / "truth.star").read_bytes()
    assert (first / "particles.mrcs").read_bytes() != (lonely / "particles.mrcs").read_bytes()


def test_there_is_no_oracle_of_a_map(map_file, tmp_path):
    folder = simulate_stack(config(tmp_path / "sim", map_file))
    simulation = load_simulation(folder / "simulation.json")
    assert (simulation.has_oracle, simulation.has_signal, simulation.symmetry) == (False, True, 1)
    assert (simulation.box, simulation.cramer_rao) == (32, None)
    with pytest.raises(EmsvaeError, match="no oracle"):
        oracle.oracle_of_stack(folder)


def test_the_command_says_what_it_took_for_the_voxel(map_file, emsvae, tmp_path):
    words = ["simulate", "views", "--map", map_file, "--views", "all", "--particles", 20, "--out", tmp_path / "sim"]
    said = emsvae.done(*words, "--pixel-size-a", 3).out
    assert "24 voxels along an edge, 3 A each (assumed" in said
    assert json.loads((tmp_path / "sim" / "simulation.json").read_text())["map_voxel_A"] == 3


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["views", "--views", "all"], "--map"),
        (["views", "--crowding", "0.3"], "--map"),
        (["views", "--snr-after-ctf"], "--map"),
        (["views", "--map", "MAP"], "--views all"),
        (["hinge", "--map", "MAP", "--views", "all"], "emsvae simulate views"),
        (["views", "--map", "MAP", "--views", "all", "--span-deg", "40"], "--span-deg"),
        (["views", "--map", "gone.mrc", "--views", "all"], "no such file"),
        (["views", "--map", "flat.mrc", "--views", "all"], "same density"),
        (["views", "--map", "slab.mrc", "--views", "all"], "16 x 16 x 10 voxels; expected a cube"),
        (["views", "--map", "MAP", "--views", "all", "--map-pixel-size-a", "0"], "positive"),
        (["views", "--map", "MAP", "--views", "all", "--crowding", "2"], "0 to 1"),
        (["views", "--map", "MAP", "--views", "all", "--crowding", "0.1", "--map-pixel-size-a", "30"], "larger --box"),
    ],
)
def test_nonsense_is_refused_in_one_line(map_file, emsvae, tmp_path, monkeypatch, words, wanted):
    monkeypatch.chdir(tmp_path)
    for name, depth, value in (("flat.mrc", 16, 1.0), ("slab.mrc", 10, 2.0)):
        with StackWriter(tmp_path / name, depth, 16, 1.0) as writer:
            writer.append(np.full((depth, 16, 16), value))
    filled = [str(map_file) if word == "MAP" else word for word in words]
    assert wanted in emsvae.refused("simulate", *filled, "--out", "sim", "--particles", "20")
