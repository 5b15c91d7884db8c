"""A million particles from STAR file to STAR file: seconds of each part, and memory.

    python benchmarks/million_particles.py [--particles 1000000] [--images 20000] [--box 64] [-- --epochs 1]

The STAR file has a million rows of 26 columns over a stack of fewer images, each image many times; the cache holds every row, as always. No
option of `emsvae train` is given but those behind ``--``. Memory is what the process itself holds, and with the pages of files that it has
looked at, which are the system's to take back.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

COLUMNS = 26
"""Of the STAR file; those that a simulation lacks are filled with numbers that nothing reads."""
PARTS = (
    ("read and look", "particles in"),
    ("prepare images", "thread"),
    ("basis", "steerable components"),
    ("train, with searches", "training ended"),
    ("common frame", "poses refer to"),
    ("infer and write", "results:"),
)
"""Each part of a run, and what stands in the line of ``run.log`` that ends it."""


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
    have = sum(line.startswith("_rln") for line in lines[:first][-COLUMNS:])
    more = range(have, COLUMNS)
    head = [*lines[:first], *(f"_rlnUnread{number} #{number + 1}\n" for number in more)]
    own = [line.rstrip("\n") + "".join(f" {number * 1.5:12.6f}" for number in more) + "\n" for line in own]
    out = star.with_name("many.star")
    with out.open("w") as stream:
        stream.writelines(head)
        for start in range(0, rows, len(own)):
            stream.writelines(own[: min(len(own), rows - start)])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("train", nargs="*", help="options of emsvae train, behind --")
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
        began = time.time()
        run = Path(folder) / "run"
        train = ["train", star, "--out", run, *asked.train]
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
        print(f"\n{asked.particles:,} particles of {asked.box} px, exit code {code}\n\n| part | s |\n|---|---|")
        for part, seconds in parts(run, began):
            print(f"| {part} | {seconds:,.0f} |")
        print(f"| the whole command | {time.time() - began:,.0f} |")
        print(f"\n{peaks[0]:.2f} GB of its own at the peak, {peaks[1]:.2f} GB with pages of files")


def parts(run: Path, began: float) -> list[tuple[str, float]]:
    """Seconds of each of `PARTS`, from the times in ``run.log``."""
    found, since = [], began
    lines = iter((run / "run.log").read_text().splitlines())
    for part, mark in PARTS:
        until = next((line for line in lines if mark in line), None)
        if until is None:
            break
        now = datetime.datetime.fromisoformat(until[:19]).timestamp()
        found.append((part, now - since))
        since = now
    return found


if __name__ == "__main__":
    main()
