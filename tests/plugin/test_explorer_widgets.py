"""The Latent explorer in a viewer: every page opens, every control does its job, errors are messages."""

import shutil

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")

from matplotlib.backend_bases import MouseEvent
from qtpy.QtCore import Qt
from qtpy.QtGui import QShortcut
from qtpy.QtWidgets import QAbstractButton, QComboBox, QDoubleSpinBox, QLabel, QLineEdit, QSpinBox

from emspatialvae.io.mrc import read_header
from emspatialvae.io.star import StarFile
from emspatialvae.particles.read_star import particle_block
from tests.tools.window import PARTICLES, PATIENCE_MS, drag, groups, left_half, mouse, quiet

CONSTANT, BOX = 7, 24


@pytest.fixture
def run(trained_run, tmp_path):
    """A run of one's own: selections are saved in it."""
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture
def errors(monkeypatch):
    """What napari's notifications said."""
    said = []
    monkeypatch.setattr("napari.utils.notifications.show_error", said.append)
    return said


@pytest.fixture
def empty(viewer, errors, qtbot):
    """The explorer without a run."""
    return viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]


@pytest.fixture
def explorer(empty, run, qtbot):
    """The explorer with the run open and read."""
    empty.open(run)
    qtbot.waitUntil(lambda: empty.session.is_read and len(empty.canvas.points) == PARTICLES, timeout=PATIENCE_MS)
    quiet(empty, qtbot)
    empty.canvas.wait_for_search()
    return empty


# -------------------------------------------------------------------------------------------------------------- opening


def test_every_control_has_a_tooltip_and_is_not_cut_off(explorer, qtbot):
    controls = [*explorer.findChildren(QAbstractButton), *explorer.findChildren(QComboBox)]
    controls += [*explorer.findChildren(QSpinBox), *explorer.findChildren(QDoubleSpinBox)]
    ours = [control for control in controls if control.objectName() not in ("ScrollLeftButton", "ScrollRightButton")]
    assert len(ours) > 30
    assert not [control for control in ours if not control.toolTip()]
    for page in explorer.pages:
        explorer.show_page(page)
        qtbot.wait(10)
        buttons = [button for button in page.findChildren(QAbstractButton) if button.isVisible()]
        assert not [b.text() for b in buttons if b.width() < b.minimumSizeHint().width()]


def test_the_scatter_shows_the_used_particles(explorer):
    points = explorer.canvas.points
    used = explorer.session.data.used
    np.testing.assert_allclose(points[used], explorer.session.data.latents.z[used])
    assert np.isnan(points[CONSTANT]).all()
    assert explorer.scatter.count.text() == "0 of 60 particles selected (0 %)"
    picture = explorer.canvas._image.get_array()
    assert picture.shape[0] > 100 and (picture[..., 3] > 0).sum() > 500


def test_the_layers_of_the_reader_open_the_run_in_the_explorer(viewer, errors, run, qtbot):
    viewer.open(str(run), plugin="emspatialvae")
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
    qtbot.waitUntil(lambda: explorer.session.is_read, timeout=PATIENCE_MS)
    quiet(explorer, qtbot)
    explorer.show_page(explorer.particle)
    assert explorer.session.row is None, "napari's slider stands in the middle, but nobody has picked a particle"
    viewer.dims.set_current_step(0, 13)
    assert explorer.session.row == 13
    explorer.session.pick(20)
    assert viewer.dims.current_step[0] == 20
    quiet(explorer, qtbot)
    assert groups(explorer) == {"particle": ["raw", "low-passed", "aligned", "reconstruction", "residual"]}
    assert not viewer.layers["particles"].visible
    # A film beside them has a slider of its own.
    explorer.show_page(explorer.path)
    for which, row in enumerate(explorer.session.data.used[[0, 5]]):
        explorer.path.set_end(which, int(row))
    explorer.path.steps.setValue(4)
    explorer.path.make()
    quiet(explorer, qtbot)
    assert viewer.layers["path: model"].data.shape == (4, PARTICLES, BOX, BOX)
    viewer.dims.set_current_step(0, 2)
    assert explorer.path.step == 2 and explorer.session.row == 20
    assert not errors


