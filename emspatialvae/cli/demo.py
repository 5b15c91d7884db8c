"""``emsvae demo``."""

from dataclasses import dataclass
from pathlib import Path

from emspatialvae.cli.parsing import parse


@dataclass(frozen=True)
class DemoCommand:
    """Simulate a stack of hinged particles, train on it, write the STAR file and the figures, and say what was found."""

    out: Path = Path("emsvae_demo")
    """Folder for the stack and the run."""
    force: bool = False
    """Replace an older demo there."""


def main(argv: list[str]) -> int:
    """``emsvae demo``."""
    asked = parse(DemoCommand, argv)
    from emspatialvae.jobs import interrupt
    from emspatialvae.workflows.demo import demo as run_demo

    return 0 if run_demo(asked.out, force=asked.force) else interrupt.exit_code()
