"""Results written back: nothing of the user's file is lost, signs and units are those of RELION and cryoSPARC."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from emspatialvae.config import InputConfig, ModelConfig, TrainConfig
from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.imaging import alignment, geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.inference.infer import infer
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.io.star import StarFile
from emspatialvae.model.batch import Batch
from emspatialvae.model.coordinate.vae import Estimate, SpatialVAE
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.particles.find_column import find_column
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.preparation import Portion
from emspatialvae.results import export, export_aligned
from emspatialvae.results.latents import Latents, read_csv

N, BOX, PIXEL_A, PREPARED_A = 6, 20, 2.0, 2.5
"""The model saw the images at 2.5 A per pixel, the files say 2 A."""


def latents(n: int = N, unused: tuple[int, ...] = (), weighed: bool = False) -> Latents:
    rng = np.random.default_rng(5)
    used = np.ones(n, dtype=bool)
    used[list(unused)] = False
    on = used[:, None]
    return Latents(
        names=np.array([f"{i + 1:06d}@p.mrcs" for i in range(n)], dtype=object),
        used=used,
        z=rng.normal(size=(n, 2)) * on,
        z_sd=rng.random((n, 2)) * on,
        pose=Pose2D(rng.uniform(-np.pi, np.pi, n) * used, rng.normal(size=(n, 2)) * on),
        theta_sd_rad=rng.random(n) * used,
        shift_sd_px=rng.random((n, 2)) * on,
        log_likelihood=-1e4 * rng.random(n) * used,
        pixel_size_A=PREPARED_A,
        peak_weight=np.linspace(0.05, 0.95, n) * used if weighed else None,
    )


OPTICS = """data_optics

loop_ 
_rlnOpticsGroup #1 
_rlnOpticsGroupName #2 
_rlnImagePixelSize #3 
           1 opticsGroup1     2.000000
 
"""  # noqa: W291, W293 (RELION's own files)
PARTICLES = """
# a comment of mine
data_particles

