"""``emsvae path``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class PathCommand:
    """Walk through z on a straight line from one particle to another and draw what lies between, rotation and shift taken out.

    Three files are written side by side: a stack (.mrcs), a film (.gif) and a strip of pictures (.png).
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    start: Annotated[str, tyro.conf.arg(name="from", metavar="N@STACK")]
    """Name of the first particle, as in the metadata file: 000123@stack.mrcs (zeros and leading folders may be left out)."""
    end: Annotated[str, tyro.conf.arg(name="to", metavar="N@STACK")]
    """Name of the last."""
    out: Path
    """Where to write: path.mrcs, path.gif or path.png; the other two get the same name."""
    steps: int = 20
    """Images along the path, both ends with them."""
    averages: bool = True
    """Beside each image of the model, the average of the 100 real particles nearest to it, the nearest counting most: what is not there, the model made up."""
    project_dir: Path | None = None
    """Where the images lie now, if they were moved."""
    force: bool = False
    """Replace what is there."""


def main(argv: list[str]) -> int:
    """``emsvae path``."""
    asked = parse(PathCommand, argv)
    from emspatialvae.results.run_folder import RunDir
    from emspatialvae.workflows.path import write_path

    write_path(
        RunDir(asked.run),
        (asked.start, asked.end),
        asked.steps,
        asked.out,
        averages=asked.averages,
        project_dir=asked.project_dir,
        force=asked.force,
    )
    return 0
