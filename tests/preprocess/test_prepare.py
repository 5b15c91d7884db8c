"""What is done to raw images before a model sees them: decided from the stack, done in portions, kept in a cache."""

import json
import os
import re
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from emspatialvae.config import InputConfig, PrepareConfig, SimulateConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging import ctf, geometry, masks, normalisation, resampling
from emspatialvae.io.mrc import StackWriter, read_header
from emspatialvae.io.star import StarFile
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess import preparation as preprocess
from emspatialvae.preprocess.cache import prepared_images
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import Preparation, prepare_chunk
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.workflows.infer import infer_other

KEEP = PrepareConfig(invert="no")
FLIPPED, MULTIPLIED = "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"


def noise(n, box, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def write_stack(path, images, pixel_size_A=2.0):
    # Bad pixels are put in afterwards: the writer refuses them.
    finite = np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)
    with StackWriter(path, len(images), images.shape[-1], pixel_size_A, overwrite=True) as writer:
        writer.append(finite)
    with path.open("r+b") as stream:
        stream.seek(1024)
        stream.write(np.ascontiguousarray(images, "<f4").tobytes())


def bare(folder, images, pixel_size_A=2.0):
    """The images as a stack with nothing else known."""
    write_stack(folder / "bare.mrcs", images, pixel_size_A)
    return load_particles(InputConfig(folder / "bare.mrcs"))


def starred(folder, groups, defocus=None, flags=("",)):
    """Images in several optics groups ``(images, pixel size)``, each in a stack of its own, as a RELION 3.1 file."""
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n_rlnVoltage\n_rlnSphericalAberration\n"
    optics += "_rlnAmplitudeContrast\n" + "".join(f"_{flag}\n" for flag in flags if flag.startswith("rln"))
    rows = "\ndata_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n" + ("_rlnDefocusU\n" if defocus else "")
    n = 0
    for number, (images, pixel_size_A) in enumerate(groups, 1):
        write_stack(folder / f"{number}.mrcs", images, pixel_size_A)
        flag = flags[-1].split(",")[number - 1] if len(flags) > 1 else ""
        optics += f"{number} {pixel_size_A} 300 2.7 0.1 {flag}\n"
        for i in range(len(images)):
            rows += f"{i + 1}@{number}.mrcs {number} {defocus[n] if defocus else ''}\n"
            n += 1
    (folder / "particles.star").write_text(optics + rows)
    return load_particles(InputConfig(folder / "particles.star"))


def whole(stack, preparation):
    """All prepared images in the order of the stack, and which are usable."""
    images = np.full((len(stack), preparation.box, preparation.box), np.nan, np.float32)
    usable = np.zeros(len(stack), bool)
    for portion in preprocess.prepare(stack, preparation):
        images[portion.rows], usable[portion.rows] = portion.images, portion.usable
    return images, usable


def blobs(box, pixel_size_A, seeds):
    """Objects of Gaussian blobs whose places are in angstrom, the centre at pixel ``box // 2``; they end within 50 A."""
    x, y = (axis * pixel_size_A for axis in geometry.pixel_grid(box))
    out = np.zeros((len(seeds), box, box))
    for image, seed in zip(out, seeds, strict=True):
        rng = np.random.default_rng(seed)
        for radius, phi in zip(rng.uniform(0, 28, 12), rng.uniform(0, 2 * np.pi, 12), strict=True):
            at_x, at_y = radius * np.cos(phi), radius * np.sin(phi)
            image += rng.uniform(0.5, 1) * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * 5.0**2))
    return out.astype(np.float32)


# -------------------------------------------------------------------------------------------------------- box, pixel size


def test_a_small_box_is_used_as_it_is(tmp_path):
    preparation, said, _ = decide(bare(tmp_path, noise(20, 40)), PrepareConfig())
    assert (preparation.box, preparation.pixel_size_A) == (40, 2.0)
    assert preparation.mask_radius_px == pytest.approx(18)
    assert any("box 40 px, used as it is" in line for line in said)
    assert any("pixel size 2 A" in line for line in said)
    assert any("72 A across" in line and "assumed" in line for line in said)


def test_a_large_box_is_cropped_to_64(tmp_path):
    preparation, said, _ = decide(bare(tmp_path, noise(3, 100)), PrepareConfig())
    assert preparation.box == 64
    assert preparation.pixel_size_A == pytest.approx(2.0 * 100 / 64)
    assert any("Fourier-cropped from 100 to 64 px of 3.125 A" in line for line in said)


def test_the_users_box_and_mask_are_taken(tmp_path):
    config = PrepareConfig(box=24, particle_diameter_A=60)
    preparation, said, _ = decide(bare(tmp_path, noise(3, 40)), config)
    assert (preparation.box, preparation.pixel_size_A) == (24, pytest.approx(80 / 24))
    assert preparation.mask_radius_px == preparation.particle_radius_px == pytest.approx(9)
    assert "particle diameter 60 A (18.0 px) (--particle-diameter-a)" in said


