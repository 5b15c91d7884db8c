"""``emsvae classes``: what it leaves in the run, for every kind of input, and what it refuses."""

import shutil

import mrcfile
import numpy as np
import pandas as pd
import pytest

from emspatialvae.analysis.classes.view_classes import along_neighbours, joined
from emspatialvae.config import InputConfig
from emspatialvae.errors import RunFolderError
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.mrc import StackWriter, read_header
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.results.classes import read_classes
from emspatialvae.results.latents import read_csv
from emspatialvae.results.read_run import read_run
from emspatialvae.results.run_folder import RunDir

SHORT = (
    "--epochs",
    "25",
    "--hidden",
    "32",
    "--encoder-hidden",
    "32",
    "--device",
    "cpu",
    "--infer-turns",
    "2",
    "--z-dim",
    "1",
)


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def star_columns(run, *labels):
    return [
        np.array(values)
        for values in StarFile.read(run / "particles.star").block("particles").columns(*labels).values()
    ]


def test_classes_stand_in_every_table_and_their_averages_in_a_stack(run, emsvae):
    before = StarFile.read(run / "particles.star").block("particles").columns("rlnImageName", "rlnAnglePsi", "emsvaeZ1")
    answer = emsvae.done("classes", "run", "--k", "4")
    assert "48 particles" in answer.out
    number, posterior = star_columns(run, "rlnClassNumber", "emsvaeClassPosterior")
    number = number.astype(int)
    after = StarFile.read(run / "particles.star").block("particles").columns("rlnImageName", "rlnAnglePsi", "emsvaeZ1")
    assert after == before
    sizes = np.bincount(number)[1:]
    assert sizes.sum() == 48
    assert sizes.tolist() == sorted(sizes, reverse=True)
    assert (posterior.astype(float) > 0.25 - 1e-6).all()

    latents = pd.read_csv(run / "latents.csv")
    assert latents["class_number"].tolist() == number.tolist()

    table = pd.read_csv(run / "classes" / "classes.csv")
    assert table["class"].tolist() == list(range(1, len(sizes) + 1))
    assert table["particles"].tolist() == sizes.tolist()
    np.testing.assert_allclose(table["share"], sizes / 48, rtol=1e-5)
    np.testing.assert_allclose(table["z1"], latents.groupby("class_number")["z1"].mean(), rtol=1e-4)
    np.testing.assert_allclose(
        table["pose_probability"], latents.groupby("class_number")["pose_probability"].mean(), rtol=1e-4
    )
    with mrcfile.open(run / "classes" / "classes.mrcs") as stack:
        assert stack.data.shape == (len(sizes), 24, 24)
        assert stack.voxel_size.x == pytest.approx(4.0)
    assert f"{sizes[0]}" in answer.out


def test_relions_model_names_the_averages_from_the_folder_of_the_call(run, emsvae):
    emsvae.done("classes", "run", "--k", "3")
    model = StarFile.read(run / "classes" / "run_model.star")
    names = [block.name for block in model.blocks]
    assert names == ["model_general", "model_classes", "model_class_1", "model_class_2", "model_class_3"]
    general = model.block("model_general")
    assert general.columns("rlnNrClasses", "rlnOriginalImageSize", "rlnReferenceDimensionality") == {
        "rlnNrClasses": ["3"],
        "rlnOriginalImageSize": ["24"],
        "rlnReferenceDimensionality": ["2"],
    }
    classes = model.block("model_classes").columns(
        "rlnReferenceImage", "rlnClassDistribution", "rlnEstimatedResolution"
    )
    assert classes["rlnReferenceImage"] == [f"{n:06d}@run/classes/classes.mrcs" for n in (1, 2, 3)]
    assert sum(map(float, classes["rlnClassDistribution"])) == pytest.approx(1)
    assert all(8 <= float(value) <= 999 for value in classes["rlnEstimatedResolution"])
    curve = model.block("model_class_1").columns("rlnSpectralIndex", "rlnAngstromResolution", "rlnGoldStandardFsc")
    assert curve["rlnSpectralIndex"] == [str(ring) for ring in range(13)]
    assert float(curve["rlnAngstromResolution"][12]) == pytest.approx(8.0)
    assert float(curve["rlnGoldStandardFsc"][0]) > 0.5
    # RELION's display looks for the particles beside the model.
    assert (run / "classes" / "run_data.star").read_bytes() == (run / "particles.star").read_bytes()


