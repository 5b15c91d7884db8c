"""RELION as the judge of class averages: its own average at our poses, and its display on our model.star."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from emspatialvae.analysis.classes.averages import class_averages
from emspatialvae.config import InputConfig, SimulateConfig
from emspatialvae.imaging import masks, resampling
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.mrc import read_header, read_images
from emspatialvae.io.star import StarFile
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.export import write_star
from emspatialvae.results.latents import Latents
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.simulation.truth import load_simulation, read_truth

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed"),
]

N, PIXEL_A = 300, 4.0


def relion(program, *arguments, cwd):
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def particles(folder, box, **settings):
    """Hinges at their true poses, written as `emsvae` writes its results; folder, stack and what is known of them."""
    settings = {"particles": N, "snr": 0.5, "shift_px": 1.5} | settings
    out = simulate_stack(SimulateConfig("hinge", folder / "sim", box=box, **settings))
    stack = load_particles(InputConfig(out / "particles.star"))
    truth = read_truth(out / "truth.star", load_simulation(out / "simulation.json"))
    zero = np.zeros(N)
    latents = Latents(
        names=stack.names,
        used=np.ones(N, bool),
        z=truth.z,
        z_sd=0 * truth.z,
        pose=truth.pose,
        theta_sd_rad=zero,
        shift_sd_px=np.zeros((N, 2)),
        log_likelihood=zero,
        pixel_size_A=PIXEL_A,
        class_number=np.ones(N, dtype=np.int64),
    )
    write_star(latents, stack, out / "ours.star")
    return out, stack, latents


def prepared(box, treatment="none"):
    return Preparation(box, PIXEL_A, 0.45 * box, False, treatment, 6.0, True)


def correlation(a, b, radius_px):
    inside = masks.circular_mask(len(a), radius_px)
    return np.corrcoef(a[inside], b[inside])[0, 1]


@pytest.mark.parametrize("box", [48, 50])  # RELION refines even boxes only
@pytest.mark.parametrize("with_ctf", [False, True])
def test_relions_average_at_our_poses_is_ours(tmp_path, box, with_ctf):
    """One class, one iteration, no alignment. No filter is needed to make them alike: both are what statistics asks for."""
    folder, stack, latents = particles(tmp_path, box, ctf=with_ctf)
    ours = class_averages(stack, latents, prepared(box, "multiply" if with_ctf else "none"))
    flags = "--K 1 --iter 1 --skip_align --tau2_fudge 4 --particle_diameter 170 --zero_mask --dont_check_norm"
    flags += " --pool 10 --j 1 --pad 2 --random_seed 1" + (" --ctf" if with_ctf else "")
    relion("relion_refine", "--i", "ours.star", "--o", "./run", *flags.split(), cwd=folder)
    theirs = read_images(read_header(folder / "run_it001_classes.mrcs"), [0])[0]
    assert correlation(theirs, ours.images[0], 17) > 0.995
    inside = masks.circular_mask(box, 17)
    assert abs(np.polyfit(ours.images[0][inside], theirs[inside], 1)[0] - 1) < 0.05  # the same brightness, too

    # The test can fail: at other poses it is another image.
    wrong = replace(latents, pose=Pose2D(-latents.pose.theta_rad, latents.pose.shift_px))
    mirrored = class_averages(stack, wrong, prepared(box))
    assert correlation(theirs, mirrored.images[0], 17) < 0.95
    if with_ctf:
        plain = class_averages(stack, latents, prepared(box))
        assert correlation(theirs, plain.images[0], 17) < 0.98


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
@pytest.mark.parametrize("box", [48, 49])
def test_the_mean_of_relions_aligned_stack_is_our_plain_average(tmp_path, box):
    folder, stack, latents = particles(tmp_path, box)
    relion("relion_stack_create", "--i", "ours.star", "--o", "aligned", "--apply_transformation", cwd=folder)
    theirs = read_images(read_header(folder / "aligned.mrcs"), range(N)).mean(0)
    ours = class_averages(stack, latents, prepared(box)).images[0]
    assert correlation(theirs, ours, 0.42 * box) > 0.995


@pytest.fixture
def classes(tiny_run, easy_stack, tmp_path, monkeypatch, emsvae):
    """A RELION project with a run in it that has classes; the project's folder."""
    project = tmp_path / "project"
    shutil.copytree(tiny_run, project / "run")
    shutil.copy(easy_stack / "particles.mrcs", project)
    monkeypatch.chdir(project)
    emsvae.done("classes", "run", "--k", "3")
    return project


def stack_pixel_A(project):
    return read_header(project / "run" / "classes" / "classes.mrcs").pixel_size_A


def test_relion_goes_on_from_our_classes(classes, tmp_path):
    """The model as references of a classification; tables and labels are those that RELION itself writes there."""
    references = "--ref run/classes/run_model.star --firstiter_cc --ini_high 20"
    flags = "--iter 1 --skip_align --particle_diameter 80 --dont_check_norm --j 1 --pad 1 --random_seed 1"
    said = relion(
        "relion_refine",
        "--i",
        "run/particles.star",
        "--o",
        tmp_path / "own",
        *references.split(),
        *flags.split(),
        cwd=classes,
    )
    assert "ERROR" not in said
    own = StarFile.read(tmp_path / "own_it001_model.star")
    assert own.block("model_general").columns("rlnNrClasses") == {"rlnNrClasses": ["3"]}
    model = StarFile.read(classes / "run" / "classes" / "run_model.star")
    for block in model.blocks:
        assert set(block.labels) <= set(own.block(block.name).labels)
        assert block.is_loop == own.block(block.name).is_loop
        assert block.n_rows in (1, own.block(block.name).n_rows)
    # What it started from is what we wrote, filtered to 20 A.
    started = read_images(read_header(tmp_path / "own_it000_classes.mrcs"), range(3))
    ours = read_images(read_header(classes / "run" / "classes" / "classes.mrcs"), range(3))
    coarse = int(ours.shape[-1] * stack_pixel_A(classes) / 10)  # pixels of 10 A hold nothing finer than 20 A
    started, ours = (resampling.fourier_crop(images, coarse) for images in (started, ours))
    found = [correlation(one, other, 9 * coarse / 32) for one, other in zip(started, ours, strict=True)]
    assert min(found) > 0.95, found
    name = model.block("model_classes").columns("rlnReferenceImage")["rlnReferenceImage"][1]
    relion("relion_image_handler", "--i", name, "--o", "second.mrc", cwd=classes)
    second = read_images(read_header(classes / "second.mrc"), [0])[0]
    stack = read_header(classes / "run" / "classes" / "classes.mrcs")
    np.testing.assert_array_equal(second, read_images(stack, [1])[0])


@pytest.mark.skipif(
    shutil.which("relion_display") is None or shutil.which("xvfb-run") is None, reason="no relion_display, or no Xvfb"
)
def test_relions_display_opens_the_model(classes):
    """It stays open and complains of nothing; without the particles beside the model it would end with an error."""
    model = "run/classes/run_model.star"
    command = ["timeout", "8", "xvfb-run", "-a", "relion_display", "--class", "--allow_save", "--i", model]

    def shown():
        done = subprocess.run(command, cwd=classes, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code, said = shown()
    assert (code, "ERROR" in said, "Reading in all images" in said) == (124, False, True), said
    (classes / "run" / "classes" / "run_data.star").unlink()
    code, said = shown()
    assert code == 1
    assert "run_data.star does not exist" in said