loop_ 
_rlnImageName #1 
_rlnMicrographName #2 
_rlnGroupNumber #3 
_rlnOpticsGroup #4 
"""  # noqa: W291
PARTICLES += "".join(f'{i:06d}@p.mrcs  "mic {i}.mrc"   00{i}  1 \n' for i in range(1, N + 1)) + " \n"
VERSION = "\n# version 30001\n\n"
STAR_30 = "data_images\n\nloop_\n_rlnImageName #1\n_rlnMagnification #2\n_rlnDetectorPixelSize #3\n" + "".join(
    f"{i}@p.mrcs\t10000  2.0000\n" for i in range(1, N + 1)
)
KINDS = {
    "3.1": VERSION + OPTICS + VERSION + PARTICLES,
    "particles first": VERSION + PARTICLES + VERSION + OPTICS,
    "3.0": STAR_30,
    "3.0 without a last line end": STAR_30.rstrip("\n"),
}


def with_columns(text: str, labels: str, rows: list[str]) -> str:
    """A 3.1 file with more columns on every row."""
    out, number = [], 4
    for line in text.splitlines(keepends=True):
        if "@p.mrcs" in line:
            line = line.rstrip("\n") + " " + rows.pop(0) + "\n"
        out.append(line)
        if line.startswith("_rlnOpticsGroup #4"):
            out += [f"_{label} #{number + k + 1} \n" for k, label in enumerate(labels.split())]
    return "".join(out)


@pytest.fixture
def images(tmp_path) -> np.ndarray:
    raw = np.random.default_rng(1).normal(size=(N, BOX, BOX)).astype(np.float32)
    with StackWriter(tmp_path / "p.mrcs", N, BOX, PIXEL_A) as stack:
        stack.append(raw)
    return raw


@pytest.fixture
def load(tmp_path, images):
    def from_text(text: str, **options) -> ParticleStack:
        (tmp_path / "in.star").write_bytes(text.encode())
        return load_particles(InputConfig(tmp_path / "in.star", **options))

    return from_text


def written(stack: ParticleStack, results: Latents, **options) -> str:
    out = stack.source.with_name("out.star")
    export.write_star(results, stack, out, force=True, **options)
    return out.read_bytes().decode()


def stripped(text: str) -> str:
    """Our labels and as many cells at the end of each row taken out again."""
    ours = re.findall(
        r"^_(?:emsvae\w+|rlnAnglePsi|rlnOrigin\w+|rlnLogLikeliContribution|rlnMaxValueProbDistribution) #\d+\n",
        text,
        re.MULTILINE,
    )
    for label in ours:
        text = text.replace(label, "")
    rows = (re.sub(r" \S+" * len(ours) + "$", "", line) if "@p.mrcs" in line else line for line in text.split("\n"))
    return "\n".join(rows)


def table(text: str, tmp: Path) -> pd.DataFrame:
    (tmp / "read.star").write_text(text)
    block = particle_block(StarFile.read(tmp / "read.star"))
    return pd.DataFrame(block.columns(*block.labels))


# ------------------------------------------------------------------------------------------------------------------ STAR


@pytest.mark.parametrize("kind", KINDS)
def test_star_without_our_columns_is_the_input(load, kind):
    text = written(load(KINDS[kind]), latents())
    assert "emsvaeZ1" in text
    assert stripped(text) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_an_export_changes_nothing(load, kind):
    stack = load(KINDS[kind])
    once = written(stack, latents())
    assert written(load(once), latents()) == once


@pytest.mark.parametrize("kind", KINDS)
def test_star_gives_relions_pose(load, tmp_path, kind):
    results = latents()
    rows = table(written(load(KINDS[kind]), results), tmp_path)
    psi_deg = rows["rlnAnglePsi"].astype(float)
    np.testing.assert_allclose(psi_deg, -np.degrees(results.pose.theta_rad), atol=1e-6)
    unit_A, labels = (
        (PIXEL_A, ("rlnOriginX", "rlnOriginY")) if "3.0" in kind else (1, ("rlnOriginXAngst", "rlnOriginYAngst"))
    )
    for axis, label in enumerate(labels):
        np.testing.assert_allclose(
            rows[label].astype(float) * unit_A, -results.pose.shift_px[:, axis] * PREPARED_A, atol=3e-6
        )
    np.testing.assert_allclose(rows["emsvaeZ2"].astype(float), results.z[:, 1], atol=1e-6)
    np.testing.assert_allclose(rows["emsvaeThetaStd"].astype(float), np.degrees(results.theta_sd_rad), atol=1e-6)


def test_numbers_have_the_digits_of_relion(load, tmp_path):
    rows = table(written(load(KINDS["3.1"]), latents()), tmp_path)
    for label in ("rlnAnglePsi", "rlnOriginXAngst", "emsvaeZ1", "emsvaeZStd2", "emsvaeThetaStd", "emsvaeShiftStdAngst"):
        assert rows[label].str.fullmatch(r"-?\d+\.\d{6}").all(), label
    assert rows["rlnLogLikeliContribution"].str.fullmatch(r"-?\d\.\d{6}e[+-]\d\d").all()
    assert set(rows["emsvaeUsed"]) == {"1"}


def test_unused_rows_keep_what_they_had(load, tmp_path):
    poses = [f"{10.5 * i}  {i}.25 -{i}.50" for i in range(N)]
    text = with_columns(KINDS["3.1"], "rlnAnglePsi rlnOriginXAngst rlnOriginYAngst", poses)
    before = table(text, tmp_path)
    rows = table(written(load(text), latents(unused=(2, 4))), tmp_path)
    assert rows["emsvaeUsed"].tolist() == ["1", "1", "0", "1", "0", "1"]
    for label in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        kept = (rows[label] == before[label]).tolist()
        assert kept == [False, False, True, False, True, False], label
    assert set(rows.loc[[2, 4], "emsvaeZ1"]) == {"0"}


def test_rows_beyond_the_limit_stay(load, tmp_path):
    stack = load(KINDS["3.1"], limit=4)
    assert len(stack) == 4
    rows = table(written(stack, latents(4)), tmp_path)
    assert rows["emsvaeUsed"].tolist() == ["1"] * 4 + ["0"] * 2
    assert rows["rlnGroupNumber"].tolist() == [f"00{i}" for i in range(1, N + 1)]


@pytest.mark.parametrize("field", ["z", "z_sd", "theta_sd_rad", "log_likelihood", "peak_weight"])
def test_nan_is_never_written(load, tmp_path, field):
    stack, results = load(KINDS["3.1"]), latents(weighed=True)
    getattr(results, field)[3] = np.nan
    with pytest.raises(EmsvaeError, match=field):
        export.write_star(results, stack, tmp_path / "x.star")
    results = latents()
    results.pose.shift_px[0, 1] = np.inf
    with pytest.raises(EmsvaeError, match="pose"):
        export.write_star(results, stack, tmp_path / "x.star")
    assert not (tmp_path / "x.star").exists()


def test_no_format_of_a_bad_image_holds_nan(emsvae, easy_stack, tmp_path, monkeypatch):
    """A NaN image is named, left out of training, kept in every output and marked there."""
    monkeypatch.chdir(tmp_path)
    sim = shutil.copytree(easy_stack, tmp_path / "sim")
    header = read_header(sim / "particles.mrcs")
    raw = np.memmap(
        header.path, header.dtype, "r+", header.offset_bytes, (header.n_images, header.height, header.width)
    )
    raw[5, 3, 3], raw[9] = np.nan, 7.0
    raw.flush()
    said = emsvae.done("train", "sim/particles.star", "--out", "run", *emsvae.TINY).out
    assert "2 images are constant or hold NaN" in said and "000006@particles.mrcs" in said
    emsvae.done("export", "run", "--aligned", "aligned.mrcs")
    for name in ("latents.csv", "particles.star"):
        text = (tmp_path / "run" / name).read_text()
        assert text.count("@particles.mrcs") == 48 and not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
    assert pd.read_csv("run/latents.csv")["used"].tolist() == [int(row not in (5, 9)) for row in range(48)]
    aligned = read_images(read_header(tmp_path / "aligned.mrcs"), [5, 9])
    assert np.isfinite(aligned).all() and (aligned[1] == 7).all()
    assert "2 unusable" in emsvae.done("infer", "run", "sim/particles.star", "--out", "x.star").out


@pytest.mark.parametrize("kind", KINDS)
def test_peak_weight_goes_where_relion_has_its_own(load, tmp_path, kind):
    results = latents(unused=(1,), weighed=True)
    text = written(load(KINDS[kind]), results)
    assert stripped(text) == KINDS[kind]
    assert written(load(text), results) == text
    np.testing.assert_allclose(
        table(text, tmp_path)["rlnMaxValueProbDistribution"].astype(float), results.peak_weight, atol=1e-6
    )
    assert "MaxValueProb" not in written(load(KINDS[kind]), latents())


POSED_3D = with_columns(
    KINDS["3.1"],
    "rlnAngleRot rlnAngleTilt rlnAnglePsi rlnOriginXAngst rlnOriginYAngst",
    [f"10 20.0 3{i} 0.5 1" for i in range(N)],
)


@pytest.mark.parametrize("poses", ["auto", "keep"])
def test_poses_of_a_3d_refinement_are_protected(load, tmp_path, poses):
    text = written(load(POSED_3D), latents(), poses=poses)
    rows = table(text, tmp_path)
    assert rows["rlnAnglePsi"].tolist() == [f"3{i}" for i in range(N)]
    assert rows["rlnOriginXAngst"].tolist() == ["0.5"] * N
    np.testing.assert_allclose(rows["emsvaeAnglePsi"].astype(float), -np.degrees(latents().pose.theta_rad), atol=1e-6)
    np.testing.assert_allclose(
        rows["emsvaeOriginYAngst"].astype(float), -latents().pose.shift_px[:, 1] * PREPARED_A, atol=1e-6
    )


def test_peak_weight_is_protected_with_the_pose(load, tmp_path):
    text = POSED_3D.replace("_rlnAnglePsi", "_rlnMaxValueProbDistribution").replace("_rlnOriginXAngst", "_rlnAnglePsi")
    rows = table(written(load(text), latents(weighed=True)), tmp_path)
    assert rows["rlnMaxValueProbDistribution"].tolist() == [f"3{i}" for i in range(N)]
    np.testing.assert_allclose(
        rows["emsvaeMaxValueProbDistribution"].astype(float), latents(weighed=True).peak_weight, atol=1e-6
    )
    overwritten = table(written(load(text), latents(weighed=True), poses="overwrite"), tmp_path)
    assert overwritten["rlnMaxValueProbDistribution"][0] == "0.050000"
    assert "emsvaeMaxValueProbDistribution" not in overwritten


def test_classes_of_a_3d_classification_are_protected_with_its_poses(load, tmp_path):
    results = replace(latents(), class_number=np.arange(N) + 5, class_posterior=np.full(N, 0.75))
    text = with_columns(KINDS["3.1"], "rlnAngleRot rlnAngleTilt rlnClassNumber", ["10 20.0 2"] * N)
    rows = table(written(load(text), results), tmp_path)
    assert rows["rlnClassNumber"].tolist() == ["2"] * N
    assert rows["emsvaeClassNumber"].tolist() == [str(i + 5) for i in range(N)]
    assert find_column("class_number", list(rows)) == "emsvaeClassNumber"
    for other in (written(load(text), results, poses="overwrite"), written(load(POSED_3D), results)):
        rows = table(other, tmp_path)
        assert rows["rlnClassNumber"].tolist() == [str(i + 5) for i in range(N)]
        assert "emsvaeClassNumber" not in rows


def test_poses_of_a_3d_refinement_are_overwritten_when_asked(load, tmp_path):
    rows = table(written(load(POSED_3D), latents(), poses="overwrite"), tmp_path)
    np.testing.assert_allclose(rows["rlnAnglePsi"].astype(float), -np.degrees(latents().pose.theta_rad), atol=1e-6)
    assert "emsvaeAnglePsi" not in rows and rows["rlnAngleTilt"].tolist() == ["20.0"] * N


def test_star_may_replace_its_own_input(load):
    stack = load(KINDS["3.1"])
    export.write_star(latents(), stack, stack.source, force=True)
    assert stripped(stack.source.read_text()) == KINDS["3.1"]


def test_what_stands_there_stays_without_force(load, tmp_path):
    stack = load(KINDS["3.1"])
    for write, name in (
        (export.write_star, "x.star"),
        (export.write_csv, "x.csv"),
        (export_aligned.write_aligned, "x.mrcs"),
    ):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputExistsError):
            write(latents(), stack, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"


def test_a_bare_stack_gets_a_new_star_file(tmp_path, images):
    stack = load_particles(InputConfig(tmp_path / "p.mrcs"))
    export.write_star(latents(), stack, tmp_path / "new.star")
    again = load_particles(InputConfig(tmp_path / "new.star"))
    assert len(again) == N and set(again.pixel_size_A) == {PIXEL_A} and again.pose is not None
    np.testing.assert_allclose(geometry.wrap_rad(again.pose.theta_rad - latents().pose.theta_rad), 0, atol=1e-6)
    np.testing.assert_allclose(again.pose.shift_px * PIXEL_A, latents().pose.shift_px * PREPARED_A, atol=1e-5)
    np.testing.assert_array_equal(again.images(slice(None)), images)


# ------------------------------------------------------------------------------------------------------------------- .cs


@pytest.fixture
def cs_file(tmp_path, images) -> Path:
    fields = [
        ("uid", "u8"),
        ("blob/path", "S12"),
        ("blob/idx", "u4"),
        ("blob/psize_A", "f4"),
        ("blob/shape", "u4", (2,)),
    ]
    own = [
        ("alignments2D/pose", "f4"),
        ("alignments2D/shift", "f4", (2,)),
        ("alignments2D/psize_A", "f4"),
        ("alignments2D/class", "u4"),
    ]
    array = np.zeros(N, fields + own)
    array["uid"] = 7 + 3 * np.arange(N)[::-1]
    array["blob/path"], array["blob/idx"], array["blob/psize_A"] = b">p.mrcs", np.arange(N)[::-1], PIXEL_A
    array["blob/shape"], array["alignments2D/class"] = BOX, np.arange(N)
    array["alignments2D/pose"], array["alignments2D/shift"], array["alignments2D/psize_A"] = 0.5, (1.0, -2.0), 4.0
    write_cs(tmp_path / "in.cs", array)
    return tmp_path / "in.cs"


def test_cs_keeps_every_field_and_row(cs_file, tmp_path):
    before = read_cs(cs_file)
    export.write_cs(latents(), load_particles(InputConfig(cs_file)), tmp_path / "out.cs")
    after = read_cs(tmp_path / "out.cs")
    for name in before.dtype.names or ():
        assert after.dtype[name] == before.dtype[name]
        if name.rpartition("/")[2] not in ("pose", "shift", "psize_A") or name.startswith("blob"):
            np.testing.assert_array_equal(after[name], before[name])
    assert {"emsvae/z", "emsvae/z_std", "emsvae/theta_std_rad", "emsvae/used"} <= set(after.dtype.names or ())
    np.testing.assert_allclose(after["emsvae/z"], latents().z, rtol=1e-6)
    np.testing.assert_allclose(after["emsvae/shift_std_A"], latents().shift_sd_px * PREPARED_A, rtol=1e-6)


def test_cs_gives_cryosparcs_pose(cs_file, tmp_path):
    """psi = -theta in radians, shift = -shift in pixels of alignments2D/psize_A."""
    results = latents()
    export.write_cs(results, load_particles(InputConfig(cs_file)), tmp_path / "out.cs")
    after = read_cs(tmp_path / "out.cs")
    np.testing.assert_allclose(after["alignments2D/pose"], -results.pose.theta_rad, rtol=1e-6)
    shift_A = after["alignments2D/shift"] * after["alignments2D/psize_A"][:, None]
    np.testing.assert_allclose(shift_A, -results.pose.shift_px * PREPARED_A, rtol=1e-5)
    again = load_particles(InputConfig(tmp_path / "out.cs"))
    assert again.pose is not None
    np.testing.assert_allclose(again.pose.theta_rad, results.pose.theta_rad, atol=1e-6)
    np.testing.assert_allclose(again.pose.shift_px * PIXEL_A, results.pose.shift_px * PREPARED_A, atol=1e-5)


@pytest.mark.parametrize("poses", ["auto", "keep"])
def test_cs_peak_weight(cs_file, tmp_path, poses):
    results = latents(unused=(1,), weighed=True)
    export.write_cs(results, load_particles(InputConfig(cs_file)), tmp_path / "out.cs", poses=poses)
    found = read_cs(tmp_path / "out.cs")["emsvae/max_value_prob"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, results.peak_weight, rtol=1e-6)
    export.write_cs(latents(), load_particles(InputConfig(cs_file)), tmp_path / "without.cs")
    assert "emsvae/max_value_prob" not in (read_cs(tmp_path / "without.cs").dtype.names or ())


def test_cs_poses_keep(cs_file, tmp_path):
    export.write_cs(latents(), load_particles(InputConfig(cs_file)), tmp_path / "out.cs", poses="keep")
    before, after = read_cs(cs_file), read_cs(tmp_path / "out.cs")
    for name in ("alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A"):
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_allclose(after["emsvae/pose"], -latents().pose.theta_rad, rtol=1e-6)


def test_cs_unused_and_unlooked_rows_keep_their_pose_whole(cs_file, tmp_path):
    """Angle, shift and the pixel size that the shift is counted in belong together."""
    stack = load_particles(InputConfig(cs_file, limit=4))
    export.write_cs(latents(4, unused=(1,)), stack, tmp_path / "out.cs")
    before, after = read_cs(cs_file), read_cs(tmp_path / "out.cs")
    assert after["emsvae/used"].tolist() == [1, 0, 1, 1, 0, 0]
    for name in ("alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A"):
        np.testing.assert_array_equal(after[name][[1, 4, 5]], before[name][[1, 4, 5]])
    assert len(after) == N


def test_cs_export_is_idempotent_and_refuses_other_inputs(cs_file, tmp_path, load):
    export.write_cs(latents(), load_particles(InputConfig(cs_file)), tmp_path / "out.cs")
    export.write_cs(latents(), load_particles(InputConfig(tmp_path / "out.cs")), tmp_path / "again.cs")
    assert (tmp_path / "out.cs").read_bytes() == (tmp_path / "again.cs").read_bytes()
    with pytest.raises(EmsvaeError, match=r"not a \.cs"):
        export.write_cs(latents(), load(KINDS["3.1"]), tmp_path / "x.cs")


def test_a_cs_file_gets_a_new_star_file(cs_file, tmp_path):
    stack = load_particles(InputConfig(cs_file))
    export.write_star(latents(), stack, tmp_path / "new.star")
    again = load_particles(InputConfig(tmp_path / "new.star"))
    assert again.names.tolist() == [f"{i + 1:06d}@p.mrcs" for i in range(N)[::-1]]
    assert again.pose is not None
    np.testing.assert_allclose(again.pose.shift_px * PIXEL_A, latents().pose.shift_px * PREPARED_A, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------ .csv


def test_csv_round_trip(tmp_path, load):
    results = latents(unused=(3,))
    export.write_csv(results, load(KINDS["3.1"]), tmp_path / "x.csv")
    again = read_csv(tmp_path / "x.csv", 2, PREPARED_A)
    assert again.names.tolist() == results.names.tolist() and again.used.tolist() == results.used.tolist()
    for name in ("z", "z_sd", "theta_sd_rad", "shift_sd_px", "log_likelihood"):
        np.testing.assert_allclose(getattr(again, name), getattr(results, name), rtol=6e-9, atol=1e-12)
    np.testing.assert_allclose(again.pose.theta_rad, results.pose.theta_rad, rtol=6e-9)
    np.testing.assert_allclose(again.pose.shift_px, results.pose.shift_px, rtol=6e-9)
    export.write_csv(again, load(KINDS["3.1"]), tmp_path / "y.csv")
    assert (tmp_path / "y.csv").read_text() == (tmp_path / "x.csv").read_text()


def test_csv_pose_probability(tmp_path, load):
    stack, results = load(KINDS["3.1"]), latents(unused=(3,), weighed=True)
    export.write_csv(results, stack, tmp_path / "x.csv")
    assert pd.read_csv(tmp_path / "x.csv").columns[-1] == "pose_probability"
    again = read_csv(tmp_path / "x.csv", 2, PREPARED_A)
    assert again.peak_weight is not None
    np.testing.assert_allclose(again.peak_weight, results.peak_weight, rtol=6e-9)
    export.write_csv(latents(), stack, tmp_path / "y.csv")
    assert "pose_probability" not in (tmp_path / "y.csv").read_text()
    assert read_csv(tmp_path / "y.csv", 2, PREPARED_A).peak_weight is None


def test_rows_of_latents():
    rows = np.array([4, 1])
    some, weighed = latents()[rows], latents(weighed=True)[rows]
    assert some.names.tolist() == weighed.names.tolist() == ["000005@p.mrcs", "000002@p.mrcs"]
    assert some.peak_weight is None and some.pixel_size_A == PREPARED_A
    assert weighed.peak_weight == pytest.approx([0.77, 0.23])


class Weighing(SpatialVAE):
    """A model that knows how sure it is of its pose: the image's first pixel says so."""

    def infer(self, batch: Batch, turns: int = 1) -> Estimate:
        some = batch.images[:, 0, 0, 0]
        content = LatentAndPose(some[:, None].expand(-1, 2), 10 * some, torch.stack([some, -some], -1))
        return Estimate(mean=content, sd=content, log_likelihood=-some, peak_weight=some)


