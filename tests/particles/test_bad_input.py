"""Bad input: one line saying what was found, expected and to do; exit code 2; nothing written, nothing lost."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.io.cs import write_cs
from emspatialvae.io.mrc import StackWriter
from emspatialvae.results.manifest import FORMAT
from tests.tools.particle_files import OPTICS, write_stack, write_star

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not hold for this user"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sim(easy_stack, here) -> Path:
    return shutil.copytree(easy_stack, here / "sim")


@pytest.fixture
def run(tiny_run, here) -> Path:
    return shutil.copytree(tiny_run, here / "run")


# ------------------------------------------------------------------------------------------------------------- stacks


@pytest.mark.parametrize("command", ["train", "infer"])
def test_missing_stack_names_every_place_tried(emsvae, here, run, command):
    (here / "job").mkdir()
    (here / "elsewhere").mkdir()
    star = write_star(here / "job" / "particles.star", ["1@Extract/gone.mrcs"])
    words = {"train": ["train", star], "infer": ["infer", run, star, "--out", "x.star"]}[command]
    said = emsvae.refused(*words, "--project-dir", "elsewhere")
    for place in (here / "job", here / "elsewhere", *here.parents):
        assert str(place / "Extract") in said.replace("elsewhere/../", "") or place == here / "elsewhere"
    assert "elsewhere/Extract" in said
    assert "Extract/gone.mrcs" in said and "--project-dir" in said


def test_missing_file(emsvae):
    for command in ("train", "info"):
        assert "gone.star: no such file" in emsvae.refused(command, "gone.star")


def test_unknown_kind_of_file(emsvae, here):
    (here / "particles.txt").write_text("x")
    assert ".star, .cs" in emsvae.refused("train", "particles.txt")


def test_missing_pixel_size(emsvae, here):
    write_stack(here / "bare.mrcs", pixel_size_A=None)
    assert "--pixel-size-a" in emsvae.refused("train", "bare.mrcs")
    (here / "old.star").write_text("data_\n\nloop_\n_rlnImageName #1\n1@bare.mrcs\n2@bare.mrcs\n")
    assert "--pixel-size-a" in emsvae.refused("train", "old.star")
    write_star(here / "new.star", ["1@bare.mrcs", "2@bare.mrcs 2"], "1 4.0\n2 0\n")
    said = emsvae.refused("train", "new.star")
    assert "optics group 2" in said and "--pixel-size-a" in said


def test_truncated_stack(emsvae, sim):
    stack = sim / "particles.mrcs"
    os.truncate(stack, 1024 + 7 * 24 * 24 * 4 + 100)
    said = emsvae.refused("train", sim / "particles.star")
    assert str(stack) in said and "48" in said and " 7" in said


@pytest.mark.parametrize("head", [b"", b"x" * 500, b"\x1f\x8b" + bytes(2000), b"plain text " * 200])
def test_not_a_stack(emsvae, sim, head):
    (sim / "particles.mrcs").write_bytes(head)
    said = emsvae.refused("train", sim / "particles.star")
    assert "particles.mrcs" in said


def test_index_past_the_end(emsvae, here):
    write_stack(here / "a.mrcs", 4)
    write_star(here / "p.star", ["1@a.mrcs", "5@a.mrcs"])
    said = emsvae.refused("train", "p.star")
    assert "particle 2" in said and "image 5" in said and "holds 4" in said


@pytest.mark.parametrize("name", ["a.mrcs", "0@a.mrcs", "x@a.mrcs", "1@"])
def test_odd_image_name(emsvae, here, name):
    write_stack(here / "a.mrcs", 4)
    write_star(here / "p.star", ["1@a.mrcs", name])
    said = emsvae.refused("train", "p.star")
    assert repr(name) in said and "N@stack.mrcs" in said


@pytest.mark.parametrize(("second_box", "second_A"), [(32, 4.0), (24, 3.0), (32, 2.5)])
def test_mixed_boxes_or_pixel_sizes_offer_a_box_that_works(emsvae, here, second_box, second_A):
    write_stack(here / "a.mrcs", 4, 24)
    write_stack(here / "b.mrcs", 4, second_box)
    names = [f"{i}@{file}" for i in range(1, 5) for file in ("a.mrcs", "b.mrcs 2")]
    write_star(here / "p.star", names, f"1 4.0\n2 {second_A}\n")
    said = emsvae.refused("train", "p.star")
    assert f"{second_box} px of {second_A:.4g} A" in said and "24 px of 4 A" in said
    offer = said.split("--box ")[1].split()[0]
    emsvae.done("train", "p.star", "--box", offer, "--engine", "coordinate", *emsvae.TINY)  # of noise


def test_non_square_images(emsvae, here):
    import mrcfile

    mrcfile.write(here / "a.mrcs", np.random.default_rng(0).normal(size=(3, 20, 24)).astype("f4"), voxel_size=3.0)
    said = emsvae.refused("train", "a.mrcs")
    assert "24 x 20" in said and "square" in said


def test_volume_instead_of_a_stack(emsvae, here):
    write_stack(here / "map.mrcs", 24, 24).rename(here / "map.mrc")
    said = emsvae.refused("train", "map.mrc")
    assert "volume" in said and ".mrcs" in said


def test_nothing_but_constant_images(emsvae, here):
    with StackWriter(here / "flat.mrcs", 4, 24, 4.0) as stack:
        stack.append(np.ones((4, 24, 24)))
    for extra in ([], ["--invert", "yes"]):
        assert "constant or holds NaN" in emsvae.refused("train", "flat.mrcs", *extra)


# ------------------------------------------------------------------------------------------------------------- tables


def test_wrong_column_count(emsvae, here):
    write_stack(here / "a.mrcs", 4)
    star = write_star(here / "p.star", ["1@a.mrcs", "2@a.mrcs 1 1"])
    line = 1 + star.read_text().splitlines().index("2@a.mrcs 1 1")
    said = emsvae.refused("train", "p.star")
    assert f"line {line}" in said and "3 columns" in said and " 2" in said


def test_crlf_is_accepted_said_and_mended(emsvae, sim, here):
    star = sim / "particles.star"
    star.write_bytes(star.read_bytes().replace(b"\n", b"\r\n"))
    said = emsvae.done("train", star, *emsvae.TINY).out
    assert "CRLF" in said
    assert "CRLF" in emsvae.done("info", star).out
    assert b"\r" not in (here / "particles_emsvae" / "particles.star").read_bytes()


def test_empty_table(emsvae, here):
    write_star(here / "p.star", [])
    for command in ("train", "info"):
        assert "at least one" in emsvae.refused(command, "p.star") or "empty" in emsvae.refused(command, "p.star")
    write_cs(here / "p.cs", np.zeros(0, [("blob/path", "S10"), ("blob/idx", "u4")]))
    assert "empty" in emsvae.refused("train", "p.cs")


@pytest.mark.parametrize(
    "text",
    [
        OPTICS + "1 4.0\n",
        "data_micrographs\n\nloop_\n_rlnMicrographName #1\na.mrc\n",
        "data_particles\n\nloop_\n_rlnMicrographName #1\na.mrc\n",
        "data_model_general\n\n_rlnReferenceDimensionality 2\n",
    ],
)
def test_no_particles_block(emsvae, here, text):
    (here / "p.star").write_text(text)
    said = emsvae.refused("train", "p.star")
    assert "rlnImageName" in said and "data_" in said


@pytest.mark.parametrize("content", [b"", b"\n\n", b"hello\n", b"\x00\x01" * 3000, b"data_particles\n"])
def test_not_a_star_file(emsvae, here, content):
    (here / "p.star").write_bytes(content)
    assert "p.star" in emsvae.refused("train", "p.star")


def test_particles_of_an_unknown_optics_group(emsvae, here):
    write_stack(here / "a.mrcs", 4)
    write_star(here / "p.star", ["1@a.mrcs", "2@a.mrcs 7"])
    assert "optics group 7" in emsvae.refused("train", "p.star")


def test_words_where_numbers_belong(emsvae, here):
    write_stack(here / "a.mrcs", 4)
    star = write_star(here / "p.star", ["1@a.mrcs", "2@a.mrcs"])
    star.write_text(
        star.read_text().replace("_rlnOpticsGroup #2\n1@", "_rlnAnglePsi #2\n1@").replace("2@a.mrcs 1", "2@a.mrcs x")
    )
    assert "rlnAnglePsi" in emsvae.done("info", "p.star").out  # poses are not needed: it is said, and stops nothing
    assert "1 of 2 have none" in emsvae.refused("train", "p.star", "--poses-fixed")


def test_duplicate_image_names(emsvae, sim, here):
    """Training keeps each row as a particle and says so; joining results with the truth cannot."""
    star = sim / "particles.star"
    lines = star.read_text().splitlines(keepends=True)
    row = next(line for line in lines if line.startswith("000003@"))
    star.write_text("".join([*lines[: lines.index(row) + 1], row, *lines[lines.index(row) + 1 :]]))
    said = emsvae.done("train", star, "--out", "twice", *emsvae.TINY).out
    assert "1 rows repeat an image" in said and "000003@particles.mrcs" in said and "each row stays a particle" in said
    results = (here / "twice" / "latents.csv").read_text().splitlines()
    assert len(results) == 1 + 49
    assert sum(line.startswith("000003@") for line in results) == 2
    said = emsvae.refused("evaluate", "twice", "--truth", sim / "truth.star")
    assert "image names repeat" in said and "latents.csv" in said


def test_cs_without_blob_path(emsvae, here):
    write_cs(here / "p.cs", np.zeros(3, [("uid", "u8"), ("alignments2D/pose", "f4")]))
    said = emsvae.refused("train", "p.cs")
    assert "blob/path" in said and "--passthrough" in said


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00v\x00"])
def test_not_a_cs_file(emsvae, here, content):
    (here / "p.cs").write_bytes(content)
    assert "p.cs" in emsvae.refused("train", "p.cs")


# ---------------------------------------------------------------------------------------------------- places to write


def test_existing_output(emsvae, sim, run, here):
    (here / "taken.star").write_text("mine")
    particles = sim / "particles.star"
    for words in (
        ["train", particles, "--out", run],
        ["infer", run, particles, "--out", "taken.star"],
        ["export", run, "--star", "taken.star"],
        ["export", run, "--csv", "new.csv", "--aligned", "taken.star"],
        ["simulate", "hinge", "--out", sim, "--particles", 5],
        ["demo", "--out", sim],
    ):
        said = emsvae.refused(*words)
        assert "exists already" in said and "--force" in said


def test_force_replaces_results(emsvae, sim, run, here):
    (here / "taken.csv").write_text("mine")
    emsvae.done("export", run, "--csv", "taken.csv", "--force")
    assert (here / "taken.csv").read_bytes() == (run / "latents.csv").read_bytes()
    (run / "checkpoint.pt").unlink()
    emsvae.done("train", sim / "particles.star", "--out", run, "--force", *emsvae.TINY)
    assert (run / "checkpoint.pt").is_file()
    emsvae.done("simulate", "hinge", "--out", sim, "--particles", 5, "--box", 16, "--force")


@pytest.mark.parametrize("config", [None, '{"model_type": "bert"}', "not json"])
def test_force_never_removes_what_is_not_a_run(emsvae, sim, here, config):
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter1.tex").write_text("ten years")
    if config is not None:
        (here / "thesis" / "config.json").write_text(config)
    for words in (["train", sim / "particles.star"], ["simulate", "hinge"], ["demo"]):
        assert "thesis" in emsvae.refused(*words, "--out", "thesis", "--force")


def test_force_never_removes_its_own_input(emsvae, run, here):
    said = emsvae.refused("train", run / "particles.star", "--project-dir", here, "--out", run, "--force")
    assert "inside" in said


def test_force_keeps_the_old_run_when_the_new_one_cannot_start(emsvae, sim, run):
    wrong = [["--noise", "bernoulli"], ["--box", "2000"], ["--max-shift-a", "1000"], ["--particle-diameter-a", "5000"]]
    before = (run / "checkpoint.pt").read_bytes()
    for words in wrong:
        emsvae.refused("train", sim / "particles.star", "--out", run, "--force", *words)
    assert (run / "checkpoint.pt").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_force_through_a_link_keeps_the_link(emsvae, sim, run, here):
    (here / "link").symlink_to("run")
    emsvae.done("train", sim / "particles.star", "--out", "link", "--force", "--z-dim", "1", *emsvae.TINY)
    assert (here / "link").is_symlink()
    assert json.loads((run / "config.json").read_text())["config"]["model"]["z_dim"] == 1


def test_output_below_a_file(emsvae, sim, run, here):
    (here / "file").write_text("x")
    assert "cannot be made" in emsvae.refused("train", sim / "particles.star", "--out", "file/run", *emsvae.TINY)
    assert "cannot be made" in emsvae.refused("infer", run, sim / "particles.star", "--out", "file/x.star")
    assert "cannot be made" in emsvae.refused("simulate", "hinge", "--out", "file/sim")


def test_format_that_the_name_does_not_tell(emsvae, sim, run):
    said = emsvae.refused("infer", run, sim / "particles.star", "--out", "out.txt")
    assert ".star" in said and ".csv" in said


@as_root
def test_folder_that_cannot_be_read_or_written(emsvae, sim, run, here):
    (here / "closed").mkdir()
    shutil.copytree(sim, here / "closed" / "sim")
    words = ["train", "closed/sim/particles.star"], ["train", sim / "particles.star", "--out", "closed/run"]
    (here / "closed").chmod(0)
    try:
        for command in words:
            assert "closed" in emsvae(*command).err
    finally:
        (here / "closed").chmod(0o755)


def test_folder_that_refuses(emsvae, sim, run, monkeypatch):
    """The same for root, whom permissions do not stop."""
    made = Path.mkdir

    def refuse(path, *args, **options):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return made(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    for words in (
        ["train", sim / "particles.star", "--out", "closed/run"],
        ["infer", run, sim / "particles.star", "--out", "closed/x.star"],
        ["export", run, "--csv", "closed/x.csv"],
        ["simulate", "hinge", "--out", "closed/sim"],
    ):
        said = emsvae.refused(*words)
        assert "Permission denied" in said and "closed" in said


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes, as far as one file can tell."""
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(emsvae, sim, run):
    for words in (
        ["train", sim / "particles.star"],
        ["train", sim / "particles.star", "--out", run, "--force"],
        ["infer", run, sim / "particles.star", "--out", "x.star"],
        ["infer", run, sim / "particles.star", "--out", "x.csv"],
        ["export", run, "--star", "x.star"],
        ["export", run, "--csv", "x.csv"],
        ["export", run, "--aligned", "x.mrcs"],
        ["simulate", "hinge", "--out", "other", "--particles", "20"],
    ):
        with files_of_at_most(4000):
            said = emsvae.refused(*words)
        assert "the disk is full" in said and "make room" in said


