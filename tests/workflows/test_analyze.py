"""`emsvae analyze`: what lies in RUN/analysis, for every kind of run, and what is refused."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emspatialvae.analysis.report import html
from emspatialvae.cli.main import COMMANDS
from emspatialvae.errors import EmsvaeError
from emspatialvae.io.cs import write_cs
from emspatialvae.workflows import analyze as job
from emspatialvae.workflows.analyze import ReportSettings, analyze_run
from tests.conftest import Emsvae, contents

EVIL = "<script>alert(1)</script>&\"'.mrc"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny run in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_run, tmp_path / "run")).relative_to(tmp_path)


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of the map of z alone, which saves most of the time."""
    from emspatialvae.analysis.report import exhibits

    monkeypatch.setattr(job, "_exhibits", lambda run, findings, plane, *_: iter([exhibits.density(plane, None)]))


def report(run: Path) -> str:
    return (run / "analysis" / "report.html").read_text()


def figures(run: Path) -> set[str]:
    return {file.stem for file in (run / "analysis" / "figures").iterdir()}


def set_column(run: Path, label: str, cells: list[str]) -> None:
    """Put a column into the run's particles.star."""
    from emspatialvae.io import star

    file = star.StarFile.read(run / "particles.star")
    star.write_with_columns(file, "particles", {label: cells}, file.path, overwrite=True)


def test_a_run_is_reported_with_all_its_figures(emsvae, run):
    said = emsvae.done("analyze", run, "--k", "3", "--colour-by", "theta_std", "rlnMicrographName").out
    assert "run/analysis/report.html" in said
    text = report(run)
    wanted = {"z_density", "z_by_rlnClassNumber", "z_by_rlnMicrographName", "paths", "classes", "pose_spread"}
    wanted |= {"learning_curve", "reconstructions", "manifold", "averages", "poses", "spectra", "z_by_emsvaeMisfit"}
    wanted |= {"particle_size"}
    assert wanted <= figures(run)
    shown = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(shown) == len(figures(run)) + 1  # and the one to point at
    assert all(len(caption) > 60 for caption in shown)
    assert "48" in re.findall(r'<dd class="value">(.*?)</dd>', text)
    classes = pd.read_csv(run / "classes" / "classes.csv")
    rows = re.findall(r'<tr><th scope="row" class="number" data-sort="(\d+)">', text)
    assert [int(row) for row in rows] == classes["class"].tolist()
    assert classes["particles"].is_monotonic_decreasing


def test_the_commands_it_gives_do_what_they_say(emsvae, run, tmp_path):
    import shlex

    emsvae.done("analyze", run, "--k", "3")
    commands = [shlex.split(unescape(found)) for found in re.findall(r"<pre[^>]*><code>(.*?)</code>", report(run))]
    ours = [words[1:] for words in commands if words[0] == "emsvae"]
    assert {words[0] for words in ours} >= {"select", "export", "path"}
    for words in ours:
        assert words[0] in COMMANDS
        emsvae.done(*words)
    (display,) = [words for words in commands if words[0] == "relion_display"]
    assert (tmp_path / display[-1]).is_file()


def test_classes_of_the_run_are_kept_unless_others_are_wanted(emsvae, run, one_figure):
    emsvae.done("classes", run, "--k", "4")
    before = contents(run / "classes")
    emsvae.done("analyze", run)
    assert contents(run / "classes") == before
    emsvae.done("analyze", run, "--k", "2")
    assert len(pd.read_csv(run / "classes" / "classes.csv")) == 2
    assert len(re.findall(r'alt="Average of class \d+"', report(run))) == 2


def test_a_second_report_replaces_the_first_whole(run):
    analyze_run(run, ReportSettings(k=2, colour_by=("rlnMicrographName",)), say=lambda _: None)
    (run / "analysis" / "note.txt").write_text("old")
    analyze_run(run, ReportSettings(), say=lambda _: None)
    assert sorted(file.name for file in (run / "analysis").iterdir()) == ["figures", "report.html"]
    assert "z_by_rlnMicrographName" not in figures(run)


def test_a_report_that_fails_leaves_the_older_one(run, monkeypatch, one_figure):
    analyze_run(run, ReportSettings(k=2), say=lambda _: None)
    before = contents(run)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "page", fail)
    with pytest.raises(EmsvaeError, match="the disk is full"):
        analyze_run(run, ReportSettings(), say=lambda _: None)
    assert contents(run) == before


