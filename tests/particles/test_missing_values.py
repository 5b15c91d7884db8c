"""Numbers that are missing: a column of them is absent, single ones are named, and what is not needed stops nothing."""

from pathlib import Path

import numpy as np
import pytest

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.table import open_table
from emspatialvae.preprocess.plan import decide
from tests.tools.particle_files import write_stack

LABELS = (
    "rlnImageName",
    "rlnOpticsGroup",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnAnglePsi",
    "rlnAngleTilt",
)
LABELS += ("rlnOriginXAngst", "rlnOriginYAngst", "rlnPhaseShift")
OPTICS = """\
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
1 300 2.7 0.1 4.0

"""
ROW = dict(zip(LABELS, ["", "1", "15000", "14000", "30", "40", "0", "2", "-4", "0"], strict=True))
N = 8


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_stack(tmp_path / "s.mrcs", N)
    return tmp_path


def write_star(path: Path, cells: dict[str, dict[int, str] | str]) -> Path:
    """``cells``: label -> text of every row, or of some."""
    rows = []
    for number in range(N):
        row = ROW | {"rlnImageName": f"{number + 1}@s.mrcs"}
        for label, texts in cells.items():
            row[label] = texts if isinstance(texts, str) else texts.get(number, row[label])
        rows.append(" ".join(row.values()))
    head = "".join(f"_{label} #{number}\n" for number, label in enumerate(LABELS, 1))
    path.write_text(OPTICS + "data_particles\n\nloop_\n" + head + "\n".join(rows) + "\n\n")
    return path


def load(here, cells, *, images=False):
    return load_particles(InputConfig(write_star(here / "p.star", cells)), open_stacks=images)


WORDS = ["<NA>", "None", "null", "nan", "NaN", "N/A", '""']


@pytest.mark.parametrize("word", WORDS)
def test_a_column_without_numbers_is_absent(here, word):
    stack = load(here, {"rlnPhaseShift": word, "rlnDefocusAngle": word, "rlnAnglePsi": word})
    assert stack.pose is None
    assert stack.ctf is not None and stack.ctf.known.all() and not stack.ctf.phase_shift_rad.any()
    assert any("rlnPhaseShift" in note and "every row" in note and "absent" in note for note in stack.notes)
    assert load(here, {"rlnDefocusU": word}).ctf is None


@pytest.mark.parametrize("word", [*WORDS, "here"])
def test_single_rows_are_named_and_stop_only_what_needs_them(here, word):
    stack = load(here, {"rlnDefocusU": {2: word, 5: word}}, images=True)
    note = next(note for note in stack.notes if "rlnDefocusU" in note)
    assert f"2 of {N} rows, the first is particle 3" in note and word.strip('"') in note
    with pytest.raises(ParticleFileError) as caught:
        decide(stack, PrepareConfig(ctf="full"), engine="steerable")
    assert f"missing for 2 of {N} particles, the first is 3@s.mrcs" in str(caught.value)
    assert "--ctf none" in str(caught.value)
    assert decide(stack, PrepareConfig(ctf="none"), engine="steerable").preparation.ctf == "none"


def test_an_optics_group_is_always_needed(here):
    for word in ("<NA>", "x"):
        with pytest.raises(ParticleFileError, match=r"rlnOpticsGroup.*data_particles.*particle 4; expected numbers"):
            load(here, {"rlnOpticsGroup": {3: word}})


def test_tables_know_missing_numbers_and_name_the_row_of_a_text(here):
    star = write_star(here / "p.star", {"rlnDefocusU": {2: "<NA>"}, "rlnDefocusV": {6: "here"}})
    table = open_table(star)
    assert np.flatnonzero(np.isnan(table.read(numbers=("rlnDefocusU",))[1]["rlnDefocusU"])).tolist() == [2]
    with pytest.raises(ParticleFileError, match=r"rlnDefocusV.*'here'.* in row 7; expected numbers"):
        table.read(numbers=("rlnDefocusV",))


def test_angles_that_are_unset_are_no_poses(here, emsvae):
    stack = load(here, {"rlnAnglePsi": {1: "-999", 4: "-999.000"}, "rlnAngleTilt": "-999"})
    assert stack.pose is not None
    assert np.flatnonzero(stack.pose.unset).tolist() == [1, 4]
    assert not stack.has_3d_pose  # nobody set a tilt
    np.testing.assert_allclose(np.degrees(stack.pose.theta_rad[[0, 2]]), -40)
    assert any("rlnAnglePsi is -999" in note and f"2 of {N} rows" in note for note in stack.notes)
    assert load(here, {"rlnAnglePsi": "-999"}).pose is None
    write_star(here / "p.star", {"rlnAnglePsi": {1: "-999"}})
    assert "poses in the plane; shifts 0.79 px rms" in emsvae.done("info", "p.star").out
    said = emsvae.refused("train", "p.star", "--poses-fixed", "--ctf", "none")
    assert f"1 of {N} have none, the first is 2@s.mrcs" in said


def test_missing_numbers_are_not_written_back(here):
    """Rows that a run does not use keep what they had, but RELION must find a number."""
    from emspatialvae.results.export import write_star as write_results
    from emspatialvae.results.latents import Latents

    stack = load(here, {"rlnAnglePsi": {0: "nan", 1: "<NA>", 2: "12.5"}}, images=True)
    used = np.arange(N) > 2
    ones = np.ones(N)
    latents = Latents(
        names=stack.names,
        z=ones[:, None],
        z_sd=ones[:, None],
        pose=Pose2D.identity(N),
        theta_sd_rad=ones,
        shift_sd_px=np.ones((N, 2)),
        log_likelihood=ones,
        used=used,
        pixel_size_A=4.0,
    )
    write_results(latents, stack, here / "out.star")
    block = particle_block(StarFile.read(here / "out.star"))
    assert block.columns("rlnAnglePsi")["rlnAnglePsi"][:3] == ["0", "0", "12.5"]