@pytest.mark.parametrize("wrong", ["nothing/here", "empty"])
def test_a_folder_that_is_no_run_is_a_message(empty, tmp_path, errors, qtbot, wrong):
    (tmp_path / "empty").mkdir()
    empty.folder.setText(str(tmp_path / wrong))
    qtbot.keyClick(empty.folder, Qt.Key.Key_Return)
    quiet(empty, qtbot)
    assert "is not a run folder" in errors[0] and "is not a run folder" in empty.message.text()
    assert not empty.session.is_open


def test_without_a_run_every_button_is_harmless(empty, errors, qtbot, monkeypatch):
    for dialog in ("getSaveFileName", "getExistingDirectory"):
        monkeypatch.setattr(f"qtpy.QtWidgets.QFileDialog.{dialog}", lambda *_, **__: ("", ""), raising=True)
    monkeypatch.setattr(empty, "ask_and_open", lambda: None)
    for page in empty.pages:
        empty.show_page(page)
        for button in page.findChildren(QAbstractButton):
            if button.isVisible() and button.text() and button.text() != "Open\N{HORIZONTAL ELLIPSIS}":
                button.click()
    quiet(empty, qtbot)
    assert errors and all(len(text.splitlines()) == 1 for text in errors)
    assert not empty.session.viewer.layers


@pytest.mark.slow
def test_a_run_without_images_and_model_can_still_be_selected_in(empty, run, errors, qtbot):
    (run / "checkpoint.pt").unlink()
    empty.open(run)
    qtbot.waitUntil(lambda: empty.session.is_read, timeout=PATIENCE_MS)
    quiet(empty, qtbot)
    assert "checkpoint.pt" in errors[0]
    empty.show_page(empty.select)
    empty.select.condition.setText("emsvaeZ1 > 0")
    empty.select.select_where()
    quiet(empty, qtbot)
    assert empty.session.selection.count > 0
    empty.show_page(empty.model)
    assert "checkpoint.pt" in errors[-1]


# ------------------------------------------------------------------------------------------------------------ scatter


def test_wheel_drag_and_home(explorer):
    canvas = explorer.canvas
    home = canvas.view
    at = (float(np.mean([home.left, home.right])), home.bottom + 0.25 * home.size[1])
    mouse(canvas, "scroll_event", at, "up", step=1)
    assert canvas.view.size[0] == pytest.approx(0.8 * home.size[0]) and canvas.axes.get_xlim()[0] == canvas.view.left
    before = canvas.view
    here = canvas.axes.transData.transform(at)
    there = here + np.array([50, 0])
    canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", canvas, *here, 1))
    canvas.callbacks.process("motion_notify_event", MouseEvent("motion_notify_event", canvas, *there))
    canvas.callbacks.process("button_release_event", MouseEvent("button_release_event", canvas, *there, 1))
    assert canvas.view.left < before.left and canvas.view.bottom == pytest.approx(before.bottom)
    canvas.show_all()
    assert canvas.view == home


def test_hover_tells_the_particle_and_click_picks_it(explorer, qtbot):
    row = int(explorer.session.data.used[4])
    seen = []
    explorer.session.hovered.connect(seen.append)
    mouse(explorer.canvas, "motion_notify_event", explorer.canvas.points[row])
    found = seen[-1]
    np.testing.assert_allclose(explorer.canvas.points[found], explorer.canvas.points[row], atol=0.05)
    said = explorer.canvas._marks.text
    assert f"{found + 1}@particles" in said and "z = (" in said and "density" in said
    drag(explorer.canvas, explorer.canvas.points[[row, row]])
    assert explorer.session.row == found


