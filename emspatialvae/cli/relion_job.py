"""``emsvae relion-job``: `emsvae train` in the clothes of RELION's External job."""

from dataclasses import dataclass, fields
from pathlib import Path

from emspatialvae.cli import train
from emspatialvae.cli.parsing import parse
from emspatialvae.errors import EmsvaeError

NOT_TAKEN = ("in_movies", "in_mics", "in_coords", "in_3dref", "in_mask")
"""What RELION's External job can hand over beside particles."""


@dataclass(frozen=True)
class RelionJobCommand:
    """Train as an External job of RELION's pipeline, so that the result shows in its GUI as particles for the next job.

    In RELION (3.1 to 5): job type External, "External executable": emsvae relion-job (with its full path where RELION does not find
    emsvae), "Input particles": any particles.star. Any option of `emsvae train` can be given, as a parameter (label z-dim, value 4;
    for a switch such as no-rotate the value stays empty) or under "Additional arguments" (--z-dim 4 --no-rotate). The run goes to
    External/jobNNN/run, particles.star to External/jobNNN.

    "Continue" goes on with a run that was aborted or killed, with its own settings; with the argument --force it starts anew.
    "Abort running" ends the training early and still writes the results.
    """

    in_parts: Path
    """Particles (RELION's "Input particles")."""
    o: Path
    """The job's folder, which RELION makes."""
    j: int = 1
    """Threads (RELION's "Number of threads")."""
    classes: int = 0
    """Also put the particles into this many classes (`emsvae classes`), for RELION's Select; 0: none."""
    pipeline_control: Path | None = None
    """RELION adds it to command lines in which relion_ occurs; not used."""


def main(argv: list[str]) -> int:
    """``emsvae relion-job``."""
    relions, trains = _parted(argv)
    if {"-h", "--help"} & set(trains):
        parse(RelionJobCommand, ["--help"])
    if not relions.get("o"):  # nowhere to leave a word for RELION
        relions.pop("o", None)
        parse(RelionJobCommand, _flags(relions))
    from emspatialvae.jobs.relion import run_job

    return run_job(Path(relions["o"]), lambda: _train(relions, trains))


def _train(relions: dict[str, str], trains: list[str]) -> int:
    """The job itself."""
    for name in NOT_TAKEN:
        if name in relions:
            raise EmsvaeError(f'--{name} {relions[name]}: this job takes particles; fill in "Input particles" only')
    asked = parse(RelionJobCommand, _flags(relions))
    if asked.j < 1:
        raise EmsvaeError(f"--j is {asked.j}; expected 1 thread or more")
    if asked.classes < 0:
        raise EmsvaeError(f"--classes is {asked.classes}; expected 1 or more, or 0 for none")
    if any(word.partition("=")[0] == "--out" for word in trains):
        raise EmsvaeError("--out: RELION's --o says where the job goes; leave --out out")
    from emspatialvae.workflows.relion_job import relion_job

    return relion_job(train.main, asked.in_parts, asked.o, trains, threads=asked.j, classes=asked.classes)


def _parted(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """RELION's own flags with their values, and all other words, which are for `emsvae train`."""
    own = {*(field.name for field in fields(RelionJobCommand)), *NOT_TAKEN}
    relions: dict[str, str] = {}
    trains: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in own:
            relions[name] = value if equals else next(words, "")
        else:
            trains.append(word)
    return relions, trains


def _flags(relions: dict[str, str]) -> list[str]:
    return [word for name, value in relions.items() for word in (f"--{name}", value)]
