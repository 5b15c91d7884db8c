"""The training form: its fields are the settings of `emsvae train`, its buttons start, follow and end a training."""

import shutil
import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.config import PRESETS, InputConfig, RunConfig, TrainConfig, with_preset
from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs import background as jobs
from napari_emsvae.training.settings import Pace, config_of, duration, progress_text, settings, tail

PATIENCE_MS = 120_000
PLAIN = RunConfig(InputConfig(Path("particles.star")))
TINY = {
    "train.epochs": "2",
    "model.hidden": "16",
    "model.encoder_hidden": "16",
    "train.infer_turns": "2",
    "train.draws": "1",
}

# ------------------------------------------------------------------------------------------- without Qt: the settings


def test_every_setting_is_a_field_with_its_help():
    known = {f"{part.name}.{field.name}" for part in fields(RunConfig) for field in fields_of(part.name)}
    known = (known | {".poses"}) - {"input.particles"}
    assert set(settings()) == known and len(known) > 45
    for setting in settings().values():
        assert len(setting.help) > 7 and setting.help[0].isalpha(), setting
        assert setting.flag.startswith("--") and setting.flag in setting.tip
        assert (setting.kind == "choice") == bool(setting.choices)


def fields_of(part):
    hint = typing.get_type_hints(RunConfig)[part]
    return fields(hint) if is_dataclass(hint) else ()


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("prepare.particle_diameter_A", "particle diameter (\N{ANGSTROM SIGN})"),
        ("model.shift_prior_px", "shift prior (px)"),
        ("prepare.ctf", "CTF"),
        ("model.z_dim", "z dim"),
    ],
)
def test_labels_carry_units(key, label):
    assert settings()[key].label == label


def other(setting):
    """A text that is not the default of a setting, and its value."""
    if setting.kind == "yes-no":
        value = not setting.of(PLAIN)
        return value, value
    if setting.kind == "choice":
        value = next(choice for choice in setting.choices if choice != setting.of(PLAIN))
        return value, value
    typed = {"whole": (" 17 ", 17), "number": ("0.25", 0.25), "path": ("a b/c.mrc", Path("a b/c.mrc"))}
    return (typed | {"text": ("a b=c/", "a b=c/")})[setting.kind]


@pytest.mark.parametrize("key", settings())
def test_what_is_typed_is_what_is_trained(key):
    setting = settings()[key]
    text, value = other(setting)
    config = config_of(Path("x.cs"), PLAIN, {key: text})
    assert setting.of(config) == value
    words = jobs.argv_of(config)  # the particles, this setting, and nothing else
    assert words[0] == "x.cs" and len(words) == 2
    assert words[1].partition("=")[0].replace("--no-", "--") == setting.flag


def test_nothing_typed_leaves_the_preset():
    base = with_preset(PLAIN, "paper")
    assert config_of(PLAIN.input.particles, base, dict.fromkeys(settings(), "")) == base
    assert config_of(PLAIN.input.particles, base, {"model.z_dim": "3"}).model == replace(base.model, z_dim=3)


def test_a_setting_can_be_switched_off():
    assert config_of(Path("x"), PLAIN, {"model.pose_start_sd": "none"}).model.pose_start_sd is None


@pytest.mark.parametrize(
    ("key", "text"), [("model.z_dim", "two"), ("model.z_dim", "2.5"), ("train.holdout", "a tenth")]
)
def test_what_is_no_value_is_said(key, text):
    with pytest.raises(EmsvaeError, match=f"is '{text}'; expected a"):
        config_of(Path("x"), PLAIN, {key: text})


def test_the_pace_counts_whole_epochs_only():
    pace = Pace()
    for epochs, now_s in ((3, 0.0), (3, 7.0), (4, 9.0), (4, 10.0), (5, 11.0), (7, 15.0)):
        pace.look(epochs, now_s)
        assert (pace.epoch_s is None) == (epochs < 5)
    assert pace.epoch_s == 2.0  # from the end of 4 at 9 s to the end of 7 at 15 s
    train = TrainConfig(epochs=10, holdout=0.1)
    assert progress_text(7, train, 1000, pace) == "epoch 8 of 10, 450 particles/s, about 6 s left"
    assert "settled (at most 500)" in progress_text(7, replace(train, epochs=None), 1000, pace)
    assert progress_text(10, train, 1000, pace).startswith("10 epochs done")
    assert [duration(seconds) for seconds in (0.1, 100, 150, 8000)] == [
        *("about 1 s", "about 100 s", "about 2 min", "about 2 h")
    ]


