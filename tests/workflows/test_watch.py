"""`emsvae watch`: a file that grows ends where `emsvae infer` on the whole does."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging.ctf import CtfParams
from emspatialvae.particles.load import load_particles
from emspatialvae.results.identity import keys_of
from emspatialvae.results.latents import read_csv
from emspatialvae.results.read_run import latents_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows import watch as watching
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.extend import extended_run
from emspatialvae.workflows.infer import infer_other
from emspatialvae.workflows.train import train_run
from emspatialvae.workflows.watch import Watch, watch

FIRST = 8
"""Rows that the file begins with; ten steps of four make it whole."""


@pytest.fixture(scope="module")
def trained(clear_stack, tmp_path_factory) -> Path:
    """A run that has learned a hinge: with a model that knows nothing, poses are ties that rounding decides."""
    config = RunConfig(
        InputConfig(clear_stack / "particles.star"),
        model=ModelConfig(z_dim=1, hidden=16, encoder_hidden=16),
        train=TrainConfig(epochs=8, device="cpu", infer_turns=2),
    )
    run, stack = start_run(config, tmp_path_factory.mktemp("trained") / "run", say=lambda _: None)
    train_run(run, stack, config.train, figures=False, say=lambda _: None)
    return run.path


@pytest.fixture
def grown(clear_stack, tmp_path):
    """A copy of the file beside which the stack is found, and what is to be written into it: its head and its rows."""
    text = (clear_stack / "particles.star").read_text().rstrip("\n").splitlines(keepends=True)
    text[-1] += "\n"
    rows = [line for line in text if "@" in line]
    head, rows = "".join(text[: text.index(rows[0])]), rows[: FIRST + 40]
    (tmp_path / "particles.mrcs").symlink_to(clear_stack / "particles.mrcs")
    return tmp_path / "grown.star", head, rows


def columns(file: Path) -> tuple[list[str], np.ndarray]:
    """The image names of a STAR file, and the numbers of its rows."""
    lines = file.read_text().splitlines()
    rows = [line.split() for line in lines if "@" in line]
    return [cell for row in rows for cell in row if "@" in cell], np.array(
        [[float(cell) for cell in row if ".mrc" not in cell] for row in rows]
    )


@pytest.fixture
def counted(monkeypatch):
    """How many particles each look inferred."""
    counts: list[int] = []
    real = watching.inferred_stack

    def count(run, stack, **how):
        counts.append(len(stack))
        return real(run, stack, **how)

    monkeypatch.setattr(watching, "inferred_stack", count)
    return counts


def test_ten_steps_end_where_infer_on_the_whole_does(trained, grown, tmp_path, counted):
    """Only new rows are inferred, a row that was written by halves waits, and each look begins with what is on the disk."""
    file, head, rows = grown
    assert len(rows) == FIRST + 40
    said: list[str] = []
    for step in range(11):
        whole, half = rows[: FIRST + 4 * step], "".join(rows[FIRST + 4 * step :])[:30]
        file.write_text(head + "".join(whole) + half)
        begun = Watch(RunDir(trained), InputConfig(file), tmp_path / "out", device="cpu", say=said.append)
        assert watch(begun, once=True) == 0
        assert said[-1] == f"{len(whole)} particles, {4 if step else FIRST} new: {tmp_path / 'out'}"
    assert counted == [FIRST, *[4] * 10]
    assert watch(begun, once=True) == 0
    assert len(counted) == 11
    infer_other(
        RunDir(trained), InputConfig(file), tmp_path / "at_once.csv", poses="auto", device="cpu", say=said.append
    )
    grown_by_steps, at_once = (
        read_csv(path, 1, 4.0) for path in (tmp_path / "out" / "latents.csv", tmp_path / "at_once.csv")
    )
    assert grown_by_steps.names.tolist() == at_once.names.tolist()
    # Sums over a batch of another size end in other last digits.
    np.testing.assert_allclose(grown_by_steps.z, at_once.z, atol=5e-3)
    np.testing.assert_allclose(grown_by_steps.pose.theta_rad, at_once.pose.theta_rad, atol=1e-3)
    np.testing.assert_allclose(grown_by_steps.pose.shift_px, at_once.pose.shift_px, atol=1e-3)
    np.testing.assert_allclose(grown_by_steps.junk, at_once.junk, atol=1e-2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ctf.npy",
        "latents.csv",
        "particles.star",
        "watch.json",
    ]


def test_what_cannot_be_read_now_is_tried_again(trained, grown, tmp_path, monkeypatch):
    """A file without particles yet, then a stack that is missing: said once each; Ctrl-C ends it with what was written."""
    file, head, rows = grown
    stack = tmp_path / "particles.mrcs"
    steps = [
        lambda: file.write_text(head),
        lambda: (stack.rename(tmp_path / "away"), file.write_text(head + "".join(rows[:8]))),
        lambda: None,
        lambda: (tmp_path / "away").rename(stack),
    ]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    said: list[str] = []
    assert watch(Watch(RunDir(trained), InputConfig(file), tmp_path / "out", device="cpu", say=said.append)) == 0
    assert [line.split(":")[0] for line in said[:3]] == ["waiting"] * 3
    assert "no such file" in said[0] or "No such file" in said[0]
    assert str(file) in said[1]
    assert "particles.mrcs not found" in said[2]
    assert said[3] == f"8 particles, 8 new: {tmp_path / 'out'}"
    assert said[4:] == [f"ended; the results so far are in {tmp_path / 'out'}"]


def test_rows_that_are_gone_are_believed_at_the_second_look(trained, grown, tmp_path):
    file, head, rows = grown
    file.write_text(head + "".join(rows[:8]))
    begun = Watch(RunDir(trained), InputConfig(file), tmp_path / "out", device="cpu", say=lambda _: None)
    begun.look()
    file.write_text(head + "".join(rows[2:6]))
    with pytest.raises(ParticleFileError, match="4 particles are gone"):
        begun.look()
    assert len(columns(tmp_path / "out" / "particles.star")[0]) == 8
    assert begun.look().new == 0
    left = [cell for row in rows[2:6] for cell in row.split() if "@" in cell]
    assert columns(tmp_path / "out" / "particles.star")[0] == left


def test_advice(trained, grown, tmp_path):
    """Where more is new than the run knows, or where what is new is explained badly."""
    begun = Watch(RunDir(trained), InputConfig(grown[0]), tmp_path / "out", say=lambda _: None)
    own = watching.latents_of(begun.run)
    keys = keys_of(own.names)
    assert begun._advice(own, keys) is None
    others = [(f"{number}@other.mrcs", 0) for number in range(2 * len(own))]
    twice = watching._joined([own, own])
    assert "particles are new, " in (begun._advice(twice, others) or "")
    assert own.misfit is not None
    bad = dataclasses.replace(own, misfit=own.misfit + 100)
    advice = begun._advice(watching._joined([own, bad, bad]), [*keys, *others])
    assert (advice or "").startswith("100 % of the 400 new particles are explained as badly as 5 % of those that")


def test_retraining_goes_on_from_the_present_weights(trained, grown, tmp_path, monkeypatch):
    """In a folder beside the run, on all particles, better from its first epoch than the run was at its own; then the new model is watched with."""
    run = shutil.copytree(trained, tmp_path / "run")
    file, head, rows = grown
    file.write_text(head + "".join(rows))
    monkeypatch.setattr(Watch, "_advice", lambda *_: "training should go on")
    said: list[str] = []
    begun = Watch(RunDir(run), InputConfig(file), device="cpu", say=said.append)
    assert watch(begun, once=True, retrain=True) == 0
    out = tmp_path / "run_2"
    assert begun.run.path == out and begun.out == out / "watch"
    assert f"training goes on from the weights of {run}, on all {len(rows)} particles: {out}" in said
    after = pd.read_csv(out / "metrics.csv")
    assert after.epoch.tolist() == list(range(9, 17))
    # z means what it meant: a training from the beginning may turn it round, and has another scale.
    own, extended = latents_of(RunDir(run)), latents_of(begun.run)
    assert np.corrcoef(own.z[: len(rows), 0], extended.z[:, 0])[0, 1] > 0.85
    assert RunDir(out).manifest.preparation == RunDir(run).manifest.preparation
    names, _ = columns(out / "particles.star")
    assert len(names) == len(rows)


def test_an_extended_run_begins_with_weights_and_latents(trained, grown, tmp_path):
    file, head, rows = grown
    file.write_text(head + "".join(rows[4:]))
    old, source = RunDir(trained), InputConfig(file)
    stack, known = load_particles(source), latents_of(old)
    new = extended_run(
        old, source, stack, dataclasses.replace(known, used=known.used & (known.z[:, 0] > 0)), tmp_path / "new"
    )
    state, before = new.load_checkpoint(), old.load_checkpoint()
    for name, values in before["model"].items():
        torch.testing.assert_close(state["model"][name], values, rtol=0, atol=0)
    z = known.z[4 : len(rows), 0]
    np.testing.assert_allclose(state["objective"]["particles"]["z"][:, 0], np.where(z > 0, z, 0), rtol=1e-5)
    assert state["progress"]["epoch"] == 8 and 8 in state["objective"]["searches"]
    assert new.manifest.config.train.epochs == 16 and new.manifest.n_particles == len(rows) - 4


def test_other_optics_groups_are_trained_from_the_beginning(trained, grown, tmp_path, monkeypatch):
    file, head, rows = grown
    file.write_text(head.replace("opticsGroup1", "another_microscope") + "".join(rows))
    asked = []
    monkeypatch.setattr(
        watching, "start_run", lambda config, out, say: (asked.append((config, out)), (RunDir(trained), None))[1]
    )
    monkeypatch.setattr(watching, "train_run", lambda run, stack, train, resume, say: resume)
    monkeypatch.setattr(Watch, "look", lambda self: watching.Look(10, 5, "training should go on"))
    begun = Watch(RunDir(trained), InputConfig(file), device="cpu", say=lambda _: None)
    assert watch(begun, retrain=True) == 130
    ((config, out),) = asked
    assert out == trained.with_name("run_2")
    assert config.model == RunDir(trained).manifest.config.model and config.input.particles == file


def test_a_refined_ctf_is_inferred_again(trained, grown, tmp_path, monkeypatch, counted):
    """The same image under the same name, with another CTF."""
    file, head, rows = grown
    file.write_text(head + "".join(rows[:6]))
    begun = Watch(RunDir(trained), InputConfig(file), tmp_path / "out", device="cpu", say=lambda _: None)
    begun.look()
    begun.look()
    marks = np.arange(6, dtype=np.uint64) == 2
    monkeypatch.setattr(watching, "_ctf_marks", lambda stack: marks.astype(np.uint64))
    assert begun.look().new == 1
    assert begun.look().new == 0
    assert counted == [6, 1]
    assert len(read_csv(tmp_path / "out" / "latents.csv", 1, 1.0)) == 6


def test_marks_tell_one_ctf_from_another():
    ctf = CtfParams(*(np.full(4, value) for value in (1e4, 9e3, 0.3, 0.0, 300, 2.7, np.nan)))
    ctf.defocus_u_A[2] += 1
    marks = watching._ctf_marks(SimpleNamespace(ctf=ctf))
    assert marks.tolist().count(marks[0]) == 3 and marks[2] != marks[0]


def test_what_it_refuses(trained, grown, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for source, out, words in (
        (InputConfig(tmp_path / "particles.mrcs"), None, "only STAR files grow"),
        (InputConfig(grown[0], limit=3), None, "--limit"),
        (InputConfig(grown[0]), tmp_path / "mine", "was not made by"),
    ):
        with pytest.raises(EmsvaeError, match=words):
            Watch(RunDir(trained), source, out)
