"""Trainings in a process of their own: they end as they should, and are found again when whoever started them is gone."""

import os
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro

from emspatialvae.cli.parsing import parse
from emspatialvae.cli.train import TrainCommand
from emspatialvae.config import InputConfig, ModelConfig, PrepareConfig, RunConfig, TrainConfig
from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.jobs import background as jobs
from emspatialvae.jobs.background import Job, argv_of
from emspatialvae.results.run_folder import RunDir

# -------------------------------------------------------------------------------------------------- settings as words

PLAIN = RunConfig(InputConfig(Path("my particles.star")))


def other_values(hint: Any, default: Any) -> Iterator[Any]:
    """Values of a setting that are not its default."""
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        yield from other_values(choices[0], default)
    elif typing.get_origin(hint) is typing.Literal:
        yield from (choice for choice in choices if choice != default)
    elif choices:  # a type or None
        yield from (None,) if default is not None else ()
        yield from other_values(next(choice for choice in choices if choice is not type(None)), default)
    else:
        yield {bool: not default, int: 17, float: 0.1 + 0.2, Path: Path("a b/c=d.mrc"), str: "a b=c/"}[hint]


def one_change_each() -> Iterator[tuple[str, RunConfig]]:
    for part in ("input", "prepare", "model", "train", None):
        owner = PLAIN if part is None else getattr(PLAIN, part)
        hints = get_type_hints(type(owner), include_extras=True)
        for field in fields(owner):
            if field.name == "particles" or is_dataclass(getattr(owner, field.name)):
                continue
            for value in other_values(hints[field.name], field.default):
                changed = replace(owner, **{field.name: value})
                yield f"{field.name}={value}", changed if part is None else replace(PLAIN, **{part: changed})


CHANGED = dict(one_change_each())


def parsed(words: list[str]) -> RunConfig:
    return parse(TrainCommand, words, TrainCommand(RunConfig(InputConfig(tyro.MISSING)))).run


def test_every_setting_is_tried():
    settings = [field for cls in (InputConfig, PrepareConfig, ModelConfig, TrainConfig) for field in fields(cls)]
    assert len({name.partition("=")[0] for name in CHANGED}) == len(settings)  # without particles, with poses


@pytest.mark.parametrize("name", CHANGED)
def test_the_command_line_reads_what_is_meant(name):
    words = argv_of(CHANGED[name])
    assert len(words) == 2 and parsed(words) == CHANGED[name]


def test_defaults_need_no_words():
    assert argv_of(PLAIN) == ["my particles.star"] and parsed(argv_of(PLAIN)) == PLAIN


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def config(easy_stack) -> RunConfig:
    tiny = ModelConfig(hidden=16, encoder_hidden=16)
    return RunConfig(
        InputConfig(easy_stack / "particles.star"), model=tiny, train=TrainConfig(epochs=2, device="cpu", infer_turns=2)
    )


@pytest.fixture
def endless(config) -> RunConfig:
    return replace(config, train=replace(config.train, epochs=1_000_000))


def until(true: Callable[[], object], job: Job) -> None:
    """Wait for something that comes while a job runs or ends."""
    patience = time.monotonic() + 90
    while not true():
        assert time.monotonic() < patience, (job.poll(), job.log.read_text())
        time.sleep(0.1)


def ended(job: Job) -> jobs.State:
    until(lambda: job.poll().kind != "running", job)
    return job.poll()


