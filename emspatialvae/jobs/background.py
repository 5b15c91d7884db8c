"""A training in a process of its own, for programs with windows: it outlives whoever started it, and can be found again.

`start` runs ``emsvae train`` apart from the caller; `attach` finds it again from the run folder, in another process, or on another
machine that sees the disk. What the two sides tell each other lies in a hidden folder beside the run (``.NAME.job``), because the
run folder itself appears only when the images are prepared, and with ``--force`` takes the place of an older one:

job.json   the command and when it was started
log.txt    what it printed
alive      locked while the process lives: the system lets go of a lock whatever a process dies of
cancel     made by whoever wants the training to end early
ended      the exit code
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from emspatialvae import config as configuration
from emspatialvae.config import RunConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import from_json, to_json
from emspatialvae.jobs.interrupt import EXIT_CODES
from emspatialvae.jobs.lock import lock
from emspatialvae.results.run_folder import RunDir

START_UP_S = 60.0
"""A process that has not said within this time that it lives never will."""
CHILD = "emspatialvae.cli.background"
"""The module that the process runs; by its name only, because the command line stands above this one."""


@dataclass(frozen=True)
class State:
    """How a job stands."""

    kind: Literal["running", "finished", "interrupted", "failed"]
    """interrupted: cancelled, with the results so far if the training had begun."""
    reason: str = ""
    """One line on why it failed."""


@dataclass(frozen=True)
class LearningCurve:
    """How far a training has come; one entry per epoch that is done."""

    epochs: list[int]
    """From 1; empty while the images are prepared and during the first epoch."""
    train_elbo: list[float]
    """Nats per particle."""
    held_out_elbo: list[float]
    """Nats per particle; NaN where no particles are held out."""
    said: str
    """What the training said last."""


def start(config: RunConfig, out: Path, *, force: bool = False, resume: bool = False) -> "Job":
    """Start ``emsvae train`` in a process of its own and return at once.

    Parameters
    ----------
    config
        What to train, and how.
    out
        The run folder.
    force, resume
        As in ``emsvae train``.

    Raises
    ------
    EmsvaeError
        Settings that cannot work, something at ``out``, or a training that is still at work there.
    """
    configuration.check(config)
    if force and resume:
        raise EmsvaeError("to go on with a run and to replace it exclude each other; choose one")
    earlier = attach(out)
    if earlier is not None and earlier.poll().kind == "running":
        raise EmsvaeError(
            f"{out} is being trained already; wait until it has ended, cancel it, or choose another folder"
        )
    if resume:
        RunDir(out)
    else:
        RunDir.check_free(out, force=force)
    words = ["train", *argv_of(config), f"--out={out}", *(["--force"] * force), *(["--resume"] * resume)]
    folder = _folder_of(out)
    shutil.rmtree(folder, ignore_errors=True)
    ticket = {
        "config": to_json(config),
        "words": words,
        "started": time.time(),
        "replaces": None if resume else _stamp(out),
    }
    with atomic_path(folder / "job.json") as temporary:
        temporary.write_text(json.dumps(ticket))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A window's own backend for figures would want a display.
            env={**os.environ, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"},
            **_APART,
        )
    return Job(out, process)


def attach(out: Path) -> "Job | None":
    """The job that was last started for the run folder ``out``, by whomever; None where there was none."""
    return Job(out) if (_folder_of(out) / "job.json").is_file() else None


class Job:
    """A training in a process of its own; made by `start` and `attach`."""

    def __init__(self, out: Path, process: "subprocess.Popen[Any] | None" = None) -> None:
        self.out, self._process = Path(out).absolute(), process
        self._folder = _folder_of(out)
        self._ticket = json.loads((self._folder / "job.json").read_text())

    @property
    def command(self) -> str:
        """The command line that does the same."""
        return shlex.join(["emsvae", *self._ticket["words"]])

    def config(self) -> RunConfig | None:
        """What it was started with; None of a job that an older version started."""
        try:
            return from_json(RunConfig, self._ticket["config"])
        except (KeyError, TypeError, EmsvaeError):
            return None

    @property
    def log(self) -> Path:
        """The file with what the process prints."""
        return self._folder / "log.txt"

    def poll(self) -> State:
        """How the job stands; never waits."""
        if self._process is not None:
            self._process.poll()  # takes notice of its end, without which it would stay a zombie
        ended = self._folder / "ended"
        # In this order: an end that comes between the two looks is found by the second.
        if self._lives() and not ended.is_file():
            return State("running")
        if not ended.is_file():
            return State("failed", f"the process ended without a word: killed, or out of memory? See {self.log}")
        code = int(ended.read_text())
        if code in (0, *EXIT_CODES):
            return State("interrupted" if code else "finished")
        return State("failed", self._last_line().removeprefix("emsvae: "))

    def cancel(self) -> None:
        """Ask the training to end after its step; the results so far are written. Whether it has, `poll` says."""
        if self.poll().kind == "running":
            (self._folder / "cancel").touch()

    def progress(self) -> LearningCurve:
        """The learning curve so far."""
        metrics = RunDir(self.out).metrics() if _stamp(self.out) not in (None, self._ticket["replaces"]) else []
        return LearningCurve(
            [int(row["epoch"]) for row in metrics],
            [row["train_elbo"] for row in metrics],
            [row["test_elbo"] for row in metrics],
            self._last_line(),
        )

    def forget(self) -> None:
        """Remove the hidden folder of a job that has ended; its run stays."""
        if self.poll().kind != "running":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _lives(self) -> bool:
        if self._process is not None:
            return self._process.returncode is None
        try:
            with (self._folder / "alive").open("r+b") as stream:
                lock(stream, wait=False)
        except FileNotFoundError:
            return time.time() - self._ticket["started"] < START_UP_S
        except OSError:  # somebody holds it
            return True
        return False

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 4096))
                lines = stream.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def argv_of(config: RunConfig) -> list[str]:
    """The words after ``emsvae train`` that mean ``config``: the particles, and every setting that is not the default."""
    words = [str(config.input.particles)]
    for part in (config.input, config.prepare, config.model, config.train, config):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name == "particles" or is_dataclass(value) or value == field.default:
                continue
            flag = flag_of(type(part), field.name)
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag}={value}")
    return words


def flag_of(part: type, name: str) -> str:
    """What the setting ``name`` of a dataclass of `emspatialvae.config` is called on the command line, without the dashes."""
    # Some flags have names of their own: see `tyro.conf.arg` there.
    hint = get_type_hints(part, include_extras=True)[name]
    own_name = next((mark.name for mark in getattr(hint, "__metadata__", ())), None)
    return own_name or name.replace("_", "-")


def _folder_of(out: Path) -> Path:
    place = Path(out).absolute()
    return place.with_name(f".{place.name}.job")


def _stamp(out: Path) -> int | None:
    """Tells one run at ``out`` from the next, which takes its place."""
    try:
        return (out / "config.json").stat().st_mtime_ns
    except OSError:
        return None


_APART: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    if sys.platform == "win32"
    else {"start_new_session": True}
)
"""Not ended by a Ctrl-C or a closed terminal that is meant for the caller."""
