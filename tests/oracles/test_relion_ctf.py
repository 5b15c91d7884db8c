"""Our CTF is RELION's, number by number, and lies the same way in an image."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.imaging.ctf import CtfParams, ctf_2d, multiply
from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.io.star import write_new
from emspatialvae.particles.load import load_particles, missing_ctf_columns

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_project") is None, reason="RELION is not installed"),
]

BOX, PIXEL_SIZE_A = 48, 1.5
# Defocus U, V (A), angle (deg), phase shift (deg): astigmatism of 500 to 2000 A.
CASES = np.array(
    [
        (15000.0, 14500.0, 25.0, 0.0),
        (9000.0, 7000.0, -60.0, 90.0),
        (22000.0, 21000.0, 80.0, 45.0),
        (12000.0, 10500.0, 140.0, 120.0),
        (11000.0, 12800.0, 10.0, 0.0),
    ]
)


def relion(program, *arguments, cwd):
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def params(cases, voltage_kV, cs_mm, amplitude_contrast):
    beam = (np.full(len(cases), value) for value in (voltage_kV, cs_mm, amplitude_contrast))
    return CtfParams(cases[:, 0], cases[:, 1], *np.radians(cases[:, 2:]).T, *beam)


@pytest.mark.parametrize("voltage_kV", [300.0, 200.0])
def test_relion_filters_an_image_as_we_would(tmp_path, voltage_kV):
    """A point, projected with and without CTF: the ratio of the transforms is RELION's CTF, angle and all."""
    point = np.zeros((BOX, BOX, BOX), np.float32)
    point[BOX // 2, BOX // 2, BOX // 2] = 1
    with StackWriter(tmp_path / "point.mrc", BOX, BOX, PIXEL_SIZE_A) as writer:
        writer.append(point)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["one"],
        "rlnVoltage": [voltage_kV],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.07],
        "rlnImagePixelSize": [PIXEL_SIZE_A],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    still = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    ctf_labels = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    particles = {"rlnImageName": [f"{i + 1:06d}@none.mrcs" for i in range(len(CASES))], "rlnOpticsGroup": 1}
    particles |= dict.fromkeys(still, 0.0) | dict(zip(ctf_labels, CASES.T, strict=True))
    write_new(tmp_path / "angles.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)})
    given = ("--i", "point.mrc", "--ang", "angles.star", "--angpix", PIXEL_SIZE_A)
    relion("relion_project", *given, "--o", "plain", cwd=tmp_path)
    relion("relion_project", *given, "--o", "filtered", "--ctf", cwd=tmp_path)
    plain, filtered = (
        np.fft.rfft2(read_images(read_header(tmp_path / f"{name}.mrcs"), range(len(CASES))))
        for name in ("plain", "filtered")
    )
    inside = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX)) < 0.48  # RELION stops at the Nyquist circle
    theirs = (filtered[:, inside] / plain[:, inside]).real
    ours = ctf_2d(params(CASES, voltage_kV, 2.7, 0.07), BOX, PIXEL_SIZE_A)
    np.testing.assert_allclose(ours[:, inside], theirs, atol=1e-5)
    # The test can fail: a CTF upside down does not fit.
    assert np.abs(np.roll(ours[:, ::-1], 1, axis=1)[:, inside] - theirs).max(1).min() > 0.5


@pytest.mark.parametrize("case", CASES.tolist())
def test_relion_simulates_the_same_ctf(tmp_path, case):
    flags = dict(zip(("--defU", "--defV", "--defAng", "--phase_shift"), case, strict=True))
    flags |= {"--kV": 200, "--Cs": 1.6, "--Q0": 0.1, "--angpix": PIXEL_SIZE_A, "--box": BOX}
    words = [str(word) for pair in flags.items() for word in pair]
    relion("relion_ctf_toolbox", "--simulate", "ctf.mrc", *words, cwd=tmp_path)
    theirs = read_images(read_header(tmp_path / "ctf.mrc"), [0])[0]  # the whole plane, zero frequency at box // 2
    half = np.roll(theirs, -(BOX // 2), (0, 1))[:, : BOX // 2]
    ours = ctf_2d(params(np.array([case]), 200.0, 1.6, 0.1), BOX, PIXEL_SIZE_A)[0, :, : BOX // 2]
    rows = np.arange(BOX) != BOX // 2  # at the Nyquist frequency RELION takes +k, numpy -k
    np.testing.assert_allclose(ours[rows], half[rows], atol=1e-5)


def test_relion_assumes_of_missing_columns_what_we_assume(tmp_path):
    """No amplitude contrast counts as 0, no defocus V as U; without a voltage RELION stops, and so do we."""
    images = np.random.default_rng(0).normal(size=(3, BOX, BOX)).astype(np.float32)
    with StackWriter(tmp_path / "raw.mrcs", 3, BOX, PIXEL_SIZE_A) as writer:
        writer.append(images)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["one"],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnImagePixelSize": [PIXEL_SIZE_A],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    names, defocus_A = [f"{n}@raw.mrcs" for n in (1, 2, 3)], [15000.0, 16000.0, 17000.0]
    particles = {"rlnImageName": names, "rlnOpticsGroup": [1] * 3, "rlnDefocusU": defocus_A}
    write_new(tmp_path / "raw.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)})
    relion("relion_ctf_toolbox", "--i", "raw.star", "--o", "times_ctf", cwd=tmp_path)
    theirs = read_images(read_header(tmp_path / "raw_times_ctf.mrcs"), np.arange(3))
    stack = load_particles(InputConfig(tmp_path / "raw.star"))
    assert stack.ctf is not None
    np.testing.assert_allclose(theirs, multiply(images, stack.ctf, PIXEL_SIZE_A), atol=2e-6)
    del optics["rlnVoltage"]
    write_new(tmp_path / "no_kv.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)})
    command = ["relion_ctf_toolbox", "--i", "no_kv.star", "--o", "times_ctf"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0
    missing = load_particles(InputConfig(tmp_path / "no_kv.star"))
    assert "the file has rlnDefocusU but no rlnVoltage" in missing_ctf_columns(missing)
