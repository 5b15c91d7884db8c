"""``emsvae train``."""

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from emspatialvae import config as configuration
from emspatialvae.cli.parsing import parse
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.errors import EmsvaeError

if TYPE_CHECKING:
    from emspatialvae.jobs.ranks import Ranks
    from emspatialvae.particles.stack import ParticleStack


@dataclass(frozen=True)
class TrainCommand:
    """Learn the latent variable z, rotation and shift of every particle, and write them back into the particles' own file.

    Everything has a default; what was assumed is printed and stored in the run folder.
    """

    run: RunConfig
    out: Path | None = None
    """The run folder [default: NAME_emsvae in the current folder]."""
    force: bool = False
    """Replace an older run there."""
    resume: bool = False
    """Go on with a run that was killed or interrupted, with its own settings."""
    preset: Literal["none", "paper"] = "none"
    """paper: the EM settings of Bepler et al. 2019; flags given beside it win."""


def main(argv: list[str]) -> int:
    """``emsvae train``: returns 130 when the user interrupted the training, or another signal did (the results so far are written)."""
    default = RunConfig(InputConfig(tyro.MISSING))
    preset = _value_of("--preset", argv)
    if preset is not None and preset in configuration.PRESETS:
        default = configuration.with_preset(default, preset)
    asked = parse(TrainCommand, argv, TrainCommand(default))
    from emspatialvae.jobs import ranks

    with ranks.joined() as team:
        return _train(asked, argv, team)


def _train(asked: TrainCommand, argv: list[str], team: "Ranks") -> int:
    from emspatialvae.jobs import interrupt
    from emspatialvae.results.run_folder import RunDir, default_out
    from emspatialvae.workflows import begin_run, train

    out = asked.out or default_out(asked.run.input.particles)
    if asked.resume and asked.force:
        raise EmsvaeError("--resume goes on with a run, --force replaces it; give one of them")
    if asked.resume:
        # Read again with the run's own settings as defaults, so that only flags that were given can differ.
        own = RunDir(out).manifest.config
        own = replace(own, input=replace(own.input, particles=tyro.MISSING))
        asked = parse(TrainCommand, argv, TrainCommand(own))
    begun: list[tuple[RunDir, ParticleStack]] = []

    def begin() -> None:
        begun.append(
            begin_run.open_run(asked.run, out)
            if asked.resume
            else begin_run.start_run(asked.run, out, force=asked.force)
        )

    team.by_first(begin)
    run, stack = begun[0] if team.first else begin_run.follow_run(out, asked.run.input)
    return 0 if train.train_run(run, stack, asked.run.train, resume=asked.resume) else interrupt.exit_code()


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The word after ``flag``, or after ``flag=``."""
    for word, following in zip_longest(argv, argv[1:]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