@pytest.mark.parametrize("engine", [pytest.param("steerable", marks=pytest.mark.slow), "coordinate"])
def test_disk_full_while_training_keeps_the_last_checkpoint(emsvae, clear_stack, here, engine):
    """A run that has a checkpoint goes on from it once there is room."""
    sim, run = shutil.copytree(clear_stack, here / "sim"), here / "run"
    emsvae.done("train", sim / "particles.star", "--out", run, "--engine", engine, *emsvae.TINY)
    before = (run / "checkpoint.pt").read_bytes()
    more = ["train", sim / "particles.star", "--out", run, "--resume", "--epochs", "3"]
    with files_of_at_most(60_000):
        answer = emsvae(*more)
    assert answer.code == 2
    assert answer.err.startswith("emsvae: the disk is full") and len(answer.err.splitlines()) == 1
    assert (run / "checkpoint.pt").read_bytes() == before
    emsvae.done(*more)
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 3


# ------------------------------------------------------------------------------------------------------------ run folders


def edit(run: Path, change) -> None:
    file = run / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def uses(run: Path, particles: Path) -> list[list[object]]:
    return [["infer", run, particles, "--out", "x.star"], ["train", particles, "--out", run, "--resume"]]


@pytest.mark.parametrize(
    ("part", "changed"), [("model", {"hidden": 17}), ("images", {"box": 1}), ("images", {"box": 25})]
)
def test_checkpoint_of_another_model(emsvae, sim, run, part, changed):
    edit(run, lambda content: content.get(part, content["config"].get(part)).update(changed))
    for words in uses(run, sim / "particles.star"):
        said = emsvae.refused(*words)
        assert "checkpoint.pt belongs to another model" in said


