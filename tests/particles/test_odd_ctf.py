"""CTF parameters in a wrong unit are said; impossible ones stop what needs them, or are left out where that is asked for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.io.cs import write_cs
from emspatialvae.io.star import StarFile, write_new
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from tests.tools.particle_files import cs_table, write_stack

N = 12


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_stack(tmp_path / "s.mrcs", N)
    return tmp_path


def write_star(here, defocus_A: Any = 20_000.0, **optics: Any) -> Path:
    groups = {"rlnOpticsGroup": 1, "rlnOpticsGroupName": "one", "rlnImagePixelSize": 4.0, "rlnVoltage": 300.0}
    groups |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1, **optics}
    names = [f"{i + 1}@s.mrcs" for i in range(N)]
    table = {"rlnImageName": names, "rlnOpticsGroup": 1, "rlnDefocusU": defocus_A, "rlnDefocusV": defocus_A}
    table["rlnDefocusAngle"] = 0.0
    write_new(here / "p.star", {"optics": pd.DataFrame([groups]), "particles": pd.DataFrame(table)}, overwrite=True)
    return here / "p.star"


def notes(path) -> str:
    return "\n".join(load_particles(InputConfig(path), open_stacks=False).notes)


def some(value, rows=(4, 7)):
    return np.where(np.isin(np.arange(N), rows), value, 20_000.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"rlnVoltage": 300_000.0},
            f"{N} of {N} particles have 300000 kV as voltage, expected 30 to 1,500 kV; if it is in volts",
        ),
        ({"rlnVoltage": 0.3}, "0.3 kV as voltage, expected 30 to 1,500 kV (the first"),
        ({"rlnSphericalAberration": -2.7}, "-2.7 mm as Cs: negative"),
        ({"rlnSphericalAberration": 2700.0}, "2700 mm as Cs, expected at most 10 mm"),
        ({"defocus_A": 1.5}, "1.5 A as mean defocus, expected 500 to 150,000 A"),
        ({"defocus_A": 2.5}, "if it is in micrometres, multiply it by 10,000"),
        ({"defocus_A": some(-20_000.0)}, f"2 of {N} particles have -20000 A as mean defocus"),
        ({"defocus_A": some(170_000.0)}, "(the first is 5@s.mrcs)"),
    ],
)
def test_what_is_most_likely_another_unit_is_said(here, emsvae, given, said):
    assert said in notes(write_star(here, **given))
    out = emsvae.done("info", "p.star").out
    assert said in out.split("odd:")[1].split("train would:")[0]


def test_what_microscopes_have_is_not_odd(here):
    for given in (
        {"rlnVoltage": 80.0},
        {"rlnVoltage": 1250.0, "rlnSphericalAberration": 0.001},
        {"defocus_A": some(500.0)},
        {"defocus_A": some(150_000.0)},
        {"defocus_A": 0.0, "rlnVoltage": 0.0},  # projections without a CTF
    ):
        assert notes(write_star(here, **given)) == ""


def test_cryosparc_files_are_held_to_the_same(here):
    table = cs_table(3)
    table["ctf/accel_kv"] = 3e5
    write_cs(here / "p.cs", table)
    assert "300000 kV as voltage" in notes(here / "p.cs")


def spoiled(simulation, here, **columns):
    """A copy of a simulated stack with its CTF, some cells of which are replaced: label -> row -> text."""
    shutil.copytree(simulation, here / "sim", dirs_exist_ok=True)
    text = (here / "sim" / "particles.star").read_text()
    block = particle_block(StarFile.read(here / "sim" / "particles.star"))
    lines = text.splitlines()
    rows = [at for at, line in enumerate(lines) if "@" in line]
    for label, cells in columns.items():
        for row, cell in cells.items():
            words = lines[rows[row]].split()
            words[block.labels.index(label)] = cell
            lines[rows[row]] = " ".join(words)
    (here / "sim" / "particles.star").write_text("\n".join(lines) + "\n")
    return here / "sim" / "particles.star"


@pytest.fixture(scope="module")
def with_ctf(tmp_path_factory) -> Path:
    from emspatialvae.config import SimulateConfig
    from emspatialvae.simulation.stack import simulate_stack

    out = tmp_path_factory.mktemp("ctf") / "sim"
    return simulate_stack(SimulateConfig("hinge", out, particles=60, box=24, snr=2.0, shift_px=1.0, ctf=True))


def test_bad_ones_stop_a_training_or_are_left_out_and_marked(here, with_ctf, emsvae):
    star = spoiled(with_ctf, here, rlnDefocusU={3: "-15000", 10: "<NA>"}, rlnDefocusV={3: "-15000"})
    said = emsvae.refused("train", star)
    assert "--skip-bad-ctf" in said and "--ctf none" in said
    out = emsvae.done("train", star, "--skip-bad-ctf", "--out", "run", *emsvae.TINY).out
    assert "2 of 60 particles have no CTF or an impossible one and are left out (--skip-bad-ctf)" in out
    assert "constant or hold NaN" not in out
    used = particle_block(StarFile.read(here / "run" / "particles.star")).columns("emsvaeUsed")["emsvaeUsed"]
    assert [row for row, cell in enumerate(used) if cell == "0"] == [3, 10]
    # Other particles with the same run, which leaves out what it cannot use; and classes of the run.
    emsvae.done("infer", "run", star, "--out", "other.star")
    emsvae.done("classes", "run", "--k", "2")
    emsvae.done("train", star, "--ctf", "none", "--out", "without", *emsvae.TINY)
    used = particle_block(StarFile.read(here / "without" / "particles.star")).columns("emsvaeUsed")["emsvaeUsed"]
    assert set(used) == {"1"}


def test_a_run_without_the_flag_infers_with_it(here, with_ctf, emsvae):
    shutil.copytree(with_ctf, here / "good")
    emsvae.done("train", "good/particles.star", "--out", "run", *emsvae.TINY)
    star = spoiled(with_ctf, here, rlnDefocusU={5: "null"})
    assert "--skip-bad-ctf" in emsvae.refused("infer", "run", star, "--out", "other.star")
    emsvae.done("infer", "run", star, "--out", "other.star", "--skip-bad-ctf")
    used = particle_block(StarFile.read(here / "other.star")).columns("emsvaeUsed")["emsvaeUsed"]
    assert [row for row, cell in enumerate(used) if cell == "0"] == [5]


def test_all_of_them_bad_is_refused_whatever_is_asked(here, emsvae):
    write_star(here, -20_000.0)
    assert f"{N} of {N} particles have an impossible CTF" in emsvae.refused("train", "p.star", "--skip-bad-ctf")
