"""Particle tables from every kind of file: how many, in which order, where their images lie, and what is said when not."""

import dataclasses
import math

import numpy as np
import pytest

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.ctf import ctf_2d
from emspatialvae.io import cs
from emspatialvae.io.mrc import StackWriter
from emspatialvae.particles.load import load_particles, most_common_box, open_stacks_of
from emspatialvae.preprocess.plan import decide
from emspatialvae.workflows.info import particles_text
from tests.tools.particle_files import CS_FIELDS, cs_table

OPTICS = """\
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
1 first 300.0 2.7 0.1 1.5 16 2
7 second 200.0 1.6 0.07 2.5 16 2
"""
PARTICLES = """\
data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnPhaseShift #6
_rlnAnglePsi #7
_rlnOriginXAngst #8
_rlnOriginYAngst #9
000002@a.mrcs 1 15000 14000 30 0 10 3.0 -1.5
000001@a.mrcs 7 16000 15000 -30 90 -170 5.0 2.5
3@sub/b.mrcs 1 17000 17000 0 0 180 0 0
"""
OLD = """\
data_

loop_
_rlnImageName #1
_rlnMagnification #2
_rlnDetectorPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnDefocusU #7
_rlnOriginX #8
_rlnOriginY #9
_rlnAnglePsi #10
000001@a.mrcs 40000 5 300 2.7 0.1 15000 2 -3 45
000002@a.mrcs 50000 5 300 2.7 0.1 16000 0 0 0
"""


