"""``emsvae infer``."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse
from emspatialvae.config import Device, InputConfig, Poses


@dataclass(frozen=True)
class InferCommand:
    """Infer z, rotation and shift of other particles with a trained run, and write them into those particles' own file.

    A run that was trained with --poses-fixed takes the poses from that file, too, and infers z only.
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    input: InputConfig
    out: Path
    """Where to write: a name ending in .star, .cs or .csv."""
    poses: Poses = "auto"
    """As in `emsvae train`."""
    skip_bad_ctf: bool = False
    """As in `emsvae train` [default: as the run was trained]."""
    device: Device = "auto"
    """Where to compute; the run may have been trained elsewhere."""
    force: bool = False
    """Replace what is there."""


def main(argv: list[str]) -> int:
    """``emsvae infer``."""
    asked = parse(InferCommand, argv)
    from emspatialvae.jobs import ranks
    from emspatialvae.results.run_folder import RunDir
    from emspatialvae.workflows.infer import infer_other

    with ranks.joined():
        infer_other(
            RunDir(asked.run),
            asked.input,
            asked.out,
            poses=asked.poses,
            skip_bad_ctf=asked.skip_bad_ctf,
            device=asked.device,
            force=asked.force,
        )
    return 0
