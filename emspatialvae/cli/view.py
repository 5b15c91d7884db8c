"""``emsvae view``."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class ViewCommand:
    """See the particles in napari: a run folder with the Latent explorer, or a .star, .cs or .mrcs file with the training form."""

    what: Positional[Path]
    """The run folder that `emsvae train` made, or a particle file."""
    project_dir: Path | None = None
    """Where the images lie now, if they are not found from where the file lies."""


def main(argv: list[str]) -> int:
    """``emsvae view``: returns when the window is closed."""
    asked = parse(ViewCommand, argv)
    from emspatialvae.workflows.view import view

    view(asked.what, asked.project_dir)
    return 0