def test_checkpoint_of_another_program(emsvae, sim, run):
    import torch

    for state in ({"weights": torch.zeros(3)}, [1, 2, 3]):
        torch.save(state, run / "checkpoint.pt")
        for words in uses(run, sim / "particles.star"):
            assert "checkpoint.pt" in emsvae.refused(*words)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"junk", lambda b: b[:-1]])
def test_corrupted_checkpoint(emsvae, sim, run, damage):
    file = run / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    for words in uses(run, sim / "particles.star"):
        assert "checkpoint.pt is damaged" in emsvae.refused(*words)


def test_missing_checkpoint(emsvae, sim, run):
    (run / "checkpoint.pt").unlink()
    for words in uses(run, sim / "particles.star"):
        assert "no checkpoint.pt" in emsvae.refused(*words)


def every_use(run: Path, sim: Path) -> list[list[object]]:
    return [
        *uses(run, sim / "particles.star"),
        ["export", run, "--csv", "x.csv"],
        ["info", run],
        ["evaluate", run, "--truth", sim / "truth.star"],
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "3",
        lambda text: text.replace('"z_dim"', '"zdim"'),
        lambda text: text.replace('"z_dim": null', '"z_dim": "two"'),
        lambda text: text.replace('"results_z_dim": 2', '"results_z_dim": "two"'),
        lambda text: text.replace('"noise": "unit"', '"noise": "pink"'),
        lambda text: text.replace('"preparation"', '"preparations"'),
        lambda text: text.replace(f'"format": {FORMAT}', '"format": "one"'),
    ],
)
def test_damaged_config(emsvae, sim, run, damage):
    file = run / "config.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    for words in every_use(run, sim):
        said = emsvae.refused(*words)
        assert "config.json" in said and "damaged" in said


