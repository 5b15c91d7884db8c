"""`emsvae path`: the way in z, the frame that does not spin, the particles along it, the three files, and bad input."""

import shutil
from itertools import pairwise

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor, nn

from emspatialvae.analysis.figures import film
from emspatialvae.analysis.figures.scale_bar import round_below
from emspatialvae.analysis.latent_space import paths
from emspatialvae.config import ModelConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.render import canonical
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.gauge import register
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.particles.find_particle import find_particle
from emspatialvae.simulation.stack import clean_image, hinge_object

BOX = 32

# ---------------------------------------------------------------------------------------------------------- names


NAMES = np.array(
    ["000001@Extract/job007/a.mrcs", "000012@Extract/job007/a.mrcs", "000001@b.mrcs", "000012@Extract/job009/a.mrcs"],
    dtype=object,
)


@pytest.mark.parametrize(
    ("wanted", "row"),
    [
        ("000001@Extract/job007/a.mrcs", 0),
        ("1@a.mrcs", 0),
        ("0001@b.mrcs", 2),
        ("12@job009/a.mrcs", 3),
        ("12@job007/a.mrcs", 1),
        (" 1@b.mrcs ", 2),
    ],
)
def test_a_particle_is_found_by_its_name(wanted, row):
    assert find_particle(NAMES, wanted) == row


def test_the_first_of_rows_with_one_image_is_meant():
    assert find_particle(np.array(["1@b.mrcs", "2@a.mrcs", "02@a.mrcs"], dtype=object), "2@a.mrcs") == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("12@a.mrcs", "may be 000012@Extract/job007/a.mrcs or 000012@Extract/job009/a.mrcs; give more of the path"),
        ("5@b.mrcs", "the run has 1 of that stack, 1 to 1; the nearest is 000001@b.mrcs"),
        ("9@job007/a.mrcs", "the run has 2 of that stack, 1 to 12; the nearest is 000012@Extract/job007/a.mrcs"),
        ("1@bb.mrcs", "did you mean 000001@b.mrcs?"),
        ("1@.mrcs", "no particle"),
        ("1@ob007/a.mrcs", "no particle"),  # whole folders only
        ("b.mrcs", "did you mean 000001@b.mrcs?"),
        ("7", "names look like 000001@Extract/job007/a.mrcs"),
        ("7@", "expected N@stack"),
        ("", "expected N@stack"),
    ],
)
def test_a_name_that_is_not_there(wanted, said):
    with pytest.raises(EmsvaeError) as caught:
        find_particle(NAMES, wanted)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- the way


def test_a_straight_path_has_both_ends_and_equal_steps():
    start, end = np.array([1.0, -2.0, 0.0]), np.array([-1.0, 2.0, 3.0])
    points = paths.straight(start, end, 5)
    assert points[0] == pytest.approx(start)
    assert points[-1] == pytest.approx(end)
    assert np.diff(points, axis=0) == pytest.approx(np.tile((end - start) / 4, (4, 1)))


def test_particles_along_a_path():
    """Counted by hand, in s.d. of z: from the first point 0, 3 and 4 along an axis and 30; r.m.s. over two coordinates."""
    z = np.array([[0.0, 0.0], [0.3, 0.0], [0.0, 0.28], [3.0, 0.0], [3.0, 0.1]])
    path = paths.walk(np.array([[0.0, 0.0], [3.0, 0.0]]), z, np.array([0.1, 0.1]))
    assert path.near.tolist() == [2, 2]  # 3 / sqrt(2) = 2.1 lies just beyond 2, 2.8 / sqrt(2) just within
    assert path.travelled.tolist() == [0, 3]
    assert path.members[0].tolist()[:3] == [0, 2, 1]
    assert path.members[1].tolist()[:2] == [3, 4]


