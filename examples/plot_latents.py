"""Colour a run's latent space by any column of its STAR file.

python examples/plot_latents.py particles_emsvae rlnDefocusU z.png
"""

import sys
from pathlib import Path

from emspatialvae.analysis.figures import run as figures
from emspatialvae.io.star import StarFile
from emspatialvae.particles.read_star import particle_block
from emspatialvae.results.read_run import read_run


def main(run_folder: str, label: str, out: str) -> None:
    run, latents, _ = read_run(Path(run_folder))
    _, numbers = particle_block(StarFile.read(run.star)).read(numbers=[label])
    shown = latents.used
    figures.save(figures.z_scatter(latents.z[shown], numbers[label][: len(latents)][shown], label), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