@pytest.mark.slow
def test_axes_and_colours_can_be_any_column(explorer, errors, qtbot):
    panel = explorer.scatter
    panel.across.setCurrentText("PC1")
    panel.up.setCurrentText("emsvaeMisfit")
    panel.place_points()
    quiet(explorer, qtbot)
    used = explorer.session.data.used
    np.testing.assert_allclose(explorer.canvas.points[used, 1], explorer.session.data.latents.misfit[used])
    assert explorer.canvas.axes.get_ylabel() == "emsvaeMisfit"
    for name in ("emsvaeThetaStd", "emsvaeUsed", "rlnImageName", "regions", "density"):
        panel.colour.setCurrentText(name)
        panel.recolour()
        quiet(explorer, qtbot)
        assert explorer.canvas.colouring.label.startswith(name)
    assert not errors
    assert panel.across.findText("rlnImageName") < 0 and panel.colour.findText("rlnImageName") >= 0
    assert panel.across.findText("emsvaeMisfit") >= 0


def test_keys_choose_what_dragging_does(explorer):
    # Qt hands shortcuts to the active window only, and under Xvfb without a window manager none is.
    keys = {shortcut.key().toString(): shortcut.activated.emit for shortcut in explorer.findChildren(QShortcut)}
    assert set(keys) == {"L", "B", "N", "Esc", "I", "Ctrl+Z", "Ctrl+Shift+Z", "Home"}
    for key, mode in (("L", "lasso"), ("B", "box"), ("N", "line"), ("Esc", "look")):
        keys[key]()
        assert explorer.canvas.mode == mode and explorer.scatter.modes[mode].isChecked()
    keys["I"]()
    assert explorer.session.selection.count == PARTICLES - 1
    keys["Ctrl+Z"]()
    assert explorer.session.selection.count == 0
    keys["Ctrl+Shift+Z"]()
    assert explorer.session.selection.count == PARTICLES - 1


# --------------------------------------------------------------------------------------------------- particle and model


def test_a_picked_particle_is_shown_all_ways(explorer, qtbot):
    row = int(explorer.session.data.used[2])
    explorer.show_page(explorer.particle)
    explorer.session.pick(row)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"particle": ["raw", "low-passed", "aligned", "reconstruction", "residual"]}
    layers = explorer.session.viewer.layers
    np.testing.assert_array_equal(layers["raw"].data, explorer.session.data.stack.images([row])[0])
    boxes = np.array([layers[name].extent.world for name in groups(explorer)["particle"]])
    for k, one in enumerate(boxes):
        for other in boxes[k + 1 :]:
            apart = (one[1] <= other[0]) | (other[1] <= one[0])
            assert apart.any(), "pictures lie on each other"
    assert str(explorer.session.data.latents.names[row]) in explorer.particle.text()
    smooth = layers["low-passed"].data.copy()
    explorer.particle.low_pass.setValue(60)
    quiet(explorer, qtbot)
    assert layers["low-passed"].data.std() < smooth.std()
    explorer.session.pick(CONSTANT)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"particle": ["raw", "low-passed"]} and "not used" in explorer.particle.text()


@pytest.mark.slow
def test_sliders_move_the_picture(explorer, qtbot):
    explorer.show_page(explorer.model)
    layer = explorer.session.viewer.layers["model"]
    shown = [layer.data.copy()]
    for slider, value in (
        (explorer.model.z_sliders[0], 2.0),
        (explorer.model.theta, 90.0),
        (explorer.model.shift[0], 8.0),
    ):
        slider.setValue(value)
        qtbot.waitUntil(lambda: not np.array_equal(layer.data, shown[-1]), timeout=5000)
        shown.append(layer.data.copy())
    assert explorer.model.took.text().startswith("drawn in ")
    # A quarter turn from +x towards +y (downwards): what lay at (x, 0) lies at (0, x).
    turned, still = shown[2][1:, 1:], shown[1][1:, 1:]
    assert np.corrcoef(np.rot90(still, -1).ravel(), turned.ravel())[0, 1] > 0.99
    assert explorer.canvas._marks.latent[0] == pytest.approx(2.0)


