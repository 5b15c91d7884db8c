"""``emsvae simulate``."""

import json

from emspatialvae.cli.parsing import parse
from emspatialvae.config import SimulateConfig


def main(argv: list[str]) -> int:
    """``emsvae simulate``."""
    asked = parse(SimulateConfig, argv)
    from emspatialvae.simulation.stack import simulate_stack

    out = simulate_stack(asked)
    strength = "no signal" if asked.kind == "noise" else f"SNR {asked.snr}"
    if asked.map is not None:
        facts = json.loads((out / "simulation.json").read_text())
        print(
            f"map of {facts['map_side']} voxels along an edge, {facts['map_voxel_A']:g} A each ({facts['map_voxel_from']}); particle"
            f" {facts['particle_diameter_A']:.0f} A wide; {facts['neighbours']:,} neighbours"
        )
    print(
        f"{asked.particles:,} particles of {asked.box} px, {strength}: {out}/particles.star, truth in {out}/truth.star"
    )
    return 0