def test_newer_format(emsvae, sim, run):
    edit(run, lambda content: content.update(format=99, emspatialvae="9.9"))
    for words in every_use(run, sim):
        said = emsvae.refused(*words)
        assert "99" in said and "9.9" in said and "update" in said


def test_no_run_folder(emsvae, sim, here):
    (here / "empty").mkdir()
    for run in (here / "empty", here / "gone"):
        for words in every_use(run, sim):
            if words[0] == "info":
                continue  # of a run or of particles: see tests/workflows/test_info.py
            assert "not a run folder" in emsvae.refused(*words)


@pytest.mark.parametrize("damage", [None, "image_name,used\n", "", "a,b\n1,2\n"])
def test_missing_or_damaged_results(emsvae, sim, run, damage):
    (run / "latents.csv").unlink()
    if damage is not None:
        (run / "latents.csv").write_text(damage)
    for words in (["export", run, "--star", "x.star"], ["evaluate", run, "--truth", sim / "truth.star"]):
        said = emsvae.refused(*words)
        assert "latents.csv" in said and "--resume" in said


def test_other_particles_than_the_run_had(emsvae, sim, run):
    """The run knows where its particles are; here they have become fewer, or others, since."""
    edit(run, lambda content: content["config"]["input"].update(particles=str(sim / "particles.star")))
    star = sim / "particles.star"
    star.write_text("".join(line for line in star.read_text().splitlines(True) if not line.startswith("000048@")))
    for words in (["export", run, "--star", "x.star"], uses(run, star)[1]):
        said = emsvae.refused(*words)
        assert "47" in said and "48" in said