def test_other_classes_replace_the_old_ones_and_say_so(run, emsvae):
    first = emsvae.done("classes", "run", "--k", "5")
    assert "replaced" not in first.out
    (run / "classes" / "left over").touch()
    second = emsvae.done("classes", "run", "--k", "2", "--method", "gmm", "--seed", "3")
    assert "classes is replaced" in second.out
    assert not (run / "classes" / "left over").exists()
    assert star_columns(run, "rlnClassNumber")[0].astype(int).max() == 2
    assert len(pd.read_csv(run / "classes" / "classes.csv")) == 2
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    again = emsvae.done("classes", "run", "--k", "2", "--method", "gmm", "--seed", "3")
    assert again.out == second.out
    # What is exported later has the classes, too.
    emsvae.done("export", "run", "--star", "out.star", "--csv", "out.csv")
    assert pd.read_csv("out.csv")["class_number"].max() == 2


@pytest.mark.slow
def test_classes_of_a_clear_stack_are_in_the_order_of_the_truth(clear_stack, tmp_path, monkeypatch, emsvae):
    monkeypatch.chdir(tmp_path)
    emsvae.done("train", clear_stack / "particles.star", "--out", "run", *SHORT)
    emsvae.done("classes", "run", "--k", "4")
    truth = StarFile.read(clear_stack / "truth.star").block("particles").columns("emsvaeTrueZ1")["emsvaeTrueZ1"]
    truth, number = np.array(truth, float), star_columns(tmp_path / "run", "rlnClassNumber")[0].astype(int)
    within = np.concatenate([truth[number == c] - truth[number == c].mean() for c in range(1, 5)]).var()
    assert within < 0.3 * truth.var()
    classes = read_classes(RunDir(tmp_path / "run"))
    assert np.isfinite(classes.resolution_A).all()
    assert (classes.resolution_A[:, 0] <= classes.resolution_A[:, 1]).all()


def test_classes_of_a_cs_file(easy_stack, tmp_path, monkeypatch, emsvae):
    monkeypatch.chdir(tmp_path)
    shutil.copy(easy_stack / "particles.mrcs", tmp_path / "particles.mrcs")
    n = 48
    rows = np.zeros(
        n,
        [
            ("uid", "<u8"),
            ("blob/path", "S20"),
            ("blob/idx", "<u4"),
            ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"),
        ],
    )
    rows["uid"], rows["blob/path"], rows["blob/idx"] = np.arange(n) + 10**12, b">particles.mrcs", np.arange(n)
    rows["blob/shape"], rows["blob/psize_A"] = 24, 4.0
    write_cs(tmp_path / "in.cs", rows)
    emsvae.done("train", "in.cs", "--out", "run", *emsvae.TINY)
    emsvae.done("classes", "run", "--k", "3")
    written = read_cs(tmp_path / "run" / "particles.cs")
    number = star_columns(tmp_path / "run", "rlnClassNumber")[0].astype(int)
    assert written["alignments2D/class"].tolist() == (number - 1).tolist()
    assert (written["alignments2D/class_posterior"] > 0).all()
    assert written["uid"].tolist() == rows["uid"].tolist()


def test_images_that_could_not_be_used_belong_to_no_class(easy_stack, tmp_path, monkeypatch, emsvae):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(easy_stack, tmp_path / "sim")
    images = load_particles(InputConfig(tmp_path / "sim" / "particles.star")).images(slice(None))
    images[[3, 11]] = 7.0
    with StackWriter(tmp_path / "sim" / "particles.mrcs", 48, 24, 4.0, overwrite=True) as writer:
        writer.append(images)
    emsvae.done("train", "sim/particles.star", "--out", "run", *emsvae.TINY)
    emsvae.done("classes", "run", "--k", "3")
    number, used = (column.astype(int) for column in star_columns(tmp_path / "run", "rlnClassNumber", "emsvaeUsed"))
    assert np.flatnonzero(used == 0).tolist() == [3, 11]
    assert number[[3, 11]].tolist() == [0, 0]
    assert pd.read_csv("run/classes/classes.csv")["particles"].sum() == 46
    found = emsvae.refused("classes", "run", "--k", "47")
    assert "from 1 to the 46 particles that were used" in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classes", "run", "--k", "49"), "--k 49: expected a number of classes from 1 to the 48 particles"),
        (("classes", "run", "--k", "0"), "--k 0"),
        (("classes", "run", "--method", "tree"), "tree"),
        (("classes", "nowhere"), "not a run folder"),
    ],
)
def test_what_is_refused(run, emsvae, words, said):
    assert said in emsvae.refused(*words)


