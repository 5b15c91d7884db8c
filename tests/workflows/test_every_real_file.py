"""Every real file goes through `info`, `train`, `select` and `export`, or is refused in one line that says why.

Minutes for all of them: run with ``pytest -m "slow and real"``.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.io.cs import read_cs
from emspatialvae.io.star import StarFile
from emspatialvae.particles.table import open_table

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.real]
LIMIT = 40
REFUSED = {
    "cryosparc_J2_particles_exported.cs": "not found; tried",
    "relion31.6opticsgroups.star": "not found; tried",
    "relion5.star": "not found; tried",
    "ribosome_70S_65px.mrc": "look like a volume",
    "t10k-images-idx3-ubyte.gz": "is compressed; only stacks",
    "t10k-labels-idx1-ubyte.gz": "is compressed; only stacks",
}
"""Tables without their stacks, and what holds no particles."""


def real_files() -> list[Path]:
    """As the fixture `real_data` finds them; none where there is no such folder."""
    folder = Path(os.environ.get("EMSVAE_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")


@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_info_train_select_export(emsvae, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.name in REFUSED:
        assert REFUSED[path.name] in emsvae.refused("train", path)
        return
    said = emsvae.done("info", path).out
    size = ["--pixel-size-a", "2"] if "the pixel size is missing" in said else []
    assert "stop:" not in emsvae.done("info", path, *size).out

    emsvae.done("train", path, *size, "--out", "run", "--epochs", "1", "--limit", str(LIMIT), "--device", "cpu")
    emsvae.done("select", "run", "--where", "z1 > -1000", "--out", "some.star")
    emsvae.done("export", "run", "--star", "out.star", "--csv", "out.csv", "--aligned", "out.mrcs")
    n = len(Path("out.csv").read_text().splitlines()) - 1
    assert 0 < n <= LIMIT
    table = open_table(Path("some.star"))
    z = table.read(numbers=("emsvaeZ1",))[1]["emsvaeZ1"]
    assert len(table) >= n and np.isfinite(z).all() and z.std() > 0
    if path.suffix == ".star":
        # Every cell of the input stands in what was written.
        given, written = (
            next(b for b in StarFile.read(p).blocks if "rlnImageName" in b.labels) for p in (path, "out.star")
        )
        ours = {"rlnAnglePsi", "rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst", "rlnClassNumber"}
        ours |= {"rlnMaxValueProbDistribution", "rlnLogLikeliContribution"}
        kept = [label for label in given.labels if label not in ours]
        assert {label: cells[:n] for label, cells in given.columns(*kept).items()} == {
            label: cells[:n] for label, cells in written.columns(*kept).items()
        }
    if path.suffix == ".cs":
        emsvae.done("export", "run", "--cs", "out.cs")
        before, after = read_cs(path), read_cs(Path("out.cs"))
        np.testing.assert_array_equal(after["uid"], before["uid"])
    if shutil.which("relion_star_handler") and (path.suffix != ".star" or relion_copy(path, "input")):
        for name in ("some.star", "out.star"):
            copy = relion_copy(Path(name), "ours")
            assert copy is not None, f"RELION does not open {name}"
            theirs, own = (open_table(file).read(numbers=("emsvaeZ1",))[1]["emsvaeZ1"] for file in (copy, Path(name)))
            # RELION sorts by micrograph.
            np.testing.assert_allclose(np.sort(theirs), np.sort(own), atol=1e-5)


def relion_copy(path: Path, name: str) -> Path | None:
    """The file as RELION reads and writes it; None of a file that it does not take, which it says with an empty one."""
    copy = Path(f"relion_{name}.star")
    command = ["relion_star_handler", "--i", str(path), "--o", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return copy if done.returncode == 0 and copy.stat().st_size else None
