"""The default engine from a stack to the numbers that a user takes away, with the truth beside them."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from emspatialvae.io.star import StarFile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """1500 hinges of 32 px at SNR 1: the folder of simulation (``sim``) and run (``run``)."""
    import contextlib
    import io

    from emspatialvae.cli.main import main

    folder = tmp_path_factory.mktemp("end")
    words = [
        "simulate",
        "hinge",
        "--out",
        folder / "sim",
        "--particles",
        1500,
        "--box",
        32,
        "--snr",
        1,
        "--shift-px",
        1,
    ]
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr("emspatialvae.analysis.report.run_figures.draw", lambda *_: None)
        assert main([str(word) for word in words]) == 0
        words = ["train", folder / "sim" / "particles.star", "--out", folder / "run", "--z-dim", 1, "--device", "cpu"]
        words += ["--epochs", 12, "--learning-rate", 3e-3, "--batch-size", 128]
        assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def found(trained) -> dict:
    """What `emsvae evaluate` says."""
    import contextlib
    import io

    from emspatialvae.cli.main import main

    said = io.StringIO()
    words = ["evaluate", trained / "run", "--truth", trained / "sim" / "truth.star", "--json", "--oracle-particles", 0]
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in words]) == 0
    return json.loads(said.getvalue())


def test_latents_and_poses_are_recovered(found):
    assert found["z_r_cubic"][0] > 0.95
    assert found["theta_gauge_rms_deg"] < 4
    assert found["shift_gauge_rms_px"] < 0.4
    assert found["theta_circular_r"] > 0.95
    assert min(found["shift_r"]) > 0.9


def test_it_is_near_the_bound(found):
    """What any estimator could reach at best."""
    assert found["theta_gauge_rms_deg"] < 1.5 * found["cramer_rao"]["theta_deg"]
    assert found["shift_gauge_rms_px"] < 1.5 * found["cramer_rao"]["shift_px"]


def numbers(table, label: str) -> np.ndarray:
    return np.array(table.columns(label)[label], dtype=float)


@pytest.mark.parametrize("part", ["theta", "shift", "z"])
def test_uncertainties_are_honest(found, part):
    share = found[f"{part}_within_1sd"]
    assert 0.55 < (share[0] if part == "z" else share) < 0.8


def test_poses_stand_in_one_frame(found):
    """The gauge has been taken out: angles hardly drift with z."""
    assert found["theta_gauge_drift_deg"] < 12
    assert found["theta_rms_deg"] < 15


def test_the_star_file_says_how_sure_it_is(trained):
    table = StarFile.read(trained / "run" / "particles.star").block("particles")
    weight = numbers(table, "rlnMaxValueProbDistribution")
    assert len(weight) == 1500
    assert ((weight > 0) & (weight <= 1)).all()
    assert np.median(weight) > 0.95
    assert {"rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnLogLikeliContribution"} <= set(table.labels)
    assert {"emsvaeZ1", "emsvaeZStd1", "emsvaeThetaStd", "emsvaeShiftStdAngst"} <= set(table.labels)


def test_psi_and_origin_are_relions(trained):
    """``rlnAnglePsi = -theta``, ``origin = -shift`` in angstrom: in the file as in the table."""
    star = StarFile.read(trained / "run" / "particles.star").block("particles")
    table = pd.read_csv(trained / "run" / "latents.csv")
    psi = numbers(star, "rlnAnglePsi")
    turn = np.radians(psi) + table["theta_rad"]
    assert np.abs(np.angle(np.exp(1j * turn))).max() < 1e-4
    origin = numbers(star, "rlnOriginXAngst")
    assert np.abs(origin + table["shift_x_A"]).max() < 1e-3


def test_aligned_images_are_sharper(trained, emsvae, tmp_path, monkeypatch):
    """The mean of the aligned stack has what the mean of the stack as it is has lost."""
    import mrcfile

    monkeypatch.chdir(tmp_path)
    emsvae.done("export", trained / "run", "--aligned", "aligned.mrcs")
    raw = mrcfile.read(trained / "sim" / "particles.mrcs").mean(0)
    aligned = mrcfile.read(tmp_path / "aligned.mrcs").mean(0)
    assert aligned.std() > 1.3 * raw.std()


def test_other_particles_of_the_same_kind(trained, emsvae, tmp_path, monkeypatch):
    """A run knows particles it has never seen as well as its own."""
    from emspatialvae.analysis.accuracy.metrics import evaluate_latents
    from emspatialvae.results.latents import read_csv
    from emspatialvae.simulation.truth import load_simulation, read_truth

    monkeypatch.chdir(tmp_path)
    emsvae.done("simulate", "hinge", "--out", "new", *("--particles", 300, "--box", 32, "--snr", 1), "--seed", 9)
    emsvae.done("infer", trained / "run", "new/particles.star", "--out", "new.csv", "--device", "cpu")
    table = read_csv(tmp_path / "new.csv", 1, 4.0)
    truth = read_truth(tmp_path / "new" / "truth.star", load_simulation(tmp_path / "new" / "simulation.json"))
    result = evaluate_latents(table.z, table.pose, truth.z, truth.pose)
    assert result.z_r_cubic[0] > 0.93
    assert result.theta_gauge_median_deg < 4
    assert math.isfinite(result.shift_gauge_rms_px)
