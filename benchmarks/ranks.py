"""Training by one and by several ranks of one thread each: particles per second, bytes that a step exchanges, and what that means on a network.

    python benchmarks/ranks.py [--particles 4000] [--epochs 6] [--ranks 1 2]

A simulated hinge of 40 px, no option but the number of epochs; medians over the epochs that search no poses. The last table is no measurement: it
is the traffic of a step at the speed of a network, beside the time that the step takes here.
"""

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from emspatialvae.results.run_folder import RunDir


def emsvae(count: int, *words: str) -> str:
    """What the first of so many ranks has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {} if count == 1 else {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "emspatialvae", *words],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(count)
    ]
    told = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"emsvae {' '.join(words)}: failed with {count} rank(s)")
    return told[0]


def rates(told: str) -> list[float]:
    """Particles per second of each epoch, from the lines of a training without a terminal."""
    return [float(rate.replace(",", "")) for rate in re.findall(r"epoch \d+: .*; ([\d,]+) particles/s", told)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--box", type=int, default=40)
    asked = parser.parse_args()
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ("--particles", str(asked.particles), "--box", str(asked.box))
        emsvae(1, "simulate", "hinge", *size, "--out", str(folder / "sim"))
        for count in asked.ranks:
            words = (
                "--out",
                str(folder / f"run{count}"),
                "--epochs",
                str(asked.epochs),
                "--threads",
                "1",
                "--z-dim",
                "2",
            )
            told = emsvae(count, "train", str(folder / "sim" / "particles.star"), *words)
            found[count] = statistics.median(rates(told)[1:])
        state = RunDir(folder / f"run{asked.ranks[0]}").load_checkpoint()
        weights = sum(values["exp_avg"].numel() for values in state["optimiser"]["state"].values())
    batch = 256
    print(
        f"{os.cpu_count()} cores, {asked.particles:,} particles of {asked.box} px, torch {torch.__version__}, batch {batch}"
    )
    print("| ranks | particles/s in steps | over one rank |")
    print("|---|---|---|")
    for count, rate in found.items():
        print(f"| {count} | {rate:,.0f} | {rate / found[asked.ranks[0]]:.2f} |")
    # All-reduce moves each number twice (there and back, all but one share of it); the rows of a batch are gathered by every rank.
    gradient, rows = 2 * 4 * weights, 4 * batch * (3 + 1 + 2 + 2)
    step_s = batch / found[asked.ranks[0]]
    print()
    print(
        f"{weights:,} weights: {gradient / 1e6:.2f} MB of gradients and {rows / 1e3:.0f} kB of poses and latents for a rank and step"
    )
    print("| network | exchange of a step, ms | step on one core here, ms |")
    print("|---|---|---|")
    for gbit in (10, 100):
        print(f"| {gbit} Gbit/s | {1e3 * 8 * (gradient + rows) / (gbit * 1e9):.2f} | {1e3 * step_s:.0f} |")


if __name__ == "__main__":
    main()
