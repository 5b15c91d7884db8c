"""From particles to decisions in one go: every command on one run, and whether what they say agrees."""

import re

import mrcfile
import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import SimulateConfig
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.star import StarFile
from emspatialvae.simulation.stack import simulate_stack

K = 3


def column(file, label):
    return np.array(StarFile.read(file).block("particles").columns(label)[label])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stack with junk as STAR and .cs, and a place to work in."""
    here = tmp_path_factory.mktemp("decisions")
    simulate_stack(SimulateConfig("hinge", here / "sim", particles=150, box=24, snr=2.0, shift_px=1.0, junk=0.1))
    table = np.zeros(150, [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    table["uid"], table["blob/idx"] = np.arange(150) * 7919 + 10**12, np.arange(150)
    table["blob/path"], table["blob/psize_A"] = b"sim/particles.mrcs", 4
    write_cs(here / "sim" / "particles.cs", table)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["star", "cs"])
def test_all_that_a_run_is_good_for(folder, emsvae, monkeypatch, kind):
    monkeypatch.chdir(folder)
    source, run = f"sim/particles.{kind}", folder / f"run_{kind}"
    emsvae.done("train", source, "--project-dir", ".", "--out", run, *emsvae.TINY, "--z-dim", "2")
    said = emsvae.done("classes", run, "--k", K).out

    # Classes: the same numbers in the STAR file, the tables, the stack and on the screen.
    number = column(run / "particles.star", "rlnClassNumber").astype(int)
    junk = column(run / "particles.star", "emsvaeJunk").astype(float)
    sizes = np.bincount(number, minlength=K + 1)[1:]
    table = pd.read_csv(run / "classes" / "classes.csv")
    assert sizes.sum() == 150
    assert table["particles"].tolist() == sizes.tolist()
    assert pd.read_csv(run / "latents.csv")["class_number"].tolist() == number.tolist()
    np.testing.assert_allclose(table["junk_share"], [(junk[number == c] > 0.5).mean() for c in (1, 2, 3)], atol=1e-5)
    with mrcfile.open(run / "classes" / "classes.mrcs") as stack:
        assert stack.data.shape == (K, 24, 24)
    assert [int(found) for found in re.findall(r"^ +[123] +(\d+) ", said, re.MULTILINE)] == sizes.tolist()

    # A selection is what the columns say, in the order of the file; what is left out is the rest.
    kept, rest = folder / f"kept.{kind}", folder / f"rest.{kind}"
    emsvae.done("select", run, "--where", "class in (1, 2) and junk < 0.5", "--out", kept, "--excluded", rest)
    wanted = (number <= 2) & (junk < 0.5)
    for file, mask in ((kept, wanted), (rest, ~wanted)):
        if kind == "cs":
            assert read_cs(file)["uid"].tolist() == read_cs(folder / source)["uid"][mask].tolist()
        else:
            names = column(folder / source, "rlnImageName")
            assert column(file, "rlnImageName").tolist() == names[mask].tolist()
    emsvae.done("select", kept, "--where", "class == 1" if kind == "star" else "class == 0", "--from", source,
                "--out", f"first.{kind}")  # fmt: skip

    # Pictures between two particles and of all content.
    first, last = pd.read_csv(run / "latents.csv")["image_name"].to_numpy()[[0, 149]]
    emsvae.done("path", run, "--from", first, "--to", last, "--steps", 4, "--out", f"path_{kind}.mrcs")
    emsvae.done("manifold", run, "--tiles", 3, "--out", f"manifold_{kind}.png")
    with mrcfile.open(folder / f"path_{kind}.mrcs") as stack:
        assert stack.data.shape[0] == 4

    # The report: the same classes and as much junk as the columns say.
    emsvae.done("analyze", run)
    page = (run / "analysis" / "report.html").read_text()
    rows = re.findall(r'<th scope="row" class="number" data-sort="(\d+)">.*?data-sort="(\d+)"', page, re.DOTALL)
    assert [(int(c), int(size)) for c, size in rows] == list(zip((1, 2, 3), sizes.tolist(), strict=True))
    assert f"{(junk > 0.5).sum()} particles with a score above 0.5" in page

    # An export is what the run holds.
    out = folder / f"out.{kind}"
    emsvae.done("export", run, f"--{kind}", out)
    assert out.read_bytes() == (run / f"particles.{kind}").read_bytes()
    if kind == "cs":
        assert (read_cs(out)["alignments2D/class"] + 1).tolist() == number.tolist()

    # Going on with the training does away with what was made from the older results, and says so.
    said = emsvae.done("train", source, "--project-dir", ".", "--out", run, "--resume", "--epochs", "3").out
    assert f"removed {run / 'classes'} and {run / 'analysis'}" in said
    assert not (run / "classes").exists()
    assert not (run / "analysis").exists()
    assert "rlnClassNumber" not in StarFile.read(run / "particles.star").block("particles").labels
    assert "class_number" not in pd.read_csv(run / "latents.csv")


def test_classes_of_a_3d_classification_stay(folder, emsvae, monkeypatch):
    """Ours stand beside them; RELION's display of our classes finds ours."""
    monkeypatch.chdir(folder)
    lines = (folder / "sim" / "particles.star").read_text().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if line.startswith("_"))
    more = int(lines[last].split("#")[1])
    added = [f"_{label} #{more + k}\n" for k, label in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnClassNumber"), 1)]
    rows = [line.rstrip() + " 10.0 20.0 7\n" if "@" in line else line for line in lines[last + 1 :]]
    (folder / "sim" / "posed.star").write_text("".join([*lines[: last + 1], *added, *rows]))
    emsvae.done("train", "sim/posed.star", "--out", "posed", *emsvae.TINY)
    said = emsvae.done("classes", "posed", "--k", K).out
    assert "ours is emsvaeClassNumber" in said
    assert set(column(folder / "posed" / "particles.star", "rlnClassNumber")) == {"7"}
    ours = column(folder / "posed" / "particles.star", "emsvaeClassNumber")
    data = folder / "posed" / "classes" / "run_data.star"
    assert column(data, "rlnClassNumber").tolist() == ours.tolist()
    emsvae.done("select", "posed", "--where", "class_number == 1", "--out", "posed_1.star")
    assert len(column(folder / "posed_1.star", "rlnImageName")) == (ours == "1").sum()
    emsvae.done("analyze", "posed")
    assert "emsvaeClassNumber in (1, 2, 3)" in (folder / "posed" / "analysis" / "report.html").read_text()