def test_a_coordinate_that_tells_nothing_does_not_count():
    """Three of four coordinates have the prior's s.d.: distances are those of the first alone."""
    z = np.zeros((3, 4))
    z[:, 0] = [0.0, 0.19, 0.21]
    one = paths.walk(np.zeros((1, 1)), z[:, :1], np.array([0.1]))
    four = paths.walk(np.zeros((1, 4)), z, np.array([0.1, 1.0, 1.0, 1.0]))
    assert one.near.tolist() == four.near.tolist() == [2]


def test_members_are_the_nearest_ones(monkeypatch):
    monkeypatch.setattr(paths, "AVERAGED", 2)
    z = np.array([[0.0], [1.0], [2.0], [9.0]])
    path = paths.walk(np.array([[0.1], [8.0]]), z, np.ones(1))
    weights = paths.membership(path, np.array([2, 3, 5, 7]), 9).toarray()  # where they lie in a stack of 9
    assert np.flatnonzero(weights[:, 0]).tolist() == [2, 3]
    assert np.flatnonzero(weights[:, 1]).tolist() == [5, 7]
    # The farthest member lies two widths of the kernel away: at 0.9 from the first point, where the other lies at 0.1.
    np.testing.assert_allclose(weights[[2, 3], 0], np.exp([-2 * (0.1 / 0.9) ** 2, -2.0]), rtol=1e-5)


def test_members_at_one_place_count_alike():
    path = paths.walk(np.zeros((1, 2)), np.zeros((5, 2)), np.ones(2))
    assert path.weights.tolist() == [[1.0] * 5]


# ------------------------------------------------------------------------------------------------------- a still frame


class Turning(nn.Module):
    """A decoder that draws one rigid object, turned by 2 radians per unit of z1: nothing but gauge."""

    def __init__(self, basis: SteerableBasis, object_: Tensor) -> None:
        super().__init__()
        self.basis, self.object = basis, object_

    def forward(self, z: Tensor) -> Tensor:
        return self.basis.rotate(self.object.expand(*z.shape[:-1], -1), 2 * z[..., 0])


@pytest.fixture(scope="module")
def spinning() -> SteerableVAE:
    basis = SteerableBasis.full(Disk(BOX, BOX / 2 - 0.5), 0.35)
    spec = ImageSpec(BOX, 14.4, shift_prior_px=1.5, max_shift_px=6.0)
    model = SteerableVAE(ModelConfig(z_dim=2, hidden=8, encoder_hidden=8), spec, basis, 1)
    image = clean_image(hinge_object(), np.full(1, 0.3), Pose2D(np.zeros(1), np.zeros((1, 2))), BOX)
    model.decoder = Turning(basis, basis.coefficients(torch.from_numpy(image).float())[0])  # type: ignore[assignment]
    return model


def turns_deg(model: SteerableVAE, frames: np.ndarray) -> np.ndarray:
    """The turn that would register each frame on the one before."""
    contents = model.basis.coefficients(torch.from_numpy(frames))
    return np.array(
        [
            float(torch.rad2deg(geometry.wrapped(register(model.search, b[None], a).theta_rad))[0])
            for a, b in pairwise(contents)
        ]
    )


def test_frames_of_a_film_do_not_turn_against_each_other(spinning):
    line = paths.straight(np.array([-0.8, 0.0]), np.array([0.8, 0.4]), 9)
    spun = turns_deg(spinning, canonical(spinning, line))
    assert np.abs(spun) == pytest.approx(np.degrees(2 * 1.6 / 8), abs=0.5)  # without the gauge it spins
    cloud = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (400, 2))).float()
    spinning.fix_gauge(cloud)
    still = turns_deg(spinning, canonical(spinning, line))
    assert np.abs(still).max() < 1
    frames = canonical(spinning, line)
    assert np.abs(frames - frames[0]).max() < 0.1 * np.abs(frames[0]).max()


# -------------------------------------------------------------------------------------------------------- the command


def names_of(run) -> list[str]:
    return pd.read_csv(run / "latents.csv", dtype={"image_name": str})["image_name"].tolist()