@pytest.mark.parametrize("diameter_A", [81, 15])
def test_a_mask_that_does_not_fit_is_refused(tmp_path, diameter_A):
    with pytest.raises(
        EmsvaeError, match=rf"particle diameter of {diameter_A} A .* box of 40 \(80 A\); choose --particle-diameter-a"
    ):
        decide(bare(tmp_path, noise(3, 40)), PrepareConfig(particle_diameter_A=diameter_A))


def test_a_box_finer_than_the_images_is_refused(tmp_path):
    with pytest.raises(EmsvaeError, match=r"--box 60 .* finer than the images' 2 A; choose at most --box 40"):
        decide(bare(tmp_path, noise(3, 40)), PrepareConfig(box=60))


@pytest.mark.parametrize(
    "sizes",
    [
        ((96, 1.0), (60, 1.6)),
        ((96, 1.0), (75, 1.6)),
        ((41, 3.0), (150, 1.0)),
        ((50, 4.0), (160, 1.0)),
        ((64, 2.0), (60, 2.0)),
    ],
    ids=str,
)
def test_mixed_sizes_offer_a_box_that_works(tmp_path, sizes):
    """The same objects, recorded at two pixel sizes: equal after preparation, and equal to what a third would see."""
    seeds = range(4)
    stack = starred(tmp_path, [(blobs(box, size_A, seeds), size_A) for box, size_A in sizes])
    with pytest.raises(ParticleFileError, match="images of different size") as caught:
        decide(stack, KEEP)
    said = str(caught.value)
    assert str(stack.source) in said
    assert f"{sizes[0][0]} px of {sizes[0][1]:.4g} A" in said
    offered = re.search(r"--box (\d+)$", said)
    assert offered
    preparation, _, _ = decide(stack, replace(KEEP, box=int(offered[1]), particle_diameter_A=40))
    field_A = min(box * size_A for box, size_A in sizes)
    assert preparation.box * preparation.pixel_size_A == pytest.approx(field_A)

    coarse, _, _ = decide(stack, replace(KEEP, box=int(field_A / 4.5), particle_diameter_A=40))
    images, usable = whole(stack, coarse)
    assert usable.all()
    drawn = normalisation.normalise(blobs(coarse.box, coarse.pixel_size_A, seeds), coarse.mask_radius_px)
    contrast = np.ptp(drawn)
    # 5 A blobs at 4.5 A pixels: what lies above the new Nyquist is a thousandth.
    np.testing.assert_allclose(images[:4], images[4:], atol=1e-3 * contrast)
    np.testing.assert_allclose(images[:4], drawn, atol=2e-3 * contrast)


def test_a_stack_smaller_than_the_model_is_refused(tmp_path):
    preparation, _, _ = decide(bare(tmp_path, noise(3, 40)), KEEP)
    (tmp_path / "other").mkdir()
    small = bare(tmp_path / "other", noise(3, 32))
    with pytest.raises(ParticleFileError, match=r"bare.mrcs: images of 32 px are smaller than the 40 px"):
        next(preprocess.prepare(small, preparation))


# ---------------------------------------------------------------------------------------------------------- contrast


@pytest.mark.parametrize(
    ("height", "invert", "word"),
    [(0.4, False, "bright: kept"), (-0.4, True, "dark: inverted"), (0.0, False, "unclear")],
)
def test_contrast_is_found_and_said(tmp_path, height, invert, word):
    images = 30 * (noise(100, 32) + np.float32(height) * masks.circular_mask(32, 9)) + 500
    preparation, said, _ = decide(bare(tmp_path, images), PrepareConfig())
    assert preparation.invert is invert
    assert sum(word in line for line in said) == 1
    centre = whole(bare(tmp_path, images), preparation)[0][:, 11:22, 11:22].mean()
    assert centre > 0.25 if height else abs(centre) < 0.05


@pytest.mark.parametrize(("asked", "inverted"), [("yes", True), ("no", False)])
def test_the_users_word_on_contrast_is_taken(tmp_path, asked, inverted):
    preparation, said, _ = decide(bare(tmp_path, noise(5, 32)), PrepareConfig(invert=asked))
    assert preparation.invert is inverted
    assert any(f"--invert {asked}" in line for line in said)


def test_a_single_image_tells_no_contrast(tmp_path):
    preparation, said, _ = decide(bare(tmp_path, noise(1, 32)), PrepareConfig())
    assert not preparation.invert
    assert any("contrast unclear" in line for line in said)


# --------------------------------------------------------------------------------------------------------------- CTF