def test_names_from_files_are_text(emsvae, run):
    emsvae.done("classes", run, "--k", "2")
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    table["image_name"] = [f"{i + 1:06d}@{EVIL}s" for i in range(len(table))]
    table.to_csv(run / "latents.csv", index=False)
    # A STAR cell that holds a quote and no space is a word like any other.
    set_column(run, "rlnImageName", list(table["image_name"]))
    set_column(run, "rlnMicrographName", [EVIL if i % 2 else "plain.mrc" for i in range(len(table))])
    emsvae.done("analyze", run, "--colour-by", "rlnMicrographName")
    text = report(run)
    assert "<script>alert" not in text
    assert "--from '000" in unescape(text)  # the command to walk, with the name in it
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert len(re.findall("<script", text)) == 2  # the page's own, and the numbers of the cloud


def test_unused_particles_are_left_out(emsvae, run, one_figure):
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    left_out = table.columns[2:]
    table.loc[:9, "used"] = 0
    table.loc[:9, left_out] = 0
    table.to_csv(run / "latents.csv", index=False)
    emsvae.done("analyze", run, "--k", "2")
    assert ">38</dd>" in report(run)
    assert "of 48; 10 not used" in report(run)


# ------------------------------------------------------------------------------------------------------ kinds of runs


@pytest.mark.parametrize(
    "flags",
    [
        ("--z-dim", "1"),
        ("--z-dim", "3"),
        ("--no-rotate", "--no-translate"),
        ("--no-translate",),
        ("--engine", "coordinate"),
        pytest.param(("--limit", "40"), marks=pytest.mark.slow),
    ],
    ids=lambda flags: "".join(flags),
)
def test_every_kind_of_run_has_a_report(emsvae, easy_stack, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    emsvae.done("train", easy_stack / "particles.star", "--out", "run", *Emsvae.TINY, *flags)
    emsvae.done("analyze", "run", "--k", "3", "--colour-by", "z1")
    text, drawn = report(Path("run")), figures(Path("run"))
    assert ("pose_spread" in drawn) == ("--no-rotate" not in flags)
    assert ("z_variance" in drawn) == ("3" in flags)
    assert ('class="cloud"' in text) == ("1" not in flags)
    assert ("Shift known to" in text) == ("--no-translate" not in flags)


def test_cryosparc_runs_are_coloured_by_fields(emsvae, easy_stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = np.zeros(48, [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    table["uid"], table["blob/idx"], table["blob/path"], table["blob/psize_A"] = (
        np.arange(48) + 10**12,
        np.arange(48),
        b"particles.mrcs",
        4,
    )
    write_cs(tmp_path / "p.cs", table)
    emsvae.done("train", "p.cs", "--project-dir", easy_stack, "--out", "run", *Emsvae.TINY)
    emsvae.done("analyze", "run", "--colour-by", "alignments2D/pose")
    assert "z_by_alignments2D_pose" in figures(Path("run"))
    assert "--cs out.cs" in report(Path("run"))
    assert "z_by_emsvaeMisfit" in figures(Path("run"))


@pytest.mark.slow
def test_a_report_of_100_000_particles_stays_small(run):
    """Everything but the classes, which do not grow with the number of particles, made of a table of that many rows."""
    emsvae_classes(run)
    n, rng = 100_000, np.random.default_rng(0)
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    many = table.iloc[np.arange(n) % len(table)].reset_index(drop=True)
    for column in many.columns[2:]:
        if column not in ("class_number", "class_posterior", "pose_probability", "junk"):
            many[column] += rng.normal(size=n) * (many[column].std() + 0.1)
    many["image_name"] = [f"{i % 200 + 1:06d}@Extract/job042/Movies/stack_{i // 200:05d}.mrcs" for i in range(n)]
    many.to_csv(run / "latents.csv", index=False)
    classes = pd.read_csv(run / "classes" / "classes.csv")
    classes["particles"] = np.bincount(many["class_number"])[classes["class"]]
    classes.to_csv(run / "classes" / "classes.csv", index=False)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"n_particles": n}))
    lines = (run / "particles.star").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if "@" in line)
    rows = [line for line in lines[first:] if "@" in line]
    (run / "particles.star").write_text(
        "\n".join([*lines[:first], *(renamed(rows[i % len(rows)], many["image_name"][i]) for i in range(n))]) + "\n"
    )
    said: list[str] = []
    file = analyze_run(run, ReportSettings(colour_by=("rlnMicrographName",)), say=said.append)
    assert file.stat().st_size < 5_000_000
    assert "20,000 of 100,000 particles" in file.read_text()
    assert ">100,000</dd>" in file.read_text()


def renamed(row: str, name: str) -> str:
    return re.sub(r"\S+@\S+", name, row)


def emsvae_classes(run: Path) -> None:
    from emspatialvae.workflows.classes import classify_run

    classify_run(run, 20, say=lambda _: None)


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_column_that_does_not_exist_names_the_nearest(emsvae, run):
    assert "the nearest is rlnMicrographName" in emsvae.refused("analyze", run, "--colour-by", "rlnMicrographNam")


