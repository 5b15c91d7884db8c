"""``emsvae manifold``."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class ManifoldCommand:
    """Draw what the model makes of latent space: a grid of images, rotation and shift taken out.

    The steps are equally probable: through the inverse of the normal distribution along z1 and z2, or along principal components of
    z where it has more than two dimensions. Tiles without a particle are darkened: nothing bears out what is drawn there.
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    out: Path
    """Where to write: a picture (.png), or a stack of the tiles (.mrcs), row by row from the top."""
    tiles: int = 11
    """Along each axis."""
    components: tuple[int, ...] | None = None
    """Principal components of z that the axes follow, counted from 1: one, or two such as 1 3 [default: z1 and z2 themselves; 1 2 where
    z has more dimensions]."""
    force: bool = False
    """Replace what is there."""


def main(argv: list[str]) -> int:
    """``emsvae manifold``."""
    asked = parse(ManifoldCommand, argv)
    from emspatialvae.results.run_folder import RunDir
    from emspatialvae.workflows.manifold import write_manifold

    write_manifold(RunDir(asked.run), asked.out, tiles=asked.tiles, components=asked.components, force=asked.force)
    return 0