@pytest.mark.slow
def test_sliders_can_be_set_to_the_picked_particle_and_back(explorer, errors, qtbot):
    explorer.show_page(explorer.model)
    explorer.model.use_picked()
    assert "no particle is picked" in errors[-1]
    data, row = explorer.session.data, int(explorer.session.data.used[6])
    explorer.session.pick(row)
    explorer.model.use_picked()
    np.testing.assert_allclose(explorer.model.z, data.latents.z[row], atol=0.01)
    assert np.radians(explorer.model.theta.value()) == pytest.approx(data.latents.pose.theta_rad[row], abs=0.01)
    explorer.model.zero()
    assert not explorer.model.z.any() and explorer.model.theta.value() == 0


@pytest.mark.slow
def test_a_click_on_the_map_jumps_there(explorer, qtbot):
    explorer.show_page(explorer.model)
    explorer.model.tiles.setValue(5)
    explorer.model.show_map()
    quiet(explorer, qtbot)
    assert groups(explorer) == {"model": ["map", "model"]}
    layer = explorer.session.viewer.layers["map"]
    places, mosaic = explorer.model._map
    row, column = mosaic.corner(8)
    event = type("Event", (), {"position": layer.data_to_world((row + 3, column + 3))})()
    for callback in layer.mouse_drag_callbacks:
        callback(layer, event)
    np.testing.assert_allclose(explorer.model.z, places.z[8], atol=0.01)
    explorer.model.hide_map()
    assert groups(explorer) == {"model": ["model"]}


# ----------------------------------------------------------------------------------------------------------------- path


@pytest.mark.slow
def test_a_path_between_two_particles(explorer, errors, qtbot, tmp_path):
    page, data = explorer.path, explorer.session.data
    explorer.show_page(page)
    page.make()
    page.set_end(0)
    page.toggle_play()
    page.save(tmp_path / "film.gif")
    assert [
        "a path has two" in errors[0],
        "no particle is picked" in errors[1],
        "no film" in errors[2],
        "no film" in errors[3],
    ]
    first, last = (int(row) for row in data.used[[0, 9]])
    explorer.session.pick(first)
    page.set_end(0)
    explorer.session.pick(last)
    page.set_end(1)
    assert str(data.latents.names[first]) in page.from_to.text()
    page.steps.setValue(5)
    page.make()
    quiet(explorer, qtbot)
    viewer = explorer.session.viewer
    assert groups(explorer) == {"path": ["path: model", "path: particles"]}
    assert viewer.layers["path: model"].data.shape == viewer.layers["path: particles"].data.shape == (5, BOX, BOX)
    np.testing.assert_allclose(page.film.z[[0, -1]], data.latents.z[[first, last]])
    viewer.dims.set_current_step(0, 3)
    assert "step 4 of 5" in page.about.text()
    np.testing.assert_allclose(explorer.canvas._marks.latent, page.film.z[3])
    page.toggle_play()
    qtbot.waitUntil(lambda: viewer.dims.current_step[0] != 3, timeout=5000)
    page.toggle_play()
    for ending in (".gif", ".mrcs", ".png"):
        page.save(tmp_path / f"film{ending}")
    assert read_header(tmp_path / "film.mrcs").n_images == 5
    page.save(tmp_path / "film.avi")
    assert "cannot tell the format" in errors[-1]


@pytest.mark.slow
def test_a_line_in_the_scatter_makes_a_path(explorer, qtbot):
    explorer.path.steps.setValue(4)
    explorer.scatter.set_mode("line")
    line = explorer.canvas.points[explorer.session.data.used[[0, 1, 2]]]
    drag(explorer.canvas, line)
    quiet(explorer, qtbot)
    assert explorer.page is explorer.path
    np.testing.assert_allclose(explorer.path.film.z[[0, -1]], line[[0, -1]], atol=1e-6)
    assert len(explorer.path.film.z) == 4
    explorer.show_page(explorer.model)
    assert groups(explorer) == {"model": ["model"]}
    explorer.show_page(explorer.path)
    assert groups(explorer) == {"path": ["path: model", "path: particles"]}