def test_the_tail_of_a_log(tmp_path):
    assert tail(tmp_path / "log", 3) == ""
    (tmp_path / "log").write_text("".join(f"line {k}\n" for k in range(5000)))
    assert tail(tmp_path / "log", 2) == "line 4998\nline 4999"


# ------------------------------------------------------------------------------------------------------- in the viewer


@pytest.fixture
def errors(monkeypatch):
    """What napari's notifications said."""
    said = []
    monkeypatch.setattr("napari.utils.notifications.show_error", said.append)
    return said


@pytest.fixture
def form(viewer, errors):
    return viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]


@pytest.fixture
def filled(form, simulated, tmp_path):
    """The form, filled in for a training that takes no time."""
    form.set_particles(simulated / "particles.star")
    form.set_out(tmp_path / "run")
    fill(form, TINY | {"train.device": "cpu"})
    return form


def fill(form, typed):
    for key, text in typed.items():
        widget = form.settings.fields[key]
        (widget.setCurrentText if settings()[key].kind == "choice" else widget.setText)(text)


def wait_for_the_end(form, qtbot):
    qtbot.waitUntil(lambda: not form.training.is_running, timeout=PATIENCE_MS)


def docked(viewer):
    """Our widgets in the window, by their names in the menu."""
    return {name.partition(" (")[0] for name in viewer.window.dock_widgets if "emspatialvae" in name}


def test_every_control_has_a_tooltip_and_room(form, qtbot):
    from qtpy.QtWidgets import QAbstractButton, QCheckBox, QComboBox, QLineEdit

    form.settings.more.expand(animate=False)
    qtbot.wait(50)
    controls = [control for kind in (QComboBox, QLineEdit, QAbstractButton) for control in form.findChildren(kind)]
    controls = [control for control in controls if control.isVisible()]
    assert len(controls) > len(settings())
    assert not [control for control in controls if not control.toolTip() and control.parent() is not form.settings.more]
    assert form.scroll_area.widget().width() <= form.scroll_area.viewport().width()
    narrow = [c for c in controls if not isinstance(c, QCheckBox) and c.width() < c.minimumSizeHint().width()]
    assert not narrow
    form.settings.more.collapse(animate=False)
    assert form.settings.fields["model.z_dim"].placeholderText() == "automatic"


def test_the_preset_shows_in_the_fields(form):
    form.preset.setCurrentText("paper")
    form.preset.textActivated.emit("paper")
    paper = PRESETS["paper"]["model"]
    assert form.settings.fields["model.z_dim"].placeholderText() == str(paper["z_dim"])
    assert form.settings.fields["model.engine"].currentText() == "coordinate"
    assert form.settings.fields["model.whole_image"].isChecked()
    assert config_of(PLAIN.input.particles, PLAIN, form.settings.typed()).model.engine == "coordinate"


def test_the_form_takes_the_file_that_is_open(viewer, errors, simulated):
    viewer.open(str(simulated / "particles.star"), plugin="emspatialvae")
    form = viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]
    assert form.particles.text() == str(simulated / "particles.star")
    assert form.out.text() == str(simulated / "particles_emsvae")


def test_what_would_train_do(filled, errors, qtbot):
    filled.describe_button.click()
    qtbot.waitUntil(lambda: "train would:" in filled.training.log.toPlainText(), timeout=PATIENCE_MS)
    assert "60 particles in 1 stack(s)" in filled.training.log.toPlainText() and not errors


