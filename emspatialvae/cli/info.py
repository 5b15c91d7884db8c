"""``emsvae info``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from emspatialvae.cli.parsing import parse
from emspatialvae.config import InputConfig, PrepareConfig


@dataclass(frozen=True)
class InfoCommand:
    """What is in a particle file, what is odd about it, and what `emsvae train` would do with it; or what a run holds."""

    source: Annotated[Positional[Path], arg(metavar="PATH")]
    """Particle file, folder of pictures, or run folder."""
    project_dir: Path | None = None
    """As in `emsvae train`."""
    passthrough: Path | None = None
    """As in `emsvae train`."""
    pixel_size_A: Annotated[float | None, arg(name="pixel-size-a")] = None
    """As in `emsvae train`."""
    strip_prefix: str | None = None
    """As in `emsvae train`."""
    box: int | None = None
    """As in `emsvae train`."""


def main(argv: list[str]) -> int:
    """``emsvae info``."""
    asked = parse(InfoCommand, argv)
    from emspatialvae.workflows import info

    if (asked.source / "config.json").is_file():
        print(info.run_text(asked.source))
    else:
        source = InputConfig(
            asked.source, asked.project_dir, asked.passthrough, asked.pixel_size_A, strip_prefix=asked.strip_prefix
        )
        print(info.particles_text(source, PrepareConfig(box=asked.box)))
    return 0
