"""Our reader of STAR files beside starfile-rs and starfile: seconds of CPU for the columns that training needs, and what each makes of odd rows.

    pip install starfile-rs polars
    python benchmarks/star_readers.py [--rows 1000000]

Each reads the image names as text and 14 columns as numbers from a file of 26 columns (that of million_rows.py), in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from million_rows import make

NUMBERS = (
    "rlnOpticsGroup rlnDefocusU rlnDefocusV rlnDefocusAngle rlnPhaseShift rlnAngleRot rlnAngleTilt rlnAnglePsi rlnOriginXAngst rlnOriginYAngst "
    "rlnCoordinateX rlnCoordinateY rlnClassNumber rlnRandomSubset"
)
OURS = f"""
from pathlib import Path
from emspatialvae.io.star import StarFile
block = StarFile.read(Path(PATH)).block("particles")
texts, numbers = block.read(["rlnImageName"], "{NUMBERS}".split())
rows = len(texts["rlnImageName"])
"""
RUST = f"""
import numpy as np, starfile_rs
frame = starfile_rs.read_star(PATH)["particles"].trust_loop().TO(string_columns=["rlnImageName", "rlnMicrographName"])
names = FROM
numbers = {{label: frame[label].to_numpy().astype(np.float64) for label in "{NUMBERS}".split()}}
rows = len(names)
"""
READERS = {
    "ours": OURS,
    "starfile-rs to pandas": RUST.replace("TO", "to_pandas").replace("FROM", 'frame["rlnImageName"].tolist()'),
    "starfile-rs to polars": RUST.replace("TO", "to_polars").replace("FROM", 'frame["rlnImageName"].to_list()'),
    "starfile": f"""
import numpy as np, starfile
frame = starfile.read(PATH, always_dict=True)["particles"]
names, numbers = frame["rlnImageName"].tolist(), {{label: frame[label].to_numpy().astype(np.float64) for label in "{NUMBERS}".split()}}
rows = len(names)
""",
}
TIMED = """
import resource, sys, time
PATH = sys.argv[1]
began = time.process_time()
{code}
print(f"{{time.process_time() - began:.1f}} | {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}} | {{rows:,}}")
"""
ODD = {
    "a name with # in it": "1@a#b.mrcs 1.5 x",
    "a comment behind a row": "1@a.mrcs 1.5 x # by hand",
    "a name in double quotes": '"1@a b.mrcs" 1.5 x',
    "a name in single quotes": "'1@a b.mrcs' 1.5 x",
    "a text that pandas takes for missing": "1@a.mrcs 1.5 NA",
    "an empty text": '1@a.mrcs 1.5 ""',
    "a row with a cell too many": "1@a.mrcs 1.5 x y",
    "a comment line between rows": "# by hand\n1@a.mrcs 1.5 x",
    "bytes that are no UTF-8": "1@\udce4.mrcs 1.5 x",
}


def cells(reader: str, path: Path) -> str:
    """All cells that a reader finds in the two columns of text, or how it ends."""
    try:
        if reader == "ours":
            from emspatialvae.io.star import StarFile

            columns = StarFile.read(path).block("particles").columns("rlnImageName", "mine")
            return repr(list(zip(*columns.values(), strict=True)))
        import starfile_rs  # pyright: ignore[reportMissingImports]  (see the module)

        block = starfile_rs.read_star(path)["particles"].trust_loop()
        frame = block.to_pandas(string_columns=["rlnImageName", "mine"])
        return repr(list(zip(frame["rlnImageName"].tolist(), frame["mine"].tolist(), strict=True)))
    except BaseException as error:  # a panic of the Rust library is no Exception
        return f"{type(error).__name__}: {str(error)[:80]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        star = make(Path(folder), rows)
        print("| reader | CPU s | peak GB | rows |\n|---|---|---|---|")
        for name, code in READERS.items():
            command = [sys.executable, "-c", TIMED.format(code=code), str(star)]
            done = subprocess.run(command, capture_output=True, text=True)
            print(f"| {name} | {done.stdout.strip() or done.stderr.strip().splitlines()[-1]} |", flush=True)
        print()
        for what, row in ODD.items():
            path = Path(folder) / "odd.star"
            text = f"data_particles\n\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n_mine #3\n1@a.mrcs 2.5 y\n{row}\n3@a.mrcs 3.5 z\n\n"
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            for reader in ("ours", "starfile-rs"):
                print(f"{what:40s} {reader:12s} {cells(reader, path)}".encode("utf-8", "replace").decode())


if __name__ == "__main__":
    main()
