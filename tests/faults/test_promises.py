"""What is promised to whoever trusts the program with data: see docs/promises.md, which names these tests."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.io import atomic, cs, leftovers, lock, mrc, processes, switch
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.star import StarFile
from emspatialvae.particles.read_star import particle_block
from emspatialvae.results.run_folder import RunDir


@pytest.fixture(scope="module")
def made(easy_stack, tmp_path_factory) -> Path:
    """A project: ``sim`` and a run of two epochs on it, with classes. Copied by `project`."""
    from emspatialvae.cli.main import main

    here = tmp_path_factory.mktemp("made")
    shutil.copytree(easy_stack, here / "sim")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr("emspatialvae.analysis.report.run_figures.draw", lambda *_: None)
        words = ["--epochs", "2", "--hidden", "16", "--encoder-hidden", "16", "--device", "cpu", "--z-dim", "2"]
        assert main(["train", "sim/particles.star", "--out", "run", *words]) == 0
        assert main(["classes", "run", "--k", "3", "--method", "kmeans"]) == 0
    return here


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of `made`, and the current folder."""
    here = tmp_path / "project"
    shutil.copytree(made, here)
    config = here / "run" / "config.json"
    config.write_text(config.read_text().replace(str(made), str(here)))
    monkeypatch.chdir(here)
    return here


SMALL = ("--epochs", "2", "--hidden", "16", "--encoder-hidden", "16", "--device", "cpu", "--z-dim", "2")


def shuffled(file: Path) -> None:
    """Put the rows of a STAR file into another order, as RELION does."""
    lines = file.read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if "@" in line]
    order = np.random.default_rng(5).permutation(len(rows))
    texts = [lines[rows[k]] for k in order]
    for number, text in zip(rows, texts, strict=True):
        lines[number] = text
    file.write_text("".join(lines))


def by_name(file: Path, *labels: str) -> dict[str, tuple[str, ...]]:
    """Cells of a STAR file by image name."""
    block = particle_block(StarFile.read(file))
    columns = block.columns("rlnImageName", *labels)
    return dict(zip(columns["rlnImageName"], zip(*(columns[label] for label in labels), strict=True), strict=True))


# ------------------------------------------------------------------------------------------ 1  on the right particles


@pytest.mark.slow
def test_rows_that_have_moved_are_followed_by_name(emsvae, project):
    labels = ("emsvaeZ1", "emsvaeZ2", "rlnAnglePsi", "rlnOriginXAngst", "rlnClassNumber")
    emsvae.done("export", "run", "--star", "before.star", "--aligned", "before.mrcs")
    shuffled(project / "sim" / "particles.star")
    emsvae.done("export", "run", "--star", "after.star", "--aligned", "after.mrcs", "--csv", "after.csv")
    before, after = (by_name(project / f"{when}.star", *labels) for when in ("before", "after"))
    assert list(before) != list(after) and before == after
    assert list(after) == pd.read_csv("after.csv")["image_name"].tolist()
    images = [mrc.read_images(mrc.read_header(project / f"{when}.mrcs"), range(48)) for when in ("before", "after")]
    where = [list(before).index(name) for name in after]
    np.testing.assert_array_equal(images[0][where], images[1])

    emsvae.done("classes", "run", "--k", "3", "--method", "kmeans")
    assert by_name(project / "run" / "particles.star", *labels[:4]) == {k: v[:4] for k, v in before.items()}
    table = pd.read_csv(project / "run" / "latents.csv")
    ours = dict(zip(table["image_name"], table["class_number"].astype(str), strict=True))
    assert {k: v[0] for k, v in by_name(project / "run" / "particles.star", "rlnClassNumber").items()} == ours
    emsvae.done("analyze", "run")
    emsvae.done("path", "run", "--from", "1@particles.mrcs", "--to", "9@particles.mrcs", "--out", "path.mrcs")


@pytest.mark.slow
def test_a_run_goes_on_although_rows_have_moved(emsvae, project):
    shutil.copytree(project / "run", "other")
    train = ("train", "sim/particles.star", "--resume", "--epochs", "3")
    emsvae.done(*train, "--out", "other")
    whole = by_name(project / "other" / "particles.star", "emsvaeZ1", "rlnAnglePsi")
    shuffled(project / "sim" / "particles.star")
    assert "followed by their image names" in emsvae.done(*train, "--out", "run").out
    found = by_name(project / "run" / "particles.star", "emsvaeZ1", "rlnAnglePsi")
    assert found == whole and list(found) != list(whole)
    assert list(found) == pd.read_csv(project / "run" / "latents.csv")["image_name"].tolist()