@pytest.mark.parametrize("kind", [SpatialVAE, Weighing])
@pytest.mark.parametrize("usable", [np.array([True, False, True, True]), np.zeros(4, bool)])
def test_infer_carries_what_the_model_knows(kind, usable):
    spec = ImageSpec(box=8, mask_radius_px=4, shift_prior_px=1, max_shift_px=2)
    model = kind(ModelConfig(z_dim=2, hidden=4, encoder_hidden=4), spec)
    values = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    images = np.broadcast_to(values[:, None, None], (4, 8, 8))
    group = np.zeros(4, np.int32)
    portions = [Portion(rows, images[rows], usable[rows], group[rows]) for rows in (np.array([2, 3]), np.array([1, 0]))]
    found = infer(model, portions, np.arange(4), PREPARED_A, TrainConfig(device="cpu"))
    assert found.used.tolist() == usable.tolist()
    assert found.z.shape == found.z_sd.shape == (4, 2) and found.shift_sd_px.shape == (4, 2)
    assert (found.z[~usable] == 0).all() and (found.log_likelihood != 0).tolist() == usable.tolist()
    if kind is SpatialVAE or not usable.any():
        assert found.peak_weight is None
        return
    kept = values * usable
    np.testing.assert_allclose(found.peak_weight, kept)
    np.testing.assert_allclose(found.z, np.stack([kept, kept], -1))
    np.testing.assert_allclose(found.pose.theta_rad, geometry.wrap_rad(10 * kept.astype(float)), atol=1e-5)
    np.testing.assert_allclose(found.pose.shift_px, np.stack([kept, -kept], -1))
    np.testing.assert_allclose(found.log_likelihood, -kept)