def test_phases_are_flipped_where_the_ctf_is_known(tmp_path):
    clean = noise(4, 40)
    stack = starred(tmp_path, [(clean, 2.0)], defocus=[8e3, 1e4, 12e3, 14e3])
    assert stack.ctf is not None
    transfer = ctf.ctf_2d(stack.ctf, 40, 2.0)
    seen = np.fft.irfft2(np.fft.rfft2(clean) * transfer, s=(40, 40)).astype(np.float32)
    write_stack(tmp_path / "1.mrcs", seen)
    stack = load_particles(InputConfig(tmp_path / "particles.star"))
    preparation, said, _ = decide(stack, replace(KEEP, hot_pixel_sd=0))
    assert preparation.ctf == "phase-flip"
    assert "CTF: phases flipped" in said
    expected = np.fft.irfft2(np.fft.rfft2(clean) * np.abs(transfer), s=(40, 40)).astype(np.float32)
    found, _ = whole(stack, preparation)
    np.testing.assert_allclose(found, normalisation.normalise(expected, preparation.mask_radius_px), atol=1e-4)
    left, said, _ = decide(stack, replace(KEEP, ctf="none"))
    assert left.ctf == "none"
    assert "CTF left alone (--ctf none)" in said


def test_without_parameters_the_ctf_is_left_alone(tmp_path):
    why = ("no parameters in the file", "the file has rlnVoltage but no rlnDefocusU")
    for stack, because in zip(
        (bare(tmp_path, noise(3, 32)), starred(tmp_path, [(noise(3, 32), 2.0)])), why, strict=True
    ):
        preparation, said, _ = decide(stack, KEEP)
        assert preparation.ctf == "none"
        assert f"CTF left alone: {because}" in said


@pytest.mark.parametrize("asked", ["auto", "full", "phase-flip"])
def test_ctf_parameters_missing_for_some_particles(tmp_path, asked):
    stack = starred(tmp_path, [(noise(3, 32), 2.0)], defocus=[1e4, "nan", "nan"])
    with pytest.raises(ParticleFileError, match=r"missing for 2 of 3 particles, the first is 2@1.mrcs; .* --ctf none"):
        decide(stack, replace(KEEP, ctf=asked), engine="steerable")
    assert decide(stack, replace(KEEP, ctf="none"), engine="steerable")[0].ctf == "none"


@pytest.mark.parametrize("asked", ["full", "phase-flip"])
def test_a_ctf_that_is_asked_for_must_be_there(tmp_path, asked):
    with pytest.raises(ParticleFileError, match=r"missing for 3 of 3 particles, the first is 000001@.* --ctf none"):
        decide(bare(tmp_path, noise(3, 32)), replace(KEEP, ctf=asked), engine="steerable")


def test_the_coordinate_model_has_no_ctf_in_its_likelihood(tmp_path):
    with pytest.raises(EmsvaeError, match=r"--ctf full: .* use --ctf phase-flip or --engine steerable"):
        decide(starred(tmp_path, [(noise(3, 32), 2.0)], [1e4] * 3), replace(KEEP, ctf="full"))


@pytest.mark.parametrize("engine", ["coordinate", "steerable"])
def test_an_impossible_ctf_is_refused(tmp_path, engine):
    stack = starred(tmp_path, [(noise(3, 32), 2.0)], defocus=[1e4, 0, 3e5])
    with pytest.raises(ParticleFileError, match=r"2 of 3 .* the first is 2@1.mrcs with 0 as defocus U.* --ctf none"):
        decide(stack, KEEP, engine=engine)
    assert decide(stack, replace(KEEP, ctf="none"), engine=engine)[0].ctf == "none"
    assert decide(stack.subset([0]), KEEP, engine=engine)[0].ctf != "none"


@pytest.mark.parametrize("engine", ["coordinate", "steerable"])
def test_projections_without_defocus_have_no_ctf(tmp_path, engine):
    stack = starred(tmp_path, [(noise(3, 32), 2.0)], defocus=[0, 0, 0])
    preparation, said, _ = decide(stack, KEEP, engine=engine)
    assert preparation.ctf == "none"
    assert "CTF left alone: every defocus in the file is 0" in said
    with pytest.raises(ParticleFileError, match="3 of 3 particles have an impossible CTF"):
        decide(stack, replace(KEEP, ctf="phase-flip"), engine=engine)