def test_resume_with_other_settings(emsvae, sim, run):
    for flag, value in (
        ("--z-dim", 3),
        ("--box", 20),
        ("--seed", 5),
        ("--limit", 9),
        ("--noise", "fitted"),
        ("--poses", "keep"),
    ):
        said = emsvae.refused("train", sim / "particles.star", "--out", run, "--resume", flag, value)
        assert flag.strip("-").replace("-", "_") in said
    assert "one of them" in emsvae.refused("train", sim / "particles.star", "--out", run, "--resume", "--force")


def test_truth_that_does_not_fit(emsvae, sim, run, here):
    assert "gone.star" in emsvae.refused("evaluate", run, "--truth", "gone.star")
    assert "emsvaeTrueZ1" in emsvae.refused("evaluate", run, "--truth", sim / "particles.star")
    truth = sim / "truth.star"
    truth.write_text(truth.read_text().replace("000007@", "000099@"))
    said = emsvae.refused("evaluate", run, "--truth", truth)
    assert "1 of 48" in said and "000007@particles.mrcs" in said


def test_particles_that_the_model_cannot_see(emsvae, run, here):
    write_stack(here / "small.mrcs", 4, 16)
    said = emsvae.refused("infer", run, "small.mrcs", "--out", "x.csv")
    assert "64 A" in said and "96 A" in said
    write_stack(here / "coarse.mrcs", 4, 32, 8.0)
    assert "8 A" in emsvae.refused("infer", run, "coarse.mrcs", "--out", "x.csv")


