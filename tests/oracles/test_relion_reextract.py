"""RELION extracts particles anew at the coordinates that we write: they come to lie in the middle of their boxes."""

import shutil
import subprocess

import mrcfile
import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.particles.load import load_particles
from emspatialvae.results.export_coordinates import write_coordinates
from emspatialvae.results.latents import Latents

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_preprocess") is None, reason="RELION is not installed"),
]

MICROGRAPH_A, BINNING, BOX = 1.5, 2, 32
"""The images of particles are binned: coordinates are in pixels of the micrograph, shifts in those of the images."""
SHAPE = (500, 620)
PARTICLES = np.array([[121.0, 143], [300, 90], [455, 260], [140, 377], [333, 401]])
"""Where the particles are, x and y; no two of them or of the axes are alike."""
OFFSET = np.array([[9.0, -6], [-12, 7], [6, 11], [-5, -10], [13, 4]])
"""By how much the picker missed them, in pixels of the micrograph."""

MICROGRAPHS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnMicrographPixelSize #6
_rlnMicrographOriginalPixelSize #7
1 opticsGroup1 300.0 2.7 0.1 {pixel_A} {pixel_A}

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
_rlnCtfMaxResolution #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnDefocusAngle #6
m.mrc 1 4.0 15000.0 14500.0 30.0
"""


def extract(folder, out, *words):
    """Run RELION's extraction of particles from all micrographs; the STAR file that it writes."""
    said = subprocess.run(
        [
            *(
                "relion_preprocess",
                "--i",
                "micrographs.star",
                "--part_dir",
                f"{out}/",
                "--part_star",
                f"{out}/particles.star",
            ),
            *("--extract", "--extract_size", str(BOX * BINNING), "--scale", str(BOX), *words),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return load_particles(InputConfig(folder / out / "particles.star", project_dir=folder))


def off_centre(stack):
    """Centre of mass of each image from the middle of its box, x and y in its pixels; [n, 2]."""
    images = stack.images(slice(None)).astype(float)
    images -= np.median(images, axis=(1, 2), keepdims=True)
    images[images < 0.1 * images.max((1, 2), keepdims=True)] = 0
    y, x = np.mgrid[: images.shape[1], : images.shape[2]] - images.shape[1] // 2
    return np.stack([(images * x).sum((1, 2)), (images * y).sum((1, 2))], 1) / images.sum((1, 2))[:, None]


@pytest.fixture
def project(tmp_path):
    """A micrograph with round particles, and RELION's picks that missed them."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    image = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 4.0**2)) for cx, cy in PARTICLES)
    with mrcfile.new(tmp_path / "m.mrc") as file:
        file.set_data(np.asarray(image, np.float32))
        file.voxel_size = MICROGRAPH_A
    (tmp_path / "micrographs.star").write_text(MICROGRAPHS.format(pixel_A=MICROGRAPH_A))
    rows = "".join(f"{cx} {cy}\n" for cx, cy in PARTICLES - OFFSET)
    head = "\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
    (tmp_path / "m_picked.star").write_text(head + rows)
    return tmp_path


def found_at(stack, off_px):
    """What a run would say of images whose particles lie ``off_px`` off the middle, in their pixels."""
    n, zero = len(stack), np.zeros(len(stack))
    return Latents(
        names=stack.names,
        used=np.ones(n, bool),
        z=np.zeros((n, 1)),
        z_sd=np.ones((n, 1)),
        pose=Pose2D(np.linspace(-2, 2, n), off_px),
        theta_sd_rad=zero,
        shift_sd_px=np.zeros((n, 2)),
        log_likelihood=zero,
        pixel_size_A=MICROGRAPH_A * BINNING,
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_relion_extracts_centred_particles(project, sign):
    """Within what RELION rounds coordinates to, a pixel of the micrograph; with the other sign they lie twice as far off."""
    first = extract(project, "First", "--coord_dir", "./", "--coord_suffix", "_picked.star")
    assert len(first) == len(PARTICLES)
    off_px = off_centre(first)
    np.testing.assert_allclose(off_px * BINNING, OFFSET, atol=1.0)

    write_coordinates(found_at(first, sign * off_px), first, project / "centred.star", MICROGRAPH_A)
    again = off_centre(extract(project, "Again", "--reextract_data_star", "centred.star"))
    if sign > 0:
        np.testing.assert_allclose(again * BINNING, 0, atol=1.0)
    else:
        np.testing.assert_allclose(again * BINNING, 2 * OFFSET, atol=2.0)


def test_poses_that_were_there_mean_the_same_place(project):
    """Poses of an earlier refinement that stay in the file point at the particle in the new images as they did in the old ones."""
    first = extract(project, "First", "--coord_dir", "./", "--coord_suffix", "_picked.star")
    off_px = off_centre(first)
    text = (project / "First" / "particles.star").read_text()
    count = text.split("data_particles")[1].count("\n_rln")
    head, rows = text.rstrip().rsplit(f"#{count}", 1)
    named = "".join(
        f"_{name} #{count + k}\n" for k, name in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), 1)
    )
    named += "".join(f"_{name} #{count + k}\n" for k, name in enumerate(("rlnOriginXAngst", "rlnOriginYAngst"), 4))
    lines = [line for line in rows.splitlines() if line.strip()]
    origins_A = -off_px * MICROGRAPH_A * BINNING
    lines = [f"{line} 10.0 20.0 30.0 {x:.4f} {y:.4f}" for line, (x, y) in zip(lines, origins_A, strict=True)]
    (project / "refined.star").write_text(f"{head}#{count}\n{named}" + "\n".join(lines) + "\n")
    refined = load_particles(InputConfig(project / "refined.star", project_dir=project))
    assert refined.pose is not None
    np.testing.assert_allclose(refined.pose.shift_px, off_px, atol=1e-3)

    write_coordinates(found_at(refined, off_px), refined, project / "centred.star", MICROGRAPH_A)
    again = extract(project, "Again", "--reextract_data_star", "centred.star")
    assert again.pose is not None
    np.testing.assert_allclose(again.pose.shift_px, 0, atol=1e-3)
    np.testing.assert_allclose(off_centre(again) * BINNING, 0, atol=1.0)
