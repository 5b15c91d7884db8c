"""RELION as the judge of our poses: it aligns, keeps and refines what we write.

The truth is an object without symmetry whose images at any pose are drawn from a formula; nothing of ours but the
writing under test stands between the known pose and RELION.
"""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.imaging import alignment, masks
from emspatialvae.imaging.geometry import Pose2D, pixel_grid
from emspatialvae.io.mrc import StackWriter, read_header, read_images
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.results.export import write_star
from emspatialvae.results.latents import Latents

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed"),
]

N, PIXEL_SIZE_A, PREPARED_PIXEL_SIZE_A = 40, 1.7, 3.1
BLOBS = ((10, 2, 3.0, 1.0), (-8, 6, 3.5, 0.7), (-3, -11, 3.0, 0.9), (0, 0, 6.0, 0.5), (4, 12, 2.5, 0.6))
"""x, y, sigma in pixels, height."""

HEAD_31 = """\

# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 opticsGroup1 300.000000 2.700000 0.100000 {pixel_size_A} {box} 2


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnDefocusAngle #6
"""
ROW_31 = "{number:06d}@particles.mrcs mic.mrc 1 {defocus_u_A} 14500.0 30.0\n"
HEAD_30 = """\

data_

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnMagnification #3
_rlnDetectorPixelSize #4
_rlnVoltage #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
_rlnDefocusU #8
_rlnDefocusV #9
_rlnDefocusAngle #10
"""
ROW_30 = "{number:06d}@particles.mrcs mic.mrc {magnification} 5.0 300.0 2.7 0.1 {defocus_u_A} 14500.0 30.0\n"


def draw(box, pose):
    """The object at n poses, from its formula: blob centres are turned, then shifted. Shape [n, box, box]."""
    x, y = pixel_grid(box)
    out = np.zeros((len(pose), box, box))
    for theta, (shift_x, shift_y), image in zip(pose.theta_rad, pose.shift_px, out, strict=True):
        for at_x, at_y, sigma, height in BLOBS:
            c_x = np.cos(theta) * at_x - np.sin(theta) * at_y + shift_x
            c_y = np.sin(theta) * at_x + np.cos(theta) * at_y + shift_y
            image += height * np.exp(-((x - c_x) ** 2 + (y - c_y) ** 2) / (2 * sigma**2))
    return out.astype(np.float32)


def random_pose():
    rng = np.random.default_rng(42)
    return Pose2D(rng.uniform(-np.pi, np.pi, N), rng.uniform(-5, 5, (N, 2)))


def latents(names, pose, used=None):
    """What a model would have found, had it found exactly this pose (in raw pixels)."""
    zero = np.zeros(len(names))
    return Latents(
        names=names,
        used=np.ones(len(names), bool) if used is None else used,
        z=np.stack([np.linspace(-1, 1, len(names)), zero], 1),
        z_sd=np.full((len(names), 2), 0.1),
        pose=pose.scaled(PIXEL_SIZE_A / PREPARED_PIXEL_SIZE_A),
        theta_sd_rad=zero + 0.05,
        shift_sd_px=np.full((len(names), 2), 0.2),
        log_likelihood=zero - 1234.5,
        pixel_size_A=PREPARED_PIXEL_SIZE_A,
    )


def write_particles(folder, box, version, noise_sd=0.0):
    """A stack of known poses and its STAR file as RELION of that version writes it."""
    images = draw(box, random_pose())
    images += noise_sd * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    with StackWriter(folder / "particles.mrcs", N, box, PIXEL_SIZE_A) as writer:
        writer.append(images)
    head, row = (HEAD_31, ROW_31) if version == "3.1" else (HEAD_30, ROW_30)
    text = head.format(pixel_size_A=PIXEL_SIZE_A, box=box)
    fixed = {"magnification": 5e4 / PIXEL_SIZE_A}
    # No two defoci are the same, which tells the particles apart where RELION gives them new names.
    text += "".join(row.format(number=i + 1, defocus_u_A=15000 + i, **fixed) for i in range(N)) + "\n"
    (folder / "particles.star").write_text(text)
    return load_particles(InputConfig(folder / "particles.star"))


