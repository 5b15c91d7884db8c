"""The command line from end to end, as a user types it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.results.run_folder import RunDir

COORDINATE = ("--engine", "coordinate")
COMMANDS = ["demo", "info", "train", "infer", "export", "simulate", "evaluate"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def strict_json(text: str) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# ------------------------------------------------------------------------------------------------------------------ help


def test_help_names_every_command(emsvae):
    for words in (["--help"], ["-h"], ["help"], []):
        said = emsvae.done(*words).out
        assert all(f"emsvae {command}" in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(emsvae, command):
    said = emsvae.done(command, "--help").out
    assert f"emsvae {command}" in said
    if command in ("demo", "train", "infer", "simulate"):
        assert "--out" in said and "--force" in said


def test_the_common_options_are_spelled_as_agreed(emsvae):
    said = emsvae.done("train", "--help").out
    for flag in [
        "--out",
        "--force",
        "--seed",
        "--epochs",
        "--z-dim",
        "--box",
        "--particle-diameter-a",
        "--max-shift-a",
        "--invert",
        "--ctf",
        "--pixel-size-a",
        "--project-dir",
        "--poses",
        "--device",
        "--resume",
        "--preset",
        "--limit",
        "--cache",
        "--passthrough",
    ]:
        assert f" {flag} " in said or f" {flag}, --no-" in said, flag


def test_version(emsvae):
    from emspatialvae import __version__

    assert emsvae.done("--version").out == f"emsvae {__version__}\n"


def test_help_imports_nothing_slow():
    heavy = {"torch", "pandas", "numpy", "scipy", "matplotlib", "mrcfile", "starfile"}
    code = f"""
import sys
import time
from emspatialvae.cli.main import main
main(["--help"])
try:
    main(["train", "--help"])
except SystemExit:
    pass
