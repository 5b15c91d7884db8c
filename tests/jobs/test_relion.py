"""`emsvae relion-job`: whatever happens, RELION finds in the job's folder how it ended."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from emspatialvae.io.star import StarFile
from emspatialvae.jobs import interrupt
from emspatialvae.jobs.relion import OUTPUT_NODES, publish, run_job
from emspatialvae.results.run_folder import RunDir

JOB = Path("External/job007")


@pytest.fixture
def job(easy_stack, emsvae, tmp_path, monkeypatch):
    """A RELION project with particles, as the current folder, and the command as RELION calls it in an empty job folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(easy_stack, "Extract")
    text = Path("Extract/particles.star").read_text()
    Path("Extract/particles.star").write_text(text.replace("@particles", "@Extract/particles"))
    JOB.mkdir(parents=True)
    (JOB / "run.out").touch()
    threads = torch.get_num_threads()

    def call(*words, particles="Extract/particles.star"):
        return emsvae("relion-job", "--o", f"{JOB}/", "--in_parts", particles, "--j", "1", *emsvae.TINY, *words)

    yield call
    torch.set_num_threads(threads)


def marks() -> list[str]:
    return sorted(file.name for file in JOB.glob("RELION_JOB_*"))


def nodes(folder: Path = JOB) -> dict[str, list[str]]:
    block = StarFile.read(folder / OUTPUT_NODES).block("output_nodes")
    return block.columns(*block.labels)


def test_a_job_leaves_particles_nodes_and_success(job, tmp_path):
    (JOB / "RELION_JOB_EXIT_FAILURE").touch()  # of an earlier try
    answer = job("--z_dim", "1", "--pipeline_control", f"{JOB}/")
    assert answer.code == 0, answer.err
    assert marks() == ["RELION_JOB_EXIT_SUCCESS"] and torch.get_num_threads() == 1
    assert nodes() == {
        "rlnPipeLineNodeName": [f"{JOB}/particles.star"],
        "rlnPipeLineNodeType": ["3"],
        "rlnPipeLineNodeTypeLabel": ["ParticleGroupMetadata.star.relion"],
    }
    run = RunDir(JOB / "run")
    assert (JOB / "particles.star").read_bytes() == run.star.read_bytes()
    names = StarFile.read(JOB / "particles.star").block("particles").columns("rlnImageName")["rlnImageName"]
    assert names[0] == "000001@Extract/particles.mrcs" and len(names) == 48
    assert run.manifest.config.model.z_dim == 1
    assert run.manifest.config.input.particles == tmp_path / "Extract" / "particles.star"