def relion(program, *arguments, cwd):
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def aligned_by_relion(star, folder):
    """The stack that RELION makes of a STAR file by its own rule for poses, in the order of the file."""
    relion("relion_stack_create", "--i", star, "--o", "aligned", "--apply_transformation", cwd=folder)
    block = StarFile.read(folder / "aligned.star").block("particles")
    texts, numbers = block.read(["rlnImageName"], ["rlnDefocusU"])
    image_of = np.array([int(name.partition("@")[0]) for name in texts["rlnImageName"]]) - 1
    assert sorted(image_of) == list(range(N))
    images = read_images(read_header(folder / "aligned.mrcs"), range(N))
    return images[image_of[np.argsort(numbers["rlnDefocusU"])]]


def correlation(a, b, mask):
    """Correlation of each image with its partner inside a mask; shape [n]."""
    a, b = (np.asarray(images, float)[:, mask] for images in (a, b))
    a, b = (values - values.mean(1, keepdims=True) for values in (a, b))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


@pytest.mark.parametrize("version", ["3.1", "3.0"])
@pytest.mark.parametrize("box", [64, 65])
def test_relion_aligns_by_our_poses_as_we_do(tmp_path, box, version):
    stack, pose = write_particles(tmp_path, box, version), random_pose()
    write_star(latents(stack.names, pose), stack, tmp_path / "ours.star")
    labels = StarFile.read(tmp_path / "ours.star").blocks[-1].labels
    assert ("rlnOriginXAngst" in labels, "rlnOriginX" in labels) == (version == "3.1", version == "3.0")

    theirs = aligned_by_relion("ours.star", tmp_path)
    ours = alignment.align(stack.images(slice(None)), pose)
    inside = masks.circular_mask(box, 0.35 * box)
    assert correlation(theirs, ours, inside).min() > 0.999
    object_ = np.broadcast_to(draw(box, Pose2D.identity(1)), theirs.shape)
    assert correlation(theirs, object_, inside).min() > 0.999
    assert correlation(ours, object_, inside).min() > 0.999

    # And what was written is read back as the same poses.
    read = load_particles(InputConfig(tmp_path / "ours.star")).pose
    assert read is not None
    np.testing.assert_allclose(read.shift_px, pose.shift_px, atol=1e-5)
    np.testing.assert_allclose(np.exp(1j * read.theta_rad), np.exp(1j * pose.theta_rad), atol=1e-6)


@pytest.mark.parametrize("wrong", ["theta", "shift", "shift in pixels", "order"])
def test_a_wrong_sign_or_order_would_be_seen(tmp_path, wrong):
    """The test above can fail: each mistake that could be made in writing leaves images that do not match."""
    stack, pose = write_particles(tmp_path, 64, "3.1"), random_pose()
    mistaken = {
        "theta": Pose2D(-pose.theta_rad, pose.shift_px),
        "shift": Pose2D(pose.theta_rad, -pose.shift_px),
        "shift in pixels": pose.scaled(1 / PIXEL_SIZE_A),
        "order": Pose2D(pose.theta_rad, -pose.inverse().shift_px),
    }[wrong]
    write_star(latents(stack.names, mistaken), stack, tmp_path / "ours.star")
    theirs = aligned_by_relion("ours.star", tmp_path)
    object_ = np.broadcast_to(draw(64, Pose2D.identity(1)), theirs.shape)
    matches = correlation(theirs, object_, masks.circular_mask(64, 22))
    assert np.median(matches) < 0.97
    assert matches.min() < 0.9


