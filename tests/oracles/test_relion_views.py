"""RELION as the judge of views: it projects the same map at our Euler angles, and its own projections are found again."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import SimulateConfig
from emspatialvae.imaging.geometry import view_rotations
from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.io.star import StarFile, write_new
from emspatialvae.simulation.density import read_density
from emspatialvae.simulation.projection import MapProjector
from emspatialvae.simulation.stack import simulate_stack
from tests.tools.simulations import blob_map

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_project") is None, reason="RELION is not installed"),
]

PIXEL_A = 5.0
N = 25


def projected(folder, map_file, star, pixel_A):
    """The images that RELION makes of a map at the angles, origins and CTFs of a STAR file."""
    flags = ["--i", map_file, "--ang", star, "--o", "theirs", "--angpix", pixel_A]
    flags += ["--ctf"] if "rlnDefocusU" in StarFile.read(star).block("particles").labels else []
    done = subprocess.run(["relion_project", *map(str, flags)], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return read_images(read_header(folder / "theirs.mrcs"), range(N))


def correlations(first, second):
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)])


def even_map(folder, source):
    """A map of even size: relion_project puts the centre of an odd one a pixel further along both axes."""
    density = blob_map(48) if source is None else np.pad(read_density(source, PIXEL_A, PIXEL_A).values, ((1, 0),) * 3)
    with StackWriter(folder / "map.mrc", len(density), len(density), PIXEL_A) as writer:
        writer.append(density)
    return folder / "map.mrc", len(density)


@pytest.mark.parametrize("which", ["blobs", pytest.param("ribosome", marks=pytest.mark.real)])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_relion_projects_the_map_as_we_do(tmp_path, request, which, with_ctf):
    """Angles, in-plane angle, origin and CTF of truth.star, all as RELION understands them."""
    source = None
    if which == "ribosome":
        source = request.getfixturevalue("real_data") / "real" / "ribosome_70S_65px.mrc"
    map_file, box = even_map(tmp_path, source)
    settings = {"particles": N, "box": box, "pixel_size_A": PIXEL_A, "snr": 1e8, "shift_px": 1.5, "ctf": with_ctf}
    folder = simulate_stack(SimulateConfig("views", tmp_path / "sim", map=map_file, views="all", **settings))
    ours = read_images(read_header(folder / "particles.mrcs"), range(N))
    theirs = projected(tmp_path, map_file, folder / "truth.star", PIXEL_A)
    assert (
        correlations(ours, theirs).min() > 0.99
    )  # we cut the corners of the cube off, and no CTF comes in again at the edge

    # The test can fail: with any one angle or origin of the other sign it is another image.
    truth = StarFile.read(folder / "truth.star")
    optics, particles = (pd.DataFrame(block.columns(*block.labels)) for block in truth.blocks)
    for label in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst"):
        wrong = particles.assign(**{label: -particles[label].astype(float)})
        write_new(tmp_path / "wrong.star", {"optics": optics, "particles": wrong}, overwrite=True)
        alike = correlations(ours, projected(tmp_path, map_file, tmp_path / "wrong.star", PIXEL_A))
        assert np.median(alike) < 0.9, label


@pytest.mark.real
@pytest.mark.parametrize(("box", "off"), [(64, 0), (65, 1)])
def test_projections_that_relion_made_elsewhere_are_found_again(real_data, box, off):
    """Of the same ribosome, at angles that RELION wrote; the box of 64 px holds the map resampled from 65."""
    density = read_density(real_data / "real" / "ribosome_70S_65px.mrc", PIXEL_A, PIXEL_A)
    folder = real_data / "relion_truth"
    block = StarFile.read(folder / f"rln_proj_{box}_centered.star").block("particles")
    labels = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    rot, tilt, angle = (np.radians(column) for column in block.read(numbers=labels)[1].values())
    theirs = read_images(read_header(folder / f"rln_proj_{box}_centered.mrcs"), range(block.n_rows))
    projector = MapProjector(density.values, PIXEL_A, PIXEL_A * 65 / box)
    ours = np.zeros((block.n_rows, box, box))
    # relion_project moves odd boxes by a pixel along both axes.
    projector.draw(
        view_rotations(rot, tilt, -angle), np.full((block.n_rows, 2), float(off)), np.arange(block.n_rows), ours
    )
    assert correlations(ours, theirs).min() > 0.998
