"""``emsvae select``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class SelectCommand:
    """Write some of the particles to a file of their own; order, optics groups, ids and digits stay as they are.

    A condition compares columns (of particles or their optics groups) with numbers or quoted texts: == != < <= > >=, in,
    not in, joined by and, or, not. "mic_07" in rlnMicrographName looks for a part of a name. Short names will do: junk, z1,
    class_number, voltage. Names in .cs files: alignments2D/class == 3, emsvae/z[0] > 1.
    """

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder that `emsvae train` made, or any particle file (.star, .cs)."""
    out: Path
    """Where to write: the ending of the particle file (.star; also .cs where the run came from one)."""
    where: str | None = None
    """Which particles: "rlnClassNumber in (1, 4) and emsvaeZ1 > 0.5"."""
    drop_duplicates_A: Annotated[float | None, arg(name="drop-duplicates-a")] = None
    """Of particles within this many angstrom in a micrograph (shifts taken into account) keep the best one."""
    micrograph_pixel_size_A: Annotated[float | None, arg(name="micrograph-pixel-size-a")] = None
    """Pixel size that the coordinates are in [default: as the file says, else that of the images]."""
    rows_from: Annotated[Path | None, arg(name="from")] = None
    """Write the same particles out of another file, say the unbinned ones: joined on uid, image name, or micrograph and coordinates."""
    allow_missing: bool = False
    """Some of them may be missing there."""
    with_results: bool = False
    """Add our columns to the rows of that file (.star)."""
    excluded: Path | None = None
    """Write all the other particles here."""
    force: bool = False
    """Replace what is there."""


def main(argv: list[str]) -> int:
    """``emsvae select``."""
    asked = parse(SelectCommand, argv)
    from emspatialvae.workflows.select import select

    select(
        asked.source,
        asked.out,
        where=asked.where,
        drop_duplicates_A=asked.drop_duplicates_A,
        micrograph_pixel_size_A=asked.micrograph_pixel_size_A,
        rows_from=asked.rows_from,
        allow_missing=asked.allow_missing,
        with_results=asked.with_results,
        excluded=asked.excluded,
        force=asked.force,
    )
    return 0