# --------------------------------------------------------------------------------------------------------------- select


def select(explorer, qtbot):
    explorer.show_page(explorer.select)
    quiet(explorer, qtbot)
    return explorer.select


def test_lasso_and_box_select_what_they_hold(explorer, qtbot):
    page, points = select(explorer, qtbot), explorer.canvas.points
    corners = left_half(explorer.canvas.view)
    inside = ((points >= corners.min(0)) & (points <= corners.max(0))).all(1)
    assert 5 < inside.sum() < PARTICLES - 5
    for mode, path in (("lasso", corners), ("box", corners[[0, 2]])):
        explorer.session.selection.clear()
        explorer.scatter.set_mode(mode)
        drag(explorer.canvas, path)
        np.testing.assert_array_equal(explorer.session.selection.mask, inside)
    assert explorer.scatter.count.text().startswith(f"{inside.sum()} of 60 ")
    page.how.setCurrentText("subtract")
    drag(explorer.canvas, corners[[0, 2]])
    assert explorer.session.selection.count == 0
    page.undo()
    assert explorer.session.selection.count == inside.sum()
    page.redo()
    page.undo()
    page.invert()
    assert explorer.session.selection.count == PARTICLES - 1 - inside.sum()
    page.clear()
    assert explorer.session.selection.count == 0


@pytest.mark.slow
def test_ranges_lists_and_conditions_select(explorer, errors, qtbot):
    page, data = select(explorer, qtbot), explorer.session.data
    page.column.setCurrentText("emsvaeZ1")
    page.low.setText("0")
    page.select_range()
    quiet(explorer, qtbot)
    z1 = data.latents.z[:, 0]
    np.testing.assert_array_equal(explorer.session.selection.mask, (z1 >= 0) & data.latents.used)
    page.how.setCurrentText("intersect")
    page.condition.setText("emsvaeZ1 <= 1 and not emsvaeZ1 < 0.1")
    qtbot.keyClick(page.condition, Qt.Key.Key_Return)
    quiet(explorer, qtbot)
    np.testing.assert_array_equal(explorer.session.selection.mask, (z1 >= 0.1) & (z1 <= 1) & data.latents.used)
    page.how.setCurrentText("replace")
    page.column.setCurrentText("emsvaeUsed")
    page.members.setText("1, 5")
    page.select_members()
    quiet(explorer, qtbot)
    assert explorer.session.selection.count == PARTICLES - 1
    page.column.setCurrentText("rlnImageName")
    page.members.setText("000003@particles.mrcs")
    page.select_members()
    quiet(explorer, qtbot)
    assert explorer.session.selection.rows.tolist() == [2]
    assert not errors


def test_what_cannot_be_selected_by_is_a_message(explorer, errors, qtbot):
    page = select(explorer, qtbot)
    page.low.setText("one")
    page.select_range()
    page.low.setText("")
    page.column.setCurrentText("rlnImageName")
    page.select_range()
    quiet(explorer, qtbot)
    page.select_members()
    page.column.setCurrentText("emsvaeZ1")
    page.members.setText("left")
    page.select_members()
    quiet(explorer, qtbot)
    page.select_where()
    page.condition.setText("emsvaeZ9 > 1")
    page.select_where()
    quiet(explorer, qtbot)
    page.condition.setText("open('/etc/passwd')")
    page.select_where()
    quiet(explorer, qtbot)
    page.name_region()
    page.select_region()
    page.ask_and_save(both=True)
    wanted = (
        "no range",
        "needs numbers",
        "no values",
        "type numbers",
        "no condition",
        "emsvaeZ9",
        "open(",
        "name",
        "no region",
        "nothing is",
    )
    assert len(errors) == len(wanted)
    for text, part in zip(errors, wanted, strict=True):
        assert part in text and len(text.splitlines()) == 1
    assert explorer.session.selection.count == 0 and explorer.isVisible()