@pytest.mark.slow
def test_start_trains_to_the_end_and_the_result_opens_itself(viewer, filled, errors, qtbot, tmp_path):
    filled.start_button.click()
    assert filled.training.is_running and not filled.start_button.isEnabled() and filled.cancel_button.isEnabled()
    wait_for_the_end(filled, qtbot)
    assert not errors
    assert filled.training.message.text() == f"ended: {tmp_path / 'run'}"
    assert filled.training.curve.shown.epochs == [1, 2]
    assert len(filled.training.curve.axes.lines) == 2
    assert "results: " in filled.training.log.toPlainText()
    assert docked(viewer) == {"Train", "Latent explorer"}
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
    qtbot.waitUntil(lambda: explorer.session.is_read, timeout=PATIENCE_MS)
    assert explorer.session.data.path == tmp_path / "run" and len(explorer.session.data) == 60
    assert {"particles", "reconstruction", "aligned"} <= {layer.name for layer in viewer.layers}
    assert filled.start_button.isEnabled() and not filled.cancel_button.isEnabled()

    # Once more: the run is not replaced unasked.
    filled.start_button.click()
    assert not filled.training.is_running and "run" in errors.pop() and not errors
    assert filled.training.message.text().startswith("\N{WARNING SIGN}")


@pytest.mark.slow
def test_a_training_outlives_the_form_is_cancelled_and_gone_on_with(viewer, filled, errors, qtbot, tmp_path):
    from napari_emsvae.training.form import GO_ON

    fill(filled, {"train.epochs": "100000"})
    filled.start_button.click()
    qtbot.waitUntil(lambda: bool(filled.training.curve.shown.epochs), timeout=PATIENCE_MS)
    for dock in [dock for name, dock in viewer.window.dock_widgets.items() if "Train" in name]:
        viewer.window.remove_dock_widget(dock)
    filled.deleteLater()
    qtbot.wait(50)

    # Another form, as after a restart of napari.
    form = viewer.window.add_plugin_dock_widget("emspatialvae", "Train")[1]
    form.set_out(tmp_path / "run")
    assert form.training.is_running and form.training.curve.shown.epochs
    form.cancel_button.click()
    assert not form.cancel_button.isEnabled() and "cancelling" in form.training.message.text()
    wait_for_the_end(form, qtbot)
    assert form.training.message.text() == f"ended early, with the results so far: {tmp_path / 'run'}"

    def of_the_run():
        return [layer.name for layer in viewer.layers if layer.metadata["emsvae"].get("run")]

    done = form.training.curve.shown.epochs[-1]
    assert of_the_run() == ["particles", "reconstruction", "aligned"]
    form.exists.setCurrentText(GO_ON)
    fill(form, {"train.epochs": str(done + 1)})
    form.start_button.click()
    wait_for_the_end(form, qtbot)
    assert form.training.curve.shown.epochs[-1] == done + 1
    assert len(of_the_run()) == 3  # the older ones have gone
    assert not errors


def test_the_error_of_a_training_is_one_line_here(filled, errors, qtbot, tmp_path):
    fill(filled, {"model.max_shift_A": "1000"})
    filled.start_button.click()
    wait_for_the_end(filled, qtbot)
    assert (
        len(errors) == 1
        and "max shift" in errors[0]
        and "1000" in errors[0]
        and "--" not in errors[0]
        and "\n" not in errors[0]
    )
    assert filled.training.message.text() == f"\N{WARNING SIGN} {errors[0]}"
    assert not (tmp_path / "run").exists() and filled.start_button.isEnabled()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"particles": ""}, "choose a particle file first"),
        ({"particles": "nowhere/x.star"}, "no such file"),
        ({"out": ""}, "choose a run folder first"),
        ({"model.z_dim": "0"}, "“z dim” is 0; expected"),
        ({"model.z_dim": "many"}, "z dim is 'many'; expected a whole number"),
    ],
)
def test_wrong_inputs_are_messages(viewer, filled, errors, tmp_path, wrong, said):
    for key, text in wrong.items():
        if key in ("particles", "out"):
            getattr(filled, key).setText(text)
        else:
            fill(filled, {key: text})
    filled.start_button.click()
    assert len(errors) == 1 and said in errors[0]
    assert said in filled.training.message.text() and not filled.training.is_running
    assert list(tmp_path.iterdir()) == []
    viewer.add_image(np.eye(3))  # it lives


def test_attach_without_a_training_is_a_message(filled, errors, trained_run, tmp_path):
    filled.attach_button.click()
    assert "no training was started" in errors.pop()
    shutil.copytree(trained_run, tmp_path / "other")
    filled.set_out(tmp_path / "other")
    filled.attach_button.click()
    assert "opened in the Latent explorer" in errors.pop()
