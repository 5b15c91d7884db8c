"""``emsvae watch``."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse
from emspatialvae.config import Device, InputConfig, Poses


@dataclass(frozen=True)
class WatchCommand:
    """Infer what a growing STAR file adds, again and again, and say when training should go on; Ctrl-C ends it.

    The results of all its particles are those of `emsvae infer` on the whole file, but for the last digits of sums.
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    input: InputConfig
    out: Path | None = None
    """Folder for particles.star and latents.csv [default: watch/ in the run folder]; replaced as a whole at each look that finds something."""
    every: float = 30.0
    """Seconds between two looks."""
    once: bool = False
    """Look once and end, for scripts."""
    retrain: bool = False
    """When training should go on, do so from the run's weights on all particles, into RUN_2 beside the run, and watch on with that."""
    poses: Poses = "auto"
    """As in `emsvae train`."""
    device: Device = "auto"
    """Where to compute."""


def main(argv: list[str]) -> int:
    """``emsvae watch``: returns 0 when it was ended by Ctrl-C, which is how it ends."""
    asked = parse(WatchCommand, argv)
    from emspatialvae.results.run_folder import RunDir
    from emspatialvae.workflows.watch import Watch, watch

    begun = Watch(RunDir(asked.run), asked.input, asked.out, poses=asked.poses, device=asked.device)
    return watch(begun, every_s=asked.every, once=asked.once, retrain=asked.retrain)
