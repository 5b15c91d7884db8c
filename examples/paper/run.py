"""The experiments of the spatial-VAE paper (arXiv 1909.11663), each by one command.

python examples/paper/run.py mnist|hinge|galaxy|em|all [--size small|full]

Prints the row's table, and writes it with its numbers and its figure into ``results/``; README.md beside this file is put together
from all that has been measured so far. Training, inference and simulation are emsvae's own; see ``experiment.trained``.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from experiment import REUSED_S, SIZES, Place
from readme import assembled
from rows import em, galaxy, hinge, mnist

from emspatialvae.analysis.figures import run as figures
from emspatialvae.errors import EmsvaeError
from emspatialvae.io.atomic import atomic_path

HERE = Path(__file__).resolve().parent
ROWS = {"mnist": mnist, "hinge": hinge, "galaxy": galaxy, "em": em}


def main(argv: list[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    place = Place(asked.work, asked.mnist, asked.galaxies, asked.pdb, asked.stack)
    try:
        for row in ROWS if asked.row == "all" else (asked.row,):
            _run(row, asked.size, place, asked.results)
    except EmsvaeError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(row: str, size: str, place: Place, folder: Path) -> None:
    """Measure a row, keep its numbers beside those of its other sizes, and write all that shows them."""
    start, reused_before = time.perf_counter(), sum(REUSED_S)
    values, figure = ROWS[row].measure(size, place)
    values["total_seconds"] = time.perf_counter() - start + sum(REUSED_S) - reused_before
    numbers = read(folder, row) | {size: values}
    table = ROWS[row].table(numbers)
    figures.save(figure, folder / f"{row}.png")
    _write(folder / f"{row}.json", json.dumps(numbers, indent=1) + "\n")
    _write(folder / f"{row}.md", table + "\n")
    tables = {name: room.table(read(folder, name)) for name, room in ROWS.items()}
    _write(folder.parent / "README.md", assembled(tables, {name: read(folder, name) for name in ROWS}, folder))
    print(f"\n{table}\n\n{row}, {size}: {values['total_seconds']:,.0f} s; {folder / row}.md, .json, .png")


def read(folder: Path, row: str) -> dict[str, Any]:
    """What was measured of a row, by size."""
    file = folder / f"{row}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _write(path: Path, text: str) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(text)


def _parser() -> argparse.ArgumentParser:
    data = Path(os.environ.get("EMSVAE_TEST_DATA") or HERE.parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=[*ROWS, "all"])
    # "tiny" is for the tests.
    parser.add_argument("--size", choices=[*SIZES, "tiny"], default="small", metavar="small|full")
    parser.add_argument(
        "--mnist", type=Path, default=data / "mnist", metavar="DIR", help="folder of MNIST's idx.gz files"
    )
    parser.add_argument(
        "--galaxies", type=Path, metavar="DIR", help="folder of Galaxy Zoo pictures [default: rendered ones]"
    )
    parser.add_argument(
        "--pdb", type=Path, metavar="FILE", help="structure to hinge, through gemmi [default: the built-in one]"
    )
    parser.add_argument("--stack", type=Path, metavar="FILE", help="negative-stain particles [default: simulated ones]")
    parser.add_argument(
        "--work", type=Path, default=Path("paper_work"), metavar="DIR", help="data and runs; can be deleted"
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", metavar="DIR", help="tables, numbers and figures"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [default: torch's]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