# ------------------------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    "flag",
    [
        "--epochs",
        "--max-epochs",
        "--patience",
        "--z-dim",
        "--hidden",
        "--layers",
        "--encoder-hidden",
        "--encoder-layers",
        "--batch-size",
        "--infer-turns",
        "--limit",
        "--box",
        "--pixel-size-a",
        "--particle-diameter-a",
        "--max-shift-a",
        "--shift-prior-px",
        "--learning-rate",
        "--theta-prior-rad",
        "--anchors",
        "--draws",
        "--pose-start-sd",
        "--start-detail",
    ],
)
@pytest.mark.parametrize("value", ["0", "-3"])
def test_numbers_that_must_be_positive(emsvae, sim, flag, value):
    said = emsvae.refused("train", sim / "particles.star", flag, value)
    assert flag in said and value in said


@pytest.mark.parametrize(
    "words",
    [
        ["--holdout", "1"],
        ["--holdout", "-0.1"],
        ["--z-delay", "-1"],
        ["--checkpoint-minutes", "-1"],
        ["--hot-pixel-sd", "-1"],
        ["--highpass-a", "0"],
        ["--seed", "-1"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "inf"],
        ["--pixel-size-a", "inf"],
        ["--particle-diameter-a", "5000"],
        ["--particle-diameter-a", "1"],
        ["--max-shift-a", "5000"],
        ["--box", "48"],
        ["--invert", "perhaps"],
        ["--epochs", "many"],
        ["--preset", "nature"],
        ["--nonsense", "1"],
        ["--decoder", "vanilla", "--bilinear"],
        ["another.star"],
    ],
)
def test_flags_that_cannot_work(emsvae, sim, words):
    said = emsvae.refused("train", sim / "particles.star", *words)
    assert words[0] in said


def test_a_flag_goes_by_its_older_name_as_well(emsvae, sim):
    assert "--particle-diameter-a" in emsvae.refused("train", sim / "particles.star", "--mask-diameter-a", "5000")


@pytest.mark.parametrize(
    "words",
    [
        ["--noise", "fitted"],
        ["--noise", "bernoulli"],
        ["--decoder", "vanilla"],
        ["--whole-image"],
        ["--non-negative"],
        ["--theta-kl", "full"],
        ["--theta-prior-rad", "1"],
    ],
    ids=" ".join,
)
def test_options_of_the_coordinate_engine(emsvae, sim, words):
    """The default engine has no use for them; one line says which one does."""
    said = emsvae.refused("train", sim / "particles.star", *words)
    assert " ".join(words) in said and "--engine coordinate" in said
    flags = [*words, "--engine", "coordinate", *emsvae.TINY]
    if "bernoulli" not in words:  # wants images between 0 and 1
        emsvae.done("train", sim / "particles.star", "--out", "fine", *flags)