@pytest.mark.parametrize(
    ("flag", "engine", "treatment", "said"),
    [
        (FLIPPED, "coordinate", "phase-flip", "CTF left alone: phases were flipped already"),
        (MULTIPLIED, "coordinate", "phase-flip", "CTF left alone: the images are multiplied by it already"),
        (FLIPPED, "steerable", "multiply", "CTF: images multiplied by it, its square in the likelihood (--ctf full)"),
        (
            MULTIPLIED,
            "steerable",
            "multiply",
            "CTF: images multiplied by it already, its square in the likelihood (--ctf full)",
        ),
    ],
)
def test_what_was_done_to_the_ctf_is_not_done_again(tmp_path, flag, engine, treatment, said):
    groups, defocus = [(noise(2, 32), 2.0), (noise(2, 32, 1), 2.0)], [1e4] * 4
    stack = starred(tmp_path, groups, defocus, (flag, "1,1"))
    preparation, sentences, _ = decide(stack, KEEP, engine=engine)
    assert preparation.ctf == treatment
    assert said in sentences
    if treatment == "phase-flip":
        plain = normalisation.normalise(np.concatenate([images for images, _ in groups]), preparation.mask_radius_px)
        np.testing.assert_allclose(whole(stack, preparation)[0], plain, atol=1e-5)
    assert decide(starred(tmp_path, groups, defocus, (flag, "0,0")), KEEP, engine=engine)[0].ctf == treatment
    mixed = starred(tmp_path, groups, defocus, (flag, "0,1"))
    # A group without particles in play has no say.
    assert decide(mixed.subset([0, 1]), KEEP, engine=engine)[0].ctf == treatment
    if flag == MULTIPLIED and engine == "steerable":
        assert decide(mixed, PrepareConfig(), engine=engine)[0].ctf == "multiply"  # both end as the same
        return
    with pytest.raises(
        ParticleFileError, match=r"particles.star: some optics groups .*\(2\) .* not \(1\).* --ctf none"
    ):
        decide(mixed, KEEP, engine=engine)


def recorded(folder, images, params, pixel_size_A=2.0, flag="rlnOther"):
    """Images with all their CTF parameters as a RELION 3.1 file; ``flag`` says what was done to them."""
    write_stack(folder / "recorded.mrcs", images, pixel_size_A)
    constants = [params.voltage_kV[0], params.cs_mm[0], params.amplitude_contrast[0], pixel_size_A, 1]
    labels = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize", flag)
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup\n" + "".join(f"_{label}\n" for label in labels)
    optics += " ".join(map(str, (1, *constants))) + "\n"
    labels = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    angles = np.degrees([params.astigmatism_rad, params.phase_shift_rad])
    rows = "\ndata_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n" + "".join(f"_{label}\n" for label in labels)
    for i, values in enumerate(zip(params.defocus_u_A, params.defocus_v_A, *angles, strict=True)):
        rows += f"{i + 1}@recorded.mrcs 1 {' '.join(map(repr, map(float, values)))}\n"
    (folder / "recorded.star").write_text(optics + rows)
    return load_particles(InputConfig(folder / "recorded.star"))


def volta(n):
    """CTFs of a microscope with a phase plate and astigmatism."""
    rng = np.random.default_rng(3)
    u = rng.uniform(8e3, 15e3, n)
    angles = rng.uniform(0.6, 2, (2, n))
    return ctf.CtfParams(u, u - 2e3, *angles, np.full(n, 200.0), np.full(n, 1.6), np.full(n, 0.08))


def filtered(images, transfer):
    return np.fft.irfft2(np.fft.rfft2(images) * transfer, s=images.shape[1:]).astype(np.float32)