def test_zeros_before_the_number_are_no_other_name(emsvae, project):
    star = project / "sim" / "particles.star"
    before = by_name(project / "run" / "particles.star", "emsvaeZ1")
    star.write_text(re.sub(r"\b0+(\d+)@", r"\1@", star.read_text()))
    shuffled(star)
    emsvae.done("export", "run", "--star", "x.star")
    assert {
        f"{int(k.split('@')[0]):06d}@particles.mrcs": v for k, v in by_name(Path("x.star"), "emsvaeZ1").items()
    } == before


def uses(*, images: bool = True) -> list[tuple[str, ...]]:
    """Commands that read a run's particles."""
    commands = [("export", "run", "--star", "x.star"), ("train", "sim/particles.star", "--out", "run", "--resume")]
    return [*commands, *([("classes", "run"), ("export", "run", "--aligned", "x.mrcs")] if images else [])]


def test_particles_that_are_gone_or_new_are_named(emsvae, project):
    star = project / "sim" / "particles.star"
    star.write_text(star.read_text().replace("000007@", "000048@"))
    for words in uses():
        said = emsvae.refused(*words)
        assert (
            "1 are gone (the first is 7@particles.mrcs)" in said
            and "1 are new (the first is 48@particles.mrcs)" in said
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("longer", "now holds 60 images, the run was trained on a stack of 48"),
        ("box", "now has images of 32 px, the run was trained on 24 px"),
        ("pixels", "is not the file that the run was trained on"),
        ("header", "is not the file that the run was trained on"),
    ],
)
def test_a_stack_that_is_another_one_is_refused(emsvae, project, change, said):
    stack = project / "sim" / "particles.mrcs"
    images = mrc.read_images(mrc.read_header(stack), np.arange(48))
    if change in ("longer", "box"):
        n, box = (60, 24) if change == "longer" else (48, 32)
        with mrc.StackWriter(stack, n, box, 4.0, overwrite=True) as writer:
            writer.append(np.resize(images, (n, box, box)))
    else:
        content = bytearray(stack.read_bytes())
        content[200 if change == "header" else len(content) - 5] ^= 1
        stack.write_bytes(content)
    for words in uses():
        assert said in emsvae.refused(*words)


def test_rows_that_cannot_be_told_apart_are_not_followed(emsvae, project, easy_stack):
    star = project / "sim" / "particles.star"
    star.write_text(star.read_text().replace("000007@", "000008@"))
    emsvae.done("train", star, "--out", "twice", *SMALL)
    shuffled(star)
    assert "8@particles.mrcs is listed more than once" in emsvae.refused("export", "twice", "--star", "x.star")


# --------------------------------------------------------------------------------------- 2  only what a run has written


