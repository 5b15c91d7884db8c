"""The user's own structure as a hinge, through gemmi: two rigid domains in the image plane and one angle between them."""

from pathlib import Path

import numpy as np
import pandas as pd

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io import mrc, star
from emspatialvae.simulation.kinds import BLOB_SIGMA
from emspatialvae.simulation.phantom import JointedPhantom, Part, chunks, clean_image
from emspatialvae.simulation.stack import draw_truth, scale_to_snr

RADIUS = 0.36
"""Of the box: no blob lies further out."""
SPAN_DEG = 90.0
MOST_BLOBS = 400
PIXEL_SIZE_A = 4.0


def hinged_structure(file: Path) -> JointedPhantom:
    """Alpha carbons of a PDB or mmCIF file, seen along their shortest axis, cut in two and hinged where they were cut.

    Two or more chains: the first against the rest; one chain: its halves along the longest axis.

    Raises
    ------
    EmsvaeError
        gemmi is not installed, or the file has no protein in it.
    """
    try:
        import gemmi
    except ImportError:
        raise EmsvaeError("--pdb needs gemmi: pip install gemmi") from None
    try:
        model = gemmi.read_structure(str(file))[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise EmsvaeError(
            f"{file} cannot be read as a structure ({str(error)[:80]}); give a .pdb or .cif file"
        ) from None
    found = [(n, a.pos.tolist()) for n, chain in enumerate(model) for r in chain for a in r if a.name == "CA"]
    if len(found) < 20:
        raise EmsvaeError(f"{file} holds {len(found)} alpha carbons; expected a protein of two domains")
    chain, xyz = np.array([n for n, _ in found]), np.array([at for _, at in found])
    xyz -= xyz.mean(0)
    axes = np.linalg.svd(xyz, full_matrices=False)[2]
    plane = xyz @ axes[:2].T
    plane = plane[:: -(-len(plane) // MOST_BLOBS)]
    chain = chain[:: -(-len(xyz) // MOST_BLOBS)]
    first = chain == chain[0] if chain.max() > chain[0] else plane[:, 0] < np.median(plane[:, 0])
    # The pivot lies where the two come closest: the mean of the tenth of all blobs that is nearest to the other domain.
    distance = np.linalg.norm(plane[first][:, None] - plane[~first][None], axis=-1)
    near = np.sort(distance.min(1))[max(1, int(0.1 * first.sum())) - 1]
    pivot = plane[first][distance.min(1) <= near].mean(0)
    plane = plane - pivot
    scale = RADIUS / np.linalg.norm(plane, axis=1).max()
    parts = (Part(plane[first] * scale, (0.0,)), Part(plane[~first] * scale, (float(np.radians(SPAN_DEG)),)))
    return JointedPhantom(BLOB_SIGMA, parts=parts)


def simulate_structure(
    obj: JointedPhantom, folder: Path, n: int, box: int, snr: float
) -> tuple[Path, np.ndarray, Pose2D]:
    """A stack of n turned images with white noise; returns the STAR file, true z [n, 1] and poses."""
    rng = np.random.default_rng(5)
    z, pose = draw_truth(n, 0.0, rng)
    obj = scale_to_snr(obj, z, pose, box, snr)
    folder.mkdir(parents=True, exist_ok=True)
    with mrc.StackWriter(folder / "particles.mrcs", n, box, PIXEL_SIZE_A, overwrite=True) as writer:
        for rows in chunks(n):
            clean = clean_image(obj, z[rows], pose[rows], box)
            writer.append(clean + rng.standard_normal(clean.shape))
    optics = pd.DataFrame(
        {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnImagePixelSize": [PIXEL_SIZE_A]}
    )
    names = [f"{i + 1:06d}@particles.mrcs" for i in range(n)]
    particles = pd.DataFrame({"rlnImageName": names, "rlnOpticsGroup": 1})
    star.write_new(folder / "particles.star", {"optics": optics, "particles": particles}, overwrite=True)
    return folder / "particles.star", z, Pose2D(geometry.wrap_rad(pose.theta_rad), pose.shift_px)