def alike(a, b):
    """Correlation coefficient of each image of a with that of b: blind to mean and scale, as `normalise` is."""
    return [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("flag", ["rlnOther", FLIPPED, MULTIPLIED])
def test_images_multiplied_by_the_ctf(tmp_path, flag):
    """However much of it was done before: clean images times CTF^2, and that square's rings beside them."""
    clean, params = noise(4, 41), volta(4)
    transfer = ctf.ctf_2d(params, 41, 2.0)
    seen = filtered(clean, {"rlnOther": transfer, FLIPPED: np.abs(transfer), MULTIPLIED: transfer**2}[flag])
    stack = recorded(tmp_path, seen, params, flag=flag)
    preparation, _, _ = decide(stack, replace(KEEP, hot_pixel_sd=0, particle_diameter_A=64), engine="steerable")
    assert preparation.ctf == "multiply"
    [portion] = preprocess.prepare(stack, preparation)
    assert portion.rows.tolist() == [0, 1, 2, 3]
    # All but the slope, which goes with the background.
    assert min(alike(portion.images, filtered(clean, transfer**2))) > 0.997
    np.testing.assert_allclose(portion.ctf_power, ctf.ring_power(params, 41, 2.0), atol=1e-5)
    if flag != MULTIPLIED:
        once = filtered(
            normalisation.normalise(seen, preparation.mask_radius_px), np.abs(transfer) if flag == FLIPPED else transfer
        )
        np.testing.assert_allclose(portion.images, once, atol=1e-4)
    if flag == "rlnOther":  # without the astigmatism or the phase plate the same images come out different
        for name in ("astigmatism_rad", "phase_shift_rad"):
            without = ctf.CtfParams(**(vars(params) | {name: np.zeros(4)}))
            assert max(alike(filtered(seen, ctf.ctf_2d(without, 41, 2.0)), portion.images)) < 0.95


def test_images_multiplied_before_have_the_scale_of_those_multiplied_here(tmp_path):
    params = volta(6)
    raw = noise(6, 64)
    there = filtered(raw, ctf.ctf_2d(params, 64, 2.0))
    found = []
    for name, images, flag in (("here", raw, "rlnOther"), ("there", there, MULTIPLIED)):
        (tmp_path / name).mkdir()
        stack = recorded(tmp_path / name, images, params, flag=flag)
        found.append(whole(stack, decide(stack, KEEP, engine="steerable")[0])[0])
    here, there = (images.std((1, 2)) for images in found)
    assert min(alike(*found)) > 0.99
    np.testing.assert_allclose(there, here, rtol=0.06)  # each background of 1,400 pixels is known to 2 to 3 percent


@pytest.mark.parametrize("box", [40, 64])
def test_what_is_coarse_is_taken_out_at_full_size(tmp_path, box):
    """Before cropping and normalising; the period is in angstrom, whatever the pixel size."""
    x, y = geometry.pixel_grid(64)
    broad = 5 * np.exp(-(x**2 + y**2) / (2 * 20**2)).astype(np.float32)
    raw = noise(30, 64) + broad + (x / 10).astype(np.float32)
    stack = bare(tmp_path, raw, 2.0)
    config = PrepareConfig(invert="no", hot_pixel_sd=0, box=box, highpass_A=60)
    preparation, said, *_ = decide(stack, config)
    assert preparation.highpass_A == 60
    assert "what is coarser than 60 A is taken out (--highpass-a; half of it is left at 60 A)" in said
    plain, *_ = decide(stack, replace(config, highpass_A=None))
    assert plain.highpass_A is None
    found, usable = whole(stack, preparation)
    assert usable.all()
    filtered = normalisation.highpass(raw, 30.0)  # 60 A of 2 A pixels
    expected = normalisation.normalise(resampling.fourier_crop(filtered, box), preparation.mask_radius_px)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    coarse = resampling.fourier_crop(whole(stack, plain)[0], 8).std((1, 2)).mean()
    assert resampling.fourier_crop(found, 8).std((1, 2)).mean() < 0.4 * coarse


@pytest.mark.parametrize(
    ("highpass_A", "words"), [(4.0, "more than two pixels"), (90, "less than their box .80 A"), (80, "less")]
)
def test_a_highpass_that_cannot_work_is_refused(tmp_path, highpass_A, words):
    with pytest.raises(EmsvaeError, match=f"--highpass-a is .*{words}"):
        decide(bare(tmp_path, noise(3, 40)), replace(KEEP, highpass_A=highpass_A))


def test_a_highpass_needs_normalised_images(tmp_path):
    config = replace(KEEP, highpass_A=30.0, normalise="no")
    with pytest.raises(EmsvaeError, match=r"--highpass-a takes the level .* --normalise no"):
        decide(bare(tmp_path, noise(3, 40)), config)


def test_the_ctf_is_multiplied_last_of_all(tmp_path):
    """Crop, normalise, invert, multiply; and whether to invert is seen before it."""
    params = volta(20)
    raw = 500 - 30 * (noise(20, 80) + 0.8 * masks.circular_mask(80, 20).astype(np.float32))
    stack = recorded(tmp_path, raw, params, 1.5)
    preparation, said, _ = decide(stack, PrepareConfig(box=40, hot_pixel_sd=0), engine="steerable")
    assert preparation.invert
    assert any("dark: inverted" in line for line in said)
    expected = -normalisation.normalise(resampling.fourier_crop(raw, 40), preparation.mask_radius_px)
    expected = filtered(expected, ctf.ctf_2d(params, 40, 3.0))
    for portion in preprocess.prepare(stack, preparation):
        np.testing.assert_allclose(portion.images, expected[portion.rows], atol=1e-3)
        np.testing.assert_allclose(portion.ctf_power, ctf.ring_power(params, 40, 3.0)[portion.rows], atol=1e-5)


def test_caches_of_different_ctf_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "CHUNK_BYTES", 3 * 4 * 32 * 32)
    params, images = volta(7), noise(7, 32)
    images[2] = np.nan
    found = []
    for flag in ("rlnOther", FLIPPED, MULTIPLIED):
        if found:  # the same stack file
            text = (tmp_path / "recorded.star").read_text()
            (tmp_path / "recorded.star").write_text(re.sub(r"_(rlnOther|rlnCtfData\w+)", f"_{flag}", text))
            stack = load_particles(InputConfig(tmp_path / "recorded.star"))
        else:
            stack = recorded(tmp_path, images, params)
        for asked in ("none", "phase-flip", "full"):
            preparation, _, _ = decide(stack, replace(KEEP, ctf=asked), engine="steerable")
            for _ in range(2):  # made, and read again
                cached = prepared_images(stack, preparation, tmp_path / "cache", "float32")
                expected = np.concatenate([p.images for p in preprocess.prepare(stack, preparation)])
                np.testing.assert_array_equal(cached.pixels, expected)
            found.append(cached)
            assert (cached.ctf_power is None) == (asked != "full")
            assert cached.group.tolist() == [0] * 7
    assert len(list((tmp_path / "cache").glob("images_*"))) == 7  # --ctf none is the same whatever the flag
    assert len(list((tmp_path / "cache").glob("ctf_*"))) == 3
    some = found[2].portion(np.array([6, 2, 0]))
    np.testing.assert_allclose(some.ctf_power, ctf.ring_power(params[[6, 2, 0]], 32, 2.0), atol=1e-5)
    assert some.usable.tolist() == [True, False, True]
    assert not some.images[1].any()


