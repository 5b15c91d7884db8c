"""A job folder of RELION's pipeline, as External jobs are to leave it: results, output nodes, and how it ended.

RELION starts an External job in the project's root and looks, every now and then, for ``RELION_JOB_EXIT_SUCCESS``, ``_FAILURE`` or
``_ABORTED`` in its folder; what a successful job made it reads from ``RELION_OUTPUT_NODES.star``. "Abort running" puts
``RELION_JOB_ABORT_NOW`` there (``pipeliner.cpp`` and ``pipeline_control.cpp`` of RELION 3.1.3 to 5.0.1).
"""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from emspatialvae.errors import EmsvaeError
from emspatialvae.io import star
from emspatialvae.io.atomic import atomic_path
from emspatialvae.jobs.interrupt import interrupted_by

ABORT_NOW = "RELION_JOB_ABORT_NOW"
OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED = (f"RELION_JOB_EXIT_{how}" for how in ("SUCCESS", "FAILURE", "ABORTED"))
INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a program that Ctrl-C or a queue's SIGTERM has ended."""


@dataclass(frozen=True)
class NodeType:
    """What RELION calls a kind of result."""

    number: int
    """Up to 3.1."""
    label: str
    """Since 5."""
    label_4: str
    """In 4."""


RUN = "run"
"""Folder of the run within that of the job, which holds files of RELION's own."""
PARTICLES = "particles.star"
PARTICLE_NODE = {PARTICLES: NodeType(3, "ParticleGroupMetadata.star.relion", "ParticlesData.star.relion")}
CLASS_NODES = {
    # RELION's Select takes a model where, since 4, it asks for an optimiser ("for backwards compatibility").
    f"{RUN}/classes/run_model.star": NodeType(8, "OptimiserData.star.relion", "ProcessData.star.relion.optimiser"),
    f"{RUN}/classes/classes.mrcs": NodeType(5, "Image2DGroupMetadata.star.relion", "ImagesData.star.relion"),
}
"""File in the job's folder that RELION's next job can take in -> its kind."""


def run_job(folder: Path, work: Callable[[], int]) -> int:
    """Do ``work`` as the job of ``folder`` and leave the file that tells RELION how it ended.

    "Abort running" in RELION acts as Ctrl-C; a queue's SIGTERM ends the job as a failure instead of leaving it "running" for good.

    Returns
    -------
    The exit code that ``work`` returned. What it raises is raised on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmsvaeError(f"--o {folder} cannot be made ({error.strerror}); give the job's folder") from error
    for mark in (EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED):
        (folder / mark).unlink(missing_ok=True)
    ended = EXIT_FAILURE
    try:
        with interrupted_by(folder / ABORT_NOW), _ended_by_sigterm():
            code = work()
        ended = {0: EXIT_SUCCESS, INTERRUPTED: EXIT_ABORTED}.get(code, EXIT_FAILURE)
        return code
    except KeyboardInterrupt:
        ended = EXIT_ABORTED
        raise
    finally:
        (folder / ended).touch()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def publish(folder: Path, *, classes: bool = False) -> list[Path]:
    """Put the particles of a job's run into the job's own folder, and tell RELION what the job has made.

    The file is a hard link where the disk has them, a copy where not: it stays what it is when the run writes its own anew.

    Parameters
    ----------
    folder
        The job's folder as RELION spells it, relative to the project's root: names of nodes begin with it.
    classes
        The job has made classes, too.

    Returns
    -------
    The files that RELION was told of.
    """
    import pandas as pd

    with atomic_path(folder / PARTICLES, overwrite=True) as temporary:
        try:
            os.link(folder / RUN / PARTICLES, temporary)
        except OSError:
            shutil.copyfile(folder / RUN / PARTICLES, temporary)
    made = {folder / name: kind for name, kind in (PARTICLE_NODE | (CLASS_NODES if classes else {})).items()}
    old = _is_version_4(folder)
    table = pd.DataFrame(
        {
            "rlnPipeLineNodeName": [file.as_posix() for file in made],
            # RELION 3.1 reads the number, later ones the label; 3.1 remarks that it does not know the latter, and goes on.
            "rlnPipeLineNodeType": [kind.number for kind in made.values()],
            "rlnPipeLineNodeTypeLabel": [kind.label_4 if old else kind.label for kind in made.values()],
        }
    )
    star.write_new(folder / OUTPUT_NODES, {"output_nodes": table}, overwrite=True)
    return list(made)


def _is_version_4(folder: Path) -> bool:
    """Whether RELION 4 made the job: it heads its files with ``# version 40001``, and has other labels than 5."""
    job = folder / "job.star"
    return (
        job.is_file() and re.search(r"^# version 4\d{4}\b", job.read_text(errors="replace"), re.MULTILINE) is not None
    )