@pytest.mark.slow
def test_regions_are_named_selected_coloured_and_forgotten(explorer, qtbot):
    page, selection = select(explorer, qtbot), explorer.session.selection
    used = explorer.session.data.used
    for name, rows in (("good", used[:10]), ("junk", used[20:25])):
        mask = np.zeros(PARTICLES, dtype=bool)
        mask[rows] = True
        selection.apply(mask)
        page.region_name.setText(name)
        qtbot.keyClick(page.region_name, Qt.Key.Key_Return)
    assert [page.regions.item(k).text() for k in range(2)] == ["1. good: 10 particles", "2. junk: 5 particles"]
    explorer.scatter.colour.setCurrentText("regions")
    explorer.scatter.recolour()
    assert [text.get_text() for text in explorer.canvas._names] == ["1 good", "2 junk"]
    selection.clear()
    page.regions.setCurrentRow(0)
    page.select_region()
    np.testing.assert_array_equal(selection.rows, used[:10])
    page.regions.setCurrentRow(1)
    page.forget_region()
    assert page.regions.count() == 1


@pytest.mark.slow
def test_the_average_of_the_selection_is_live(explorer, qtbot):
    page, data = select(explorer, qtbot), explorer.session.data
    explorer.session.selection.apply(np.arange(PARTICLES) < 20)
    qtbot.waitUntil(lambda: page.pictures.shown is not None, timeout=PATIENCE_MS)
    quiet(explorer, qtbot)
    assert page.pictures.shown.described() == "all 19 particles"
    assert page.pictures.shown.mean.shape == (BOX, BOX)
    first = page.pictures.shown.mean
    explorer.session.selection.apply(np.arange(PARTICLES) >= 20)
    qtbot.waitUntil(lambda: page.pictures.shown is not None and page.pictures.shown.averaged == 40, timeout=PATIENCE_MS)
    assert not np.array_equal(first, page.pictures.shown.mean)
    explorer.session.selection.clear()
    assert page.pictures.shown is None and data is explorer.session.data


@pytest.mark.slow
def test_the_selection_saved_is_the_selection_made(explorer, errors, qtbot, tmp_path, monkeypatch):
    page, selection = select(explorer, qtbot), explorer.session.selection
    selection.apply(np.random.default_rng(0).uniform(size=PARTICLES) < 0.4)
    out = tmp_path / "mine_kept.star"
    monkeypatch.setattr("napari_emsvae.qt.dialogs.QFileDialog.getSaveFileName", lambda *_: (str(out), ""))
    page.ask_and_save(both=True)
    quiet(explorer, qtbot)
    names = explorer.session.data.latents.names
    for file, mask in ((out, selection.mask), (tmp_path / "mine_excluded.star", ~selection.mask)):
        written = particle_block(StarFile.read(file)).columns("rlnImageName")["rlnImageName"]
        assert written == names[mask].tolist()
    assert not errors and str(out) in explorer.message.text()
    (tmp_path / "mine_excluded.star").unlink()
    page.ask_and_save(both=False)
    quiet(explorer, qtbot)
    assert not (tmp_path / "mine_excluded.star").exists()


@pytest.mark.slow
def test_a_name_that_cannot_be_written_is_a_message(explorer, errors, qtbot, tmp_path):
    page = select(explorer, qtbot)
    explorer.session.selection.apply(np.ones(PARTICLES, dtype=bool))
    page.save(tmp_path / "kept.txt", both=False)
    quiet(explorer, qtbot)
    assert "kept.txt" in errors[-1] and not (tmp_path / "kept.txt").exists()


