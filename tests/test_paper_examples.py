"""examples/paper/run.py: every row at a size that proves nothing but that it runs, and what it writes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PAPER = Path(__file__).parents[1] / "examples" / "paper"


@pytest.fixture
def paper(monkeypatch):
    """Rooms of the examples can be imported."""
    monkeypatch.syspath_prepend(str(PAPER))


@pytest.fixture
def digits(tmp_path) -> Path:
    """A folder like MNIST's, with strokes for digits."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = np.zeros((70, 28, 28), np.uint8)
    images[:, 6:22, 13:15] = 255
    images[np.arange(70), 6 + np.arange(70) % 10, :] = 200
    for kind, header, values in (
        ("images-idx3", (2051, 70, 28, 28), images),
        ("labels-idx1", (2049, 70), np.arange(70, dtype=np.uint8) % 10),
    ):
        data = np.array(header, ">i4").tobytes() + values.tobytes()
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    return folder


def test_digits_are_posed_as_the_house_says(paper):
    """Positive theta moves a dot from +x towards +y; the shift comes after, in the frame of the image."""
    from rows.mnist import posed

    from emspatialvae.imaging.geometry import Pose2D

    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 14, 14 + 6] = 255
    found = posed(image, Pose2D(np.array([np.pi / 2]), np.array([[3.0, -2.0]])), 40)[0]
    assert np.unravel_index(found.argmax(), found.shape) == (20 + 6 - 2, 20 + 3)
    assert found.sum() == 255


def test_alignment_of_samples(paper):
    """1 where all long things lie alike, near 0 where they lie anyhow; round things do not count."""
    from rows.galaxy import alignment
    from sersic import Galaxies, render

    from emspatialvae.imaging.geometry import Pose2D

    rng = np.random.default_rng(0)
    galaxies = Galaxies.drawn(100, rng)
    alike = Pose2D(np.full(100, 0.3), np.zeros((100, 2)))
    anyhow = Pose2D(rng.uniform(-np.pi, np.pi, 100), np.zeros((100, 2)))
    assert alignment(render(galaxies, alike, 32, 0.0, rng).mean(-1)) > 0.8  # arms bend the axis of some
    assert alignment(render(galaxies, anyhow, 32, 0.0, rng).mean(-1)) < 0.3


def test_galaxies_turn_and_move_as_the_house_says(paper):
    from sersic import Galaxies, render

    from emspatialvae.imaging.alignment import align
    from emspatialvae.imaging.geometry import Pose2D

    rng = np.random.default_rng(1)
    galaxies = Galaxies.drawn(6, rng)
    pose = Pose2D(rng.uniform(-3, 3, 6), rng.normal(0, 2, (6, 2)))
    still, turned = (render(galaxies, p, 48, 0.0, rng).mean(-1) for p in (Pose2D(np.zeros(6), np.zeros((6, 2))), pose))
    back = align(turned, pose)
    assert np.abs(back - still)[:, 8:40, 8:40].mean() < 0.2 * np.abs(turned - still)[:, 8:40, 8:40].mean()


def test_background_counts_structure_not_grey(paper):
    from rows.em import background

    image = np.zeros((1, 40, 40))
    image[0, 15:25, 15:25] = 1
    assert background(image + 5) == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(0)
    assert background(image + 0.3 * rng.standard_normal(image.shape)) > 0.5


def test_cells_that_nobody_ran_say_so(paper):
    from rows import em, galaxy, hinge, mnist

    for row in (mnist, hinge, galaxy, em):
        table = row.table({})
        assert "not run" in table
        assert len({line.count("|") for line in table.splitlines() if line.startswith("| ---")}) >= 1
    assert "| spatial-VAE, z | 0.95 |" in hinge.table({})


@pytest.mark.slow
def test_every_row_runs_and_the_page_is_put_together(tmp_path, digits):
    """One process for all, as a user would; then once more, when nothing is trained again and the other sizes stay."""
    results, words = tmp_path / "paper" / "results", ["--size", "tiny", "--work", tmp_path / "work", "--mnist", digits]
    results.mkdir(parents=True)
    (results / "hinge.json").write_text("{}")
    command = [sys.executable, PAPER / "run.py", "all", *words, "--results", results]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in ("mnist", "hinge", "galaxy", "em"):
        values = json.loads((results / f"{row}.json").read_text())
        assert set(values) == {"tiny"}
        assert (results / f"{row}.png").stat().st_size > 20_000
        assert "not run" in (results / f"{row}.md").read_text()
        page = (tmp_path / "paper" / "README.md").read_text()
        assert f"(results/{row}.png)" in page
        assert (results / f"{row}.md").read_text().strip() in page
    numbers = json.loads((results / "hinge.json").read_text())
    (results / "hinge.json").write_text(json.dumps({"small": numbers["tiny"]}))
    again = [sys.executable, PAPER / "run.py", "hinge", *words, "--results", results]
    done = subprocess.run([str(w) for w in again], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "-- hinge_tiny" not in done.stdout  # the runs are there
    assert set(json.loads((results / "hinge.json").read_text())) == {"small", "tiny"}
    assert f"| spatial-VAE, z | 0.95 |  | {numbers['tiny']['latents']['spatial z']['hinge']:.2f} |" in done.stdout


def test_a_missing_data_set_is_one_line(tmp_path):
    words = ["mnist", "--mnist", tmp_path, "--results", tmp_path / "r", "--work", tmp_path / "w"]
    done = subprocess.run([sys.executable, str(PAPER / "run.py"), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--mnist" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_structure_becomes_a_hinge(paper, tmp_path):
    """Two chains: one moves, the other stands still, and they meet at the pivot."""
    pytest.importorskip("gemmi")
    from rows.protein import hinged_structure

    rng = np.random.default_rng(0)
    lines = []
    for serial in range(80):
        chain = "AB"[serial >= 40]
        x, y, z = rng.normal((0 if chain == "A" else 22, 0, 0), (8, 5, 2))
        lines.append(
            f"ATOM  {serial + 1:5d}  CA  ALA {chain}{serial + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
        )
    (tmp_path / "two.pdb").write_text("\n".join([*lines, "END", ""]))
    obj = hinged_structure(tmp_path / "two.pdb")
    assert [len(part.atoms_xy) for part in obj.parts] == [40, 40]
    x, y = obj.atoms(np.array([[-1.0], [1.0]]))
    assert np.hypot(x, y).max() <= 0.36 + 1e-9
    np.testing.assert_allclose(x[0, :40], x[1, :40])
    assert np.abs(x[0, 40:] - x[1, 40:]).max() > 0.1
