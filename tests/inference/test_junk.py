"""The junk score: what raises it, that it leaves clean stacks alone, that it is a probability, and how it gets into every file."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest

from emspatialvae.cli.main import main
from emspatialvae.config import InputConfig
from emspatialvae.inference.junk_score import junk_probability
from emspatialvae.particles.load import load_particles
from emspatialvae.results import export
from emspatialvae.results.latents import Latents, read_csv
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.evaluate import JunkScore

N = 2000


def particles(n: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    """What inference says of a clean stack: all of them scatter about what is usual."""
    rng = np.random.default_rng(seed)
    return {
        "misfit": 0.3 + 1.2 * rng.standard_normal(n),
        "log_likelihood": 150 + 20 * rng.standard_normal(n),
        "z": rng.standard_normal((n, 2)),
        "theta_sd_rad": 0.03 * np.exp(0.2 * rng.standard_normal(n)),
        "peak_weight": 1 - 1e-4 * rng.random(n),
    }


def with_first(said: dict[str, np.ndarray], **changed) -> dict[str, np.ndarray]:
    """The same with the first particle's signs changed."""
    out = {name: values.copy() for name, values in said.items()}
    for name, value in changed.items():
        out[name][0] = value
    return out


def test_a_clean_stack_stays_whole():
    score = junk_probability(**particles())
    assert (score >= 0).all()
    assert (score < 0.5).mean() > 0.999
    assert score.mean() < 0.03


USUAL = {
    "misfit": 0.3,
    "log_likelihood": 150,
    "z": (0.3, 0.3),
    "theta_sd_rad": 0.03,
    "peak_weight": 1,
}


@pytest.mark.parametrize(
    "sign",
    [
        {"misfit": 0.3 + 1.2 * 5},
        {"log_likelihood": 150 - 20 * 5},
        {"log_likelihood": 150 + 20 * 5},
        {"z": (4.5, 3.0)},
        {"theta_sd_rad": 0.03 * np.exp(0.2 * 5)},
        {"peak_weight": 0.5},
    ],
)
def test_each_sign_raises_the_score_and_the_other_way_does_not(sign):
    usual, odd = (junk_probability(**with_first(particles(), **(USUAL | changed)))[0] for changed in ({}, sign))
    assert usual < 0.01
    assert odd > 1.5 * usual
    (name,) = sign
    good = {"misfit": -5.0, "theta_sd_rad": 0.01, "z": (0.0, 0.0), "peak_weight": 1.0}
    if name in good:
        assert junk_probability(**with_first(particles(), **(USUAL | {name: good[name]})))[0] <= usual * 1.01


def test_an_image_that_noise_explains_better_is_junk():
    empty = {"log_likelihood": -10, "theta_sd_rad": 0.1, "peak_weight": 0.6}
    assert junk_probability(**with_first(particles(), **(USUAL | empty)))[0] > 0.95


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_junk_does_not_decide_what_is_usual(share):
    """However much of it there is: the same junk among more of its kind is found as surely, and few particles are lost."""
    said, junk = particles(), np.arange(N) < share * N
    rng = np.random.default_rng(1)
    said["misfit"][junk] += 6 + rng.standard_normal(junk.sum())
    said["theta_sd_rad"][junk] *= 3
    said["log_likelihood"][junk] = 30 * rng.standard_normal(junk.sum())
    score = junk_probability(**said)
    assert (score[junk] > 0.5).mean() > 0.99
    assert (score[~junk] > 0.5).mean() < 0.03


def test_units_and_offsets_do_not_matter():
    said = particles()
    said["misfit"][:50] += 8
    moved = said | {
        "misfit": 3 * said["misfit"] + 2,
        "log_likelihood": 0.1 * said["log_likelihood"] - 900,
        "theta_sd_rad": 2 * said["theta_sd_rad"],
    }
    assert junk_probability(**moved) == pytest.approx(junk_probability(**said), abs=0.01)


def test_what_a_model_does_not_infer_says_nothing():
    """Rotation switched off: an s.d. of 0 for all."""
    said = particles()
    assert (junk_probability(**(said | {"theta_sd_rad": np.zeros(N)})) < 0.5).all()


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_few_particles(n):
    score = junk_probability(**particles(n))
    assert score.shape == (n,)
    assert np.isfinite(score).all()


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.fixture
def scored(tiny_run) -> tuple[Latents, Latents]:
    """Latents of a run as they came, and with scores that are easy to recognise."""
    run = RunDir(tiny_run)
    latents = read_csv(run.latents, 2, run.manifest.preparation.pixel_size_A)
    return latents, dataclasses.replace(latents, junk=np.linspace(0, 1, len(latents)))


