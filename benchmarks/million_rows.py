"""``emsvae info`` and the write-back on a STAR file of a million rows: seconds and peak memory.

    python benchmarks/million_rows.py [--rows 1000000]

The file (RELION 3.1, 26 columns, about 300 MB) and a sparse stack for each of its micrographs are made in a temporary folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LABELS = [
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnAutopickFigureOfMerit",
    "rlnClassNumber",
    "rlnAnglePsi",
    "rlnImageName",
    "rlnMicrographName",
    "rlnOpticsGroup",
    "rlnCtfMaxResolution",
    "rlnCtfFigureOfMerit",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnCtfBfactor",
    "rlnCtfScalefactor",
    "rlnPhaseShift",
    "rlnGroupNumber",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnNormCorrection",
    "rlnLogLikeliContribution",
    "rlnMaxValueProbDistribution",
    "rlnNrOfSignificantSamples",
    "rlnRandomSubset",
]
PER_STACK = 250


def make(folder: Path, rows: int) -> Path:
    from emspatialvae.io.mrc import StackWriter

    first = folder / "Extract" / "0.mrcs"
    with StackWriter(first, PER_STACK, 64, 1.2) as writer:
        writer.append(np.random.default_rng(0).normal(size=(PER_STACK, 64, 64)).astype(np.float32))
    for stack in range(1, -(-rows // PER_STACK)):
        (folder / "Extract" / f"{stack}.mrcs").symlink_to(first)
    star = folder / "particles.star"
    with star.open("w") as out:
        out.write(
            "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnVoltage #3\n"
        )
        out.write("_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n_rlnImageSize #7\n")
        out.write("1 opticsGroup1 300.0 2.7 0.1 1.2 64\n\n\n# version 30001\n\ndata_particles\n\nloop_\n")
        out.writelines(f"_{label} #{n}\n" for n, label in enumerate(LABELS, 1))
        for row in range(rows):
            name = f"{row % PER_STACK + 1:06d}@Extract/{row // PER_STACK}.mrcs"
            out.write(
                f"{row % 4000:12.6f} {row % 3900:12.6f} 0.512345 1 {row % 360:12.6f} {name} mics/{row // PER_STACK}.mrc 1 "
                f"4.545000 0.089249 {13000 + row % 500:12.6f} {12800 + row % 500:12.6f} -160.390000 0.0 1.0 0.0 1 "
                f"{row % 360:12.6f} {row % 180:12.6f} 0.123456 -1.654321 0.9 2.586789e+05 0.05 450 {row % 2 + 1}\n"
            )
    return star


def measured(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in GB of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


WRITE = """
import sys, numpy as np
from pathlib import Path
from emspatialvae.config import InputConfig
from emspatialvae.results.export import write_star
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.results.latents import Latents
from emspatialvae.particles.load import load_particles
stack = load_particles(InputConfig(Path(sys.argv[1])), open_stacks=False)
n = len(stack)
z = np.random.default_rng(0).normal(size=(n, 2))
latents = Latents(stack.names, np.ones(n, bool), z, z**2, Pose2D(z[:, 0], z), z[:, 1]**2, z**2, z[:, 0], 1.2)
write_star(latents, stack, Path(sys.argv[2]), poses="overwrite")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        star = make(Path(folder), rows)
        print(
            f"{rows:,} rows, {len(LABELS)} columns, {star.stat().st_size / 2**20:.0f} MB, {-(-rows // PER_STACK):,} stacks"
        )
        print("| what | wall s | peak GB |\n|---|---|---|")
        jobs = {
            "emsvae info": [sys.executable, "-m", "emspatialvae", "info", str(star)],
            "write back (3 columns replaced, 7 added)": [
                sys.executable,
                "-c",
                WRITE,
                str(star),
                str(star.with_name("out.star")),
            ],
        }
        for what, arguments in jobs.items():
            seconds, gigabytes = measured(arguments)
            print(f"| {what} | {seconds:.1f} | {gigabytes:.2f} |")


if __name__ == "__main__":
    main()