def test_csv_of_another_model(tmp_path, load):
    export.write_csv(latents(), load(KINDS["3.1"]), tmp_path / "x.csv")
    with pytest.raises(RunFolderError, match="z3"):
        read_csv(tmp_path / "x.csv", 3, PREPARED_A)


def test_run_and_export_give_the_same_files(emsvae, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    emsvae.done("export", tiny_run, "--star", "x.star", "--csv", "x.csv")
    assert (tmp_path / "x.star").read_bytes() == (tiny_run / "particles.star").read_bytes()
    assert (tmp_path / "x.csv").read_bytes() == (tiny_run / "latents.csv").read_bytes()


# --------------------------------------------------------------------------------------------------------------- aligned


def test_aligned_stack(load, images, tmp_path):
    results = latents(unused=(2,))
    seen: list[int] = []
    export_aligned.write_aligned(results, load(KINDS["3.1"]), tmp_path / "a.mrcs", progress=seen.append)
    found = read_images(read_header(tmp_path / "a.mrcs"), range(N))
    wanted = alignment.align(images, results.pose.scaled(PREPARED_A / PIXEL_A))
    used = results.used
    np.testing.assert_allclose(found[used], wanted[used], atol=1e-5)
    np.testing.assert_array_equal(found[2], images[2])
    assert sum(seen) == N


def test_aligned_stack_is_in_particle_order_in_any_portion(load, tmp_path, monkeypatch):
    header = [line for line in KINDS["3.0"].splitlines(True) if "@" not in line]
    rows = [line for line in KINDS["3.0"].splitlines(True) if "@" in line][::-1]
    stack = load("".join(header + rows))
    export_aligned.write_aligned(latents(), stack, tmp_path / "a.mrcs")
    monkeypatch.setattr(export_aligned, "CHUNK_BYTES", 2 * 4 * BOX**2)
    export_aligned.write_aligned(latents(), stack, tmp_path / "b.mrcs")
    assert (tmp_path / "a.mrcs").read_bytes()[1024:] == (tmp_path / "b.mrcs").read_bytes()[1024:]
    wanted = alignment.align(stack.images([4]), latents().pose.scaled(PREPARED_A / PIXEL_A)[[4]])
    np.testing.assert_allclose(read_images(read_header(tmp_path / "b.mrcs"), [4]), wanted, atol=1e-5)


def test_aligned_stack_has_a_valid_header(load, tmp_path, capsys):
    export_aligned.write_aligned(latents(), load(KINDS["3.1"]), tmp_path / "a.mrcs")
    assert mrcfile.validate(tmp_path / "a.mrcs"), capsys.readouterr().out
    with mrcfile.open(tmp_path / "a.mrcs") as mrc:
        assert mrc.is_image_stack() and mrc.data.shape == (N, BOX, BOX)
        assert mrc.voxel_size.x == pytest.approx(PIXEL_A)


def test_aligning_brings_a_dot_home(tmp_path):
    """A dot that the pose moved is back where the object has it: 5 px right of the centre."""
    pose = Pose2D(np.radians([0.0, 90.0, 180.0, -90.0]), np.array([[0, 0], [2, 1], [-3, 0], [1, -2]], dtype=float))
    stack = np.zeros((4, BOX, BOX), np.float32)
    for image, theta, (x, y) in zip(stack, pose.theta_rad, pose.shift_px, strict=True):
        turned = round(5 * np.cos(theta) + x), round(5 * np.sin(theta) + y)
        image[BOX // 2 + turned[1], BOX // 2 + turned[0]] = 1
    with StackWriter(tmp_path / "dot.mrcs", 4, BOX, PREPARED_A) as writer:
        writer.append(stack)
    known = latents(4)
    results = Latents(**{**vars(known), "pose": pose})
    export_aligned.write_aligned(results, load_particles(InputConfig(tmp_path / "dot.mrcs")), tmp_path / "a.mrcs")
    for image in read_images(read_header(tmp_path / "a.mrcs"), range(4)):
        assert np.unravel_index(image.argmax(), image.shape) == (BOX // 2, BOX // 2 + 5)


@pytest.mark.parametrize(
    "flags", [("--engine", "coordinate", "--decoder", "vanilla"), ("--no-rotate", "--no-translate")], ids=" ".join
)
def test_a_model_without_pose_overwrites_none(emsvae, easy_stack, tmp_path, flags):
    """The vanilla VAE, or fixed pose: rlnAnglePsi of the file stays what it was."""
    from emspatialvae.io.star import StarFile

    out = tmp_path / "vanilla"
    emsvae.done(
        *("train", easy_stack / "truth.star", "--out", out, "--epochs", 1, *flags),
        *("--hidden", 8, "--encoder-hidden", 8),
    )
    before, after = (
        StarFile.read(file).block("particles").columns("rlnAnglePsi")
        for file in (easy_stack / "truth.star", out / "particles.star")
    )
    assert before == after
    assert "emsvaeAnglePsi" in StarFile.read(out / "particles.star").block("particles").labels