@pytest.mark.slow
def test_a_job_from_start_to_end(config, tmp_path):
    out = tmp_path / "a run"
    assert jobs.attach(out) is None
    job = jobs.start(config, out)
    assert job.poll().kind == "running" and job.progress().epochs == []
    assert job.command.startswith("emsvae train ") and f"'--out={out}'" in job.command
    assert ended(job) == jobs.State("finished")
    curve = job.progress()
    assert curve.epochs == [1, 2] and len(curve.train_elbo) == len(curve.held_out_elbo) == 2
    assert curve.said.startswith("results: ") and curve.said in job.log.read_text()
    assert RunDir(out).manifest.config.model.hidden == 16 and (out / "particles.star").exists()

    again = jobs.attach(out)
    assert again is not None and again.poll().kind == "finished" and again.progress() == curve
    with pytest.raises(OutputExistsError):
        jobs.start(config, out)
    assert again.poll().kind == "finished"  # a start that fails costs nothing
    again.forget()
    assert jobs.attach(out) is None and list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_a_job_outlives_its_parent_and_ends_when_it_is_cancelled(endless, tmp_path):
    out = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from emspatialvae.jobs import background as jobs; from emspatialvae.config import *\n"
        "config = RunConfig(InputConfig(Path(sys.argv[1])), model=ModelConfig(hidden=16, encoder_hidden=16),"
        " train=TrainConfig(epochs=1_000_000, device='cpu', infer_turns=2))\n"
        "jobs.start(config, Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(endless.input.particles), str(out)], check=True, timeout=60)
    job = jobs.attach(out)
    assert job is not None
    until(lambda: job.progress().epochs, job)
    assert job.poll().kind == "running"
    with pytest.raises(EmsvaeError, match="being trained already"):
        jobs.start(endless, out, force=True)
    job.cancel()
    assert ended(job) == jobs.State("interrupted")
    assert (out / "particles.star").exists() and "interrupted" in (out / "run.log").read_text()
    assert job.progress().epochs[-1] < 1_000_000


def test_a_job_that_cannot_work_says_why_in_one_line(config, tmp_path):
    nothing = replace(config, input=InputConfig(tmp_path / "nothing.star"))
    job = jobs.start(nothing, tmp_path / "run")
    state = ended(job)
    assert state.kind == "failed" and state.reason.startswith(f"{tmp_path / 'nothing.star'}: no such file")
    assert job.progress().epochs == [] and not (tmp_path / "run").exists()


def test_a_job_can_be_cancelled_before_it_has_begun(endless, tmp_path):
    job = jobs.start(endless, tmp_path / "run")
    job.cancel()
    assert ended(job) == jobs.State("interrupted")
    job.cancel()  # nothing is left to cancel
    assert not (tmp_path / ".run.job" / "cancel").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_job_that_was_killed_is_known_as_such(endless, tmp_path):
    job = jobs.start(endless, tmp_path / "run")
    other = jobs.attach(tmp_path / "run")
    assert other is not None and other.poll().kind == "running"  # from its first moment
    until((tmp_path / ".run.job" / "alive").exists, job)
    assert other.poll().kind == "running"
    process = job._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    for found in (job, other):
        state = found.poll()
        assert state.kind == "failed" and "killed" in state.reason and "\n" not in state.reason


def test_what_cannot_start_does_not(config, tmp_path):
    for wrong, options, error in (
        (replace(config, model=ModelConfig(z_dim=0)), {}, "--z-dim is 0"),
        (config, {"force": True, "resume": True}, "exclude each other"),
        (config, {"resume": True}, "not a run folder"),
    ):
        with pytest.raises(EmsvaeError, match=error):
            jobs.start(wrong, tmp_path / "run", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        jobs.start(config, tmp_path / "mine", force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine"]


def test_the_curve_of_an_older_run_is_not_shown(endless, tiny_run, tmp_path):
    """It stands there until the images of the new one are prepared; a run that is gone on with is no older run."""
    out = shutil.copytree(tiny_run, tmp_path / "run")
    job = jobs.start(endless, out, force=True)
    shown = job.progress().epochs
    job.cancel()
    assert shown == [] and ended(job).kind == "interrupted"
    (out / "config.json").touch()  # what comes next in its place is the job's own
    assert job.progress().epochs == [1, 2]
    job = jobs.start(endless, out, resume=True)
    shown = job.progress().epochs
    job.cancel()
    assert shown[:2] == [1, 2] and ended(job).kind == "interrupted"