def test_the_selection_comes_back_with_the_run(explorer, run, viewer, qtbot):
    explorer.session.selection.apply(np.arange(PARTICLES) < 5)
    explorer.session.selection.name_region("first")
    qtbot.waitUntil(lambda: (run / "selections.npz").is_file(), timeout=5000)
    explorer.session.selection.apply(np.arange(PARTICLES) < 3)
    with qtbot.waitSignal(explorer.session.read, timeout=PATIENCE_MS):
        explorer.open(run)  # what was not yet written is not lost
    quiet(explorer, qtbot)
    assert explorer.session.selection.rows.tolist() == [0, 1, 2]
    assert explorer.session.selection.regions[0].count == 5
    assert explorer.scatter.count.text().startswith("3 of 60")


def test_a_damaged_saved_selection_is_a_message(empty, run, errors, qtbot):
    (run / "selections.npz").write_bytes(b"not a selection")
    empty.open(run)
    qtbot.waitUntil(lambda: empty.session.is_read, timeout=PATIENCE_MS)
    quiet(empty, qtbot)
    assert "selections.npz is damaged" in errors[0] and empty.session.selection.count == 0


# -------------------------------------------------------------------------------------------------------------- montage


@pytest.mark.slow
def test_a_montage_of_neighbours_and_of_the_selection(explorer, errors, qtbot):
    page, data = explorer.montage, explorer.session.data
    explorer.show_page(page)
    page.show_nearest()
    page.show_selected()
    assert "no particle is picked" in errors[0] and "nothing is selected" in errors[1]
    page.count.setValue(9)
    row = int(data.used[8])
    explorer.session.pick(row)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"montage": ["montage"]}
    assert page.rows[0] == row and len(page.rows) == 9
    page.pick_at(*np.add(page._mosaic.corner(4), 3))
    assert explorer.session.row == page.rows[4]
    quiet(explorer, qtbot)
    explorer.session.selection.apply(np.arange(PARTICLES) < 30)
    page.show_selected()
    quiet(explorer, qtbot)
    first = page.rows.copy()
    assert set(first.tolist()) <= set(range(30))
    page.show_others()
    quiet(explorer, qtbot)
    assert not np.array_equal(first, page.rows)
    for look in ("raw", "raw, low-passed"):
        page.look.setCurrentText(look)
        page._again()
        quiet(explorer, qtbot)
        assert page._mosaic.box == 32
    names = [layer for layer in explorer.session.viewer.layers if layer.name == "montage: names"]
    assert len(names) == 1 and names[0].features["said"].tolist() == [str(row + 1) for row in page.rows]
    page.names.setChecked(False)
    quiet(explorer, qtbot)
    assert "montage: names" not in explorer.session.viewer.layers


@pytest.mark.slow
def test_the_montage_follows_the_cursor_when_asked_to(explorer, qtbot):
    page = explorer.montage
    explorer.show_page(page)
    page.count.setValue(4)
    row = int(explorer.session.data.used[3])
    explorer.session.hovered.emit(row)
    assert not len(page.rows)
    page.follow.setChecked(True)
    explorer.session.hovered.emit(row)
    qtbot.waitUntil(lambda: len(page.rows) == 4 and page.rows[0] == row, timeout=5000)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"montage": ["montage"]}


# -------------------------------------------------------------------------------------------------------------- closing


def test_closing_the_explorer_leaves_the_viewer_alive(explorer, run, viewer, qtbot):
    explorer.session.selection.apply(np.arange(PARTICLES) < 5)
    viewer.window.remove_dock_widget(explorer)
    assert (run / "selections.npz").is_file()
    qtbot.wait(50)
    viewer.dims.set_current_step(0, 0)
    viewer.add_image(np.zeros((4, 4)))
    qtbot.wait(50)


def test_labels_can_be_read(explorer):
    for label in (*explorer.findChildren(QLabel), *explorer.findChildren(QLineEdit)):
        assert label.font().pointSizeF() >= 7 or label.font().pixelSize() >= 9