sys.exit(", ".join(sorted({heavy} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_threads_that_wait_do_not_spin_unless_the_user_says_so(monkeypatch, capsys):
    from emspatialvae.cli.main import main

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert main(["--version"]) == 0
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


# -------------------------------------------------------------------------------------------------------------- settings


@pytest.fixture
def settings(monkeypatch):
    """Of `emsvae train FLAGS`, without training."""
    from emspatialvae.cli import main
    from emspatialvae.workflows import begin_run, train

    seen = []

    def start_run(config, out, *, force):
        seen.append(config)
        return None, None

    monkeypatch.setattr(begin_run, "start_run", start_run)
    monkeypatch.setattr(train, "train_run", lambda *_, **__: True)

    def of(*words: str) -> RunConfig:
        assert main.main(["train", "p.star", *words]) == 0
        return seen.pop()

    return of


def test_no_flags_mean_the_defaults(settings):
    assert settings() == RunConfig(InputConfig(Path("p.star")))
    assert settings("--preset", "none") == settings()


@pytest.mark.parametrize("spelled", [["--preset", "paper"], ["--preset=paper"]])
def test_preset_paper_sets_exactly_its_settings(settings, spelled):
    found = settings(*spelled)
    assert found == configuration.with_preset(RunConfig(InputConfig(Path("p.star"))), "paper")
    # Bepler et al. 2019 as the words of the paper have it, not as the table in `config` does.
    model, train = found.model, found.train
    assert (model.z_dim, model.layers, model.hidden, model.activation, model.noise) == (20, 2, 1000, "tanh", "unit")
    assert (train.learning_rate, train.batch_size, train.epochs, train.z_delay) == (1e-4, 100, 500, 2)
    assert found.prepare.ctf == "none"


@pytest.mark.parametrize("order", [1, -1])
def test_flags_beside_a_preset_win(settings, order):
    words = [["--preset", "paper"], ["--z-dim", "3"], ["--ctf", "auto"], ["--epochs", "7"]][::order]
    found, paper = settings(*[word for pair in words for word in pair]), settings("--preset", "paper")
    assert (found.model.z_dim, found.prepare.ctf, found.train.epochs) == (3, "auto", 7)
    assert found.model.hidden == paper.model.hidden
    assert found.train.learning_rate == paper.train.learning_rate


# ----------------------------------------------------------------------------------------------------------------- train


def test_train_makes_the_whole_run_folder(tiny_run):
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*")}
    pictures = {"learning_curve", "z_scatter", "reconstructions", "manifold", "averages"}
    assert {"config.json", "metrics.csv", "checkpoint.pt", "latents.csv", "particles.star", "run.log"} <= names
    assert {f"figures/{name}.png" for name in pictures} <= names
    assert not any("/." in f"/{name}" for name in names), "temporary files are left"


def test_what_was_assumed_is_printed_logged_and_stored(emsvae, easy_stack, here):
    said = emsvae.done("train", easy_stack / "particles.star", *emsvae.TINY, "--z-delay", "2").out
    run = RunDir(here / "particles_emsvae")
    log = (run.path / "run.log").read_text()
    for word in ("pixel size 4 A", "particle diameter", "bright: kept", "device cpu", "CTF left alone", "shift prior"):
        assert word in said and word in log
        assert any(word in sentence for sentence in run.manifest.assumed), word
    assert "means nothing yet" in said, "z was frozen in both epochs"


def test_the_run_can_be_asked_what_it_is(emsvae, tiny_run):
    said = emsvae.done("info", tiny_run).out
    assert "48 particles" in said and "2 epochs" in said and "results      written" in said


def test_limit(emsvae, easy_stack, here):
    emsvae.done("train", easy_stack / "particles.star", "--limit", "9", *emsvae.TINY)
    table = pd.read_csv(here / "particles_emsvae" / "latents.csv")
    assert table["image_name"].tolist() == [f"{i:06d}@particles.mrcs" for i in range(1, 10)]
    emsvae.done("infer", "particles_emsvae", easy_stack / "particles.star", "--limit", "5", "--out", "five.csv")
    assert len(pd.read_csv("five.csv")) == 5


def test_a_bare_stack_gives_the_same_numbers(emsvae, easy_stack, tiny_run, here):
    emsvae.done("train", easy_stack / "particles.mrcs", *emsvae.TINY)
    ours, theirs = (pd.read_csv(run / "latents.csv") for run in (here / "particles_emsvae", tiny_run))
    pd.testing.assert_frame_equal(ours, theirs)


def test_particles_are_found_from_any_folder(emsvae, easy_stack, here, monkeypatch):
    shutil.copytree(easy_stack, here / "project" / "job")
    star = here / "project" / "job" / "particles.star"
    star.write_text(star.read_text().replace("@particles.mrcs", "@job/particles.mrcs"))
    emsvae.done("train", "project/job/particles.star", "--out", "run", *emsvae.TINY)
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    emsvae.done("export", "../run", "--aligned", "a.mrcs")
    (here / "other" / "job").mkdir()
    shutil.move(here / "project" / "job" / "particles.mrcs", here / "other" / "job")
    monkeypatch.chdir(here)
    emsvae.done("export", "run", "--aligned", "b.mrcs", "--project-dir", "other")
    assert (here / "b.mrcs").read_bytes() == (here / "other" / "a.mrcs").read_bytes()


@pytest.mark.parametrize("engine", ["steerable", "coordinate"])
def test_resume_equals_an_uninterrupted_run(emsvae, clear_stack, here, engine):
    train = ["train", clear_stack / "particles.star", *emsvae.TINY[2:], "--batch-size", "40", "--engine", engine]
    emsvae.done(*train, "--out", "whole", "--epochs", "4")
    emsvae.done(*train, "--out", "halves", "--epochs", "2")
    shutil.rmtree(here / "halves" / "cache")
    said = emsvae.done("train", clear_stack / "particles.star", "--out", "halves", "--resume", "--epochs", "4").out
    assert "going on" in said
    for name in ("metrics.csv", "latents.csv", "particles.star"):
        assert (here / "whole" / name).read_bytes() == (here / "halves" / name).read_bytes(), name
    said = emsvae.done("train", clear_stack / "particles.star", "--out", "halves", "--resume", "--epochs", "4").out
    assert "after 4 epochs" in said
    assert (here / "whole" / "latents.csv").read_bytes() == (here / "halves" / "latents.csv").read_bytes()


def test_of_a_large_stack_a_part_is_trained_on_and_all_are_inferred(emsvae, clear_stack, here):
    train = ["train", clear_stack / "particles.star", *emsvae.TINY[2:], "--epochs", "2", "--z-dim", "1"]
    said = emsvae.done(*train, "--out", "part", "--train-particles", "60").out
    assert "60 of 200 particles are trained on, chosen by chance (--train-particles)" in said
    table = pd.read_csv("part/latents.csv")
    assert len(table) == 200 and table["used"].all() and (table["z1_sd"] > 0).all()
    assert "--train-particles" not in emsvae.done(*train, "--out", "whole").out
    assert "--train-particles is 0; expected a number above 0" in emsvae.refused(*train, "--train-particles", "0")


@pytest.mark.parametrize("engine", ["steerable", "coordinate"])
def test_interrupt_leaves_a_usable_run(emsvae, clear_stack, here, monkeypatch, engine):
    import signal

    from emspatialvae.training.trainer import Trainer

    step = Trainer.step

    def interrupted(self, rows, asked):
        end = step(self, rows, asked)
        if self.progress.epoch == 1:
            signal.raise_signal(signal.SIGINT)
            end = asked()
        return end

    train = ["train", clear_stack / "particles.star", *emsvae.TINY[2:], "--epochs", "4", "--batch-size", "40"]
    train += ["--engine", engine]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        answer = emsvae(*train, "--out", "cut")
    assert answer.code == 130 and "interrupted" in answer.out
    assert len(pd.read_csv(here / "cut" / "latents.csv")) == 200
    emsvae.done("export", "cut", "--csv", "x.csv")
    emsvae.done("train", clear_stack / "particles.star", "--out", "cut", "--resume")
    emsvae.done(*train, "--out", "whole")
    for name in ("metrics.csv", "latents.csv"):
        assert (here / "whole" / name).read_bytes() == (here / "cut" / name).read_bytes(), name


# ----------------------------------------------------------------------------------------------------------------- infer


def test_infer_on_the_training_file_gives_the_runs_own_numbers(emsvae, easy_stack, tiny_run, here):
    """To the accuracy of the float16 cache, which training reads and `infer` does not."""
    emsvae.done("infer", tiny_run, easy_stack / "particles.star", "--out", "again.csv", "--device", "cpu")
    own, again = pd.read_csv(tiny_run / "latents.csv"), pd.read_csv("again.csv")
    assert own["image_name"].equals(again["image_name"])
    turn = np.angle(np.exp(1j * (own["theta_rad"] - again["theta_rad"])))
    assert np.abs(turn).max() < 0.01
    for column in own.columns.drop(["image_name", "theta_rad"]):
        spread = own[column].std() + 1e-6
        # An s.d. may be the same for all; float16 has three digits.
        digits = 1e-3 * own[column].median() if "_sd" in column else 0
        assert np.abs(own[column] - again[column]).max() < 0.03 * spread + digits + 1e-9, column


def test_infer_writes_what_the_name_says(emsvae, easy_stack, tiny_run):
    for name in ("x.star", "x.csv"):
        said = emsvae.done("infer", tiny_run, easy_stack / "particles.star", "--out", name, "--device", "cpu").out
        assert "48 particles, 0 unusable" in said and name in said
    assert emsvae("infer", tiny_run, easy_stack / "particles.star", "--out", "x.cs").code == 2


def test_infer_on_a_larger_box(emsvae, easy_stack, tiny_run):
    """The model looks at the middle of larger images, at its own pixel size."""
    emsvae.done("simulate", "hinge", "--out", "wide", "--particles", "20", "--box", "40")
    emsvae.done("infer", tiny_run, "wide/particles.star", "--out", "wide.csv")
    assert len(pd.read_csv("wide.csv")) == 20


# -------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_json(emsvae, easy_stack, tiny_run):
    said = emsvae.done(
        "evaluate", tiny_run, "--truth", easy_stack / "truth.star", "--json", "--oracle-particles", "5"
    ).out
    found = strict_json(said)
    assert found["n"] == 48 and found["z_dim"] == 2
    assert {"theta_gauge_rms_deg", "shift_gauge_rms_px", "z_r_cubic"} <= set(found)
    assert found["oracle"]["n"] == 5
    assert set(found["cramer_rao"]) == {"z_corr", "z_noise", "theta_deg", "shift_px"}


def test_evaluate_prints_a_table(emsvae, easy_stack, tiny_run):
    words = ["evaluate", tiny_run, "--truth", easy_stack / "truth.star"]
    said = emsvae.done(*words, "--oracle-particles", "0").out
    assert "theta [deg]" in said and "Cramer-Rao" in said and "oracle" not in said.splitlines()[1]


def test_evaluate_where_nothing_was_learned(emsvae, easy_stack, tiny_run, here):
    """A z that is the same for all has no correlation with anything; JSON knows no NaN."""
    run = shutil.copytree(tiny_run, here / "flat")
    table = pd.read_csv(run / "latents.csv")
    table[["z1", "z2", "theta_rad"]] = 0.0
    table.to_csv(run / "latents.csv", index=False)
    for words in (["--json"], []):
        said = emsvae.done("evaluate", run, "--truth", easy_stack / "truth.star", "--oracle-particles", "0", *words).out
        if words:
            assert strict_json(said)["n"] == 48


@pytest.mark.slow
def test_simulate_train_evaluate_recovers_the_angle(emsvae):
    emsvae.done(
        "simulate", "hinge", "--out", "sim", "--particles", "1500", "--box", "24", "--snr", "2", "--shift-px", "0.5"
    )
    words = [
        "--z-dim",
        "1",
        "--epochs",
        "14",
        "--hidden",
        "64",
        "--encoder-hidden",
        "128",
        "--learning-rate",
        "2e-3",
        "--batch-size",
        "50",
        "--device",
        "cpu",
    ]
    emsvae.done("train", "sim/particles.star", "--out", "run", "--max-shift-a", "8", *words)
    found = strict_json(
        emsvae.done("evaluate", "run", "--truth", "sim/truth.star", "--json", "--oracle-particles", "0").out
    )
    assert found["theta_gauge_rms_deg"] < 4  # measured: 1.5; random angles: 104
    assert found["shift_gauge_rms_px"] < 0.25  # measured: 0.13; an estimator that answers 0: 0.5


@pytest.mark.slow
def test_demo(emsvae, monkeypatch, here):
    from dataclasses import replace

    from emspatialvae.workflows import demo

    monkeypatch.setattr(demo, "STACK", replace(demo.STACK, particles=200, box=24))
    monkeypatch.setattr(demo, "TRAIN", replace(demo.TRAIN, epochs=3))
    said = emsvae.done("demo").out
    assert "theta [deg]" in said and "STAR file for RELION: emsvae_demo/run/particles.star" in said
    assert (here / "emsvae_demo" / "run" / "particles.star").is_file()
    assert emsvae("demo").code == 2
    emsvae.done("demo", "--force")


# ------------------------------------------------------------------------------------------------------------------ info


def test_info(emsvae, easy_stack):
    said = emsvae.done("info", easy_stack / "particles.star").out
    for word in (
        "48 particles in 1 stack(s)",
        "4 A per pixel",
        "no poses",
        "odd: nothing",
        "images of 24 px",
        "bright: kept",
    ):
        assert word in said
    assert "poses in the plane; shifts" in emsvae.done("info", easy_stack / "truth.star").out
    assert "box of 16" in said or "to 16 px" in emsvae.done("info", easy_stack / "particles.star", "--box", "16").out


def test_info_says_what_would_stop_training(emsvae, easy_stack, here):
    shutil.copy(easy_stack / "particles.star", here)
    said = emsvae.done("info", "particles.star").out
    assert "48 particles" in said and "stop: " in said and "--project-dir" in said


def test_whole_image_scores_the_corners(emsvae, easy_stack, tmp_path):
    """The paper encodes and scores every pixel; by default only those within the mask count."""
    from emspatialvae.inference.infer import load_model
    from emspatialvae.results.run_folder import RunDir

    emsvae.done(
        "train", easy_stack / "particles.star", "--out", tmp_path / "run", *emsvae.TINY, *COORDINATE, "--whole-image"
    )
    model = load_model(RunDir(tmp_path / "run"))
    assert int(model.mask.sum()) == model.images.box**2


def test_a_log_file_is_written_line_by_line(tmp_path):
    """A cluster's log shows what a command says when it says it, not when it ends."""
    told = 'from emspatialvae.cli.streams import steady_output\nwith steady_output():\n    print("now")\n    input()'
    with (tmp_path / "log").open("wb") as log:
        waiting = subprocess.Popen([sys.executable, "-c", told], stdin=subprocess.PIPE, stdout=log)
    until = time.monotonic() + 60
    while not (tmp_path / "log").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "log").read_text() == "now\n" and waiting.poll() is None
    waiting.communicate(b"\n", timeout=60)
