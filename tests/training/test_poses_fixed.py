"""`--poses-fixed`: theta and shift are those of the file, to the end; z alone is learned."""

import shutil

import numpy as np
import pytest
import torch

from emspatialvae.imaging import geometry
from emspatialvae.io.star import StarFile, write_with_columns
from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable.basis import Disk, SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.pose_search import PoseSearch
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.results.run_folder import RunDir

SHORT = ("--epochs", 6, "--z-dim", 1, "--learning-rate", 3e-3, "--batch-size", 32, "--device", "cpu")
POSE = ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")


def column(file, label: str) -> np.ndarray:
    block = StarFile.read(file).block("particles")
    return np.array(block.columns(label)[label], dtype=float)


@pytest.fixture(scope="module")
def trained(clear_stack, tmp_path_factory):
    """Folder with runs on 200 hinges: ``fixed`` at the true poses, ``wrong`` with a quarter turn or half a turn more for most."""
    import contextlib
    import io

    from emspatialvae.cli.main import main

    folder = shutil.copytree(clear_stack, tmp_path_factory.mktemp("fixed") / "sim")
    turned = folder / "wrong.star"
    psi = column(folder / "truth.star", POSE[0])
    cells = {POSE[0]: [f"{value:.6f}" for value in psi + np.resize([0, 90, 180, 270], len(psi))]}
    write_with_columns(StarFile.read(folder / "truth.star"), "particles", cells, turned)
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr("emspatialvae.analysis.report.run_figures.draw", lambda *_: None)
        for name, file in (("fixed", "truth.star"), ("wrong", "wrong.star")):
            words = ["train", folder / file, "--poses-fixed", "--out", folder / name, *SHORT]
            assert main([str(word) for word in words]) == 0
    return folder


def test_poses_come_out_as_they_went_in(trained):
    from emspatialvae.results.read_run import read_latents

    run, latents = read_latents(trained / "fixed")
    for label in POSE:
        before = StarFile.read(trained / "truth.star").block("particles").columns(label)[label]
        assert StarFile.read(run.star).block("particles").columns(label)[label] == before  # to the byte
        assert np.allclose(column(run.star, label.replace("rln", "emsvae")), np.array(before, float), atol=1e-5)
    assert not latents.theta_sd_rad.any()
    assert not latents.shift_sd_px.any()
    assert (latents.peak_weight == 1).all()
    psi_deg, origin_A = geometry.to_relion(latents.pose, latents.pixel_size_A)
    assert np.allclose(psi_deg, column(trained / "truth.star", POSE[0]), atol=1e-5)
    assert np.allclose(origin_A[:, 1], column(trained / "truth.star", POSE[2]), atol=1e-5)


def test_latents_are_found(trained):
    z, truth = column(trained / "fixed" / "particles.star", "emsvaeZ1"), column(trained / "truth.star", "emsvaeTrueZ1")
    assert abs(np.corrcoef(z, truth)[0, 1]) > 0.94  # two epochs


def test_wrong_poses_explain_less(trained):
    right, wrong = (RunDir(trained / name).metrics()[-1]["train_elbo"] for name in ("fixed", "wrong"))
    assert wrong < 0.9 * right


def test_infer_takes_the_poses_of_its_own_file(trained, emsvae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    emsvae.done("infer", trained / "fixed", trained / "truth.star", "--out", "again.star")
    assert np.allclose(
        column(tmp_path / "again.star", "emsvaeZ1"), column(trained / "fixed" / "particles.star", "emsvaeZ1"), atol=0.02
    )
    emsvae.done("infer", trained / "fixed", trained / "wrong.star", "--out", "wrong.star")
    likelihood = [
        column(tmp_path / name, "emsvaeLogLikeliContribution").mean() for name in ("again.star", "wrong.star")
    ]
    assert likelihood[1] < likelihood[0] - 10
    message = emsvae.refused("infer", trained / "fixed", trained / "particles.star", "--out", "none.star")
    assert "rlnAnglePsi" in message
    assert "--poses-fixed" in message


@pytest.mark.parametrize(
    ("file", "flags", "word"),
    [
        ("particles.star", (), "rlnAnglePsi"),
        ("truth.star", ("--engine", "coordinate"), "steerable"),
        ("truth.star", ("--no-rotate",), "--no-rotate"),
        ("truth.star", ("--no-translate",), "--no-translate"),
        ("truth.star", ("--hold-still", "mask.mrc"), "--hold-still"),
    ],
)
def test_what_does_not_go_together(easy_stack, emsvae, tmp_path, monkeypatch, file, flags, word):
    monkeypatch.chdir(tmp_path)
    message = emsvae.refused("train", easy_stack / file, "--poses-fixed", "--out", "run", *flags)
    assert "--poses-fixed" in message
    assert word in message


def test_a_batch_brings_its_poses_along():
    pose = geometry.Pose2D(np.arange(3.0), np.arange(6.0).reshape(3, 2))
    batch = Batch.of(np.zeros((3, 8, 8)), np.zeros(3)).at(pose)[torch.tensor([2, 0])].to("cpu")
    assert batch.theta_rad is not None
    assert batch.theta_rad.tolist() == [2.0, 0.0]
    assert batch.shift_px is not None
    assert batch.shift_px.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_one_pose_is_looked_at():
    """The evidence is the log-likelihood at the pose that is given, no more, worked out here on the pixels; without a spread."""
    box, turn, shift = 33, 0.7, torch.tensor([1.5, -0.75])
    basis, plane = SteerableBasis.full(Disk(box, 16.0), 0.3), FourierPlane(box)
    search = PoseSearch(basis, plane, rotate=True, translate=True, shift_sd_px=1.0, max_shift_px=4.0, fixed=True)
    x, y = geometry.pixel_grid(box)
    blobs = np.exp(-((x - 4) ** 2 + y**2) / 8) - 0.5 * np.exp(-(x**2 + (y + 5) ** 2) / 8)
    reference = basis.coefficients(torch.from_numpy(blobs - blobs.mean()).float())
    images = torch.randn(2, box, box, generator=torch.Generator().manual_seed(0))
    observation = Observation(plane.transform(images), None, None)
    poses = Poses(torch.full((2,), turn), shift.expand(2, 2))
    near = search.local_search(observation, poses, reference.expand(2, -1))
    drawn = plane.images(
        plane.move_back(plane.transform(basis.images(basis.rotate(reference, torch.tensor(turn)))), -shift)
    )
    expected = (images * drawn).sum((1, 2)) - search.metric.form(None).half_square(reference[None])
    assert torch.allclose(near.log_evidence, expected, atol=0.05)
    assert torch.equal(near.mean.theta_rad, poses.theta_rad)
    assert torch.equal(near.mean.shift_px, poses.shift_px)
    joint = search.joint_search(observation, poses, reference.expand(2, 3, -1))
    assert torch.allclose(joint.log_evidence, near.log_evidence[:, None].expand(2, 3), atol=1e-3)
    assert not joint.theta_var.any()
    assert not joint.shift_var.any()
