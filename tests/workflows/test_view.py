"""``emsvae view``: napari with the run, or one line why not."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emspatialvae.errors import EmsvaeError
from emspatialvae.workflows import view

PATIENCE_MS = 120_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def display(monkeypatch):
    """As if there were one."""
    monkeypatch.setenv("DISPLAY", os.environ.get("DISPLAY") or ":0")


def test_without_napari_one_line_says_what_to_install(emsvae, tiny_run, display, monkeypatch):
    monkeypatch.setitem(sys.modules, "napari", None)
    assert 'pip install "emspatialvae[napari]"' in emsvae.refused("view", tiny_run)


@linux
def test_without_a_display_one_line_says_so(emsvae, tiny_run, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "no display" in emsvae.refused("view", tiny_run)


@linux
def test_a_display_that_does_not_answer_is_one_line(tiny_run):
    """In a process of its own: Qt would abort it (exit code 134) with a page of words."""
    pytest.importorskip("napari", reason="napari is not installed")
    unset = ("WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    without = {name: value for name, value in os.environ.items() if name not in unset} | {"DISPLAY": ":87"}
    command = [sys.executable, "-m", "emspatialvae", "view", str(tiny_run)]
    done = subprocess.run(command, env=without, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("emsvae: no window can be opened on the display (DISPLAY=:87): ")
    assert "emsvae analyze" in line


@linux
def test_a_display_that_answers_is_taken(monkeypatch):
    """Qt's own platform without a screen stands for one."""
    pytest.importorskip("qtpy", reason="Qt is not installed")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    ended, run = [], view.subprocess.run
    monkeypatch.setattr(view.subprocess, "run", lambda *words, **how: ended.append(run(*words, **how)) or ended[-1])
    view._try_display()
    assert [done.returncode for done in ended] == [0]


@linux
def test_a_display_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(view, "_TRY_QT", "import time; time.sleep(60)")
    monkeypatch.setattr(view, "_PATIENCE_SECONDS", 0.5)
    with pytest.raises(EmsvaeError, match=r"DISPLAY=:0.*no answer within 0\.5 s"):
        view._try_display()


def test_what_is_not_there_or_not_ours_is_said_before_napari_opens(emsvae, tiny_run, here, display, monkeypatch):
    monkeypatch.setitem(sys.modules, "napari", None)
    (here / "mine").mkdir()
    (here / "x.png").touch()
    assert "nothing: no such file or folder" in emsvae.refused("view", "nothing")
    assert "mine is not a run folder" in emsvae.refused("view", "mine")
    assert "x.png: expected a run folder or one of" in emsvae.refused("view", "x.png")
    assert "--project-dir no is not a folder" in emsvae.refused("view", tiny_run, "--project-dir", "no")


# --------------------------------------------------------------------------------------------------- with a real window


@pytest.fixture
def window(request, monkeypatch):
    """Takes the place of waiting for the user: keeps the viewer that was opened."""
    napari = pytest.importorskip("napari", reason="napari is not installed")
    pytest.importorskip("pytestqt", reason="pytest-qt is not installed")
    if not os.environ.get("DISPLAY"):
        pytest.skip('no display; run under xvfb-run -a -s "-screen 0 1600x1000x24"')
    make = request.getfixturevalue("make_napari_viewer")
    opened = []

    def viewer(**settings):
        opened.append(make(**settings))
        return opened[-1]

    # napari tells by an annotation who wants its viewer: the class must stand there, so they are imported before it is replaced.
    for module in ("explorer.widget", "training.form"):
        importlib.import_module(f"napari_emsvae.{module}")
    monkeypatch.setattr(napari, "Viewer", viewer)
    monkeypatch.setattr(napari, "run", lambda **_: None)
    return opened


def test_a_run_opens_with_the_explorer_though_its_images_were_moved(emsvae, window, tiny_run, easy_stack, here, qtbot):
    run = shutil.copytree(tiny_run, here / "run")
    star = shutil.copy(easy_stack / "particles.star", here / "particles.star")
    config = json.loads((run / "config.json").read_text())
    config["config"]["input"]["particles"] = str(star)
    (run / "config.json").write_text(json.dumps(config))
    assert "particles.mrcs not found" in emsvae.refused("view", "run")
    window.clear()
    assert emsvae("view", "run", "--project-dir", easy_stack).code == 0
    (viewer,) = window
    assert [layer.name for layer in viewer.layers] == ["particles", "reconstruction", "aligned"]
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
    qtbot.waitUntil(lambda: explorer.session.is_read, timeout=PATIENCE_MS)
    assert explorer.session.data.path == run


def test_a_particle_file_opens_with_the_training_form(emsvae, window, easy_stack):
    assert emsvae("view", easy_stack / "particles.star").code == 0
    (viewer,) = window
    assert [layer.name for layer in viewer.layers] == ["particles"]
    form = viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]
    assert form.particles.text() == str(easy_stack / "particles.star")


def test_a_run_without_results_is_one_line(emsvae, window, tiny_run, here):
    run = shutil.copytree(tiny_run, here / "run")
    (run / "latents.csv").unlink()
    assert "the run has no results yet" in emsvae.refused("view", "run")
