"""``emsvae simulate``."""

from emspatialvae.cli.parsing import parse
from emspatialvae.config import SimulateConfig


def main(argv: list[str]) -> int:
    """``emsvae simulate``."""
    asked = parse(SimulateConfig, argv)
    from emspatialvae.workflows.simulate import simulate

    simulate(asked)
    return 0
