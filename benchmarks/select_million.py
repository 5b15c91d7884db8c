"""``emsvae select`` on STAR files of a million rows: seconds and peak memory.

    python benchmarks/select_million.py [--rows 1000000]

The file is that of ``million_rows.py``; the unbinned one has the same particles under other image names.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from million_rows import LABELS, make, measured

WHERE = "rlnAnglePsi > 90 and rlnVoltage == 300 and not 'mics/77' in rlnMicrographName"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        star = make(Path(folder), rows)
        unbinned = star.with_name("unbinned.star")
        with star.open() as lines, unbinned.open("w") as out:
            out.writelines(line.replace("Extract/", "Unbinned/") for line in lines)
        print(f"{rows:,} rows, {len(LABELS)} columns, {star.stat().st_size / 2**20:.0f} MB")
        print("| what | wall s | peak GB |\n|---|---|---|")
        jobs = {
            "--where, kept and excluded": ["--where", WHERE, "--excluded", star.with_name("rest.star")],
            "--where, --from the unbinned file (by coordinates)": ["--where", WHERE, "--from", unbinned],
            "--drop-duplicates-a 2 (lines of picks 1.7 A apart)": ["--drop-duplicates-a", "2"],
        }
        for number, (what, words) in enumerate(jobs.items()):
            out = star.with_name(f"{number}.star")
            seconds, gigabytes = measured(
                [sys.executable, "-m", "emspatialvae", "select", str(star), *map(str, words), "--out", str(out)]
            )
            print(f"| {what} | {seconds:.1f} | {gigabytes:.2f} |", flush=True)


if __name__ == "__main__":
    main()
