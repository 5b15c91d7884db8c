"""A run on cryoSPARC particles goes on in RELION: micrographs, coordinates, names of stacks; and coordinates of re-centred particles."""

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.cli.main import main
from emspatialvae.config import InputConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.mrc import StackWriter
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.table import open_table
from emspatialvae.results.export_coordinates import write_coordinates
from tests.conftest import Emsvae
from tests.tools.latents import classified

N, PIXEL_A, MICROGRAPH_A = 48, 4.0, 2.0
SHAPE = (400, 600)
"""Rows and columns of the micrographs."""
FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S20"),
    ("blob/idx", "<u4"),
    ("blob/psize_A", "<f4"),
    ("location/micrograph_path", "S40"),
    ("location/center_x_frac", "<f4"),
    ("location/center_y_frac", "<f4"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/micrograph_psize_A", "<f4"),
    *(
        (f"ctf/{name}", "<f4")
        for name in ("df1_A", "df2_A", "df_angle_rad", "phase_shift_rad", "accel_kv", "cs_mm", "amp_contrast")
    ),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/psize_A", "<f4"),
]


def picks():
    rng = np.random.default_rng(5)
    xy = np.stack([rng.uniform(50, SHAPE[1] - 50, N), rng.uniform(50, SHAPE[0] - 50, N)], 1)
    xy[1] = xy[0] + 3.0  # one particle picked twice
    return xy