def pixels(n, box=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def write_stack(path, images, pixel_size_A=None):
    with StackWriter(path, len(images), images.shape[-1], pixel_size_A) as writer:
        writer.append(images)
    return images


@pytest.fixture
def stacks(tmp_path):
    """Two stacks, as the texts above name them: the path of each and its images."""
    return {name: write_stack(tmp_path / name, pixels(3, seed=len(name))) for name in ("a.mrcs", "sub/b.mrcs")}


@pytest.fixture
def star(tmp_path, stacks):
    """A RELION 3.1 file of three particles in two stacks and two optics groups."""
    return write_text(tmp_path, "\n# version 30001\n\n" + OPTICS + "\n# version 30001\n\n" + PARTICLES)


def write_text(folder, text, name="particles.star"):
    (folder / name).write_text(text)
    return folder / name


def load(path, **options):
    return load_particles(InputConfig(path, **options))


def metadata(path, **options):
    return load_particles(InputConfig(path, **options), open_stacks=False)


def without(table, *fields):
    names = [name for name in table.dtype.names if name not in fields]
    out = np.zeros(len(table), [field for field in CS_FIELDS if field[0] in names])
    for name in names:
        out[name] = table[name]
    return out


def complaint(path, **options):
    """What the user is told about a file: one line."""
    with pytest.raises(ParticleFileError) as caught:
        load(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


# ------------------------------------------------------------------------------------------------------ RELION 3.1 and up


def test_rows_keep_the_order_of_the_file(star, stacks):
    stack = load(star)
    assert (stack.kind, len(stack), stack.boxes) == ("star", 3, (16,))
    assert stack.names.tolist() == ["000002@a.mrcs", "000001@a.mrcs", "3@sub/b.mrcs"]
    expected = [stacks["a.mrcs"][1], stacks["a.mrcs"][0], stacks["sub/b.mrcs"][2]]
    np.testing.assert_array_equal(stack.images(slice(None)), expected)
    np.testing.assert_array_equal(stack.images([2, 0]), [expected[2], expected[0]])
    assert stack.images([]).shape[0] == 0
    assert stack.images([1]).dtype == np.float32
    assert not stack.notes


def test_optics_belong_to_each_particle(star):
    stack = load(star)
    assert [group.name for group in stack.optics] == ["first", "second"]
    np.testing.assert_allclose(stack.pixel_size_A, [1.5, 2.5, 1.5])
    assert stack.ctf is not None
    np.testing.assert_allclose(stack.ctf.voltage_kV, [300, 200, 300])
    np.testing.assert_allclose(stack.ctf.cs_mm, [2.7, 1.6, 2.7])
    np.testing.assert_allclose(stack.ctf.amplitude_contrast, [0.1, 0.07, 0.1])
    np.testing.assert_allclose(stack.ctf.defocus_u_A, [15000, 16000, 17000])
    np.testing.assert_allclose(stack.ctf.defocus_v_A, [14000, 15000, 17000])
    np.testing.assert_allclose(stack.ctf.astigmatism_rad, np.radians([30, -30, 0]))
    np.testing.assert_allclose(stack.ctf.phase_shift_rad, np.radians([0, 90, 0]))


def test_poses_come_in_pixels_of_the_own_group(star):
    stack = load(star)
    assert stack.pose is not None
    np.testing.assert_allclose(stack.pose.theta_rad, np.radians([-10, 170, 180]))
    np.testing.assert_allclose(stack.pose.shift_px, [[-2, 1], [-2, -1], [0, 0]])
    assert not stack.has_3d_pose


def test_optics_may_come_after_the_particles(tmp_path, stacks):
    stack = load(write_text(tmp_path, PARTICLES + "\n" + OPTICS))
    np.testing.assert_allclose(stack.pixel_size_A, [1.5, 2.5, 1.5])
    assert stack.pose is not None
    np.testing.assert_allclose(stack.pose.shift_px[1], [-2, -1])


def test_pixel_origins_in_a_later_file_are_taken(tmp_path, stacks):
    text = (OPTICS + "\n" + PARTICLES).replace("OriginXAngst", "OriginX").replace("OriginYAngst", "OriginY")
    pose = load(write_text(tmp_path, text)).pose
    assert pose is not None
    np.testing.assert_allclose(pose.shift_px, [[-3, 1.5], [-5, -2.5], [0, 0]])


def test_angstrom_origins_win_over_pixel_origins(tmp_path, stacks):
    text = PARTICLES.replace("_rlnPhaseShift", "_rlnOriginX").replace("_rlnDefocusAngle", "_rlnOriginY")
    pose = load(write_text(tmp_path, OPTICS + "\n" + text)).pose
    assert pose is not None
    np.testing.assert_allclose(pose.shift_px[0], [-2, 1])


def test_a_3d_pose_is_noticed(tmp_path, stacks):
    flat = PARTICLES.replace("_rlnPhaseShift", "_rlnAngleTilt").replace(" -30 90 ", " -30 0 ")
    assert not load(write_text(tmp_path, OPTICS + "\n" + flat, "flat.star")).has_3d_pose
    tilted = PARTICLES.replace("_rlnPhaseShift", "_rlnAngleTilt")
    assert load(write_text(tmp_path, OPTICS + "\n" + tilted, "tilted.star")).has_3d_pose


def test_flags_of_optics_groups(tmp_path, stacks):
    optics = OPTICS.replace("_rlnImageDimensionality", "_rlnCtfDataArePhaseFlipped")
    optics = optics.replace(" 16 2\n7", " 16 0\n7").replace("_rlnImageSize", "_rlnCtfDataAreCtfPremultiplied")
    optics = optics.replace("2.5 16 2", "2.5 0 1").replace("1.5 16 0", "1.5 1 0")
    groups = load(write_text(tmp_path, optics + "\n" + PARTICLES)).optics
    assert [(g.phase_flipped, g.ctf_premultiplied) for g in groups] == [(False, True), (True, False)]


def test_the_users_pixel_size_wins(star):
    stack = load(star, pixel_size_A=4.0)
    np.testing.assert_allclose(stack.pixel_size_A, 4)
    assert stack.pose is not None
    np.testing.assert_allclose(stack.pose.shift_px[0], [-0.75, 0.375])


def test_limit_takes_the_first_particles_only(star, tmp_path):
    (tmp_path / "sub" / "b.mrcs").unlink()  # not needed, so not missed
    stack = load(star, limit=2)
    assert len(stack) == 2
    assert stack.paths == ("a.mrcs",)


def test_line_ends_of_windows_are_accepted_and_said(star):
    star.write_bytes(star.read_bytes().replace(b"\n", b"\r\n"))
    stack = load(star)
    assert len(stack) == 3
    assert "CRLF" in stack.notes[0]


# ------------------------------------------------------------------------------------------------------------ RELION 3.0


@pytest.mark.parametrize("block", ["data_", "data_images", "data_particles"])
def test_relion_30(tmp_path, stacks, block):
    stack = load(write_text(tmp_path, OLD.replace("data_\n", block + "\n")))
    np.testing.assert_allclose(stack.pixel_size_A, [1.25, 1.0])  # 1e4 * 5 um / magnification
    assert len(stack.optics) == 2
    assert stack.ctf is not None
    assert stack.ctf.known.all()
    np.testing.assert_allclose(stack.ctf.defocus_v_A, stack.ctf.defocus_u_A)
    assert stack.pose is not None
    np.testing.assert_allclose(stack.pose.theta_rad, [-math.pi / 4, 0])
    np.testing.assert_allclose(stack.pose.shift_px, [[-2, 3], [0, 0]])  # pixels, whatever the pixel size
    np.testing.assert_array_equal(stack.images(slice(None)), stacks["a.mrcs"][:2])


def test_other_blocks_before_the_particles_are_passed_over(tmp_path, stacks):
    text = "data_general\n\n_rlnNumber 1\n\n" + OLD.replace("data_\n", "data_particles\n")
    assert len(load(write_text(tmp_path, text))) == 2


# ------------------------------------------------------------------------------------------------------------- cryoSPARC


def test_a_cs_file(tmp_path, stacks):
    cs.write_cs(tmp_path / "particles.cs", cs_table())
    stack = load(tmp_path / "particles.cs")
    assert stack.kind == "cs"
    assert stack.names.tolist() == ["000003@a.mrcs", "000002@a.mrcs", "000001@a.mrcs"]
    np.testing.assert_array_equal(stack.images(slice(None)), stacks["a.mrcs"][::-1])
    assert len(stack.optics) == 1
    np.testing.assert_allclose(stack.pixel_size_A, 1.5)
    assert stack.ctf is not None
    np.testing.assert_allclose(stack.ctf.astigmatism_rad, 0.3)
    assert stack.pose is not None
    np.testing.assert_allclose(stack.pose.theta_rad, -0.5)
    np.testing.assert_allclose(stack.pose.shift_px, [[-4, 2]] * 3)  # the alignment's pixels are twice as large


def test_a_passthrough_is_joined_on_uid(tmp_path, stacks):
    table = cs_table()
    alignments = [name for name in table.dtype.names or () if name.startswith("alignments2D")]
    cs.write_cs(tmp_path / "main.cs", without(table, "blob/path", "blob/idx", "blob/psize_A"))
    cs.write_cs(tmp_path / "through.cs", without(table, *alignments)[[1, 2, 0]])
    assert "--passthrough" in complaint(tmp_path / "main.cs")
    stack = load(tmp_path / "main.cs", passthrough=tmp_path / "through.cs")
    np.testing.assert_array_equal(stack.images(slice(None)), stacks["a.mrcs"][::-1])


def test_a_cs_file_with_nothing_but_images(tmp_path, stacks):
    optional = [name for name in cs_table().dtype.names or () if "/" in name and not name.startswith("blob")]
    cs.write_cs(tmp_path / "bare.cs", without(cs_table(), *optional, "blob/psize_A"))
    assert "the pixel size is missing; give it in angstrom with --pixel-size-a" in complaint(tmp_path / "bare.cs")
    assert len(metadata(tmp_path / "bare.cs").optics) == 1
    stack = load(tmp_path / "bare.cs", pixel_size_A=2.0)
    assert (stack.ctf, stack.pose, len(stack.optics)) == (None, None, 1)


def test_different_beams_make_different_optics_groups(tmp_path, stacks):
    table = cs_table()
    table["ctf/accel_kv"][1] = 200
    cs.write_cs(tmp_path / "two.cs", table)
    stack = load(tmp_path / "two.cs")
    assert len(stack.optics) == 2
    assert stack.optics_of[0] == stack.optics_of[2] != stack.optics_of[1]


# ------------------------------------------------------------------------------------------------- CTF columns that are missing


def ctf_by_hand(k, defocus_A, phase_rad=0.0, contrast=0.1, voltage_kV=300.0, cs_mm=2.7):
    wavelength = 12.2643247 / math.sqrt(1e3 * voltage_kV * (1 + 1e3 * voltage_kV * 0.978466e-6))
    defocus, spherical = math.pi * wavelength * defocus_A * k**2, math.pi / 2 * 1e7 * cs_mm * wavelength**3 * k**4
    return math.sin(defocus - spherical + phase_rad + math.asin(contrast))


def without_columns(text, *labels):
    """A STAR file without some columns of its tables, each table a loop."""
    out = []
    for table in text.split("loop_\n"):
        lines = table.splitlines()
        names = [line.split()[0][1:] for line in lines if line.startswith("_")]
        keep = [i for i, name in enumerate(names) if name not in labels]
        kept = [line for line in lines if not (line.startswith("_") and line.split()[0][1:] in labels)]
        rows = [
            " ".join(line.split()[i] for i in keep) if len(line.split()) == len(names) > 2 else line for line in kept
        ]
        out.append("\n".join(rows) + "\n")
    return "loop_\n".join(out)


@pytest.mark.parametrize("kind", ["star", "cs"])
@pytest.mark.parametrize(
    ("missing", "values", "notes"),
    [
        ((), (15000, 14000, 30, 90, 0.1), []),
        (("contrast",), (15000, 14000, 30, 90, 0), ["the file has no {contrast}: taken as 0, as RELION does"]),
        (("v",), (15000, 15000, 30, 90, 0.1), ["the file has no {v}: taken as {u}, as RELION does"]),
        (("angle",), (15000, 14000, 0, 90, 0.1), ["the file has no {angle}: taken as 0, as RELION does"]),
        (("v", "angle"), (15000, 15000, 0, 90, 0.1), ["the file has no {v}: taken as {u}, as RELION does"]),
        (("phase",), (15000, 14000, 30, 0, 0.1), ["the file has no {phase}: taken as 0, as RELION does"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if value and isinstance(value, tuple) else "",
)
def test_what_is_assumed_of_a_ctf_is_said(tmp_path, stacks, kind, missing, values, notes):
    """Amplitude contrast, phase shift and angle count as 0, defocus V as U; number by number, and in the notes."""
    star_names = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnAmplitudeContrast")
    cs_names = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/phase_shift_rad", "ctf/amp_contrast")
    names = dict(zip(("u", "v", "angle", "phase", "contrast"), star_names if kind == "star" else cs_names, strict=True))
    if kind == "star":
        rows = PARTICLES.replace("14000 30 0 10", "14000 30 90 10")
        path = write_text(tmp_path, without_columns(OPTICS + "\n" + rows, *(names[part] for part in missing)))
    else:
        table = cs_table()
        for part, value in zip(names, (15000, 14000, np.radians(30), np.radians(90), 0.1), strict=True):
            table[names[part]] = value
        path = tmp_path / "particles.cs"
        cs.write_cs(path, without(table, *(names[part] for part in missing)))
    stack = load(path)
    # Without a phase plate RELION writes no phase shift at all.
    said = [] if kind == "star" and missing == ("phase",) else [note.format(**names) for note in notes]
    assert list(stack.notes) == said
    assert stack.ctf is not None
    assert stack.ctf.known.all()
    u, v, angle_deg, phase_deg, contrast = values
    np.testing.assert_allclose(stack.ctf.astigmatism_rad[0], math.radians(angle_deg), rtol=1e-6)
    along_x = (u + v) / 2 + (u - v) / 2 * math.cos(2 * math.radians(angle_deg))
    found = ctf_2d(stack.ctf[:1], 16, 1.5)[0]
    for column in (0, 1, 5):
        expected = ctf_by_hand(column / (16 * 1.5), along_x, math.radians(phase_deg), contrast)
        assert found[0, column] == pytest.approx(expected, abs=2e-5)


def test_relion_30_without_amplitude_contrast(tmp_path, stacks):
    stack = load(write_text(tmp_path, without_columns(OLD, "rlnAmplitudeContrast")))
    assert stack.notes == (
        "the file has no rlnDefocusV: taken as rlnDefocusU, as RELION does",
        "the file has no rlnAmplitudeContrast: taken as 0, as RELION does",
    )
    assert stack.ctf is not None
    np.testing.assert_array_equal(ctf_2d(stack.ctf, 16, 1.0)[:, 0, 0], 0)


def test_a_number_that_is_missing_in_one_row_is_not_assumed(tmp_path, stacks):
    table = cs_table()
    table["ctf/amp_contrast"][1] = np.nan
    cs.write_cs(tmp_path / "particles.cs", table)
    stack = load(tmp_path / "particles.cs")
    assert stack.ctf is not None
    assert stack.ctf.known.tolist() == [True, False, True]
    assert not stack.notes


MISSING = [
    ("star", ("rlnVoltage",), "the file has rlnDefocusU but no rlnVoltage"),
    ("star", ("rlnSphericalAberration",), "the file has rlnDefocusU but no rlnSphericalAberration"),
    (
        "star",
        ("rlnVoltage", "rlnSphericalAberration"),
        "the file has rlnDefocusU but no rlnVoltage and no rlnSphericalAberration",
    ),
    ("star", ("rlnDefocusU",), "the file has rlnVoltage but no rlnDefocusU"),
    ("cs", ("ctf/accel_kv",), "the file has ctf/df1_A but no ctf/accel_kv"),
    ("cs", ("ctf/cs_mm", "ctf/amp_contrast"), "the file has ctf/df1_A but no ctf/cs_mm"),
    ("cs", ("ctf/df1_A",), "the file has ctf/accel_kv but no ctf/df1_A"),
    ("cs", ("ctf/df1_A", "ctf/accel_kv", "ctf/cs_mm"), ""),
]


@pytest.mark.parametrize(("kind", "missing", "said"), MISSING)
def test_a_column_without_which_there_is_no_ctf_is_named(tmp_path, kind, missing, said):
    write_stack(tmp_path / "a.mrcs", pixels(3))
    write_stack(tmp_path / "sub" / "b.mrcs", pixels(3))
    if kind == "star":
        # One pixel size for all: what is asked here is about the CTF.
        text = (OPTICS + "\n" + PARTICLES).replace("0.07 2.5 16", "0.07 1.5 16")
        path = write_text(tmp_path, without_columns(text, *missing))
    else:
        path = tmp_path / "particles.cs"
        cs.write_cs(path, without(cs_table(), *missing))
    stack = load(path)
    assert not stack.notes
    assert stack.ctf is None or not stack.ctf.known.any()
    keep = PrepareConfig(invert="no")
    preparation, sentences, _ = decide(stack, keep, engine="steerable")
    assert preparation.ctf == "none"
    assert f"CTF left alone: {said or 'no parameters in the file'}" in sentences
    contents = particles_text(InputConfig(path), keep)
    assert f"  no CTF parameters{f': {said}' if said else ''}\n" in contents
    for asked in ("full", "phase-flip"):
        with pytest.raises(ParticleFileError, match="missing for 3 of 3 particles") as caught:
            decide(stack, dataclasses.replace(keep, ctf=asked), engine="steerable")
        assert (f"({said}); complete them or use --ctf none" if said else "; complete them") in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ bare stacks


def test_a_bare_stack(tmp_path):
    images = write_stack(tmp_path / "bare.mrcs", pixels(4), 1.25)
    stack = load(tmp_path / "bare.mrcs")
    assert (stack.kind, stack.ctf, stack.pose, stack.metadata) == ("mrc", None, None, None)
    assert stack.names.tolist()[3] == "000004@bare.mrcs"
    np.testing.assert_allclose(stack.pixel_size_A, 1.25)
    np.testing.assert_array_equal(stack.images(slice(None)), images)


def test_a_bare_stack_of_unknown_pixel_size_asks_for_it(tmp_path):
    write_stack(tmp_path / "bare.mrcs", pixels(4), 1.0)  # 1 in a header stands for "nobody set it"
    said = complaint(tmp_path / "bare.mrcs")
    assert "bare.mrcs" in said
    assert "--pixel-size-a" in said
    np.testing.assert_allclose(load(tmp_path / "bare.mrcs", pixel_size_A=3).pixel_size_A, 3)


@pytest.mark.parametrize("kind", ["star", "cs"])
def test_a_pixel_size_that_headers_alone_know_gives_shifts_in_pixels(tmp_path, kind):
    """And the table that was read is the one that is used: a growing file may have changed by then."""
    for name in ("a.mrcs", "sub/b.mrcs"):
        write_stack(tmp_path / name, pixels(3), 1.25)
    path = tmp_path / f"particles.{kind}"
    if kind == "star":
        one = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImageSize #2\n1 16\n7 16\n\n"
        path.write_text(one + PARTICLES)
        shift_A = [[-3.0, 1.5], [-5.0, -2.5], [0, 0]]
    else:
        cs.write_cs(path, without(cs_table(), "blob/psize_A"))
        shift_A = [[-6.0, 3.0]] * 3
    table = metadata(path)
    assert np.isnan(table.pixel_size_A).all() and table.pose is not None and table.pose.unset.any()
    path.write_text("grown meanwhile")
    stack = open_stacks_of(table, InputConfig(path))
    assert stack.pose is not None and stack.shift_A is None
    np.testing.assert_allclose(stack.pixel_size_A, 1.25)
    np.testing.assert_allclose(stack.pose.shift_px, np.array(shift_A) / 1.25)
    assert stack.notes[-1].startswith("the pixel size, 1.25 A, stands in the stack's header only")
    some = open_stacks_of(table.subset([2, 0]), InputConfig(path))
    assert some.pose is not None
    np.testing.assert_array_equal(some.pose.shift_px, stack.pose.shift_px[[2, 0]])


@pytest.mark.parametrize("n", [1, 5])
def test_a_stack_may_be_called_mrc(tmp_path, n):
    write_stack(tmp_path / "bare.mrc", pixels(n), 2.0)
    assert len(load(tmp_path / "bare.mrc")) == n


# ------------------------------------------------------------------------------------------------------ finding the stacks


def move_stacks(folder, home):
    for name in ("a.mrcs", "sub/b.mrcs"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(home / name)


def test_stacks_are_found_below_the_project_dir(star, tmp_path):
    move_stacks(tmp_path, tmp_path / "project")
    said = complaint(star)
    assert "a.mrcs" in said
    assert "--project-dir" in said
    assert len(load(star, project_dir=tmp_path / "project").files) == 2


def test_stacks_are_found_from_the_folders_above(star, tmp_path):
    (tmp_path / "Select" / "job012").mkdir(parents=True)
    moved = star.rename(tmp_path / "Select" / "job012" / "particles.star")
    assert load(moved).files[0].path == tmp_path / "a.mrcs"


def test_stacks_are_found_from_the_working_directory(star, tmp_path, monkeypatch):
    move_stacks(tmp_path, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(star).files[0].path == tmp_path / "elsewhere" / "a.mrcs"


def test_absolute_paths_are_taken_as_they_are(tmp_path, stacks):
    stack = load(write_text(tmp_path, OLD.replace("@a.mrcs", f"@{tmp_path}/a.mrcs")))
    assert stack.files[0].path == tmp_path / "a.mrcs"


def test_a_missing_stack_lists_every_place_tried(star, tmp_path, monkeypatch):
    (tmp_path / "sub" / "b.mrcs").unlink()
    for folder in ("here", "project"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    said = complaint(star, project_dir=tmp_path / "project")
    assert "particles.star" in said
    assert "sub/b.mrcs" in said
    for place in ("here/sub", "project/sub", "sub", ".."):
        assert str((tmp_path / place).resolve()) in said
    assert "--project-dir" in said


# ------------------------------------------------------------------------------------------------------------- the table


def test_chunks_cover_every_row_once(tmp_path):
    """Two boxes, two optics groups, shuffled: portions are bounded, uniform, and in the order of the disk."""
    rng = np.random.default_rng(0)
    for name, box in (("small.mrcs", 16), ("large.mrcs", 24)):
        write_stack(tmp_path / name, pixels(20, box))
    names = [f"{i + 1}@{name}" for name in ("small.mrcs", "large.mrcs") for i in range(20)]
    rows = "".join(f"{names[i]} {rng.choice([1, 7])}\n" for i in [*rng.permutation(40), 3, 3])
    text = OPTICS + "\ndata_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n" + rows
    stack = load(write_text(tmp_path, text))
    portions = list(stack.chunks(7))
    assert sorted(np.concatenate(portions).tolist()) == list(range(42))
    for portion in portions:
        assert 0 < len(portion) <= 7
        assert len(set(stack.optics_of[portion])) == 1
        assert stack.images(portion).shape[0] == len(portion)  # one box
        assert (np.diff(stack.index_of[portion]) >= 0).all() or len(set(stack.file_of[portion])) > 1
    with pytest.raises(ParticleFileError, match=r"\[16, 24\] pixels do not fit into one array"):
        stack.images(slice(None))
    assert most_common_box(stack) in (16, 24)


def test_a_subset_has_the_rows_asked_for(star):
    stack = load(star)
    some = stack.subset([2, 0])
    assert some.names.tolist() == ["3@sub/b.mrcs", "000002@a.mrcs"]
    np.testing.assert_array_equal(some.images(slice(None)), stack.images([2, 0]))
    assert some.ctf is not None
    assert some.pose is not None
    np.testing.assert_allclose(some.ctf.defocus_u_A, [17000, 15000])
    np.testing.assert_allclose(np.degrees(some.pose.theta_rad), [180, -10])
    assert len(stack) == 3
    assert len(stack.subset(np.array([True, False, True]))) == 2


def test_a_subset_has_only_the_boxes_of_its_rows(tmp_path):
    for name, box in (("small.mrcs", 16), ("large.mrcs", 24)):
        write_stack(tmp_path / name, pixels(2, box))
    stack = load(write_text(tmp_path, "data_\n\nloop_\n_rlnImageName\n1@small.mrcs\n1@large.mrcs\n"), pixel_size_A=1)
    assert stack.boxes == (16, 24)
    assert stack.subset([1]).boxes == (24,)


def test_a_table_never_changes(star):
    stack = load(star)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stack.names = stack.names[:1]


def test_repeated_images_are_particles_of_their_own(star, stacks):
    star.write_text(star.read_text() + "02@a.mrcs 1 15000 14000 30 0 10 3.0 -1.5\n")
    stack = load(star)
    assert len(stack) == 4
    np.testing.assert_array_equal(stack.images([0]), stack.images([3]))
    assert stack.notes == (
        "1 rows repeat an image that is listed before (the first is 000002@a.mrcs); each row stays a particle",
    )


# -------------------------------------------------------------------------------------------------------------- bad input


def test_no_such_file(tmp_path):
    assert "no such file" in complaint(tmp_path / "nothing.star")
    assert "expected one of .star, .cs" in complaint(write_text(tmp_path, "", "particles.txt"))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("3@sub", "4@sub", ["particle 3 is image 4 of sub/b.mrcs", "holds 3", "do not belong together"]),
        ("3@sub", "0@sub", ["'0@sub/b.mrcs' of particle 3", "expected N@stack.mrcs"]),
        ("3@sub/b.mrcs", "sub/b.mrcs", ["'sub/b.mrcs' of particle 3", "expected N@stack.mrcs"]),
        ("3@sub/b.mrcs 1", "3@sub/b.mrcs 5", ["optics group 5", "[1, 7]", "repair"]),
        ("3@sub/b.mrcs 1", "3@sub/b.mrcs x", ["rlnOpticsGroup", "data_particles", "expected numbers"]),
        ("17000 17000", "17000", ["line", "8 columns", "9"]),
        ("7 second", "1 second", ["data_optics", "group 1 twice", "repair"]),
        ("_rlnImageName", "_rlnMicrographName", ["no block of particles", "data_optics with 8", "_rlnImageName"]),
        ("_rlnOpticsGroup #2", "_rlnOther #2", ["no rlnOpticsGroup", "2 groups", "add the column"]),
        ("_rlnImagePixelSize", "_rlnOther", ["pixel size of optics group first is missing", "--pixel-size-a"]),
        ("200.0 1.6 0.07 2.5", "200.0 1.6 0.07 0", ["optics group second is missing", "--pixel-size-a"]),
        (PARTICLES[PARTICLES.index("000002@") :], "", ["empty", "expected at least one row"]),
    ],
    ids=lambda value: value.replace("\n", " ")[:24] if isinstance(value, str) else "",
)
def test_bad_star_files(star, old, new, parts):
    text = star.read_text()
    assert old in text
    star.write_text(text.replace(old, new))
    said = complaint(star)
    assert str(star) in said
    for part in parts:
        assert part in said


def test_optics_without_numbers(tmp_path, stacks):
    text = OPTICS.replace("_rlnOpticsGroup #1", "_rlnOther #1") + "\n" + PARTICLES
    assert "data_optics has no rlnOpticsGroup" in complaint(write_text(tmp_path, text))


def test_a_pixel_size_that_an_old_file_does_not_say(tmp_path, stacks):
    said = complaint(write_text(tmp_path, OLD.replace("_rlnDetectorPixelSize", "_rlnOther")))
    assert "particles.star: the pixel size is missing" in said
    assert "--pixel-size-a" in said
    assert "--pixel-size-a" in complaint(write_text(tmp_path, OLD.replace(" 50000 ", " 0 "), "zero.star"))


def test_a_stack_that_is_cut_short(star, tmp_path):
    with (tmp_path / "a.mrcs").open("r+b") as stream:
        stream.truncate(1024 + 2 * 4 * 256 + 100)
    said = complaint(star)
    assert "a.mrcs is cut short" in said
    assert "promises 3 images" in said
    assert "holds 2" in said


def test_images_that_are_not_square(star, tmp_path):
    header = bytearray((tmp_path / "a.mrcs").read_bytes())
    header[0:8] = np.array([32, 8], "<i4").tobytes()
    (tmp_path / "a.mrcs").write_bytes(header)
    said = complaint(star)
    assert "a.mrcs: images are 32 x 8 pixels" in said
    assert "expected square" in said


def test_a_volume_instead_of_a_stack(tmp_path):
    write_stack(tmp_path / "map.mrc", pixels(16), 1.5)
    said = complaint(tmp_path / "map.mrc")
    assert "16 sections of 16 x 16 look like a volume" in said
    assert "expected a stack" in said
    (tmp_path / "map.mrc").rename(tmp_path / "map.mrcs")
    assert len(load(tmp_path / "map.mrcs")) == 16


@pytest.mark.parametrize("field", ["blob/path", "blob/idx"])
def test_a_cs_file_without_images(tmp_path, field):
    cs.write_cs(tmp_path / "particles.cs", without(cs_table(), field))
    said = complaint(tmp_path / "particles.cs")
    assert f"particles.cs: no field {field}" in said
    assert "--passthrough" in said


def test_an_empty_cs_file(tmp_path):
    cs.write_cs(tmp_path / "particles.cs", cs_table(0))
    assert "empty" in complaint(tmp_path / "particles.cs")


def test_an_image_past_the_end_of_a_cs_stack(tmp_path, stacks):
    table = cs_table()
    table["blob/idx"][1] = 3
    cs.write_cs(tmp_path / "particles.cs", table)
    said = complaint(tmp_path / "particles.cs")
    assert "particle 2 is image 4 of a.mrcs, which holds 3" in said


# ----------------------------------------------------------------------------------------------------------- real files


@pytest.mark.real
def test_the_same_particles_from_star_and_cs(real_data):
    star, table = (load(real_data / "real" / f"empiar_10076_7.{kind}") for kind in ("star", "cs"))
    assert len(star) == len(table) == 7
    np.testing.assert_allclose(star.pixel_size_A, table.pixel_size_A, rtol=1e-6)
    np.testing.assert_allclose(star.pixel_size_A, 1e4 * 5 / 38168)
    np.testing.assert_array_equal(star.images(slice(None)), table.images(slice(None)))
    assert star.ctf is not None
    assert table.ctf is not None
    of_star, of_table = (ctf_2d(s.ctf, 320, s.pixel_size_A[0]) for s in (star, table) if s.ctf is not None)
    np.testing.assert_allclose(of_star, of_table, atol=1e-3)
    assert len({image.tobytes() for image in star.images(slice(None))}) == 7


@pytest.mark.real
def test_shuffled_and_repeated_real_particles(real_data):
    folder = real_data / "real"
    shuffled = load(folder / "toy_projections_13.star")
    bare = load(folder / "toy_projections.mrcs", pixel_size_A=1.035)
    wanted = [93, 32, 4, 5, 523, 556, 230, 875, 685, 321, 598, 155, 321]
    assert [int(name.partition("@")[0]) for name in shuffled.names] == wanted
    np.testing.assert_array_equal(shuffled.images(slice(None)), bare.images(np.array(wanted) - 1))
    np.testing.assert_allclose(shuffled.pixel_size_A, 1.035)
    assert any("1 rows repeat" in note for note in shuffled.notes)
    assert any("optics group" in note for note in shuffled.notes)
    assert len(load(folder / "toy_projections.star", pixel_size_A=1.035)) == len(bare) == 1000


@pytest.mark.real
@pytest.mark.parametrize("name", ["relion31.star", "relion31.v2.star"])
def test_real_relion_31_in_both_orders(real_data, name):
    stack = load(real_data / "real" / name)
    assert (len(stack), stack.boxes, stack.has_3d_pose) == (5, (256,), True)
    np.testing.assert_allclose(stack.pixel_size_A, 2.806)
    assert stack.ctf is not None
    assert stack.pose is not None
    np.testing.assert_allclose(stack.ctf.cs_mm, 0.01)
    np.testing.assert_allclose(stack.ctf.defocus_u_A[0], 13108.082418)
    np.testing.assert_allclose(np.degrees(stack.pose.theta_rad[0]), -124.706535, atol=1e-4)
    first = load(real_data / "real" / "relion31.star")
    np.testing.assert_array_equal(stack.images(slice(None)), first.images(slice(None)))


@pytest.mark.real
def test_six_optics_groups(real_data):
    stack = metadata(real_data / "real" / "relion31.6opticsgroups.star")
    assert (len(stack), len(stack.optics), stack.files) == (139, 6, ())
    by_name = {group.name: group.pixel_size_A for group in stack.optics}
    assert by_name == {f"opticsGroup{n}": 1.24 if n in (3, 4) else 1.25 for n in range(1, 7)}
    assert stack.ctf is not None
    # The table lists groups 5, 3, 2, 1, 4, 6 as numbers 1 to 6: a row's number says its group, not its place.
    cs_mm = {"opticsGroup1": 2.6}
    expected = [cs_mm.get(stack.optics[group].name, 2.7) for group in stack.optics_of]
    np.testing.assert_allclose(stack.ctf.cs_mm, expected)
    said = complaint(real_data / "real" / "relion31.6opticsgroups.star")
    assert "Polish/job520/Micrographs/0003_shiny.mrcs not found" in said


@pytest.mark.real
def test_relion_5(real_data):
    stack = metadata(real_data / "real" / "relion5.star")
    assert len(stack) == 17
    np.testing.assert_allclose(stack.pixel_size_A, 0.89)
    assert stack.ctf is not None
    np.testing.assert_allclose(stack.ctf.voltage_kV, 100)
    np.testing.assert_allclose(stack.ctf.cs_mm, 1.6)
    assert stack.has_3d_pose


@pytest.mark.real
def test_an_exported_cs_file(real_data):
    path = real_data / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    stack, table = metadata(path), cs.read_cs(path)
    assert len(stack) == 22
    assert not any(">" in p for p in stack.paths)
    assert stack.pose is not None
    # cryoSPARC counts from 0 to 2 pi
    np.testing.assert_allclose(np.exp(1j * stack.pose.theta_rad), np.exp(-1j * table["alignments2D/pose"]), atol=1e-6)
    ratio = table["alignments2D/psize_A"] / table["blob/psize_A"]
    np.testing.assert_allclose(stack.pose.shift_px, -table["alignments2D/shift"] * ratio[:, None], rtol=1e-6)
    assert "not found" in complaint(path)


@pytest.mark.real
def test_a_real_bare_stack(real_data):
    path = real_data / "real" / "sample.mrcs"
    assert "--pixel-size-a" in complaint(path)
    stack = load(path, pixel_size_A=1.0)
    assert (len(stack), stack.boxes) == (17, (200,))