@pytest.mark.parametrize("pattern", ["ctf_*", "images_*"])
def test_a_deleted_ctf_cache_is_made_again(tmp_path, pattern):
    stack = recorded(tmp_path, noise(3, 32), volta(3))
    preparation, _, _ = decide(stack, KEEP, engine="steerable")
    for _ in range(2):
        found = prepared_images(stack, preparation, tmp_path / "cache")
        np.testing.assert_allclose(found.ctf_power, ctf.ring_power(volta(3), 32, 2.0), atol=1e-5)
        next((tmp_path / "cache").glob(pattern)).unlink()


def test_other_particles_are_multiplied_too(tiny_run, easy_stack, tmp_path, monkeypatch):
    """`emsvae infer` with a run whose images were multiplied: the model is given the others' CTF, and a missing one is refused."""
    shutil.copytree(tiny_run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    content = json.loads(file.read_text())
    content["preparation"]["ctf"] = "multiply"
    file.write_text(json.dumps(content))
    run, seen = RunDir(tmp_path / "run"), []
    looked = SteerableVAE.infer
    monkeypatch.setattr(
        SteerableVAE, "infer", lambda model, batch, turns: (seen.append(batch), looked(model, batch, turns))[1]
    )
    where = simulate_stack(SimulateConfig("hinge", tmp_path / "sim", particles=30, box=24, snr=1.0, ctf=True))
    infer_other(run, InputConfig(where / "particles.star"), tmp_path / "x.star", poses="auto", device="cpu")
    stack = load_particles(InputConfig(where / "particles.star"))
    assert stack.ctf is not None
    box, pixel_size_A = run.manifest.preparation.box, run.manifest.preparation.pixel_size_A
    powers = np.concatenate([batch.ctf_power.numpy() for batch in seen])
    np.testing.assert_allclose(powers, ctf.ring_power(stack.ctf, box, pixel_size_A), atol=1e-5)
    with pytest.raises(ParticleFileError, match=r"missing for 48 of 48 particles, .* use a run trained with"):
        infer_other(run, InputConfig(easy_stack / "particles.star"), tmp_path / "y.star", poses="auto", device="cpu")
    assert not (tmp_path / "y.star").exists()


# -------------------------------------------------------------------------------------------------------- bad images


@pytest.mark.filterwarnings("error")
def test_bad_images_are_marked_and_left_empty(tmp_path):
    images = noise(6, 32)
    images[1, 3, 4], images[2], images[4, 0, 0] = np.nan, 7.0, np.inf
    stack = bare(tmp_path, images)
    preparation, _, _ = decide(stack, PrepareConfig())
    found, usable = whole(stack, preparation)
    assert usable.tolist() == [True, False, False, True, False, True]
    assert np.isfinite(found).all()
    assert not found[~usable].any()
    good = normalisation.normalise(images[usable], preparation.mask_radius_px)
    np.testing.assert_allclose(found[usable], good, atol=1e-5)


def test_nothing_but_bad_images_is_refused(tmp_path):
    with pytest.raises(ParticleFileError, match="every image looked at is constant or holds NaN"):
        decide(bare(tmp_path, np.ones((3, 32, 32), np.float32)), PrepareConfig())


def test_hot_pixels_are_replaced_and_counted(tmp_path):
    images = noise(3, 32)
    images[1, 5, 5], images[1, 20, 9], images[2, 0, 31] = 90, -90, 90
    stack = bare(tmp_path, images)
    rows = np.arange(3)
    found, replaced = prepare_chunk(stack, rows, decide(stack, KEEP)[0])
    assert replaced == 3
    assert np.abs(found.images).max() < 6
    found, replaced = prepare_chunk(stack, rows, decide(stack, replace(KEEP, hot_pixel_sd=0))[0])
    assert replaced == 0
    assert found.images.max() > 15


# ------------------------------------------------------------------------------------------------------------ Bernoulli


def test_bernoulli_takes_values_as_they_are(tmp_path):
    images = np.random.default_rng(0).random((4, 32, 32)).astype(np.float32)
    stack = bare(tmp_path, images)
    preparation, said, _ = decide(stack, PrepareConfig(), bernoulli=True)
    assert "contrast kept" in said
    np.testing.assert_allclose(whole(stack, preparation)[0], images)
    dark, _, _ = decide(stack, PrepareConfig(invert="yes"), bernoulli=True)
    np.testing.assert_allclose(whole(stack, dark)[0], 1 - images, atol=1e-6)  # stays between 0 and 1


def test_bernoulli_refuses_values_beyond_0_and_1(tmp_path):
    stack = bare(tmp_path, noise(4, 32))
    preparation, _, _ = decide(stack, PrepareConfig(), bernoulli=True)
    with pytest.raises(EmsvaeError, match=r"--noise bernoulli needs images between 0 and 1, found -\d.* --noise unit"):
        whole(stack, preparation)


def test_bernoulli_images_stay_between_0_and_1_when_cropped(tmp_path):
    """Cropping rings at sharp edges: a little below 0 and above 1 is no fault of the images."""
    images = np.zeros((2, 48, 48), np.float32)
    images[:, 10:30, 15:40] = 1
    stack = bare(tmp_path, images)
    preparation, _, _ = decide(stack, PrepareConfig(box=24), bernoulli=True)
    found, _ = whole(stack, preparation)
    assert found.min() == 0
    assert found.max() == 1
    np.testing.assert_allclose(found, resampling.fourier_crop(images, 24).clip(0, 1), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- portions, cache


def shuffled(folder, monkeypatch, n=30):
    """A shuffled stack with a repeat, and portions of a few images, so that order and threads are put to the test."""
    images = noise(n, 32) * np.arange(1, n + 1, dtype=np.float32)[:, None, None]
    write_stack(folder / "all.mrcs", images)
    order = [*np.random.default_rng(1).permutation(n), 5]
    rows = "".join(f"{i + 1}@all.mrcs\n" for i in order)
    (folder / "particles.star").write_text(f"data_\n\nloop_\n_rlnImageName\n{rows}")
    monkeypatch.setattr(preprocess, "CHUNK_BYTES", 7 * 4 * 32 * 32)
    stack = load_particles(InputConfig(folder / "particles.star", pixel_size_A=2.0))
    preparation, _, _ = decide(stack, KEEP)
    return stack, preparation, normalisation.normalise(images[order], preparation.mask_radius_px)


def test_the_cache_holds_the_particles_in_their_order(tmp_path, monkeypatch):
    stack, preparation, expected = shuffled(tmp_path, monkeypatch)
    counted = []
    cached = prepared_images(stack, preparation, tmp_path / "cache", "float32", counted.append)
    assert sum(counted) == len(stack) == len(cached)
    assert len(counted) > 3
    np.testing.assert_allclose(cached.pixels, expected, atol=1e-4)
    assert cached.usable.all()
    some = cached.portion(np.array([30, 2]))
    assert (some.images.shape, some.images.dtype, some.ctf_power) == ((2, 32, 32), np.float32, None)
    np.testing.assert_array_equal(some.images, cached.pixels[[30, 2]])
    assert some[1:].rows.tolist() == [2]


def test_half_precision_is_close(tmp_path, monkeypatch):
    stack, preparation, expected = shuffled(tmp_path, monkeypatch)
    half = prepared_images(stack, preparation, tmp_path / "cache")
    assert half.pixels.dtype == np.float16
    np.testing.assert_allclose(half.portion(np.arange(31)).images, expected, atol=2e-3)


def test_a_cache_is_read_and_not_made_again(tmp_path, monkeypatch):
    stack, preparation, _ = shuffled(tmp_path, monkeypatch)
    first = prepared_images(stack, preparation, tmp_path / "cache")

    def fail(*_):
        raise AssertionError("prepared again")

    with monkeypatch.context() as patch:
        patch.setattr("emspatialvae.preprocess.cache.prepare", fail)
        again = prepared_images(stack, preparation, tmp_path / "cache")
        np.testing.assert_array_equal(first.pixels, again.pixels)
        for other in (
            lambda: prepared_images(stack, preparation, tmp_path / "cache", "float32"),
            lambda: prepared_images(stack, replace(preparation, invert=True), tmp_path / "cache"),
            lambda: prepared_images(stack, replace(preparation, mask_radius_px=10.0), tmp_path / "cache"),
            lambda: prepared_images(stack.subset(slice(9)), preparation, tmp_path / "cache"),
            lambda: prepared_images(stack.subset(slice(None, None, -1)), preparation, tmp_path / "cache"),
        ):
            with pytest.raises(AssertionError, match="prepared again"):
                other()
    inverted = prepared_images(stack, replace(preparation, invert=True), tmp_path / "cache")
    np.testing.assert_array_equal(inverted.pixels, -first.pixels)
    assert len(list((tmp_path / "cache").iterdir())) == 6  # images, who is usable, and sums, of each of the two


def test_a_changed_stack_makes_a_new_cache(tmp_path, monkeypatch):
    stack, preparation, _ = shuffled(tmp_path, monkeypatch)
    first = np.array(prepared_images(stack, preparation, tmp_path / "cache").pixels)
    write_stack(tmp_path / "all.mrcs", noise(30, 32, seed=9))
    later = (tmp_path / "all.mrcs").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "all.mrcs", ns=(later, later))
    second = prepared_images(stack, preparation, tmp_path / "cache").pixels
    assert np.abs(first - second).max() > 1


def test_changed_ctf_parameters_make_a_new_cache(tmp_path):
    found = []
    for defocus in (8000, 12000):
        images = noise(3, 32)
        if not found:
            stack = starred(tmp_path, [(images, 2.0)], [defocus] * 3)
        else:  # the stack file stays as it is, only the table changes
            text = (tmp_path / "particles.star").read_text()
            (tmp_path / "particles.star").write_text(text.replace("8000", "12000"))
            stack = load_particles(InputConfig(tmp_path / "particles.star"))
        found.append(np.array(prepared_images(stack, decide(stack, KEEP)[0], tmp_path / "cache").pixels))
    assert np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("pattern", ["*", "usable_*", "images_*"])
def test_a_deleted_cache_is_made_again(tmp_path, monkeypatch, pattern):
    stack, preparation, _ = shuffled(tmp_path, monkeypatch)
    first = np.array(prepared_images(stack, preparation, tmp_path / "cache").pixels)
    for file in (tmp_path / "cache").glob(pattern):
        file.unlink()
    np.testing.assert_array_equal(prepared_images(stack, preparation, tmp_path / "cache").pixels, first)


def test_an_interrupted_making_leaves_no_half_file(tmp_path, monkeypatch):
    stack, preparation, expected = shuffled(tmp_path, monkeypatch)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared_images(stack, preparation, tmp_path / "cache", progress=interrupt)
    assert not list((tmp_path / "cache").iterdir())
    made = prepared_images(stack, preparation, tmp_path / "cache", "float32")
    np.testing.assert_allclose(made.pixels, expected, atol=1e-4)


def test_a_stack_that_goes_away_while_it_is_prepared(tmp_path, monkeypatch):
    stack, preparation, _ = shuffled(tmp_path, monkeypatch)
    with (tmp_path / "all.mrcs").open("r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(ParticleFileError, match=r"all.mrcs can no longer be read"):
        prepared_images(stack, preparation, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_preparing_does_not_hold_the_stack(tmp_path, monkeypatch):
    n, box = 96, 256
    write_stack(tmp_path / "large.mrcs", np.tile(noise(4, box), (n // 4, 1, 1)))
    size = n * box**2 * 4
    monkeypatch.setattr(preprocess, "CHUNK_BYTES", box**2 * 4)
    stack = load_particles(InputConfig(tmp_path / "large.mrcs"))
    preparation = Preparation(32, 16.0, 14.0, False, "none", 6.0, True)
    tracemalloc.start()
    try:
        assert len(prepared_images(stack, preparation, tmp_path / "cache")) == n
        assert tracemalloc.get_traced_memory()[1] < size / 4  # nor does it grow with the stack
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------------------------- real files


@pytest.mark.real
def test_real_particles_are_prepared(real_data):
    stack = load_particles(InputConfig(real_data / "real" / "empiar_10076_7.star"))
    preparation, said, _ = decide(stack, PrepareConfig())
    assert (preparation.box, preparation.ctf) == (64, "phase-flip")
    assert any("Fourier-cropped from 320 to 64" in line for line in said)
    images, usable = whole(stack, preparation)
    assert usable.all()
    outside = ~masks.circular_mask(64, preparation.mask_radius_px)
    np.testing.assert_allclose(images[:, outside].std(1), 1, rtol=0.1)
    assert isinstance(stack.metadata, StarFile)
    assert read_header(stack.files[0].path).n_images == 7
