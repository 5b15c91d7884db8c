"""``emsvae analyze``."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class AnalyzeCommand:
    """Look at what a run found: classes, figures with captions, and RUN/analysis/report.html, a page that opens anywhere."""

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    k: int | None = None
    """Make this many classes [default: those of the run; 20, or a tenth of few particles, where it has none yet]."""
    colour_by: tuple[str, ...] = ()
    """Columns of the run's particles.star (or .cs) to colour latent space by, besides those that always are; short names
    will do: defocus_u, voltage."""
    umap: bool = False
    """Also bring z into a plane with UMAP; needs pip install "emspatialvae[umap]"."""
    rows: int = 20_000
    """Particles that go into UMAP at most, drawn at random."""
    project_dir: Path | None = None
    """Where the images lie now, if they were moved."""


def main(argv: list[str]) -> int:
    """``emsvae analyze``."""
    asked = parse(AnalyzeCommand, argv)
    from emspatialvae.workflows.analyze import ReportSettings, analyze_run

    analyze_run(asked.run, ReportSettings(asked.k, asked.colour_by, asked.umap, asked.rows, asked.project_dir))
    return 0
