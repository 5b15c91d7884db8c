"""Real RELION reads what we write, and keeps it."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.io.star import StarFile, write_new, write_with_columns

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed"),
]

OPTICS = pd.DataFrame(
    {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [1.35],
        "rlnImageSize": [32],
        "rlnImageDimensionality": [2],
    }
)
PARTICLES = pd.DataFrame(
    {
        "rlnImageName": [f"{i:06d}@stack.mrcs" for i in (1, 2, 3)],
        "rlnMicrographName": ["mic a.mrc", "mic a.mrc", "mic b.mrc"],
        "rlnOpticsGroup": 1,
        "rlnAnglePsi": [12.3456789, -170.25, 0.0],
    }
)
OURS = {
    "emsvaeZ1": ["-0.123456789", "1.5e-05", "2"],
    "emsvaeNote": ["001", "two words", ""],
    "rlnMaxValueProbDistribution": ["0.75", "0.5", "0.25"],
}


def relion(program, *arguments, cwd):
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def ours(tmp_path):
    """A new file with our columns added to it."""
    write_new(tmp_path / "new.star", {"optics": OPTICS, "particles": PARTICLES})
    write_with_columns(StarFile.read(tmp_path / "new.star"), "particles", OURS, tmp_path / "ours.star")
    return tmp_path / "ours.star"


def test_relion_keeps_our_columns_to_the_letter(ours, tmp_path):
    code, said = relion("relion_star_handler", "--i", ours, "--o", "out.star", cwd=tmp_path)
    assert code == 0, said
    assert "will ignore (but maintain) values for the unknown label: emsvaeZ1" in said
    assert "could not read optics groups" not in said
    out = StarFile.read(tmp_path / "out.star").block("particles")
    kept = out.columns(*PARTICLES.columns, *OURS)
    assert kept["rlnImageName"] == PARTICLES["rlnImageName"].tolist()
    assert kept["rlnMicrographName"] == PARTICLES["rlnMicrographName"].tolist()
    for label in ("emsvaeZ1", "emsvaeNote"):  # unknown to RELION: texts, digits and zeros stay
        assert kept[label] == OURS[label]
    for label, wanted in (
        ("rlnAnglePsi", PARTICLES["rlnAnglePsi"]),
        ("rlnMaxValueProbDistribution", [0.75, 0.5, 0.25]),
    ):
        np.testing.assert_allclose(np.array(kept[label], float), wanted, atol=1e-6)


def test_relion_selects_on_its_own_labels_only(ours, tmp_path):
    select = ["--minval", "0.4", "--o", "out.star"]
    code, said = relion("relion_star_handler", "--i", ours, "--select", "emsvaeZ1", *select, cwd=tmp_path)
    assert code != 0
    assert "based on numbers" in said
    label = "rlnMaxValueProbDistribution"
    code, said = relion("relion_star_handler", "--i", ours, "--select", label, *select, cwd=tmp_path)
    assert code == 0, said
    out = StarFile.read(tmp_path / "out.star").block("particles")
    assert out.columns("emsvaeZ1") == {"emsvaeZ1": OURS["emsvaeZ1"][:2]}


@pytest.mark.parametrize("name", ["empiar_10076_7.star", "relion31.star", "relion31.v2.star", "relion5.star"])
def test_relion_reads_real_files_with_our_columns(real_data, tmp_path, name):
    star = StarFile.read(real_data / "real" / name)
    block = next(block for block in star.blocks if "rlnImageName" in block.labels)
    values = [f"{row}.0625" for row in range(block.n_rows)]
    write_with_columns(star, block.name, {"emsvaeZ1": values}, tmp_path / "in.star")
    code, said = relion("relion_star_handler", "--i", "in.star", "--o", "out.star", cwd=tmp_path)
    assert code == 0, said
    out = next(b for b in StarFile.read(tmp_path / "out.star").blocks if "rlnImageName" in b.labels)
    names, z = out.columns("rlnImageName", "emsvaeZ1").values()
    expected = dict(zip(block.columns("rlnImageName")["rlnImageName"], values, strict=True))
    assert dict(zip(names, z, strict=True)) == expected


def test_relion_reads_windows_line_ends_after_us(tmp_path, ours):
    windows = tmp_path / "windows.star"
    windows.write_bytes(ours.read_bytes().replace(b"\n", b"\r\n"))
    write_with_columns(StarFile.read(windows), "particles", {"emsvaeZ2": ["1", "2", "3"]}, tmp_path / "mended.star")
    code, said = relion("relion_star_handler", "--i", "mended.star", "--o", "out.star", cwd=tmp_path)
    assert code == 0, said
    assert "could not read optics groups" not in said
    assert StarFile.read(tmp_path / "out.star").block("particles").columns("emsvaeZ2") == {"emsvaeZ2": ["1", "2", "3"]}


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_reads_our_stack(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    with StackWriter(tmp_path / "stack.mrcs", 3, 32, 1.35) as writer:
        writer.append(images)
    write_new(tmp_path / "new.star", {"optics": OPTICS, "particles": PARTICLES})
    code, said = relion("relion_stack_create", "--i", "new.star", "--o", "copy", "--one_by_one", cwd=tmp_path)
    assert code == 0, said
    copied = tmp_path / "copy.mrcs"
    assert copied.stat().st_size == 1024 + images.nbytes
    header = read_header(copied)
    np.testing.assert_array_equal(read_images(header, range(3)), images)


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_takes_the_particles_of_a_bare_stack(emsvae, easy_stack, tmp_path, monkeypatch):
    """Nothing is known of the microscope, but RELION refuses an optics table without voltage and Cs."""
    monkeypatch.chdir(tmp_path)
    emsvae.done(
        "train", easy_stack / "particles.mrcs", "--pixel-size-a", "4", "--out", "run", *emsvae.TINY, "--z-dim", "1"
    )
    arguments = ("--i", "run/particles.star", "--o", "aligned", "--apply_transformation")
    code, said = relion("relion_stack_create", *arguments, cwd=tmp_path)
    assert code == 0 and "not all necessary variables" not in said, said
    assert read_header(tmp_path / "aligned.mrcs").n_images == 48
    relion("relion_star_handler", "--i", "run/particles.star", "--o", "copy.star", cwd=tmp_path)
    copy = StarFile.read(tmp_path / "copy.star").block("particles")
    assert copy.n_rows == 48 and "emsvaeZ1" in copy.labels
