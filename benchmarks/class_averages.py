"""``emsvae classes``: averages of full-size particles, with and without CTF; seconds, particles per second, peak memory.

    python benchmarks/class_averages.py [--particles 20000] [--box 128] [--k 20]

The stack is noise (averaging does not care), the poses, contents and CTFs are drawn by chance; reading the images is included.
Each case runs in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PIXEL_A, Z_DIM, PREPARED_BOX = 1.2, 2, 64


def make(folder: Path, particles: int, box: int) -> Path:
    """A RELION 3.1 stack of noise, each particle with a CTF of its own."""
    import pandas as pd

    from emspatialvae.io import star
    from emspatialvae.io.mrc import StackWriter

    rng = np.random.default_rng(0)
    with StackWriter(folder / "particles.mrcs", particles, box, PIXEL_A) as writer:
        for start in range(0, particles, 500):
            writer.append(rng.standard_normal((min(500, particles - start), box, box), dtype=np.float32))
    optics = {"rlnOpticsGroup": 1, "rlnOpticsGroupName": "one", "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7}
    optics |= {
        "rlnAmplitudeContrast": 0.1,
        "rlnImagePixelSize": PIXEL_A,
        "rlnImageSize": box,
        "rlnImageDimensionality": 2,
    }
    defocus = rng.uniform(1e4, 3e4, particles)
    table = {
        "rlnImageName": [f"{n + 1:06d}@particles.mrcs" for n in range(particles)],
        "rlnOpticsGroup": 1,
        "rlnDefocusU": defocus + 250,
        "rlnDefocusV": defocus - 250,
        "rlnDefocusAngle": rng.uniform(0, 180, particles),
        "rlnPhaseShift": 0.0,
    }
    out = folder / "particles.star"
    star.write_new(out, {"optics": pd.DataFrame([optics]), "particles": pd.DataFrame(table)})
    return out


def measure(path: Path, treatment: str, k: int) -> None:
    """Classes and averages of a stack, as ``emsvae classes`` makes them; prints a row of the table."""
    from emspatialvae.analysis.classes.averages import class_averages
    from emspatialvae.analysis.classes.clusters import classified
    from emspatialvae.config import InputConfig
    from emspatialvae.imaging.geometry import Pose2D
    from emspatialvae.particles.load import load_particles
    from emspatialvae.preprocess.preparation import Preparation
    from emspatialvae.results.latents import Latents

    stack = load_particles(InputConfig(path))
    n, box = len(stack), max(stack.boxes)
    rng = np.random.default_rng(1)
    pixel_size_A = PIXEL_A * box / PREPARED_BOX
    latents = Latents(
        names=stack.names,
        used=np.ones(n, bool),
        z=rng.normal(size=(n, Z_DIM)),
        z_sd=np.full((n, Z_DIM), 0.2),
        pose=Pose2D(rng.uniform(-np.pi, np.pi, n), rng.normal(size=(n, 2))),
        theta_sd_rad=np.zeros(n),
        shift_sd_px=np.zeros((n, 2)),
        log_likelihood=np.zeros(n),
        pixel_size_A=pixel_size_A,
    )
    preparation = Preparation(PREPARED_BOX, pixel_size_A, 0.45 * PREPARED_BOX, True, treatment, 6.0, True)  # pyright: ignore[reportArgumentType]
    began, began_cpu = time.perf_counter(), time.process_time()
    latents = classified(latents, k)
    clustered = time.perf_counter() - began
    averages = class_averages(stack, latents, preparation)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    peak_GB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    how = "Wiener (CTF known)" if averages.ctf_corrected else "plain"
    print(
        f"| {n:,} x {box} px, {len(averages)} classes, {how} | {seconds:.1f} ({clustered:.1f} of it clustering) | {cpu:.1f} | "
        f"{n / (seconds - clustered):,.0f} | {peak_GB:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=20_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--measure", nargs=2, metavar=("STAR", "TREATMENT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(Path(asked.measure[0]), asked.measure[1], asked.k)
        return
    print("| what | wall s | cpu s | particles/s | peak GB |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        star = make(Path(folder), asked.particles, asked.box)
        for treatment in ("none", "multiply"):
            subprocess.run(
                [sys.executable, __file__, "--measure", str(star), treatment, "--k", str(asked.k)], check=True
            )


if __name__ == "__main__":
    main()