@pytest.mark.parametrize(
    "words", [["--decoder", "coefficients"], ["--ctf", "full"], ["--scale", "particle"]], ids=" ".join
)
def test_options_of_the_steerable_engine(emsvae, sim, words):
    said = emsvae.refused("train", sim / "particles.star", "--engine", "coordinate", *words)
    assert " ".join(words) in said and "steerable" in said


def test_init_poses_of_a_file_without(emsvae, sim, here):
    said = emsvae.refused("train", sim / "particles.star", "--init-poses", "--out", "run")
    assert "--init-poses" in said and "rlnAnglePsi" in said
    emsvae.done("train", sim / "truth.star", "--init-poses", "--out", "run", *emsvae.TINY)


@pytest.fixture
def microscope(here) -> Path:
    """Folder of a stack with CTF parameters."""
    from emspatialvae.config import SimulateConfig
    from emspatialvae.simulation.stack import simulate_stack

    return simulate_stack(SimulateConfig("hinge", here / "ctf", particles=30, box=24, snr=2.0, shift_px=1.0, ctf=True))


@pytest.mark.parametrize("words", [[], ["--ctf", "full"], ["--ctf", "phase-flip"]], ids=" ".join)
def test_ctf_that_some_particles_lack(emsvae, microscope, words):
    star = microscope / "particles.star"
    lines = star.read_text().splitlines(keepends=True)
    for name in ("000007@", "000009@"):
        (row,) = (k for k, line in enumerate(lines) if line.startswith(name))
        cells = lines[row].split()
        at = next(int(line.split("#")[1]) for line in lines if line.startswith("_rlnDefocusU ")) - 1
        lines[row] = lines[row].replace(cells[at], "nan")
    star.write_text("".join(lines))
    said = emsvae.refused("train", star, "--out", "run", *words)
    assert "missing for 2 of 30" in said and "000007@particles.mrcs" in said and "--ctf none" in said


def test_ctf_full_of_a_file_without(emsvae, sim):
    said = emsvae.refused("train", sim / "particles.star", "--ctf", "full")
    assert "missing for 48 of 48" in said and "--ctf none" in said


def test_nothing_but_noise(emsvae, here):
    """No signal, no results: a user must not go on with angles of noise."""
    emsvae.done("simulate", "noise", "--out", "noise", "--particles", "400", "--box", "24")
    answer = emsvae("train", "noise/particles.star", "--out", "run", "--epochs", "4", *emsvae.TINY[2:])
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert line.startswith("emsvae: no signal found in noise/particles.star") and "--invert" in line
    assert not {"particles.star", "latents.csv"} & {path.name for path in (here / "run").iterdir()}


@pytest.mark.parametrize(
    "words",
    [
        ["--particles", "0"],
        ["--box", "4"],
        ["--snr", "0"],
        ["--shift-px", "-1"],
        ["--shift-px", "30"],
        ["--seed", "-1"],
    ],
)
def test_simulations_that_make_no_sense(emsvae, words):
    assert words[0].strip("-") in emsvae.refused("simulate", "hinge", "--out", "sim", *words)


@pytest.mark.parametrize(
    "words", [["train"], ["infer", "run"], ["export"], ["simulate"], ["evaluate", "run"], ["info"]]
)
def test_missing_arguments(emsvae, words):
    assert "--help" in emsvae.refused(*words)


def test_export_of_nothing(emsvae, run):
    assert "--star" in emsvae.refused("export", run)


def test_unknown_command(emsvae):
    said = emsvae.refused("refine", "particles.star")
    assert "'refine'" in said and "train" in said


def test_debug_gives_the_traceback(emsvae, here):
    from emspatialvae.errors import ParticleFileError

    with pytest.raises(ParticleFileError):
        emsvae("train", "gone.star", "--debug")
