"""Every real file with images goes the whole way: info, train, infer, export, in its own format."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.io.cs import read_cs
from emspatialvae.io.mrc import read_header
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from emspatialvae.results.run_folder import RunDir

pytestmark = pytest.mark.real

POSE = ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
FILES = {
    "real/relion31.star": (5, []),
    "real/relion31.v2.star": (5, []),
    "real/empiar_10076_7.star": (7, []),
    "real/empiar_10076_7.cs": (7, []),
    "real/toy_projections_13.star": (13, []),
    "real/sample.mrcs": (17, ["--pixel-size-a", "1.3"]),
    **{
        f"relion_truth/rln_proj_{box}{kind}.star": (n, ["--pixel-size-a", "1"])
        for box in (64, 65)
        for kind, n in (("", 5), ("_shifted", 4), ("_centered", 4))
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(star: Path) -> pd.DataFrame:
    block = particle_block(StarFile.read(star))
    return pd.DataFrame(block.columns(*block.labels))


@pytest.mark.parametrize("name", FILES)
def test_the_whole_way(emsvae, real_data, here, name):
    file, (n, flags) = real_data / name, FILES[name]
    said = emsvae.done("info", file, *flags).out
    assert f"{n} particles in 1 stack(s)" in said and "stop:" not in said
    emsvae.done("train", file, "--out", "run", "--box", "24", "--cache-dtype", "float32", *flags, *emsvae.TINY)
    own = pd.read_csv("run/latents.csv")
    assert len(own) == n and own["used"].all() and np.isfinite(own.drop(columns="image_name")).all(axis=None)
    emsvae.done("infer", "run", file, "--out", "again.csv", "--device", "cpu", *flags)
    again = pd.read_csv("again.csv")
    assert again["image_name"].equals(own["image_name"])
    # Clean images: where z is known to a thousandth its last step is not the same to all digits.
    np.testing.assert_allclose(again["z1"], own["z1"], atol=5e-3)
    emsvae.done("export", "run", "--star", "x.star", "--csv", "x.csv", "--aligned", "x.mrcs")
    assert Path("x.star").read_bytes() == Path("run/particles.star").read_bytes()
    assert len(rows(Path("x.star"))) == n
    assert read_header(Path("x.mrcs")).n_images == n
    assert f"{n} particles" in emsvae.done("info", "run").out
    # What was written is read again: the same particles in the same order.
    original = load_particles(InputConfig(file, pixel_size_A=1.0))
    written = load_particles(InputConfig(Path("x.star"), project_dir=file.parent, pixel_size_A=1.0))
    np.testing.assert_array_equal(written.index_of, original.index_of)
    np.testing.assert_array_equal(written.images([n - 1]), original.images([n - 1]))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".star")])
def test_every_byte_of_the_star_file_stays(emsvae, real_data, here, name):
    """Each line of the input is found in the output, in order, whole or as the beginning of a row."""
    emsvae.done(
        "train", real_data / name, "--out", "run", "--poses", "keep", "--box", "24", *FILES[name][1], *emsvae.TINY
    )
    before = (real_data / name).read_bytes().splitlines()
    after = (here / "run" / "particles.star").read_bytes().splitlines()
    ours = [line for line in after if line.startswith(b"_emsvae")]
    rest = [line for line in after if not line.startswith(b"_emsvae")]
    assert len(ours) >= 8 and len(rest) == len(before)
    for old, new in zip(before, rest, strict=True):
        assert new == old or (b"@" in old and new.startswith(old + b" "))


@pytest.mark.parametrize("name", ["relion31.star", "relion31.v2.star"])
def test_3d_poses_are_protected_until_asked(emsvae, real_data, here, name):
    file = real_data / "real" / name
    said = emsvae.done("train", file, "--out", "run", "--box", "24", *emsvae.TINY).out
    assert "3-D refinement" in said and "emsvaeAnglePsi" in said
    before, after = rows(file), rows(here / "run" / "particles.star")
    pd.testing.assert_frame_equal(after[before.columns], before)
    assert {"emsvaeAnglePsi", "emsvaeOriginXAngst", "emsvaeOriginYAngst", "emsvaeZ1"} <= set(after.columns)
    emsvae.done("export", "run", "--star", "over.star", "--poses", "overwrite")
    over = rows(here / "over.star")
    assert over["rlnAnglePsi"].tolist() == after["emsvaeAnglePsi"].tolist()
    assert over["rlnOriginXAngst"].tolist() == after["emsvaeOriginXAngst"].tolist()
    assert "emsvaeAnglePsi" not in over
    untouched = [
        c for c in before.columns if c not in (*POSE, "rlnLogLikeliContribution", "rlnMaxValueProbDistribution")
    ]
    pd.testing.assert_frame_equal(over[untouched], before[untouched])
    emsvae.done("infer", "run", file, "--out", "inferred.star")
    assert rows(here / "inferred.star")["rlnAnglePsi"].tolist() == before["rlnAnglePsi"].tolist()


def test_star_and_cs_of_the_same_particles_agree(emsvae, real_data, here):
    """EMPIAR-10076 as RELION and as cryoSPARC tell it: the latter in float32, which moves the last digits."""
    for kind in ("star", "cs"):
        emsvae.done(
            "train",
            real_data / "real" / f"empiar_10076_7.{kind}",
            "--out",
            kind,
            *emsvae.TINY,
            "--precision",
            "float32",
            "--engine",  # the other engine decides between poses, and with seven images the last digit may decide that
            "coordinate",
        )
    stars, css = (pd.read_csv(here / kind / "latents.csv") for kind in ("star", "cs"))
    images = [[(int(number), path) for number, path in table["image_name"].str.split("@")] for table in (stars, css)]
    assert images[0] == images[1] == [(i, "empiar_10076_7.mrc") for i in range(1, 8)]
    for column in stars.columns.drop("image_name"):
        np.testing.assert_allclose(css[column], stars[column], rtol=1e-3, atol=0.02, err_msg=column)
    star_run, cs_run = (RunDir(here / kind).manifest.preparation for kind in ("star", "cs"))
    assert (star_run.invert, star_run.ctf, star_run.box) == (cs_run.invert, cs_run.ctf, cs_run.box)


def test_cs_goes_back_into_cs(emsvae, real_data, here):
    file = real_data / "real" / "empiar_10076_7.cs"
    emsvae.done("train", file, "--out", "run", *emsvae.TINY)
    emsvae.done("export", "run", "--cs", "x.cs")
    emsvae.done("infer", "run", file, "--out", "inferred.cs", "--device", "cpu")
    before, after = read_cs(file), read_cs(here / "x.cs")
    for name in before.dtype.names or ():
        np.testing.assert_array_equal(after[name], before[name])
    assert (here / "x.cs").read_bytes() == (here / "run" / "particles.cs").read_bytes()
    table = pd.read_csv("run/latents.csv")
    np.testing.assert_allclose(after["alignments2D/pose"], -table["theta_rad"], rtol=1e-6)
    np.testing.assert_allclose(
        after["alignments2D/shift"][:, 0] * after["alignments2D/psize_A"], -table["shift_x_A"], rtol=1e-5
    )
    assert len(read_cs(here / "inferred.cs")) == 7


def test_shuffled_and_repeated_rows(emsvae, real_data, here):
    file = real_data / "real" / "toy_projections_13.star"
    said = emsvae.done("train", file, "--out", "run", *emsvae.TINY).out
    assert "1 rows repeat an image" in said and "000321@toy_projections.mrcs" in said
    assert "optics group" in said
    table = pd.read_csv("run/latents.csv")
    assert table["image_name"].tolist() == rows(file)["rlnImageName"].tolist()
    twice = table[table["image_name"] == "000321@toy_projections.mrcs"].drop(columns="image_name").to_numpy()
    # Without noise the log-likelihood is 37,000 nats, of which float32 keeps the third decimal, and that is z's third, too.
    np.testing.assert_allclose(twice[0], twice[1], rtol=1e-3, atol=3e-3)
    assert rows(here / "run" / "particles.star")["dummyVariable"].tolist() == rows(file)["dummyVariable"].tolist()


def test_bare_stack_without_a_pixel_size(emsvae, real_data):
    said = emsvae.refused("train", real_data / "real" / "sample.mrcs")
    assert "--pixel-size-a" in said


def test_old_star_files_get_pixel_offsets(emsvae, real_data, here):
    emsvae.done("train", real_data / "real" / "empiar_10076_7.star", "--out", "run", "--box", "24", *emsvae.TINY)
    after, table = rows(here / "run" / "particles.star"), pd.read_csv("run/latents.csv")
    pixel_A = 1e4 * 5 / 38168
    assert "rlnOriginXAngst" not in after
    np.testing.assert_allclose(after["rlnOriginX"].astype(float) * pixel_A, -table["shift_x_A"], atol=1e-5)
    np.testing.assert_allclose(after["rlnAnglePsi"].astype(float), -np.degrees(table["theta_rad"]), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["real/relion5.star", "real/relion31.6opticsgroups.star", "cryosparc/cryosparc_J2_particles_exported.cs"]
)
def test_metadata_without_images(emsvae, real_data, name):
    said = emsvae.done("info", real_data / name).out
    assert "particles in" in said and "stop: " in said and "--project-dir" in said
    said = emsvae.refused("train", real_data / name)
    assert "not found; tried" in said and str(real_data) in said


def test_read_only_data_and_other_folders(emsvae, real_data, here):
    """Nothing is ever written beside the input."""
    folder = shutil.copytree(
        real_data / "real", here / "data", ignore=shutil.ignore_patterns("toy*", "sample*", "emp*")
    )
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    emsvae.done("train", folder / "relion31.star", "--out", "run", "--box", "24", *emsvae.TINY)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