def test_all_that_commands_write_is_known_as_the_runs_own(emsvae, tiny_run, tmp_path):
    from emspatialvae.results.own_files import foreign

    run = shutil.copytree(tiny_run, tmp_path / "run")
    emsvae.done("analyze", run)
    assert foreign(run) == []
    for name in ("mask.mrc", "figures/mine.png", "notes/a.txt", "classes/picked.star"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    assert foreign(run) == ["classes/picked.star", "figures/mine.png", "mask.mrc", "notes/"]


@pytest.mark.parametrize("name", ["mask.mrc", "notes/list.txt", "classes/picked.star"])
def test_force_refuses_to_remove_what_is_somebodys_own(emsvae, project, name):
    (project / "run" / name).parent.mkdir(exist_ok=True)
    (project / "run" / name).write_text("mine")
    said = emsvae.refused("train", "sim/particles.star", "--out", "run", "--force", *SMALL)
    assert f"holds what emsvae did not write there: {name.split('/')[0]}" in said


def test_force_in_a_folder_with_a_stray_config(emsvae, project):
    Path("mine").mkdir()
    shutil.copy("run/config.json", "mine")
    Path("mine/movie.tif").write_text("weeks of work")
    assert "movie.tif" in emsvae.refused("train", "sim/particles.star", "--out", "mine", "--force", *SMALL)


def test_force_never_removes_the_raw_stack(emsvae, project):
    """The STAR file lies elsewhere, the stack in the run's folder, under a name of the run's own at that."""
    shutil.copy("sim/particles.mrcs", "run/consensus.mrc")
    star = Path("elsewhere.star")
    star.write_text(Path("sim/particles.star").read_text().replace("@particles.mrcs", "@run/consensus.mrc"))
    said = emsvae.refused("train", star, "--out", "run", "--force", *SMALL)
    assert "consensus.mrc lies inside run" in said


@pytest.mark.parametrize("what", [".", "figures", "latents.csv"])
def test_force_refuses_a_run_that_is_write_protected(emsvae, project, what):
    Path("run/figures").mkdir(exist_ok=True)
    path = project / "run" / what
    mode = path.stat().st_mode
    path.chmod(mode & ~0o222)
    try:
        said = emsvae.refused("train", "sim/particles.star", "--out", "run", "--force", *SMALL)
    finally:
        path.chmod(mode)
    assert "write-protected" in said
    assert sorted(entry.name for entry in project.iterdir()) == ["run", "sim"]


def test_simulate_with_force_keeps_what_is_somebodys_own(emsvae, project):
    Path("sim/mine.txt").write_text("mine")
    assert "mine.txt" in emsvae.refused("simulate", "hinge", "--out", "sim", "--particles", "20", "--force")


# ------------------------------------------------------------------------------------------------------ 3  two at once


def held_by(folder: Path, **changes: object) -> Path:
    """A lock of another process in a folder."""
    found = {"pid": os.getppid(), "host": processes.HOST, "token": "0" * 8, "began": processes.started(os.getppid())}
    content = found | {"since": "2026-01-01 00:00:00", "command": "emsvae train x"} | changes
    file = folder / lock.NAME
    file.write_text(json.dumps(content))
    return file


def test_a_run_in_use_is_left_alone(emsvae, project):
    held_by(project / "run")
    words = [
        ("train", "sim/particles.star", "--out", "run", "--force", *SMALL),
        ("train", "sim/particles.star", "--out", "run", "--resume"),
        ("classes", "run"),
        ("analyze", "run"),
    ]
    for command in words:
        said = emsvae.refused(*command)
        assert f"run is in use by process {os.getppid()} on {processes.HOST} since 2026-01-01" in said
    emsvae.done("export", "run", "--star", "x.star")  # reads only


@pytest.mark.parametrize("stale", [{"pid": 2**22 + 1}, {"began": 1}])
def test_a_lock_of_a_process_that_is_no_more_is_taken_over_and_said(emsvae, project, stale):
    held_by(project / "run", **stale)
    said = emsvae.done("classes", "run", "--k", "3", "--method", "kmeans").out
    assert "was left by process" in said and "taken over" in said
    assert not (project / "run" / lock.NAME).exists()


def test_a_lock_of_another_machine_is_stale_when_nobody_touches_it(tmp_path):
    file = held_by(tmp_path, host="elsewhere")
    with pytest.raises(RunFolderError, match="on elsewhere since"):
        lock.acquire(tmp_path)
    old = file.stat().st_mtime - lock.STALE_S - 5
    os.utime(file, (old, old))
    assert "elsewhere" in (lock.acquire(tmp_path) or "")
    assert lock.holder(tmp_path).is_us
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_appeared_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    for way in ("renameat2", "link", "claim"):
        destination = tmp_path / f"{way}.star"
        if way != "renameat2":
            monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
        if way == "claim":
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        with pytest.raises(OutputExistsError), atomic_path(destination) as temporary:
            temporary.write_text("ours")
            destination.write_text("somebody's")
        assert destination.read_text() == "somebody's"
        with atomic_path(tmp_path / f"{way}.csv") as temporary:
            temporary.write_text("ours")
        assert (tmp_path / f"{way}.csv").read_text() == "ours"
    assert len(list(tmp_path.iterdir())) == 6


def test_a_run_that_has_appeared_meanwhile_is_not_replaced(emsvae, project, monkeypatch):
    from emspatialvae.workflows import begin_run as workflow

    opened = workflow.open_images

    def meanwhile(run, stack, say=print):
        shutil.copytree("run", "new")
        return opened(run, stack, say)

    monkeypatch.setattr(workflow, "open_images", meanwhile)
    answer = emsvae("train", "sim/particles.star", "--out", "new", *SMALL)
    assert answer.code == 2 and "new exists already" in answer.err
    assert Path("new/latents.csv").read_bytes() == Path("run/latents.csv").read_bytes()
    assert sorted(entry.name for entry in project.iterdir()) == ["new", "run", "sim"]


# ------------------------------------------------------------------------------------------------------------ 4  metrics


@pytest.mark.parametrize("content", ["", "epoch,train_elbo\n1,", "epoch,train", "epoch,train_elbo\n1,2\n2\n", "\0\x81"])
def test_a_torn_table_of_metrics_is_one_line(emsvae, project, content):
    file = project / "run" / "metrics.csv"
    file.write_text(content)
    answer = emsvae("info", "run")
    assert answer.code in (0, 2) and "Traceback" not in answer.err
    resume = ("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "3")
    answer = emsvae(*resume)
    if answer.code == 2:
        assert "metrics.csv is damaged" in answer.err and "remove it" in answer.err
        file.unlink()
        emsvae.done(*resume)
    assert [row["epoch"] for row in RunDir(project / "run").metrics()][-1] == 3


# -------------------------------------------------------------------------------------- 5  trained, then no results


def test_a_folder_called_tilde(emsvae, project):
    emsvae.done("train", "sim/particles.star", "--out=~/r", *SMALL)
    emsvae.done("classes", "~/r", "--k", "2", "--method", "kmeans")
    emsvae.done("export", "~/r", "--csv", "~/x.csv")
    assert (project / "~" / "r" / "classes" / "classes.csv").is_file()
    assert len(pd.read_csv(project / "~" / "x.csv")) == 48


@pytest.mark.slow
def test_a_byte_outside_utf8_in_an_image_name(emsvae, project):
    stack = os.fsencode("sim") + b"/part\xffcles.mrcs"
    shutil.copy("sim/particles.mrcs", stack)
    star = Path("sim/odd.star")
    star.write_bytes(Path("sim/particles.star").read_bytes().replace(b"particles.mrcs", b"part\xffcles.mrcs"))
    emsvae.done("train", star, "--out", "odd", *SMALL)
    emsvae.done("export", "odd", "--csv", "x.csv", "--star", "x.star")
    emsvae.done("analyze", "odd")
    assert Path("x.csv").read_bytes().count(b"part\xffcles.mrcs") == 48
    assert Path("x.star").read_bytes().count(b"part\xffcles.mrcs") == 48
    emsvae.done("classes", "odd", "--k", "2", "--method", "kmeans")
    assert Path("odd/classes/run_data.star").read_bytes().count(b"part\xffcles.mrcs") == 48
    emsvae.done("train", star, "--out", "odd", "--resume", "--epochs", "3")
    assert [row["epoch"] for row in RunDir(Path("odd")).metrics()][-1] == 3
    assert Path("odd/particles.star").read_bytes().count(b"part\xffcles.mrcs") == 48


def test_a_line_end_in_a_path_of_a_cs_file_is_refused_before_the_training(emsvae, project):
    name = "part\nicles.mrcs"
    shutil.copy("sim/particles.mrcs", name)
    array = np.zeros(48, [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    array["uid"], array["blob/idx"], array["blob/psize_A"] = np.arange(48), np.arange(48), 4.0
    array["blob/path"] = name.encode()
    cs.write_cs(Path("p.cs"), array)
    assert "line end" in emsvae.refused("train", "p.cs", "--out", "new", *SMALL)


def test_classes_that_are_a_link(emsvae, project):
    shutil.move("run/classes", "scratch")
    Path("run/classes").symlink_to(project / "scratch")
    emsvae.done("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "3")
    assert not Path("run/classes").is_symlink() and Path("scratch/classes.csv").is_file()
    Path("run/classes").symlink_to(project / "scratch")
    emsvae.done("classes", "run", "--k", "2", "--method", "kmeans")
    assert Path("run/classes/classes.csv").is_file() and not Path("run/classes").is_symlink()
    assert len(pd.read_csv("scratch/classes.csv")) == 3, "what the link points to is not ours"


@pytest.mark.parametrize("column", ["theta_rad", "shift_px", "z_sd"])
def test_numbers_that_are_none_cost_a_particle_not_the_results(emsvae, project, monkeypatch, column):
    from emspatialvae.inference import infer

    columns = infer._columns_of

    def spoilt(estimate):
        found = columns(estimate)
        found[column] = found[column].clone()
        found[column][3] = np.nan
        return found

    monkeypatch.setattr(infer, "_columns_of", spoilt)
    said = emsvae.done("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "3").out
    assert "of 1 particles the model says nothing that is a number" in said
    table = pd.read_csv("run/latents.csv")
    assert (table["used"] == 0).sum() == 1 and np.isfinite(table.select_dtypes("number").to_numpy()).all()
    assert not any(
        "nan" in " ".join(cells).lower() for cells in by_name(Path("run/particles.star"), "rlnAnglePsi").values()
    )


# ------------------------------------------------------------------------------------------------- 6  output that is gone


def shell(command: str, **options) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {command.replace('emsvae', f'{sys.executable} -m emspatialvae')}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=240, **options)


@pytest.mark.parametrize(
    "command", ["emsvae --help | true", "emsvae --help >&-", "emsvae --help 2>&-", "emsvae 2>&- nothing"]
)
def test_help_without_a_reader(command):
    done = shell(command)
    assert done.returncode == (2 if "nothing" in command else 0), done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.slow
def test_a_training_whose_reader_goes_away_goes_on(project):
    done = shell(f"emsvae train sim/particles.star --out new {' '.join(SMALL)} 2>&1 | head -1", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 particles" in done.stdout and "Traceback" not in done.stderr
    assert len(pd.read_csv(project / "new" / "latents.csv")) == 48
    assert "results:" in (project / "new" / "run.log").read_text()


def test_a_log_on_a_full_disk_is_said_and_costs_nothing(project):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = shell("emsvae export run --star x.star > /dev/full", cwd=project)
    assert done.returncode == 2 and "could not all be written" in done.stderr
    assert (project / "x.star").is_file()


# --------------------------------------------------------------------------------------------------------- 7  own input


def test_no_command_replaces_its_own_input(emsvae, project):
    raw, star = Path("sim/particles.mrcs"), Path("sim/particles.star")
    Path("link.mrcs").symlink_to(raw)
    os.link(raw, "hard.mrcs")
    words = [
        ("export", "run", "--aligned", raw),
        ("export", "run", "--aligned", "link.mrcs"),
        ("export", "run", "--aligned", "hard.mrcs"),
        ("export", "run", "--star", star),
        ("infer", "run", star, "--out", star),
        ("path", "run", "--from", "1@particles.mrcs", "--to", "2@particles.mrcs", "--out", raw),
        ("select", star, "--drop-duplicates-a", "1", "--out", star),
    ]
    for command in words:
        assert "is what is read" in emsvae.refused(*command, "--force")
    own = [
        ("export", "run", "--csv", "run/latents.csv"),
        ("infer", "run", star, "--out", "run/particles.star"),
        ("manifold", "run", "--out", "run/figures/poses.png"),
        ("select", "run", "--where", "class_number == 1", "--out", "run/particles.star"),
    ]
    for command in own:
        assert re.search("the run in .* is made of|is what is read", emsvae.refused(*command, "--force"))
    emsvae.done("export", "run", "--star", "run/particles.star", "--force")  # what that command is for


def test_two_outputs_are_two_files(emsvae, project):
    assert "asked for twice" in emsvae.refused("export", "run", "--star", "o", "--csv", "o")


# ----------------------------------------------------------------------------------------- 8  what belongs together


def test_results_of_an_earlier_state_of_the_model_are_known_as_such(emsvae, project, monkeypatch):
    from emspatialvae.workflows import train as workflow

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(workflow, "finish_run", lambda *_, **__: 1 / 0)
        emsvae("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "4")
    assert "those of 2 epochs, and its model has gone on" in emsvae.done("info", "run").out
    for words in (("classes", "run"), ("analyze", "run"), ("manifold", "run", "--out", "m.png")):
        assert "finish it with" in emsvae.refused(*words)
    assert "those of 2 epochs" in emsvae.done("export", "run", "--csv", "x.csv").out
    emsvae.done("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "4")
    assert "gone on" not in emsvae.done("info", "run").out
    emsvae.done("classes", "run", "--k", "2", "--method", "kmeans")


def test_classes_of_other_results_are_refused(emsvae, project):
    shutil.copytree("run/classes", "three")
    emsvae.done("classes", "run", "--k", "5", "--method", "kmeans")
    shutil.rmtree("run/classes")
    shutil.move("three", "run/classes")
    assert "of other classes than" in emsvae.refused("analyze", "run")


def test_a_table_of_other_rows_is_refused(emsvae, project):
    shuffled(project / "run" / "particles.star")
    assert "the same particles in the same order" in emsvae.refused("analyze", "run")
    emsvae.done("export", "run", "--star", "run/particles.star", "--force")
    emsvae.done("analyze", "run")


@pytest.mark.parametrize("step", range(1, 12))
def test_a_switch_that_was_cut_short_is_carried_out(tmp_path, monkeypatch, step):
    """Wherever the process dies, the folder is as before or as after."""

    class Killed(BaseException):
        pass

    (tmp_path / "classes").mkdir()
    for name in ("latents.csv", "particles.star", "classes/a", "analysis"):
        (tmp_path / name).write_text("old")
    count = 0

    def counted(original):
        def call(*words, **options):
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            return original(*words, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(switch.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(leftovers, "remove", lambda *_: None)
        try:
            with switch.switching(tmp_path) as parts:
                parts.remove.append("analysis")
                for name in ("latents.csv", "particles.star"):
                    (parts.folder / name).write_text("new")
                os.mkdir(parts.folder / "classes")  # noqa: PTH102
                (parts.folder / "classes" / "b").write_text("new")
        except Killed:
            pass
    switch.finish(tmp_path)
    texts = {name: (tmp_path / name).read_text() for name in ("latents.csv", "particles.star")}
    there = [(tmp_path / name).exists() for name in ("classes/a", "classes/b", "analysis")]
    assert (set(texts.values()), there) in [({"old"}, [True, False, True]), ({"new"}, [False, True, False])]
    assert not (tmp_path / ".switch").exists()


@pytest.mark.draws
def test_a_figure_that_fails_does_not_cost_the_results(emsvae, project, monkeypatch):
    def fail(run, model, images, latents, folder):
        (folder / "figures").mkdir()
        (folder / "figures" / "half.png").write_text("half")
        raise EmsvaeError("no room for figures")

    monkeypatch.setattr("emspatialvae.analysis.report.run_figures.draw", fail)
    answer = emsvae("train", "sim/particles.star", "--out", "new", *SMALL)
    assert answer.code == 2 and "no room for figures" in answer.err
    assert len(pd.read_csv("new/latents.csv")) == 48 and Path("new/particles.star").is_file()
    assert not Path("new/figures").exists()


# ---------------------------------------------------------------------------------------------------------- 9  leftovers


def test_what_killed_commands_have_left_is_removed_and_said(emsvae, project):
    dead, token = 2**22 + 1, "0" * 8
    mark = f"emsvae-{processes.HOST_NUMBER}-{dead}-{token}-0"
    theirs = f"emsvae-{'0' * 8}-{dead}-{token}-0"
    living = f"emsvae-{processes.HOST_NUMBER}-{os.getppid()}-{token}-0"
    for name in (f".run.{mark}/cache", f".x.{theirs}", f".y.{living}", f"run/.z.{mark}"):
        (project / name).mkdir(parents=True)
    (project / "run" / f".checkpoint.{mark}.pt").write_text("half")
    answer = emsvae.done("train", "sim/particles.star", "--out", "new", *SMALL)
    assert f".run.{mark}, left by a command that was killed" in answer.err
    answer = emsvae.done("classes", "run", "--k", "2", "--method", "kmeans")
    assert f".checkpoint.{mark}.pt" in answer.err
    left = sorted(path.name for path in project.rglob("*") if leftovers.is_temporary(path.name))
    assert left == sorted([f".x.{theirs}", f".y.{living}"])
    old = (project / f".x.{theirs}").stat().st_mtime - leftovers.ABANDONED_S - 5
    os.utime(project / f".x.{theirs}", (old, old))
    leftovers.sweep(project)
    assert not (project / f".x.{theirs}").exists()


def test_a_run_keeps_one_cache(emsvae, project):
    resume = ("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "2")
    before = sorted(path.name for path in Path("run/cache").iterdir())
    emsvae.done(*resume)
    after = sorted(path.name for path in Path("run/cache").iterdir())
    assert len(before) == len(after) and before != after, "the stack was copied, so the old cache is of no use"


def test_a_run_that_was_moved_aside_goes_back(project):
    aside = project / f".run.emsvae-{processes.HOST_NUMBER}-{2**22 + 1}-00000000-0.old"
    Path("run").rename(aside)
    leftovers.sweep(project)
    assert (project / "run" / "config.json").is_file() and not aside.exists()


# -------------------------------------------------------------------------------------------------------------- 10  cache


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("images", "flip"),
        pytest.param("images", "cut", marks=pytest.mark.slow),
        pytest.param("usable", "flip", marks=pytest.mark.slow),
        pytest.param("sums", "flip", marks=pytest.mark.slow),
        pytest.param("sums", "empty", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_cache_is_noticed_and_made_again(emsvae, project, kind, damage):
    resume = ("train", "sim/particles.star", "--out", "run", "--resume", "--epochs")
    shutil.rmtree("run/cache")
    emsvae.done(*resume, "3")
    (file,) = (project / "run" / "cache").glob(f"{kind}_*.npy")
    sound = file.read_bytes()
    content = bytearray(sound)
    content[-3] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": sound[:-40], "empty": b""}[damage])
    assert "damaged; they are made again" in emsvae.done(*resume, "4").out
    assert file.read_bytes() == sound
    assert "damaged" not in emsvae.done(*resume, "4").out


# ------------------------------------------------------------------------------------------------------------ 11  signals


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("SIGTERM", 143, marks=pytest.mark.slow),
        ("SIGUSR1", 138),
        pytest.param("SIGHUP", 129, marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_training_as_ctrl_c_does(emsvae, clear_stack, tmp_path, monkeypatch, name, code):
    from emspatialvae.training.trainer import Trainer

    monkeypatch.chdir(tmp_path)
    step = Trainer.step

    def signalled(self, rows, interrupted):
        end = step(self, rows, interrupted)
        if self.progress.epoch == 1:
            signal.raise_signal(getattr(signal, name))
            signal.raise_signal(getattr(signal, name))  # queues send theirs more than once
            end = interrupted()
        return end

    train = ("train", clear_stack / "particles.star", *SMALL[2:], "--epochs", "3", "--batch-size", "60")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", signalled)
        answer = emsvae(*train, "--out", "cut")
    assert answer.code == code and "interrupted" in answer.out
    assert len(pd.read_csv("cut/latents.csv")) == 200
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL
    emsvae.done("train", clear_stack / "particles.star", "--out", "cut", "--resume")
    emsvae.done(*train, "--out", "whole")
    for file in ("metrics.csv", "latents.csv"):
        assert Path("whole", file).read_bytes() == Path("cut", file).read_bytes()


def test_a_signal_before_the_training_leaves_nothing_and_says_so(emsvae, project, monkeypatch):
    from emspatialvae.workflows import begin_run as workflow

    monkeypatch.setattr(workflow, "open_images", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    answer = emsvae("train", "sim/particles.star", "--out", "new", *SMALL)
    assert (answer.code, answer.err) == (143, "emsvae: ended by SIGTERM\n")
    assert sorted(entry.name for entry in project.iterdir()) == ["run", "sim"]


def test_what_nohup_ignores_stays_ignored(emsvae, project, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr("emspatialvae.results.read_run.read_latents", lambda *_: signal.raise_signal(signal.SIGHUP))
        with pytest.raises(TypeError):
            emsvae("export", "run", "--csv", "x.csv")
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------------------------- 12  damaged run folders


def edited(path: str, value: object):
    def edit(content):
        *parents, last = path.split(".")
        part = content
        for name in parents:
            part = part[name]
        part[last] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config", None),
        ("config", []),
        ("config.model", None),
        ("config.model", [1]),
        ("config.model.hidden", None),
        ("config.model.hidden", 10**9),
        ("config.model.hidden", [16]),
        ("config.model.engine", ["steerable"]),
        ("config.input.particles", {"a": 1}),
        ("config.input.particles", "a\0b"),
        ("config.train.seed", "x"),
        ("preparation", 3),
        ("preparation.box", 10**6),
        ("preparation.box", -1),
        ("images", None),
        ("images.box", None),
        ("n_particles", "many"),
        ("n_particles", None),
        ("assumed", None),
        ("assumed", {"a": 1}),
        ("optics", 7),
        ("format", True),
        ("format", None),
    ],
)
def test_a_config_of_other_kinds_is_one_line(emsvae, project, path, value):
    file = project / "run" / "config.json"
    content = json.loads(file.read_text())
    edited(path, value)(content)
    file.write_text(json.dumps(content))
    for words in (("info", "run"), ("export", "run", "--csv", "x.csv"), ("classes", "run")):
        assert "config.json" in emsvae.refused(*words)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 50_000, "null", "[]", "3", "\0", "\xff" * 9])
def test_a_config_that_is_none_is_one_line(emsvae, project, content):
    (project / "run" / "config.json").write_bytes(content.encode("latin1"))
    assert "config.json" in emsvae.refused("info", "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(z1="much"),
        lambda table: table.assign(used="yes"),
        lambda table: table.assign(theta_rad=np.inf),
        lambda table: table.assign(class_number=1.5),
        lambda table: table.drop(columns="shift_y_A"),
        lambda table: table[:20],
        lambda table: table[:0],
    ],
)
def test_damaged_results_are_one_line(emsvae, project, change):
    file = project / "run" / "latents.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)
    for words in (("info", "run"), ("export", "run", "--star", "x.star"), ("classes", "run"), ("analyze", "run")):
        assert "latents.csv is damaged" in emsvae.refused(*words)


def test_shuffled_results_are_followed_by_name(emsvae, project):
    file = project / "run" / "latents.csv"
    emsvae.done("export", "run", "--star", "before.star")
    pd.read_csv(file).sample(frac=1, random_state=1).to_csv(file, index=False)
    emsvae.done("export", "run", "--star", "after.star")
    assert by_name(Path("before.star"), "emsvaeZ1") == by_name(Path("after.star"), "emsvaeZ1")
    assert "in the same order" in emsvae.refused("analyze", "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("model"),
        lambda state: state.pop("format"),
        lambda state: state.pop("optimiser"),
        lambda state: state.pop("progress"),
        lambda state: state.update(format=1),
        lambda state: state.update(model=[1, 2]),
        lambda state: state.update(model={"a": 3}),
        lambda state: state.update(progress=3),
        lambda state: state["progress"].pop("epoch"),
        lambda state: state["progress"].update(epoch="x"),
        lambda state: state["model"].popitem(),
    ],
)
def test_a_checkpoint_that_lacks_something_is_one_line(emsvae, project, change):
    import torch

    file = project / "run" / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    answer = emsvae("train", "sim/particles.star", "--out", "run", "--resume", "--epochs", "3")
    assert answer.code == 2 and "checkpoint.pt" in answer.err and len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classes", "run", "--seed", "-1"), "--seed is -1"),
        (("export", "run", "--csv", "x" * 300 + ".csv"), "name too long"),
        (("train", "sim/particles.star", "--out", "y" * 300), "name too long"),
        (("train", "sim/particles.star", "--out", "new", "--kl-warmup-steps", "-1"), "--kl-warmup-steps is -1"),
        (("train", "sim/particles.star", "--out", "new", "--pixel-size-a", "1e-7"), "--pixel-size-a is 1e-07"),
        (("info", "round"), "round"),
        (("export", "run", "--csv", "round/x.csv"), "cannot be made"),
        (("train", "round/p.star", "--out", "new"), "no such file"),
    ],
)
def test_odd_arguments_are_one_line(emsvae, project, words, said):
    Path("round").symlink_to("round")
    before = sorted(path.name for path in project.iterdir())
    answer = emsvae(*words)
    assert answer.code == 2 and len(answer.err.splitlines()) == 1, answer
    assert said.lower() in answer.err.lower()
    assert sorted(path.name for path in project.iterdir()) == before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line(emsvae, project, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("emspatialvae.results.read_run.read_latents", fail)
    assert "memory is not enough" in emsvae.refused("export", "run", "--csv", "x.csv")


# --------------------------------------------------------------------------------------------------------- 13  small


def test_a_run_that_was_killed_before_its_first_checkpoint_needs_no_force(emsvae, project, monkeypatch):
    from emspatialvae.training.trainer import Trainer

    train = ("train", "sim/particles.star", "--out", "new", *SMALL)
    for again in (train, ("train", "sim/particles.star", "--out", "new", "--resume")):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Trainer, "save", lambda _: 1 / 0)
            emsvae(*train)
        emsvae.done(*again)
        assert Path("new/latents.csv").read_bytes() == latents_without_classes(Path("run"))
        shutil.rmtree("new")


def latents_without_classes(run: Path) -> bytes:
    lines = (run / "latents.csv").read_text().splitlines()
    names = lines[0].split(",")
    kept = [k for k, name in enumerate(names) if "class" not in name]
    return ("\n".join(",".join(line.split(",")[k] for k in kept) for line in lines) + "\n").encode()


def test_the_line_for_relions_display_can_be_pasted(emsvae, project):
    Path("run").rename("my run; rm x")
    said = emsvae.done("classes", "my run; rm x", "--k", "2", "--method", "kmeans").out
    assert "--i 'my run; rm x/classes/run_model.star'" in said


def test_a_picture_that_is_a_link_to_nowhere_is_said(emsvae, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("L", (32, 32), 9 * number).save(f"pictures/{number}.png")
    Path("pictures/3.png").symlink_to("gone.png")
    said = emsvae.refused("train", "pictures", "--out", "new", "--engine", "coordinate")
    assert "3.png is a link to gone.png, which is not there" in said


# -------------------------------------------------------------------------------------------------------- 14  power loss


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    events = []
    fsync = os.fsync

    def noted(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", lambda *_, was=Path.replace: (events.append("rename"), was(*_))[1])
    with atomic_path(tmp_path / "x", overwrite=True) as temporary:
        temporary.write_text("x")
    assert events == ["file", "rename", "folder"]
    events.clear()
    with atomic.atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
    assert events == ["file", "folder", "folder"]


# ---------------------------------------------------------------------------------------------- no code from data files


def test_a_checkpoint_with_code_in_it_runs_nothing(emsvae, project):
    import pickle

    class Bad:
        def __reduce__(self):
            return os.mkdir, ("made-by-code",)

    (project / "run" / "checkpoint.pt").write_bytes(pickle.dumps({"format": 2, "model": Bad()}))
    answer = emsvae("infer", "run", "sim/particles.star", "--out", "x.star")
    assert answer.code == 2 and "damaged" in answer.err and not Path("made-by-code").exists()


@pytest.mark.slow
def test_images_of_absurd_values_give_the_same_results(emsvae, project):
    """Their squares leave the range of float32; a power of two changes no digit."""
    images = mrc.read_images(mrc.read_header(Path("sim/particles.mrcs")), range(48))
    for name, scale in (("plain", 1.0), ("huge", 2.0**60), ("tiny", 2.0**-60)):
        Path(name).mkdir()
        with mrc.StackWriter(Path(name, "particles.mrcs"), 48, 24, 4.0) as writer:
            writer.append(images * np.float32(scale))
        shutil.copy("sim/particles.star", name)
        emsvae.done("train", f"{name}/particles.star", "--out", f"run_{name}", *SMALL)
    plain, huge, tiny = (pd.read_csv(f"run_{name}/latents.csv") for name in ("plain", "huge", "tiny"))
    for other in (huge, tiny):
        np.testing.assert_allclose(other["log_likelihood"], plain["log_likelihood"], rtol=1e-2)
        np.testing.assert_allclose(np.cos(other["theta_rad"] - plain["theta_rad"]), 1, atol=1e-3)