def test_path_writes_a_stack_a_film_and_a_strip(tiny_run, tmp_path, emsvae, monkeypatch):
    drawn = []
    monkeypatch.setattr("emspatialvae.analysis.figures.run.save", lambda figure, *_, **__: drawn.append(figure))
    names = names_of(tiny_run)
    out = tmp_path / "deep" / "path.mrcs"
    said = emsvae.done(
        "path", tiny_run, "--from", names[3], "--to", "20@particles.mrcs", "--steps", 6, "--out", out
    ).out
    assert names[3] in said
    assert names[19] in said
    table = pd.read_csv(tiny_run / "latents.csv")
    with mrcfile.open(out) as stack:
        frames = np.asarray(stack.data)
        assert frames.shape == (6, 24, 24)
        assert float(stack.voxel_size.x) == pytest.approx(4)
        assert frames.std() > 0
    with Image.open(out.with_suffix(".gif")) as gif:
        frames = [frame.convert("L") for frame in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    assert len(frames) == 6 + 4  # forth and back, no end twice
    assert frames[0].size[0] == 2 * 264  # the model's and the particles', 24 px enlarged 11 times
    assert np.array_equal(np.asarray(frames[1])[:264], np.asarray(frames[-1])[:264])
    (figure,) = drawn
    title = figure.get_suptitle()
    assert names[3] in title
    assert names[19] in title
    above = figure.axes[0].get_title()
    assert f"{table.z1[3]:.2f}, {table.z2[3]:.2f}" in above
    distance = np.hypot(*(table[["z1", "z2"]].iloc[19] - table[["z1", "z2"]].iloc[3]))
    assert f"{distance:.2f} away" in figure.axes[5].get_title()
    assert [text.get_text() for text in figure.axes[0].texts] == ["20 \N{ANGSTROM SIGN}"]
    assert all(axes.get_xlabel().endswith("near") for axes in figure.axes[:6])


def test_the_end_frames_are_what_the_model_draws_of_the_ends(tiny_run, tmp_path, emsvae):
    from emspatialvae.inference.infer import load_model
    from emspatialvae.results.run_folder import RunDir

    names = names_of(tiny_run)
    out = tmp_path / "p.gif"  # any of the three names will do
    emsvae.done("path", tiny_run, "--from", names[0], "--to", names[7], "--steps", 3, "--out", out, "--no-averages")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.gif", "p.mrcs", "p.png"]
    z = pd.read_csv(tiny_run / "latents.csv")[["z1", "z2"]].to_numpy()[[0, 7]]
    with mrcfile.open(out.with_suffix(".mrcs")) as stack:
        ends = np.asarray(stack.data)[[0, 2]]
    assert ends == pytest.approx(canonical(load_model(RunDir(tiny_run)), z), abs=1e-5)
    with Image.open(out) as gif:
        assert gif.size[0] == 264  # no particles beside it


def test_averages_need_the_particles_and_the_rest_does_not(tiny_run, tmp_path, emsvae, monkeypatch):
    """A run that was carried off without its particles still has a film."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = (run / "config.json").read_text()
    source = str(next(p for p in _strings(config) if p.endswith("particles.star")))
    (run / "config.json").write_text(config.replace(source, str(tmp_path / "gone.star")))
    words = ("path", run, "--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--steps", 2, "--out", "p.mrcs")
    assert "gone.star" in emsvae.refused(*words)
    emsvae.done(*words, "--no-averages")


def _strings(text: str) -> list[str]:
    return text.split('"')[1::2]


def test_averages_are_those_of_the_particles_nearest(tiny_run, tmp_path, monkeypatch):
    """Of 48 particles all are among the 100 nearest of each step, and count the more the nearer they are."""
    from emspatialvae.analysis.classes.averages import average
    from emspatialvae.results import read_run
    from emspatialvae.workflows.path import film_between

    run, latents, stack = read_run.read_run(tiny_run)
    made = film_between(run, latents, (0, 5), 3)
    unit = paths.typical_sd(latents.z_sd)
    distance = np.linalg.norm((latents.z[:, None] - made.z) / unit, axis=2)
    weights = np.exp(-2 * (distance / distance.max(0)) ** 2)
    assert made.averages is not None
    assert made.averaged == 48
    assert made.averages == pytest.approx(average(stack, latents, weights, run.manifest.preparation).images, abs=1e-4)
    monkeypatch.setattr(paths, "AVERAGED", 1)
    single = film_between(run, latents, (0, 5), 3)
    alone = average(stack, latents, np.eye(48)[:, [0, 5]], run.manifest.preparation).images
    assert single.averages is not None
    assert single.averages[[0, 2]] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--from", "99@particles.mrcs", "--to", "2@particles.mrcs"),
            "the run has 48 of that stack, 1 to 48; the nearest is 000048@",
        ),
        (("--from", "1@particle.mrcs", "--to", "2@particles.mrcs"), "did you mean 000001@particles.mrcs?"),
        (("--from", "000002@particles.mrcs", "--to", "2@particles.mrcs"), "are both 000002@particles.mrcs; give two"),
        (("--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--steps", "1"), "--steps is 1"),
        (
            ("--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--out", "path.mp4"),
            "ending in .mrcs, .gif, .png",
        ),
        (("--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--out", "there.mrcs"), "there.gif exists already"),
        (("--from", "1@particles.mrcs"), "--to"),
    ],
)
def test_bad_input(tiny_run, tmp_path, emsvae, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gif").write_text("somebody's")
    line = emsvae.refused("path", tiny_run, *(() if "--out" in words else ("--out", "path.mrcs")), *words)
    assert said in line


def test_runs_that_have_nothing_to_show(tiny_run, tmp_path, emsvae, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--out", "path.mrcs")
    assert "not a run folder" in emsvae.refused("path", tmp_path, *words)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    table = pd.read_csv(run / "latents.csv", dtype=str)
    table.loc[0, "used"] = "0"
    table.to_csv(run / "latents.csv", index=False)
    assert "000001@particles.mrcs could not be used" in emsvae.refused("path", run, *words)
    table["used"] = "0"
    table.to_csv(run / "latents.csv", index=False)
    assert "none of its particles could be used" in emsvae.refused("path", run, *words)
    (run / "latents.csv").unlink()
    assert "the run has no results yet" in emsvae.refused("path", run, *words)


# -------------------------------------------------------------------------------------------------------- the pictures


def a_film(steps: int, d: int = 2, near: int = 30) -> film.Film:
    rng = np.random.default_rng(0)
    return film.Film(
        drawn=rng.normal(size=(steps, 16, 16)),
        averages=None,
        averaged=0,
        z=rng.normal(size=(steps, d)),
        travelled=np.arange(steps, dtype=float),
        near=np.full(steps, near),
        ends=("1@a.mrcs", "2@a.mrcs"),
        pixel_size_A=2.0,
    )


def test_one_grey_scale_for_all_frames():
    ramp = np.arange(4.0)[:, None, None] * np.ones((4, 8, 8))
    assert film.greys(ramp)[:, 0, 0].tolist() == [0, 85, 170, 255]
    assert not film.greys(np.ones((2, 4, 4))).any()


def test_a_long_film_makes_a_short_strip():
    figure = film.strip(a_film(200))
    shown = [axes.get_title().splitlines()[0] for axes in figure.axes if axes.get_title()]
    assert len(shown) == film.SHOWN
    assert shown[0] == "1"
    assert shown[-1] == "200"


def test_a_strip_says_where_no_particle_is():
    assert "red" not in film.strip(a_film(3)).get_suptitle()
    lonely = film.strip(a_film(3, near=2))
    assert "fewer than 10" in lonely.get_suptitle()
    assert lonely.axes[0].xaxis.label.get_color() == "tab:red"


def test_z_of_many_dimensions_is_not_spelled_out():
    assert "(" not in film.strip(a_film(3, d=5)).axes[0].get_title()


@pytest.mark.parametrize(("value", "bar"), [(96, 50), (128, 100), (1.0, 1), (199, 100), (200, 200), (0.07, 0.05)])
def test_round_lengths(value, bar):
    assert round_below(value) == pytest.approx(bar)