@pytest.mark.parametrize("version", ["3.1", "3.0"])
def test_star_handler_keeps_our_columns(tmp_path, version):
    stack = write_particles(tmp_path, 64, version)
    used = np.ones(N, bool)
    used[3] = False
    write_star(latents(stack.names, random_pose(), used), stack, tmp_path / "ours.star")
    said = relion("relion_star_handler", "--i", "ours.star", "--o", "kept.star", cwd=tmp_path)
    assert "emsvaeZ1" in said
    ours = StarFile.read(tmp_path / "ours.star").blocks[-1]
    kept = StarFile.read(tmp_path / "kept.star").block("particles")
    added = [label for label in ours.labels if label.startswith("emsvae")]
    assert {"emsvaeZ1", "emsvaeZ2", "emsvaeZStd1", "emsvaeThetaStd", "emsvaeShiftStdAngst", "emsvaeUsed"} <= set(added)
    wanted, found = (block.columns("rlnImageName", *added) for block in (ours, kept))
    assert wanted == found  # to the letter
    numbers = ["rlnAnglePsi", "rlnLogLikeliContribution", "rlnDefocusU"]
    numbers += ["rlnOriginXAngst", "rlnOriginYAngst"] if version == "3.1" else []
    for label in numbers:
        before, after = (np.array(block.columns(label)[label], float) for block in (ours, kept))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=2e-6)
    if version == "3.0":  # RELION turns pixels into angstrom by the pixel size that both read from the file
        for pixels, angst in (("rlnOriginX", "rlnOriginXAngst"), ("rlnOriginY", "rlnOriginYAngst")):
            before, after = np.array(ours.columns(pixels)[pixels], float), np.array(kept.columns(angst)[angst], float)
            np.testing.assert_allclose(after, before * PIXEL_SIZE_A, atol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("box", [64, 65])
def test_relions_own_projections_are_centred_by_their_offsets(real_data, box):
    """Truth from RELION itself: shifted projections (pixel offsets in a 3.1 table) and what it made of them."""
    folder = real_data / "relion_truth"
    shifted, centred = (
        load_particles(InputConfig(folder / f"rln_proj_{box}_{kind}.star")) for kind in ("shifted", "centered")
    )
    assert shifted.pose is not None
    shift = shifted.pose.shift_px
    assert np.abs(shift).max() == 13
    images = shifted.images(slice(None))
    inside = masks.circular_mask(box, 0.3 * box)
    x, y = pixel_grid(box)

    def matches(move):
        aligned = alignment.align(images, Pose2D(np.zeros(len(images)), move))
        # Only what the shifted image holds can be compared.
        low, high = -(box // 2), (box - 1) // 2
        found = []
        for image, truth, (dx, dy) in zip(aligned, centred.images(slice(None)), move, strict=True):
            held = (x + dx >= low) & (x + dx <= high) & (y + dy >= low) & (y + dy <= high)
            found.append(correlation(image[None], truth[None], inside & held)[0])
        return np.array(found)

    assert matches(shift).min() > 0.999
    assert matches(-shift).max() < 0.5
    assert matches(shift[:, ::-1]).max() < 0.9


@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
def test_relion_classifies_with_our_poses(tmp_path):
    """One class, one iteration, poses taken as they are: RELION's class average is the object, standing still."""
    stack = write_particles(tmp_path, 64, "3.1", noise_sd=0.3)
    write_star(latents(stack.names, random_pose()), stack, tmp_path / "ours.star")
    flags = (
        "--K 1 --iter 1 --skip_align --tau2_fudge 2 --flatten_solvent --zero_mask --particle_diameter 90 --norm --scale"
    )
    flags += " --dont_check_norm --pool 10 --j 1 --pad 1 --random_seed 1"
    relion("relion_refine", "--i", "ours.star", "--o", "./run", *flags.split(), cwd=tmp_path)
    average = read_images(read_header(tmp_path / "run_it001_classes.mrcs"), [0])
    object_ = draw(64, Pose2D.identity(1))
    assert correlation(average, object_, masks.circular_mask(64, 20))[0] > 0.95  # 0.75 with a wrong sign
    kept = StarFile.read(tmp_path / "run_it001_data.star").block("particles")
    ours = StarFile.read(tmp_path / "ours.star").block("particles")
    by_name = (dict(zip(*block.columns("rlnImageName", "emsvaeZ1").values(), strict=True)) for block in (ours, kept))
    assert next(by_name) == next(by_name)


def test_rows_that_were_not_used_are_left_to_relion_as_they_were(tmp_path):
    stack, pose = write_particles(tmp_path, 64, "3.1"), random_pose()
    used = np.ones(N, bool)
    used[[0, 7]] = False
    write_star(replace(latents(stack.names, pose), used=used), stack, tmp_path / "ours.star")
    theirs = aligned_by_relion("ours.star", tmp_path)
    raw = stack.images(slice(None))
    inside = masks.circular_mask(64, 22)
    assert correlation(theirs[~used], raw[~used], inside).min() > 0.99
    assert correlation(theirs[used], alignment.align(raw, pose)[used], inside).min() > 0.99
