"""Memory of training on a million particles: what the process itself holds, and with the pages of files that it has looked at.

    python benchmarks/million_particles.py [--particles 1000000] [--images 20000] [--box 32] [--epochs 1]

The STAR file has a million rows over a stack of fewer images, each image many times; the cache holds every row, as always. Pages
of the cache (memory-mapped) are the system's to take back, so they are counted apart.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def memory_gb(pid: int) -> tuple[float, float]:
    """(own memory, with file pages) of a process in GB; zeros when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    kb = {
        line.split(":")[0]: float(line.split()[1])
        for line in status.splitlines()
        if line.startswith(("RssAnon", "VmRSS"))
    }
    return kb.get("RssAnon", 0.0) / 1e6, kb.get("VmRSS", 0.0) / 1e6


def many_rows(star: Path, rows: int) -> Path:
    """The particles of a STAR file over and over, up to a number of rows."""
    lines = star.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if "@" in line)
    own = [line for line in lines[first:] if "@" in line]
    out = star.with_name("many.star")
    with out.open("w") as stream:
        stream.writelines(lines[:first])
        for start in range(0, rows, len(own)):
            stream.writelines(own[: min(len(own), rows - start)])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    asked = parser.parse_args()
    emsvae = [sys.executable, "-W", "ignore", "-m", "emspatialvae"]
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder) / "sim"
        simulate = [
            "simulate",
            "hinge",
            "--particles",
            asked.images,
            "--box",
            asked.box,
            "--snr",
            "0.2",
            "--out",
            stack,
        ]
        subprocess.run([*emsvae, *map(str, simulate)], check=True)
        star = many_rows(stack / "particles.star", asked.particles)
        began = time.perf_counter()
        train = ["train", star, "--out", Path(folder) / "run", "--z-dim", "1", "--epochs", asked.epochs]
        process = subprocess.Popen([*emsvae, *map(str, train)])
        peaks = [0.0, 0.0]

        def watch() -> None:
            while process.poll() is None:
                peaks[:] = [max(a, b) for a, b in zip(peaks, memory_gb(process.pid), strict=True)]
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        watcher.join()
        print(
            f"| {asked.particles:,} particles of {asked.box} px, {asked.epochs} epoch(s) | {time.perf_counter() - began:,.0f} s |",
            end="",
        )
        print(f" {peaks[0]:.2f} GB own, {peaks[1]:.2f} GB with file pages | exit {code} |")


if __name__ == "__main__":
    main()