def test_classes_are_nodes_too(job):
    answer = job("--classes", "3")
    assert answer.code == 0, answer.err
    found = nodes()
    names, types = found["rlnPipeLineNodeName"], found["rlnPipeLineNodeType"]
    assert dict(zip(names, types, strict=True)) == {
        f"{JOB}/particles.star": "3",
        f"{JOB}/run/classes/run_model.star": "8",
        f"{JOB}/run/classes/classes.mrcs": "5",
    }
    block = StarFile.read(JOB / "particles.star").block("particles")
    assert set(block.columns("rlnClassNumber")["rlnClassNumber"]) == {"1", "2", "3"}
    references = StarFile.read(JOB / "run" / "classes" / "run_model.star").block("model_classes")
    assert references.columns("rlnReferenceImage")["rlnReferenceImage"][0] == f"000001@{JOB}/run/classes/classes.mrcs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--classes", "-1"), "--classes is -1"),
        (("--z_dim", "0"), "--z-dim is 0"),
        (("--z_dimm", "2"), "--z_dimm"),
        (("--in_mask", "m.mrc"), 'fill in "Input particles" only'),
        (("--out", "elsewhere"), "leave --out out"),
        (("--limit", "many"), "--limit"),
        (("--j", "0"), "--j is 0; expected 1 thread or more"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_a_failed_job_with_one_line(job, words, said):
    answer = job(*words)
    assert answer.code == 2 and marks() == ["RELION_JOB_EXIT_FAILURE"]
    assert len(answer.err.splitlines()) == 1 and said in answer.err


def test_particles_that_are_not_there(job, emsvae):
    answer = job(particles="Extract/nothing.star")
    assert answer.code == 2 and "no such file" in answer.err
    assert marks() == ["RELION_JOB_EXIT_FAILURE"] and not (JOB / OUTPUT_NODES).exists()
    answer = emsvae("relion-job", "--o", JOB)
    assert answer.code == 2 and "--in-parts" in answer.err and marks() == ["RELION_JOB_EXIT_FAILURE"]


def test_without_a_folder_there_is_one_line_and_nothing_else(emsvae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ((), ("--o",), ("--o=",)):
        assert "--o" in emsvae.refused("relion-job", "--in_parts", "x.star", *words)
    Path("taken").touch()
    assert "taken" in emsvae.refused("relion-job", "--in_parts", "x.star", "--o", "taken/")
    assert "External" in emsvae.done("relion-job", "--help").out
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


@pytest.mark.slow
def test_a_continued_job_goes_on_with_its_run(job):
    assert job("--epochs", "1").code == 0
    again = job("--epochs", "2")
    assert again.code == 0 and "going on with" in again.out, again.err
    assert [row["epoch"] for row in RunDir(JOB / "run").metrics()] == [1, 2]
    refused = job("--z-dim", "3")
    assert refused.code == 2 and "z_dim = 2, not 3" in refused.err and "--force" in refused.err
    assert marks() == ["RELION_JOB_EXIT_FAILURE"]
    anew = job("--z-dim", "3", "--force")
    assert anew.code == 0 and marks() == ["RELION_JOB_EXIT_SUCCESS"]
    assert RunDir(JOB / "run").manifest.config.model.z_dim == 3


def test_a_run_that_never_began_to_learn_is_replaced(job):
    assert job().code == 0
    (JOB / "run" / "checkpoint.pt").unlink()
    again = job("--z-dim", "1")
    assert again.code == 0 and "going on with" not in again.out, again.err


def test_an_aborted_job_has_results_up_to_there(job, monkeypatch):
    """RELION's Abort comes in the middle of the training, which ends after its step."""
    from emspatialvae.training.trainer import Trainer

    monkeypatch.setattr(interrupt, "LOOK_EVERY_S", 0.01)
    end_epoch = Trainer._end_epoch

    def abort_once(trainer: Trainer) -> None:
        end_epoch(trainer)
        if trainer.progress.epoch == 1:
            (JOB / "RELION_JOB_ABORT_NOW").touch()
        time.sleep(0.05)

    monkeypatch.setattr(Trainer, "_end_epoch", abort_once)
    answer = job("--epochs", "1000")
    assert answer.code == 130 and "interrupted" in answer.out
    assert marks() == ["RELION_JOB_EXIT_ABORTED"] and nodes()["rlnPipeLineNodeType"] == ["3"]


# ---------------------------------------------------------------------------------------------------------- the folder


def test_a_defect_is_a_failed_job(tmp_path):
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(tmp_path / "new", work)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["RELION_JOB_EXIT_FAILURE"]


def test_abort_before_the_training_and_sigterm(tmp_path, monkeypatch):
    """Both are heard at once, although a shell that starts background jobs switches Ctrl-C off."""
    began = time.monotonic()
    monkeypatch.setattr(interrupt, "LOOK_EVERY_S", 0.01)
    (tmp_path / "RELION_JOB_ABORT_NOW").touch()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_job(tmp_path, lambda: time.sleep(5) or 0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert [file.name for file in tmp_path.iterdir()] == ["RELION_JOB_EXIT_ABORTED"]
    with pytest.raises(SystemExit) as stop:
        run_job(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5) or 0)
    assert stop.value.code == 143
    assert [file.name for file in tmp_path.iterdir()] == ["RELION_JOB_EXIT_FAILURE"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("version", "label"),
    [("30001", "ParticleGroup"), ("40001", "ParticlesData"), ("50001", "ParticleGroup"), (None, "ParticleGroup")],
)
def test_relion_4_has_labels_of_its_own(tmp_path, version, label):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "particles.star").write_text("mine")
    if version is not None:
        (tmp_path / "job.star").write_text(f"\n# version {version}\n\ndata_job\n")
    assert publish(tmp_path) == [tmp_path / "particles.star"]
    assert nodes(tmp_path)["rlnPipeLineNodeTypeLabel"][0].startswith(label)


@pytest.mark.parametrize("links", [True, False])
def test_what_is_published_stays_when_the_run_is_written_anew(tmp_path, monkeypatch, links):
    from emspatialvae.io.atomic import atomic_path

    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    run = tmp_path / "run"
    run.mkdir()
    (run / "particles.star").write_text("first")
    publish(tmp_path)
    publish(tmp_path)  # once more onto its own link
    assert (tmp_path / "particles.star").samefile(run / "particles.star") == links
    with atomic_path(run / "particles.star", overwrite=True) as temporary:
        temporary.write_text("second")
    assert (tmp_path / "particles.star").read_text() == "first"
    publish(tmp_path)
    assert (tmp_path / "particles.star").read_text() == "second"
    assert {file.name for file in tmp_path.iterdir()} == {"run", "particles.star", OUTPUT_NODES}
