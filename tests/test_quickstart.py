"""Every command of examples/quickstart.md, in its order, in an empty folder."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae.io.mrc import read_header
from emspatialvae.io.star import StarFile

PAGE = Path(__file__).parents[1] / "examples" / "quickstart.md"
RELION = shutil.which("relion_stack_create")


def commands() -> list[str]:
    """Lines that are indented by four blanks: what a reader types."""
    return [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]


def test_the_page_shows_the_commands_that_it_names():
    shown = {words[1] for words in map(shlex.split, commands()) if words[0] == "emsvae"}
    assert shown >= {"simulate", "info", "train", "classes", "select", "path", "analyze", "evaluate", "export"}
    named = set(re.findall(r"`(run/[\w./]+|\w+\.(?:star|gif|mrcs))`", PAGE.read_text()))
    assert {"run/latents.csv", "run/analysis/report.html", "run/classes/run_model.star", "good.star"} <= named


@pytest.mark.slow
def test_every_command_of_the_page(emsvae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).random((60, 16, 16)))  # the reader's own pictures
    for line in commands():
        words = shlex.split(line)
        if words[0] == "emsvae":
            emsvae.done(*words[1:])
        elif "relion" not in line or RELION:
            subprocess.run(line, shell=True, check=True, capture_output=True)
    wanted = set(re.findall(r"`(run/[\w./]+)`", PAGE.read_text())) - {"run/particles.cs"}
    missing = [name for name in wanted if not Path(name).exists()]
    assert not missing
    table = pd.read_csv("run/latents.csv")
    assert len(table) == 600
    kept = [
        len(StarFile.read(tmp_path / name).block("particles").columns("rlnImageName")["rlnImageName"])
        for name in ("good.star", "junk.star")
    ]
    assert sum(kept) == 600
    assert kept[0] > kept[1] > 0
    assert all(Path(f"path.{ending}").is_file() for ending in ("mrcs", "gif", "png"))
    assert read_header(tmp_path / "aligned.mrcs").n_images == 600
    if RELION:
        assert read_header(tmp_path / "sim" / "aligned.mrcs").n_images == kept[0]
    assert Path("pictures/latents.csv").is_file()
