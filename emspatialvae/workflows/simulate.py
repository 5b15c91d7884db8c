"""``emsvae simulate``: a stack with known truth."""

import json
from pathlib import Path

from emspatialvae.config import SimulateConfig
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.workflows.progress import Say


def simulate(config: SimulateConfig, say: Say = print) -> Path:
    """Write a simulated stack and tell what is in it; returns its folder."""
    out = simulate_stack(config)
    strength = "no signal" if config.kind == "noise" else f"SNR {config.snr}"
    if config.map is not None:
        facts = json.loads((out / "simulation.json").read_text())
        say(
            f"map of {facts['map_side']} voxels along an edge, {facts['map_voxel_A']:g} A each ({facts['map_voxel_from']}); particle"
            f" {facts['particle_diameter_A']:.0f} A wide; {facts['neighbours']:,} neighbours"
        )
    say(
        f"{config.particles:,} particles of {config.box} px, {strength}: {out}/particles.star, truth in {out}/truth.star"
    )
    return out
