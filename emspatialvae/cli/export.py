"""``emsvae export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from emspatialvae.cli.parsing import parse
from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError


@dataclass(frozen=True)
class ExportCommand:
    """Write the results of a run: any of the formats, in one go."""

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    star: Path | None = None
    """The input STAR file with our columns (for other inputs a new RELION 3.1 file)."""
    cs: Path | None = None
    """The input .cs file with alignments2D and emsvae fields."""
    csv: Path | None = None
    """A table: z, theta, shift and their standard deviations."""
    aligned: Path | None = None
    """A stack of the raw images with rotation and shift taken out: .mrcs, or .npy (which alone keeps colour)."""
    coordinates: Path | None = None
    """The particles' file with coordinates moved to the centres that we found (location/center_x_frac in a .cs) and the shifts set to
    0, for extracting the images anew: .star, or .cs."""
    micrograph_pixel_size_A: Annotated[float | None, arg(name="micrograph-pixel-size-a")] = None
    """Pixel size that the coordinates are in [default: as the file says, else that of the images]."""
    poses: Poses | None = None
    """As in `emsvae train` [default: as the run was trained]."""
    project_dir: Path | None = None
    """Where the images lie now, if they were moved."""
    hold_still: Path | None = None
    """Mask (.mrc, drawn on the run's consensus.mrc): poses refer to that part of the particle, say one domain of a hinge."""
    link_stacks: Path | None = None
    """Folder for links to stacks whose names do not end in .mrcs, as those of cryoSPARC: RELION reads no others. The STAR file (--star)
    then names the links."""
    force: bool = False
    """Replace what is there."""


def main(argv: list[str]) -> int:
    """``emsvae export``."""
    asked = parse(ExportCommand, argv)
    from emspatialvae.workflows.export import export_run

    wanted = {
        key: path
        for key in ("star", "cs", "csv", "aligned", "coordinates")
        if (path := getattr(asked, key)) is not None
    }
    if not wanted:
        raise EmsvaeError("nothing to export; give --star, --cs, --csv, --aligned or --coordinates with a file name")
    export_run(
        asked.run,
        wanted,
        poses=asked.poses,
        project_dir=asked.project_dir,
        hold_still=asked.hold_still,
        link_stacks=asked.link_stacks,
        micrograph_pixel_size_A=asked.micrograph_pixel_size_A,
        force=asked.force,
    )
    return 0