def test_folders_that_are_no_runs(emsvae, run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in emsvae.refused("analyze", "empty")
    assert "is not a run folder" in emsvae.refused("analyze", "nowhere")
    (run / "latents.csv").unlink()
    assert "no results yet" in emsvae.refused("analyze", run)


def test_a_run_without_its_star_file_says_how_to_make_it(emsvae, run):
    (run / "particles.star").unlink()
    assert "emsvae export run --star run/particles.star" in emsvae.refused("analyze", run)


def test_more_classes_than_particles(emsvae, run):
    assert "from 1 to the 48 particles" in emsvae.refused("analyze", run, "--k", "49")
    assert "from 1 to the 48 particles" in emsvae.refused("analyze", run, "--k", "0")


def test_umap_is_refused_before_the_work(emsvae, run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "emspatialvae[umap]"' in emsvae.refused("analyze", run, "--umap")
    assert "--rows" in emsvae.refused("analyze", run, "--umap", "--rows", "5")


def test_no_particle_was_used(emsvae, run):
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    table["used"] = 0
    table.to_csv(run / "latents.csv", index=False)
    assert "no particle could be used" in emsvae.refused("analyze", run)


def test_the_page_and_its_parts_are_in_the_package():
    from importlib import resources

    for name in ("page.css", "page.js"):
        assert resources.files(html.__package__ or "").joinpath(name).is_file()


def test_every_figure_has_its_place_in_the_documentation(run, monkeypatch):
    """Each figure of a report can be linked to, and links to the paragraph about it where a site is known."""
    from emspatialvae.analysis.report import exhibits

    explained = set(re.findall(r"^\((.+)\)=$", Path(__file__).parents[2].joinpath("docs/report.md").read_text(), re.M))
    monkeypatch.setattr(exhibits, "documentation", lambda: "https://site.example/")
    job.analyze_run(run, job.ReportSettings(), say=lambda _: None)
    text = report(run)
    shown = re.findall(r'<figure id="figure-([^"]+)"', text)
    assert len(shown) > 8 and len(shown) == len(set(shown))
    links = re.findall(r'href="https://site.example/report.html#([^"]+)"', text)
    assert len(links) == len(shown)
    assert set(links) | {name.replace("_", "-") for name in exhibits.STORED} <= explained


def test_without_a_known_site_no_figure_links_anywhere(run, monkeypatch, one_figure):
    from emspatialvae.analysis.report import exhibits

    monkeypatch.setattr(exhibits, "documentation", lambda: None)
    job.analyze_run(run, job.ReportSettings(), say=lambda _: None)
    assert 'id="figure-z_density"' in report(run) and 'href="http' not in report(run)


# ------------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Callable[..., str]:
    """Chromium without a window: its options and a page to what it prints."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium here")

    def open_page(page: Path, *options: str) -> str:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000")
        done = subprocess.run(
            [program, *quiet, *options, page.resolve().as_uri()], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return open_page


def test_the_page_works_in_a_browser_and_prints_on_a4(run, browser):
    analyze_run(run, ReportSettings(k=3))
    page = run / "analysis" / "report.html"
    shown = browser(page, "--dump-dom")
    assert (
        '<figure class="cloud">' in shown and "<canvas tabindex" in shown
    )  # the script has run and taken `hidden` away
    browser(page, "--no-pdf-header-footer", f"--print-to-pdf={run.resolve()}/report.pdf")
    width, height = map(
        float, re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (run / "report.pdf").read_bytes())[0]
    )
    assert (width / 72 * 25.4, height / 72 * 25.4) == pytest.approx((210, 297), abs=0.5)


def test_firefox_draws_what_the_script_draws(run, tmp_path):
    """Firefox prints no page's contents; a picture with the script shows the cloud of particles, one without it does not."""
    program = shutil.which("firefox") or shutil.which("firefox-esr")
    if program is None:
        pytest.skip("there is no Firefox here")
    analyze_run(run, ReportSettings(k=3))
    text = report(run)
    shown = []
    for name, page in (("whole", text), ("bare", re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL))):
        (tmp_path / f"{name}.html").write_text(page)
        picture = tmp_path / f"{name}.png"
        quiet = ("--headless", "--window-size=1000,1600", "--profile", str(tmp_path / f"{name}_profile"))
        (tmp_path / f"{name}_profile").mkdir()
        subprocess.run(
            [program, *quiet, "--screenshot", str(picture), (tmp_path / f"{name}.html").as_uri()],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            timeout=200,
            check=True,
        )
        with Image.open(picture) as opened:
            shown.append(np.asarray(opened.convert("RGB"), dtype=int))
    whole, bare = shown
    assert whole.shape == bare.shape == (1600, 1000, 3)
    assert (np.abs(whole - bare).max(-1) > 20).mean() > 0.005
    assert bare.std() > 5  # the rest of the page is there without it