def test_infer_fills_it(tiny_run, scored):
    latents, _ = scored
    assert latents.junk is not None
    assert latents.junk.shape == (48,)
    assert ((latents.junk >= 0) & (latents.junk <= 1)).all()
    assert "emsvaeJunk" in RunDir(tiny_run).star.read_text()
    again = junk_probability(
        latents.misfit,
        latents.log_likelihood,
        latents.z,
        latents.theta_sd_rad,
        latents.peak_weight,
    )  # type: ignore[arg-type]
    assert latents.junk == pytest.approx(again, abs=1e-4)


def test_it_goes_through_every_writer(scored, easy_stack, tmp_path):
    _, latents = scored
    stack = load_particles(InputConfig(easy_stack / "particles.star"))
    export.write_csv(latents, stack, tmp_path / "l.csv")
    assert read_csv(tmp_path / "l.csv", 2, latents.pixel_size_A).junk == pytest.approx(latents.junk)
    export.write_star(latents, stack, tmp_path / "l.star")
    read = load_particles(InputConfig(tmp_path / "l.star", project_dir=easy_stack))
    from emspatialvae.particles.read_star import particle_block

    column = particle_block(read.metadata).columns("emsvaeJunk")["emsvaeJunk"]  # type: ignore[arg-type]
    assert np.array(column, float) == pytest.approx(latents.junk, abs=1e-6)
    table = np.zeros(48, [("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    table["blob/psize_A"] = 4
    of_cs = dataclasses.replace(stack, metadata=table, kind="cs")
    export.write_cs(latents, of_cs, tmp_path / "l.cs")
    assert np.load(tmp_path / "l.cs")["emsvae/junk"] == pytest.approx(latents.junk, abs=1e-6)


def test_older_runs_and_the_coordinate_engine_have_none(tiny_run, easy_stack, tmp_path, emsvae):
    table = pd.read_csv(tiny_run / "latents.csv").drop(columns="junk")
    table.to_csv(tmp_path / "old.csv", index=False)
    assert read_csv(tmp_path / "old.csv", 2, 4.0).junk is None
    run = tmp_path / "run"
    emsvae.done("train", easy_stack / "particles.star", "--out", run, "--engine", "coordinate", *emsvae.TINY)
    assert "junk" not in (run / "latents.csv").read_text().splitlines()[0]
    assert "emsvaeJunk" not in (run / "particles.star").read_text()


# ------------------------------------------------------------------------------------------------------------ judging


def test_judging_by_hand():
    score = JunkScore.of(np.array([0.1, 0.5, 0.9, 0.95, 0.3]), np.array([False, False, True, True, True]))
    assert score.auc == pytest.approx(5 / 6)  # of six pairs one is the wrong way round: 0.3 below 0.5
    assert score.found == pytest.approx(2 / 3)
    assert score.lost == pytest.approx(1 / 2)
    assert "66.67 % of the junk, 50.00 % of the particles" in score.table()
    clean = JunkScore.of(np.array([0.1, 0.2]), np.array([False, False]))
    assert clean.auc is None
    assert clean.found is None
    assert clean.lost == 0
    assert "junk," not in clean.table()


# ------------------------------------------------------------------------------------------ simulations it never saw


def judged(folder, *words) -> dict:
    """What `emsvae evaluate` says after a simulation and a training of some epochs."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr("emspatialvae.analysis.report.run_figures.draw", lambda *_: None)
        assert main(["simulate", *words, "--out", str(folder / "sim"), "--particles", "1500", "--box", "32"]) == 0
        assert main(["train", str(folder / "sim/particles.star"), "--out", str(folder / "run"), "--epochs", "8"]) == 0
    with contextlib.redirect_stdout(said):
        truth = str(folder / "sim/truth.star")
        assert main(["evaluate", str(folder / "run"), "--truth", truth, "--oracle-particles", "0", "--json"]) == 0
    return json.loads(said.getvalue())


@pytest.mark.slow
def test_junk_is_found_and_the_score_is_a_probability(tmp_path):
    found = judged(tmp_path, "hinge", "--snr", "0.3", "--junk", "0.15", "--seed", "71")["junk"]
    assert found["auc"] > 0.98
    assert found["found"] > 0.8
    assert found["lost"] < 0.02
    n = sum(own["n"] for own in found["bins"])
    off = sum(abs(own["reported"] - own["found"]) * own["n"] for own in found["bins"]) / n
    assert off < 0.03
    assert sum(own["found"] * own["n"] for own in found["bins"]) / n == pytest.approx(0.15, abs=0.03)


@pytest.mark.slow
def test_a_stack_without_junk_stays_whole(tmp_path):
    found = judged(tmp_path, "views", "--snr", "0.3", "--seed", "72")["junk"]
    assert found["lost"] < 0.005