def test_images_that_are_gone_cost_nothing(run, emsvae, tmp_path):
    """The classes made before stay, with every table, when images cannot be averaged."""
    shutil.copytree(load_run_input(run), tmp_path / "sim")
    emsvae.done("classes", "run", "--k", "2")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(load_run_input(run)), str(tmp_path / "sim")))
    (tmp_path / "sim" / "particles.mrcs").unlink()
    assert "particles.mrcs not found" in emsvae.refused("classes", "run", "--k", "3")


def test_another_stack_of_the_same_name_is_not_averaged(run, emsvae, tmp_path):
    """Paths are looked for beside the particle file first; a namesake in the current folder is told, not taken."""
    with StackWriter(tmp_path / "particles.mrcs", 48, 20, 4.0) as writer:
        writer.append(np.random.default_rng(0).normal(size=(48, 20, 20)))
    emsvae.done("classes", "run", "--k", "3")
    assert read_header(run / "classes" / "classes.mrcs").width == 24


def load_run_input(run):
    return RunDir(run).manifest.config.input.particles.parent


def test_classes_are_read_back(run, emsvae):
    assert read_classes(RunDir(run)) is None
    emsvae.done("classes", "run", "--k", "3")
    classes = read_classes(RunDir(run))
    assert classes.numbers.tolist() == [1, 2, 3]
    assert classes.images.shape == (3, 24, 24)
    assert classes.pixel_size_A == 4.0
    latents = read_run(run)[1]
    assert classes.particles.tolist() == np.bincount(latents.class_number)[1:].tolist()
    (run / "classes" / "classes.csv").write_text("class\n1\n")
    with pytest.raises(RunFolderError, match=r"damaged .* again"):
        read_classes(RunDir(run))
    assert read_csv(run / "latents.csv", latents.z.shape[1], latents.pixel_size_A).class_number is not None


def circle(n=60):
    """Points on a circle, and how many particles two of them share: fewer the farther they are apart."""
    angle = 2 * np.pi * np.arange(n) / n
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    return angle, np.exp(-((apart / 0.3) ** 2)) * (apart > 0)


def test_distances_between_views_go_along_their_neighbours():
    """To the opposite point of a circle it is half the way round, not the diameter; what nothing joins lies farther off than all the rest."""
    _, shared = circle()
    shared = np.block([[shared, np.zeros((60, 20))], [np.zeros((20, 60)), 0.5 - 0.5 * np.eye(20)]])
    along = along_neighbours(shared)
    step = along[0, 1]
    assert along[0, 30] == pytest.approx(along[0, 10] * 3, rel=0.02)
    assert along[0, 30] > 5 * step
    assert along[0, 70] == pytest.approx(2 * max(along[:60, :60].max(), along[60:, 60:].max()))
    assert along.diagonal().tolist() == [0] * 80


def test_views_are_joined_in_patches_and_junk_decides_nothing():
    angle, shared = circle()
    shared = np.block([[shared, np.zeros((60, 6))], [np.zeros((6, 60)), np.zeros((6, 6))]])
    weight = np.concatenate([np.ones(60), np.zeros(6)])
    of = joined(along_neighbours(shared), 6, weight)
    assert len(of) == 66 and sorted(set(of[:60])) == list(range(6))
    for number in range(6):
        own = angle[of[:60] == number]
        middle = np.angle(np.exp(1j * own).mean())
        assert (
            np.abs(np.angle(np.exp(1j * (own - middle)))).max() < 0.75
        )  # a sixth of the circle is 0.52 to either side
    assert joined(np.zeros((3, 3)), 5, np.ones(3)).tolist() == [0, 1, 2]
