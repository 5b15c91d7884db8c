"""Seconds of training by the number of threads, on a quiet machine and beside busy processes of its own making.

    python benchmarks/threads.py [--particles 10000] [--epochs 6]

Each cell is the median of three whole trainings of a simulated hinge of 40 px.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUSY = "x = 0\nwhile True:\n    x += 1"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Seconds of training by the number of threads.")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder) / "sim" / "particles.star"
        emsvae(
            "simulate", "hinge", "--out", stack.parent, "--particles", given.particles, "--shift-px", 2, "--snr", 0.1
        )
        print("| threads | beside | chosen | whole command, s |\n|---|---|---|---|")
        for busy in (0, 1, cores):
            neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
            try:
                for threads in (1, cores, None) if busy else (1, None):  # with no neighbour the default is all cores
                    found = [trained(stack, threads, given.epochs) for _ in range(given.repeats)]
                    seconds, chosen = statistics.median(s for s, _ in found), found[-1][1]
                    print(
                        f"| {threads or 'default'} | {busy} busy process(es) | {chosen} | {seconds:.1f} |", flush=True
                    )
            finally:
                for neighbour in neighbours:
                    neighbour.kill()


def trained(stack: Path, threads: int | None, epochs: int) -> tuple[float, str]:
    """Seconds of one training, and what was said about threads."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds = emsvae(
            *(
                "train",
                stack,
                "--out",
                run,
                "--epochs",
                epochs,
                "--z-dim",
                1,
                "--device",
                "cpu",
                "--infer-turns",
                1,
            ),
            *([] if threads is None else ["--threads", threads]),
        )
        chosen = re.search(r"(\d+ threads?.*) \(--threads\)", (run / "run.log").read_text())
        assert chosen
        return seconds, chosen[1]


def emsvae(*words: object) -> float:
    """Run a command; the seconds that it took."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "emspatialvae", *map(str, words)], check=True, capture_output=True)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
