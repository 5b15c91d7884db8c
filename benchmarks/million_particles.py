"""A million particles from STAR file to STAR file: seconds of each part, and memory.

    python benchmarks/million_particles.py [--particles 1000000] [--objects 20000] [--box 64] [-- --epochs 1]

The STAR file has a million rows of 26 columns over a stack of a million images (16.4 GB at 64 px, beside a cache of 8.2 GB; both are taken away
again). Every image has noise of its own; what it shows, a hinge in a pose, is one of 20,000, for these take long to draw. No option of `emsvae
train` is given but those behind ``--``. Memory is what the process itself holds, and with the pages of files that it has looked at, which are the
system's to take back. At the end the results are compared with the truth, outside of the time.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

COLUMNS = 26
"""Of the STAR file; those that a simulation lacks are filled with numbers that nothing reads."""
SNR, CLEAN_SNR = 0.2, 20.0
"""Of the images, and of those that they are made from by adding noise."""
PORTION = 5000
"""Images that are made at a time."""
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


def many_rows(star: Path, out: Path, rows: int, columns: int = 0) -> Path:
    """The particles of a STAR file over and over, up to so many rows and columns, each with an image of its own in ``many.mrcs``."""
    lines = star.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "@" in line)
    own = [line for line in lines[first:] if "@" in line]
    more = range(len(own[0].split()), columns)
    head = [*lines[:first], *(f"_rlnUnread{number} #{number + 1}" for number in more)]
    own = [line + "".join(f" {number * 1.5:12.6f}" for number in more) for line in own]
    with out.open("w") as stream:
        stream.writelines(f"{line}\n" for line in head)
        for row in range(rows):
            before, after = own[row % len(own)].split("@particles.mrcs")
            name = f"{row + 1:07d}@many.mrcs"
            stream.write(f"{before[: -len('000001')]}{name}{after}\n")
    return out


def many_images(stack: Path, out: Path, rows: int) -> None:
    """The images of a stack over and over, up to a number of images, each with more noise of its own."""
    from emspatialvae.io.mrc import StackWriter, read_header, read_images

    header = read_header(stack)
    clean = read_images(header, np.arange(header.n_images))
    # The simulation's noise has a s.d. of 1 and its signal a variance of CLEAN_SNR.
    sd = np.float32(np.sqrt(CLEAN_SNR / SNR - 1))
    rng = np.random.default_rng(0)
    with StackWriter(out, rows, clean.shape[-1], header.pixel_size_A) as writer:
        for start in range(0, rows, PORTION):
            numbers = np.arange(start, min(start + PORTION, rows)) % len(clean)
            noise = rng.standard_normal((len(numbers), *clean.shape[1:]), dtype=np.float32)
            writer.append(clean[numbers] + sd * noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("train", nargs="*", help="options of emsvae train, behind --")
    asked = parser.parse_args()
    emsvae = [sys.executable, "-W", "ignore", "-m", "emspatialvae"]
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder) / "sim"
        simulate = ["simulate", "hinge", "--particles", asked.objects, "--box", asked.box, "--snr", CLEAN_SNR]
        subprocess.run([*emsvae, *map(str, simulate), "--out", str(stack)], check=True)
        # In a folder of their own: the bounds in that of the simulation are those of images with little noise.
        many = Path(folder) / "many"
        many.mkdir()
        many_images(stack / "particles.mrcs", many / "many.mrcs", asked.particles)
        star = many_rows(stack / "particles.star", many / "particles.star", asked.particles, COLUMNS)
        truth = many_rows(stack / "truth.star", many / "truth.star", asked.particles)
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
        subprocess.run([*emsvae, "evaluate", str(run), "--truth", str(truth)], check=False)


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
