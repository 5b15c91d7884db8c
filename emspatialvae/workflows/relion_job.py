"""``emsvae relion-job``: a training as an External job of RELION's pipeline, with classes where they are wanted."""

from collections.abc import Callable
from pathlib import Path

import torch

from emspatialvae.jobs.relion import RUN, publish
from emspatialvae.workflows.classes import classify_run


def relion_job(
    train: Callable[[list[str]], int],
    particles: Path,
    folder: Path,
    flags: list[str],
    *,
    threads: int,
    classes: int,
) -> int:
    """Train, classify, and tell RELION what came of it; returns the exit code.

    Parameters
    ----------
    train
        ``emsvae train``, which takes its own words.
    folder
        The job's.
    flags
        More words for ``train``.
    threads
        For torch.
    classes
        How many classes to make; 0: none.
    """
    torch.set_num_threads(threads)
    run = folder / RUN
    code = train([str(particles), "--out", str(run), *_onward(run, flags), *flags])
    classified = classes > 0 and code == 0
    if classified:
        classify_run(run, classes)
    publish(folder, classes=classified)
    return code


def _onward(run: Path, trains: list[str]) -> list[str]:
    """RELION runs a continued job once more in its folder: go on with what is there, replace what never began to learn."""
    if {"--force", "--resume"} & set(trains) or not run.exists():
        return []
    return ["--resume"] if (run / "checkpoint.pt").is_file() else ["--force"]