def table():
    array = np.zeros(N, FIELDS)
    array["uid"], array["blob/path"], array["blob/idx"] = 900 + np.arange(N), b">J1/particles.mrc", np.arange(N)
    array["blob/psize_A"], array["location/micrograph_psize_A"] = PIXEL_A, MICROGRAPH_A
    array["location/micrograph_path"] = [b">J0/mic_%d.mrc" % (row // 24) for row in range(N)]
    array["location/micrograph_shape"] = SHAPE
    array["location/center_x_frac"], array["location/center_y_frac"] = (picks() / SHAPE[::-1]).T
    array["alignments3D/shift"], array["alignments3D/psize_A"] = (1.0, -2.0), 8.0
    array["ctf/df1_A"], array["ctf/df2_A"] = 16_000, 15_000
    array["ctf/accel_kv"], array["ctf/cs_mm"], array["ctf/amp_contrast"] = 300, 2.7, 0.1
    return array


@pytest.fixture(scope="module")
def of_cs(easy_stack, tmp_path_factory) -> Path:
    """A folder with particles.cs, its stack J1/particles.mrc, and a run on it."""
    folder = tmp_path_factory.mktemp("cs")
    (folder / "J1").mkdir()
    shutil.copy(easy_stack / "particles.mrcs", folder / "J1" / "particles.mrc")
    write_cs(folder / "particles.cs", table())
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr("emspatialvae.analysis.report.run_figures.draw", lambda *_: None)
        assert (
            main(["train", str(folder / "particles.cs"), "--out", str(folder / "run"), "--ctf", "none", *Emsvae.TINY])
            == 0
        )
    (folder / "said.txt").write_text(said.getvalue())
    return folder


@pytest.fixture
def here(of_cs, tmp_path, monkeypatch) -> Path:
    shutil.copytree(of_cs, tmp_path / "cs")
    monkeypatch.chdir(tmp_path / "cs")
    return tmp_path / "cs"


def test_the_star_view_of_a_run_knows_where_particles_were_picked(here):
    star = open_table(Path("run/particles.star"))
    places = star.coordinates()
    assert places is not None
    assert places.micrographs == ("J0/mic_0.mrc", "J0/mic_1.mrc")
    np.testing.assert_allclose(places.xy_px, picks(), atol=1e-3)
    assert star.read(numbers=("rlnMicrographPixelSize",))[1]["rlnMicrographPixelSize"][0] == MICROGRAPH_A


def test_duplicates_and_joins_of_such_a_run(here, emsvae):
    out = emsvae.done("select", "run", "--drop-duplicates-a", "20", "--out", "s.star").out
    assert "2 A (rlnMicrographPixelSize)" in out
    kept = open_table(Path("s.star"))
    assert 0 < N - len(kept) < N // 4  # the one that was picked twice, and what lies near by chance
    # A file of RELION with the same picks under other image names.
    text = Path("run/particles.star").read_text().replace("@J1/particles.mrc", "@Extract/job1/other.mrcs")
    Path("relion.star").write_text(text)
    out = emsvae.done("select", "run", "--from", "relion.star", "--out", "t.star").out
    assert f"joined by micrograph and coordinates: {N} of {N}" in out


def test_names_that_relion_refuses_are_said_and_mended_by_links(here, of_cs, emsvae):
    assert "--link-stacks DIR" in (here / "said.txt").read_text()
    out = emsvae.done("export", "run", "--star", "plain.star").out
    assert "names that end in .mrcs only, 1 of 1 do not (the first is J1/particles.mrc)" in out
    out = emsvae.done("export", "run", "--star", "out.star", "--link-stacks", "Links").out
    assert "1 links to stacks: Links" in out and "only" not in out
    assert Path("Links/particles.mrcs").resolve() == of_cs / "J1" / "particles.mrc"
    names = particle_block(StarFile.read(Path("out.star"))).columns("rlnImageName")["rlnImageName"]
    assert names[:2] == ["000001@Links/particles.mrcs", "000002@Links/particles.mrcs"]
    ours, theirs = (load_particles(InputConfig(Path(name))) for name in ("out.star", "particles.cs"))
    np.testing.assert_array_equal(ours.images(slice(None)), theirs.images(slice(None)))
    # Again is no trouble, a file of the user's own is left alone.
    emsvae.done("export", "run", "--star", "again.star", "--link-stacks", "Links")
    (here / "Mine").mkdir()
    (here / "Mine" / "particles.mrcs").write_bytes(b"mine")
    said = emsvae.refused("export", "run", "--star", "x.star", "--link-stacks", "Mine", "--force")
    assert "Mine/particles.mrcs is a file of its own" in said
    assert "--star" in emsvae.refused("export", "run", "--csv", "x.csv", "--link-stacks", "Links")


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_reads_the_links_and_not_the_names(here, emsvae):
    emsvae.done("export", "run", "--star", "plain.star", "--csv", "x.csv")
    emsvae.done("export", "run", "--star", "linked.star", "--link-stacks", "Links")

    def relion(name):
        words = ["relion_stack_create", "--i", f"{name}.star", "--o", name, "--one_by_one"]
        return subprocess.run(words, capture_output=True, text=True, timeout=100).returncode

    assert relion("plain") != 0
    assert relion("linked") == 0


def test_stacks_of_one_name_get_links_of_their_own(tmp_path, monkeypatch):
    from emspatialvae.results.stack_links import make_links, planned_links

    monkeypatch.chdir(tmp_path)
    array = table()[:4]
    array["blob/path"] = [b">J1/a.mrc", b">J2/a.mrc", b">J1/a.mrc", b">J2/b.mrcs"]
    for name in ("J1/a.mrc", "J2/a.mrc", "J2/b.mrcs"):
        Path(name).parent.mkdir(exist_ok=True)
        with StackWriter(Path(name), 4, 16, PIXEL_A) as writer:
            writer.append(np.random.default_rng(len(name)).normal(size=(4, 16, 16)))
    write_cs(Path("p.cs"), array)
    stack = load_particles(InputConfig(Path("p.cs")))
    names = make_links(stack, planned_links(stack, Path("L"), force=False))
    assert names == ["000001@L/a.mrcs", "000002@L/a_2.mrcs", "000003@L/a.mrcs", "000004@J2/b.mrcs"]
    assert [Path("L", name).readlink() for name in ("a.mrcs", "a_2.mrcs")] == [
        tmp_path / "J1" / "a.mrc",
        tmp_path / "J2" / "a.mrc",
    ]


# ------------------------------------------------------------------------------------------------ re-centred coordinates


def results(names):
    """Shifts in pixels of 3 A; the last particle was not used."""
    return classified(len(names), (len(names) - 1,))


def refined_centres(array):
    """Where a 3-D refinement has the particles, in micrograph pixels."""
    picked = np.stack([array["location/center_x_frac"], array["location/center_y_frac"]], 1) * SHAPE[::-1]
    return picked - array["alignments3D/shift"] * 8.0 / MICROGRAPH_A


def test_cryosparc_coordinates_move_by_the_shift_in_micrograph_pixels(here):
    stack = load_particles(InputConfig(Path("particles.cs")))
    latents = results(stack.names)
    said = write_coordinates(latents, stack, Path("c.cs"))
    assert "micrograph pixels: 2 A (location/micrograph_psize_A)" in said and "extract them anew" in said
    array = read_cs(Path("c.cs"))
    expected = picks() + np.where(latents.used[:, None], latents.pose.shift_px, 0) * latents.pixel_size_A / MICROGRAPH_A
    found = np.stack([array["location/center_x_frac"], array["location/center_y_frac"]], 1) * SHAPE[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not array["alignments2D/shift"].any()
    # The place that a 3-D refinement means stays where it is: new pick - new shift is old pick - old shift.
    np.testing.assert_allclose(refined_centres(array), refined_centres(table()), atol=2e-3)
    write_coordinates(latents, stack, Path("c.star"), micrograph_pixel_size_A=4.0)
    places = open_table(Path("c.star")).coordinates()
    assert places is not None
    np.testing.assert_allclose(places.xy_px, picks() + (expected - picks()) / 2, atol=1e-3)


STAR = """\
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnMicrographPixelSize #3
1 4.0 2.0

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnMicrographName #3
_rlnCoordinateX #4
_rlnCoordinateY #5
_rlnAnglePsi #6
_rlnOriginXAngst #7
_rlnOriginYAngst #8
_rlnAngleTilt #9
1@J1/particles.mrc 1 m.mrc 100.00 200.0 5 6 -8 {tilt}
2@J1/particles.mrc 1 m.mrc 300.00 100.5 5 0 0 {tilt}
3@J1/particles.mrc 1 m.mrc 123.40 1e2 5 1 1 {tilt}
"""


def relion_numbers(path, *labels):
    block = particle_block(StarFile.read(path))
    return np.stack([block.read(numbers=[label])[1][label] for label in labels], 1), block


def test_relion_coordinates_move_and_origins_take_it_back(here):
    coordinates, origins = ("rlnCoordinateX", "rlnCoordinateY"), ("rlnOriginXAngst", "rlnOriginYAngst")
    for tilt in (0, 30):
        Path("p.star").write_text(STAR.format(tilt=tilt))
        stack = load_particles(InputConfig(Path("p.star")))
        latents = results(stack.names)
        write_coordinates(latents, stack, Path("c.star"), force=True)
        old, _ = relion_numbers(Path("p.star"), *coordinates)
        new, block = relion_numbers(Path("c.star"), *coordinates)
        moved_A = latents.pose.shift_px * latents.pixel_size_A
        np.testing.assert_allclose(new[:2], (old + moved_A / 2.0)[:2], atol=1e-5)
        assert block.columns("rlnCoordinateX")["rlnCoordinateX"][2] == "123.40"  # not used: as it was
        origin, _ = relion_numbers(Path("c.star"), *origins)
        if tilt == 0:
            assert not origin[:2].any()
        else:  # of the 3-D refinement: pick - origin, in angstrom, is where it was
            before, _ = relion_numbers(Path("p.star"), *origins)
            np.testing.assert_allclose(2 * new - origin, 2 * old - before, atol=1e-4)
            assert not relion_numbers(Path("c.star"), "emsvaeOriginXAngst", "emsvaeOriginYAngst")[0].any()


def test_what_has_no_coordinates_is_refused(here, emsvae):
    said = emsvae.refused("export", "run", "--coordinates", "c.mrcs")
    assert ".star or .cs" in said
    out = emsvae.done("export", "run", "--coordinates", "c.star").out
    assert "coordinates moved by" in out
    stack = load_particles(InputConfig(Path("J1/particles.mrc"), pixel_size_A=4.0))
    with pytest.raises(Exception, match="no coordinates"):
        write_coordinates(results(stack.names), stack, Path("d.star"))


def micrograph_with_dots(centres, size=256):
    """A micrograph with a Gaussian of s.d. 2 px at each place (x, y)."""
    y, x = np.mgrid[:size, :size].astype(float)
    dots = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) for cx, cy in centres]
    return np.sum(dots, axis=0).astype("f4")


def test_boxes_extracted_anew_are_centred(tmp_path, monkeypatch):
    """Particles off the centre of their boxes; at the coordinates that are written they lie in the middle of new ones."""
    monkeypatch.chdir(tmp_path)
    truth = np.array([[60.0, 70], [180, 90], [120, 200]])
    offset = np.array([[5.0, -3], [-4, 6], [2, 7]])
    image = micrograph_with_dots(truth)
    box, corner = 32, (truth - offset).astype(int) - 16
    boxes = np.stack([image[y : y + box, x : x + box] for x, y in corner])
    with StackWriter(tmp_path / "s.mrcs", 3, box, 2.0) as writer:
        writer.append(boxes)
    rows = "".join(f"{i + 1}@s.mrcs 1 m.mrc {x} {y}\n" for i, (x, y) in enumerate(truth - offset))
    head = STAR.split("_rlnAnglePsi")[0].replace("1 4.0 2.0", "1 2.0 2.0")
    (tmp_path / "p.star").write_text(head + rows)
    stack = load_particles(InputConfig(Path("p.star")))
    # What a run would say: where the dot lies, seen from the centre of its box.
    y, x = np.mgrid[:box, :box] - box // 2
    seen = np.stack([(boxes * x).sum((1, 2)), (boxes * y).sum((1, 2))], 1) / boxes.sum((1, 2))[:, None]
    latents = classified(3)
    latents = type(latents)(**{**vars(latents), "pose": Pose2D(np.zeros(3), seen * 2.0 / latents.pixel_size_A)})
    write_coordinates(latents, stack, Path("c.star"))
    found, _ = relion_numbers(Path("c.star"), "rlnCoordinateX", "rlnCoordinateY")
    np.testing.assert_allclose(found, truth, atol=0.05)
