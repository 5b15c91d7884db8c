"""``emsvae simulate``."""

from emspatialvae.commands.parsing import parse
from emspatialvae.config import SimulateConfig


def main(argv: list[str]) -> int:
    """``emsvae simulate``."""
    asked = parse(SimulateConfig, argv)
    from emspatialvae.simulation.stack import simulate_stack

    out = simulate_stack(asked)
    strength = "no signal" if asked.kind == "noise" else f"SNR {asked.snr}"
    print(
        f"{asked.particles:,} particles of {asked.box} px, {strength}: {out}/particles.star, truth in {out}/truth.star"
    )
    return 0
