"""``select --from``: the same particles of another file, by the files that names lead to and not by how they are spelled."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.io.mrc import StackWriter
from emspatialvae.io.star import write_new
from emspatialvae.particles.duplicates import particle_centers
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.match import join
from emspatialvae.particles.table import open_table

N = 20
PLACES = np.random.default_rng(1).permutation(4 * N)[:N].astype(float) * 50


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_stack(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, N, 16, 2.0) as writer:
        writer.append(np.random.default_rng(seed).normal(size=(N, 16, 16)))


def write_star(path: Path, names, places=None, micrograph: str | list[str] = "mic.mrc") -> Path:
    table = {"rlnImageName": list(names), "rlnOpticsGroup": 1}
    if places is not None:
        table |= {"rlnMicrographName": micrograph, "rlnCoordinateX": places, "rlnCoordinateY": places}
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnImagePixelSize": [2.0]})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, {"optics": optics, "particles": pd.DataFrame(table)}, overwrite=True)
    return path


def names_of(stack: str, numbers: Iterable[int] = range(1, N + 1)) -> list[str]:
    return [f"{number:06d}@{stack}" for number in numbers]


def two_folders(here, *, coordinates=True):
    """Two folders with a ``particles.mrcs`` each; the second has the particles of the first in another order."""
    order = np.random.default_rng(2).permutation(N)
    write_stack(here / "small" / "particles.mrcs", 1)
    write_stack(here / "full" / "particles.mrcs", 2)
    write_star(here / "small" / "p.star", names_of("particles.mrcs"), PLACES if coordinates else None)
    write_star(here / "full" / "p.star", names_of("particles.mrcs"), PLACES[order] if coordinates else None)
    return order


@pytest.mark.parametrize("cwd", [".", "small", "full"])
def test_same_names_in_two_folders_are_other_particles(here, emsvae, monkeypatch, cwd):
    order = two_folders(here)
    monkeypatch.chdir(here / cwd)
    words = (
        "select",
        here / "small" / "p.star",
        "--where",
        "rlnCoordinateX < 2000",
        "--from",
        here / "full" / "p.star",
    )
    said = emsvae.done(*words, "--out", "s.star").out
    assert "joined by micrograph and coordinates" in said
    x = open_table(Path("s.star")).read(numbers=("rlnCoordinateX",))[1]["rlnCoordinateX"]
    np.testing.assert_array_equal(x, PLACES[order][PLACES[order] < 2000])


def test_without_coordinates_they_are_refused_with_both_numbers(here, emsvae):
    two_folders(here, coordinates=False)
    said = emsvae.refused("select", "small/p.star", "--from", "full/p.star", "--out", "s.star")
    assert f"image name (0 of {N} found, {N} have that name in other files)" in said


def test_names_alone_are_checked_by_coordinates_where_the_stacks_are_gone(here, emsvae):
    order = two_folders(here)
    for folder in ("small", "full"):
        (here / folder / "particles.mrcs").unlink()
    other = int(np.count_nonzero(order != np.arange(N)))
    said = emsvae.done("select", "small/p.star", "--from", "full/p.star", "--out", "s.star").out
    assert "joined by micrograph and coordinates" in said
    assert f"{other} of the {N} particles with the same image name were picked in other places" in said
    # Some of them are nowhere else either: both numbers are said.
    write_star(here / "full" / "p.star", names_of("particles.mrcs"), PLACES + 7 * (np.arange(N) > 4))
    said = emsvae.refused("select", "small/p.star", "--from", "full/p.star", "--out", "t.star")
    assert f"5 of {N} selected particles" in said and f"{N - 5} of the {N} particles with the same image name" in said


def test_every_spelling_of_one_stack_is_the_same(here):
    write_stack(here / "sub" / "s.mrcs", 1)
    (here / "link.mrcs").symlink_to(here / "sub" / "s.mrcs")
    shutil.copy(here / "sub" / "s.mrcs", here / "elsewhere-s.mrcs")
    (here / "copy").mkdir()
    shutil.copy(here / "sub" / "s.mrcs", here / "copy" / "s.mrcs")
    table = open_table(write_star(here / "a.star", names_of("sub/s.mrcs")))
    turned = list(range(N, 0, -1))
    for number, spelled in enumerate(("./sub/../sub/s.mrcs", str(here / "sub" / "s.mrcs"), "link.mrcs", "copy/s.mrcs")):
        other = open_table(write_star(here / f"b{number}.star", names_of(spelled, turned)))
        joined = join(table, np.arange(N), other)
        assert joined.key == "image name"
        np.testing.assert_array_equal(joined.rows, np.arange(N)[::-1])


def test_micrographs_are_the_same_however_spelled(here):
    spelled = ["Mic/m.mrc", "./Mic/m.mrc", "/data/project/Mic/m.mrc", "/data/project/Mic/other.mrc"] * (N // 4)
    table = open_table(write_star(here / "a.star", names_of("s.mrcs"), np.zeros(N), spelled))
    centers = particle_centers(table)
    assert centers.micrograph.tolist() == [0, 0, 0, 1] * (N // 4)
    (here / "Mic").mkdir()
    (here / "Mic" / "m.mrc").write_bytes(b"x")
    (here / "Linked").symlink_to(here / "Mic")
    spelled = ["Mic/m.mrc", "Linked/m.mrc", str(here / "Mic" / "m.mrc"), "Mic2/m.mrc"] * (N // 4)
    table = open_table(write_star(here / "a.star", names_of("s.mrcs"), np.zeros(N), spelled))
    assert particle_centers(table).micrograph.tolist() == [0, 0, 0, 1] * (N // 4)
    # Between two files: by the last part, where it is the only one on both sides.
    mine = open_table(write_star(here / "c.star", names_of("s.mrcs"), PLACES, "/old/place/m.mrc"))
    theirs = open_table(write_star(here / "d.star", names_of("t.mrcs"), PLACES[::-1], "Mic/m.mrc"))
    assert join(mine, np.arange(N), theirs).rows.tolist() == list(range(N))[::-1]
    spelled = ["Mic/m.mrc", "Mic2/m.mrc"] * (N // 2)
    theirs = open_table(write_star(here / "d.star", names_of("t.mrcs"), PLACES[::-1], spelled))
    with pytest.raises(EmsvaeError, match="cannot be joined"):
        join(mine, np.arange(N), theirs)


def test_a_run_joins_by_the_stacks_of_its_own_input(here, easy_stack, tiny_run, emsvae):
    shutil.copytree(tiny_run, here / "run")
    said = emsvae.done("select", "run", "--from", easy_stack / "truth.star", "--out", "s.star").out
    assert "joined by image name: 48 of 48" in said


def test_the_stack_beside_the_file_goes_before_one_in_the_current_folder(here, monkeypatch):
    two_folders(here)
    monkeypatch.chdir(here / "small")
    stack = load_particles(InputConfig(here / "full" / "p.star"))
    assert stack.files[0].path == here / "full" / "particles.mrcs"
    assert f"is read, not {here / 'small' / 'particles.mrcs'}" in stack.notes[-1]
    stack = load_particles(InputConfig(here / "full" / "p.star", project_dir=here / "small"))
    assert stack.files[0].path == here / "small" / "particles.mrcs"
