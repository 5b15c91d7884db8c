"""What the page "Deciding in napari" promises, in a window: the gallery, live averages, the legend, and what broke once."""

import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QAbstractButton, QApplication, QComboBox, QLabel, QLineEdit, QMessageBox

from napari_emsvae.qt import palette
from napari_emsvae.qt.background_work import Background
from napari_emsvae.qt.controls import Choice, Entries
from tests.tools.window import PARTICLES, PATIENCE_MS, drag, groups, left_half, mouse, quiet


@pytest.fixture
def errors(monkeypatch):
    said = []
    monkeypatch.setattr("napari.utils.notifications.show_error", said.append)
    return said


@pytest.fixture(scope="module")
def classified(trained_run, tmp_path_factory):
    """The run with four classes: k-means leaves none empty, even of so few particles."""
    from emspatialvae.workflows.classes import classify_run

    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("classified") / "run")
    classify_run(run, 4, method="kmeans", say=lambda _: None)
    return run


@pytest.fixture
def run(classified, tmp_path):
    return shutil.copytree(classified, tmp_path / "run")


@pytest.fixture
def empty(viewer, errors, qtbot):
    return viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]


def opened(empty, run, qtbot):
    empty.open(run)
    qtbot.waitUntil(
        lambda: empty.session.is_read and empty.session.data.path == run and len(empty.canvas.points) == PARTICLES,
        timeout=PATIENCE_MS,
    )
    quiet(empty, qtbot)
    empty.canvas.wait_for_search()
    return empty


@pytest.fixture
def explorer(empty, run, qtbot):
    return opened(empty, run, qtbot)


# ---------------------------------------------------------------------------------------- one mechanism for background


def test_results_wait_until_they_are_wanted_and_end_with_the_run(qtbot):
    wanted, got, gate = [False], [], threading.Event()
    work = Background(got.append, wanted=lambda: wanted[0])
    work.start(lambda: 1, done=got.append)
    qtbot.waitUntil(lambda: not work.running, timeout=PATIENCE_MS)
    assert got == []
    work.deliver()
    assert got == [1]
    work.start(lambda: 2, done=got.append)
    qtbot.waitUntil(lambda: not work.running, timeout=PATIENCE_MS)
    work.stop()
    work.deliver()
    assert got == [1], "what was kept ends, too"
    wanted[0] = True
    work.start(lambda: gate.wait(10) and 3, done=got.append)
    work.stop()
    gate.set()
    qtbot.wait(100)
    assert got == [1]


@pytest.mark.slow
def test_a_film_of_the_run_before_is_not_played_under_the_new_one(explorer, run, errors, qtbot, monkeypatch, tmp_path):
    gate, made = threading.Event(), []

    def slow(*arguments):
        gate.wait(30)
        made.append(arguments)
        return object()

    monkeypatch.setattr("napari_emsvae.explorer.tabs.path._film_through", slow)
    explorer.show_page(explorer.path)
    for which, row in enumerate(explorer.session.data.used[[0, 5]]):
        explorer.path.set_end(which, int(row))
    explorer.path.make()
    assert explorer.session.is_working
    opened(explorer, shutil.copytree(run, tmp_path / "other"), qtbot)
    gate.set()
    qtbot.waitUntil(lambda: bool(made), timeout=PATIENCE_MS)
    qtbot.wait(100)
    assert explorer.path.film is None and "path" not in groups(explorer) and not errors


@pytest.mark.slow
def test_a_map_that_is_ready_behind_another_tab_waits_for_its_own(explorer, qtbot, monkeypatch):
    gate, draw_map = threading.Event(), explorer.model.show_map.__globals__["draw_map"]
    monkeypatch.setattr("napari_emsvae.explorer.tabs.model.draw_map", lambda *a: gate.wait(30) and draw_map(*a))
    explorer.show_page(explorer.model)
    explorer.model.tiles.setValue(3)
    explorer.model.show_map()
    explorer.show_page(explorer.path)
    gate.set()
    quiet(explorer, qtbot)
    assert "model" not in groups(explorer)
    explorer.show_page(explorer.model)
    assert groups(explorer) == {"model": ["map", "model"]}


@pytest.mark.slow
def test_each_page_clears_the_canvas_of_the_others(explorer, qtbot):
    explorer.session.pick(int(explorer.session.data.used[2]))
    for page in explorer.pages:
        explorer.show_page(page)
        quiet(explorer, qtbot)
        assert set(groups(explorer)) <= {page.group}, page.title
    explorer.show_page(explorer.path)
    assert groups(explorer) == {}
    overlay = explorer.session.stage._overlay
    assert overlay.visible and "press A" in overlay.text.replace("\n", " ")


# -------------------------------------------------------------------------------------------------------- what is saved


def test_an_excluded_file_is_not_replaced_unasked(explorer, errors, qtbot, tmp_path, monkeypatch):
    explorer.session.selection.apply(np.arange(PARTICLES) < 20)
    out, beside = tmp_path / "k2_kept.star", tmp_path / "k2_excluded.star"
    beside.write_text("mine")
    monkeypatch.setattr(
        "napari_emsvae.qt.dialogs.QFileDialog.getSaveFileName", lambda *_: (str(out.with_suffix("")), "")
    )
    asked, answer = [], [QMessageBox.StandardButton.No]

    def question(_, title, text, *rest):
        asked.append(text)
        return answer[0]

    monkeypatch.setattr("napari_emsvae.qt.dialogs.QMessageBox.question", question)
    explorer.select.ask_and_save(both=True)
    quiet(explorer, qtbot)
    assert "k2_excluded.star" in asked[0] and beside.read_text() == "mine" and not out.exists()
    answer[0] = QMessageBox.StandardButton.Yes
    explorer.select.ask_and_save(both=True)
    quiet(explorer, qtbot)
    assert out.is_file() and "rlnImageName" in beside.read_text() and not errors


def test_a_search_without_a_hit_changes_nothing_and_its_message_goes(explorer, qtbot):
    page, selection = explorer.select, explorer.session.selection
    selection.apply(np.arange(PARTICLES) < 20)
    before = selection.mask.copy()
    page.condition.setText("emsvaeZ1 > 1000")
    page.select_where()
    quiet(explorer, qtbot)
    np.testing.assert_array_equal(selection.mask, before)
    assert "no particle is like that" in explorer.message.text()
    page.invert()
    assert explorer.message.text() == ""


# ----------------------------------------------------------------------------------------------------- keys and messages


@pytest.mark.parametrize("kind", [Choice, Entries])
def test_letters_typed_into_lists_are_no_shortcuts(qtbot, kind):
    made = kind()
    qtbot.addWidget(made)
    key = QKeyEvent(QEvent.Type.ShortcutOverride, Qt.Key.Key_I, Qt.KeyboardModifier.NoModifier, "i")
    key.ignore()
    QApplication.sendEvent(made, key)
    assert key.isAccepted()


def test_every_list_of_the_explorer_keeps_its_letters(explorer):
    from qtpy.QtWidgets import QListWidget

    lists = [*explorer.findChildren(QComboBox), *explorer.findChildren(QListWidget)]
    assert len(lists) > 8 and all(isinstance(made, Choice | Entries) for made in lists)


def test_the_field_names_the_run_that_is_open(explorer, run, tmp_path, errors, qtbot):
    explorer.open(tmp_path / "nothing")
    qtbot.waitUntil(lambda: bool(errors), timeout=PATIENCE_MS)
    quiet(explorer, qtbot)
    assert explorer.folder.text() == str(run) and explorer.session.is_open


def test_long_work_shows_a_sign_of_life(explorer, qtbot):
    gate = threading.Event()
    work = explorer.session.background()
    work.start(lambda: gate.wait(30), doing="making UMAP")
    qtbot.waitUntil(explorer.busy.isVisible, timeout=5000)
    assert "making UMAP" in explorer.busy_text.text()
    gate.set()
    qtbot.waitUntil(lambda: not explorer.busy.isVisible(), timeout=5000)


def test_the_tooltip_goes_with_the_mouse(explorer):
    canvas, row = explorer.canvas, int(explorer.session.data.used[4])
    mouse(canvas, "motion_notify_event", canvas.points[row])
    assert canvas._marks.hover is not None
    canvas.callbacks.process("figure_leave_event", SimpleNamespace(name="figure_leave_event"))
    assert canvas._marks.hover is None
    mouse(canvas, "motion_notify_event", canvas.points[row])
    explorer.scatter.set_mode("lasso")
    mouse(canvas, "button_press_event", canvas.points[row], 1)
    assert canvas._marks.hover is None
    mouse(canvas, "button_release_event", canvas.points[row], 1)


# ------------------------------------------------------------------------------------------------------ what fits where


def widgets_that_do_not_fit(explorer):
    """Labels whose text is cut, and widgets beyond the screen, on the page in front."""
    screen = explorer.screen().geometry()
    found = []
    for label in explorer.findChildren(QLabel):
        if not label.isVisible() or not label.text() or not label.visibleRegion().boundingRect().isValid():
            continue
        need = label.heightForWidth(label.width()) if label.wordWrap() else label.sizeHint().height()
        if label.height() < need or (not label.wordWrap() and label.width() < label.sizeHint().width()):
            found.append(("cut", label.text()))
    for kind in (QAbstractButton, QComboBox, QLineEdit):
        for widget in explorer.findChildren(kind):
            if widget.isVisible() and widget.width() < min(widget.minimumSizeHint().width(), widget.maximumWidth()):
                found.append(("narrow", widget.toolTip()))
    window = explorer.window()
    corner = window.mapToGlobal(window.rect().bottomRight())
    if not screen.contains(corner):
        found.append(("window beyond the screen", corner))
    own = explorer.mapToGlobal(explorer.rect().bottomRight())
    if not window.rect().contains(window.mapFromGlobal(own)):
        found.append(("explorer beyond the window", own))
    return found


@pytest.mark.parametrize(
    "size",
    [pytest.param((1180, 680), marks=pytest.mark.slow), (1280, 760), pytest.param((1600, 960), marks=pytest.mark.slow)],
)
def test_everything_fits_into_small_windows(explorer, qtbot, size):
    window = explorer.window()
    window.resize(*size)
    qtbot.wait(50)
    assert window.width() <= size[0] and window.height() <= size[1]
    explorer.session.pick(int(explorer.session.data.used[2]))
    for page in explorer.pages:
        explorer.show_page(page)
        quiet(explorer, qtbot)
        assert not widgets_that_do_not_fit(explorer), page.title


def test_labels_of_the_axes_are_inside_the_canvas(explorer, qtbot):
    for name in ("emsvaeMisfit", "rlnLogLikeliContribution"):
        explorer.scatter.up.setCurrentText(name)
        explorer.scatter.colour.setCurrentText(name)
        explorer.scatter.place_points()
        quiet(explorer, qtbot)
        canvas = explorer.canvas
        canvas.draw()
        width, height = canvas.get_width_height()
        for axes in (canvas.axes, canvas.scale_axes):
            box = axes.get_tightbbox(canvas.get_renderer())
            ratio = canvas.device_pixel_ratio
            assert box.x0 >= 0 and box.x1 <= width * ratio + 1 and box.y0 >= 0 and box.y1 <= height * ratio + 1


def test_controls_have_names_for_screen_readers(explorer):
    controls = [*explorer.findChildren(QAbstractButton), *explorer.findChildren(QComboBox)]
    ours = [c for c in controls if c.objectName() not in ("ScrollLeftButton", "ScrollRightButton")]
    assert not [c for c in ours if not (c.accessibleName() or c.text() if hasattr(c, "text") else c.accessibleName())]
    assert explorer.canvas.accessibleName() and explorer.classes.list.accessibleName()


def test_pictures_fill_the_canvas_also_beside_the_readers_layers(viewer, run, errors, qtbot):
    viewer.open(str(run), plugin="emspatialvae")
    qtbot.waitUntil(lambda: any("Latent explorer" in name for name in viewer.window.dock_widgets), timeout=PATIENCE_MS)
    explorer = viewer.window.add_plugin_dock_widget("emspatialvae", "Latent explorer")[1]
    qtbot.waitUntil(lambda: explorer.session.is_read, timeout=PATIENCE_MS)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"classes": ["averages"]}, "the gallery is the first that one sees"
    (layer,) = [layer for layer in viewer.layers if layer.name == "averages"]
    low, high = layer.extent.world[:, -2:]
    np.testing.assert_allclose(
        getattr(viewer, "scene", viewer).camera.center[-2:], (low + high) / 2, atol=0.05 * np.max(high - low)
    )


@pytest.mark.slow
def test_both_themes_reach_scatter_and_captions(explorer, viewer, qtbot):
    explorer.show_page(explorer.particle)
    explorer.session.pick(int(explorer.session.data.used[2]))
    quiet(explorer, qtbot)
    try:
        for theme, colours, ink in (("light", palette.LIGHT, 0.0), ("dark", palette.DARK, 1.0)):
            viewer.theme = theme
            names = viewer.layers["particle: names"]
            np.testing.assert_allclose(np.ravel(names.text.color.constant)[:3], ink)
            from matplotlib.colors import to_rgb

            np.testing.assert_allclose(explorer.canvas.figure.get_facecolor()[:3], to_rgb(colours.background))
            np.testing.assert_allclose(
                to_rgb(explorer.canvas._marks._picked.get_markeredgecolor()), to_rgb(colours.mark)
            )
    finally:
        palette.use(dark=True)


@pytest.mark.slow
def test_a_click_keeps_the_layers(explorer, viewer, qtbot):
    explorer.show_page(explorer.particle)
    used = explorer.session.data.used
    explorer.session.pick(int(used[2]))
    quiet(explorer, qtbot)
    before = list(viewer.layers)
    explorer.session.pick(int(used[9]))
    quiet(explorer, qtbot)
    assert all(one is other for one, other in zip(before, viewer.layers, strict=True))


# --------------------------------------------------------------------------------------------------------------- gallery


def test_chosen_classes_are_the_selection(explorer, qtbot):
    page, selection = explorer.classes, explorer.session.selection
    assert groups(explorer) == {"classes": ["averages"]} and page.list.count() == 4
    members = page.gallery.members
    page.board.press(1)
    np.testing.assert_array_equal(selection.rows, members[1])
    assert page.chosen()[0] == {1} and page.list.item(1).checkState() == Qt.CheckState.Checked
    page.board.press(3, {"Shift"})
    assert page.chosen()[0] == {1, 2, 3}
    page.board.press(2, {"Control"})
    assert page.chosen()[0] == {1, 3}
    page.board.press(3)
    assert page.chosen()[0] == {1}
    page.list.item(0).setCheckState(Qt.CheckState.Checked)
    assert page.chosen()[0] == {0, 1}
    texts = explorer.session.viewer.layers["classes: names"].features["said"].tolist()
    assert [text.endswith("\N{CHECK MARK}") for text in texts] == [True, True, False, False]
    frames = explorer.session.viewer.layers["frames"].data
    corners = [page.gallery.mosaic.corner(tile) for tile in range(4)]
    assert [frames[corner][3] > 0 for corner in corners] == [True, True, False, False]
    selection.apply(np.isin(np.arange(PARTICLES), members[3][:1]))
    assert page.chosen()[0] == set() and set(page.chosen()[1]) == {3}


def board_event(layer, tile, mosaic, kind, modifiers=()):
    row, column = mosaic.corner(tile)
    position = layer.data_to_world((row + 3, column + 3))
    return SimpleNamespace(type=kind, position=position, modifiers=modifiers)


def test_dragging_over_tiles_chooses_them(explorer):
    page = explorer.classes
    layer, mosaic = explorer.session.viewer.layers["averages"], page.gallery.mosaic
    event = board_event(layer, 0, mosaic, "mouse_press")
    press = page.board._dragged(layer, event)
    next(press)
    last = mosaic.count - 1
    event.type, event.position = "mouse_move", board_event(layer, last, mosaic, "").position
    next(press)
    event.type = "mouse_release"
    with pytest.raises(StopIteration):
        next(press)
    dragged = set(page.board._between((3, 3), np.add(mosaic.corner(last), 3)))
    assert page.chosen()[0] == dragged and {0, last} <= dragged
    assert not layer.mouse_pan


def test_members_of_a_class_are_opened(explorer, qtbot):
    page = explorer.classes
    members = page.gallery.members[0]
    page.board._double_clicked(
        explorer.session.viewer.layers["averages"],
        board_event(explorer.session.viewer.layers["averages"], 0, page.gallery.mosaic, "mouse_double_click"),
    )
    quiet(explorer, qtbot)
    assert explorer.page is explorer.montage and set(explorer.montage.rows) <= set(members.tolist())
    assert groups(explorer) == {"montage": ["montage"]}
    # Tiles of the montage select, too.
    explorer.montage.board.press(0, {"Shift"})
    assert explorer.session.selection.rows.tolist() == [explorer.montage.rows[0]]
    explorer.montage.board.press(0, {"Control"})
    assert explorer.session.selection.count == 0


def test_classes_are_made_when_there_are_none(empty, trained_run, tmp_path, qtbot, errors):
    run = shutil.copytree(trained_run, tmp_path / "plain")
    explorer = opened(empty, run, qtbot)
    assert groups(explorer) == {"classes": ["consensus"]}
    assert "Make classes" in explorer.classes.about.text()
    explorer.classes.number.setValue(3)
    explorer.classes.make()
    qtbot.waitUntil(lambda: explorer.classes.gallery is not None, timeout=PATIENCE_MS)
    quiet(explorer, qtbot)
    assert groups(explorer) == {"classes": ["averages"]} and not errors
    # Three were asked for; where particles fall into two kinds only, the third one stays empty and is left out.
    made = len((run / "classes" / "classes.csv").read_text().splitlines()) - 1
    assert explorer.classes.list.count() == made and made in (2, 3)


# ------------------------------------------------------------------------------------------------- a canvas that answers


def test_while_a_lasso_is_drawn_its_average_is_shown(explorer, qtbot):
    explorer.show_page(explorer.select)
    quiet(explorer, qtbot)
    assert explorer.select.pictures.sample is not None
    canvas, corners = explorer.canvas, left_half(explorer.canvas.view)
    explorer.scatter.set_mode("lasso")
    mouse(canvas, "button_press_event", corners[0], 1)
    for corner in corners[1:]:
        mouse(canvas, "motion_notify_event", corner, 1, buttons=[1])
    qtbot.waitUntil(lambda: "selection" in groups(explorer), timeout=5000)
    assert groups(explorer)["selection"][:3] == ["selected", "left out", "difference"]
    assert "particles inside" in explorer.scatter.count.text()
    assert explorer.session.selection.count == 0
    mouse(canvas, "button_release_event", corners[-1], 1)
    assert explorer.session.selection.count > 0
    quiet(explorer, qtbot)
    layers = explorer.session.viewer.layers
    np.testing.assert_allclose(layers["difference"].data, layers["selected"].data - layers["left out"].data, atol=1e-5)
    captions = layers["selection: names"].features["said"].tolist()
    assert captions[0].replace("\n", " ").startswith(f"selected: all {explorer.session.selection.count} particles")
    # Captions stand side by side over two pictures: a line of one must not run into the next.
    assert all(len(line) < 26 for said in captions for line in said.splitlines())


@pytest.mark.slow
def test_under_the_cursor_its_neighbours_are_averaged(explorer, qtbot):
    explorer.show_page(explorer.select)
    quiet(explorer, qtbot)
    row = int(explorer.session.data.used[4])
    explorer.session.hovered.emit(row)
    qtbot.waitUntil(lambda: "selection" in groups(explorer), timeout=5000)
    explorer.session.hovered.emit(None)
    assert "selection" not in groups(explorer), "nothing is selected, so nothing stays"


def test_handles_of_the_legend_are_thresholds(explorer, qtbot):
    explorer.scatter.colour.setCurrentText("emsvaeMisfit")
    explorer.scatter.recolour()
    quiet(explorer, qtbot)
    canvas = explorer.canvas
    values, (low, high) = canvas.colouring.values, canvas.colouring.limits
    middle = (low + high) / 2

    def event(name, value, button=None):
        from matplotlib.backend_bases import MouseEvent

        x, y = canvas.scale_axes.transData.transform((0.5, value))
        canvas.callbacks.process(name, MouseEvent(name, canvas, x, y, button))

    event("button_press_event", low, 1)
    event("motion_notify_event", middle, 1)
    event("button_release_event", middle, 1)
    expected = (values >= canvas.legend.ends[0]) & explorer.session.selection.selectable
    assert canvas.legend.ends[0] == pytest.approx(middle, abs=0.05 * (high - low))
    np.testing.assert_array_equal(explorer.session.selection.mask, expected)


@pytest.mark.slow
def test_bars_of_the_legend_are_groups(explorer, qtbot):
    explorer.scatter.colour.setCurrentText("rlnClassNumber")
    explorer.scatter.recolour()
    quiet(explorer, qtbot)
    canvas = explorer.canvas
    from matplotlib.backend_bases import MouseEvent

    # The first bar is class 0: the particle that the run could not use, which cannot be selected.
    x, y = canvas.scale_axes.transData.transform((0.05, 1))
    canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", canvas, x, y, 1))
    data = explorer.session.data
    first = data.latents.class_number[explorer.session.selection.rows]
    assert len(first) and len(set(first.tolist())) == 1


@pytest.mark.slow
def test_sliders_along_principal_components(explorer, qtbot):
    page = explorer.model
    explorer.show_page(page)
    page.set_latent(np.array([0.5, -0.25]))
    page.along.setCurrentText("principal components")
    page._list_sliders()
    np.testing.assert_allclose(page.z, [0.5, -0.25], atol=0.02)
    assert page.form.itemAt(0, page.form.ItemRole.LabelRole).widget().text().startswith("PC1 (")
    labels = [label.text() for label in page.findChildren(QLabel) if label.isVisible()]
    assert not [text for text in labels if text.startswith("z1")], "labels of the sliders before are gone"
    data = explorer.session.data
    page.z_sliders[0].setValue(1.0)
    np.testing.assert_allclose(data.axes.to_components(page.z)[0], 1.0, atol=0.01)


@pytest.mark.slow
def test_where_there_are_no_particles_the_model_says_so(explorer, qtbot):
    page = explorer.model
    explorer.show_page(page)
    page.set_latent(explorer.session.data.latents.z[explorer.session.data.used].mean(0))
    assert "\N{WARNING SIGN}" not in page.near.text()
    for slider in page.z_sliders:
        slider.setValue(slider.maximum())
    page.draw_now()
    assert "hardly any particle" in page.near.text()


def test_a_dropped_run_folder_is_opened(empty, run, qtbot):
    from qtpy.QtCore import QMimeData, QPointF, QUrl
    from qtpy.QtGui import QDropEvent

    dropped = QMimeData()
    dropped.setUrls([QUrl.fromLocalFile(str(run))])
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    empty.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, dropped, buttons, keys))
    qtbot.waitUntil(lambda: empty.session.is_read, timeout=PATIENCE_MS)
    assert empty.session.data.run.path == run


def test_napari_asks_no_longer_for_folders_that_are_named_as_runs(empty, run):
    from napari.plugins.utils import get_preferred_reader

    folder = run.with_name("particles_emsvae")
    run.rename(folder)
    assert get_preferred_reader(str(folder)) == "emspatialvae"


def test_a_lasso_still_selects_what_it_holds(explorer):
    corners = left_half(explorer.canvas.view)
    explorer.scatter.set_mode("lasso")
    drag(explorer.canvas, corners)
    inside = ((explorer.canvas.points >= corners.min(0)) & (explorer.canvas.points <= corners.max(0))).all(1)
    np.testing.assert_array_equal(explorer.session.selection.mask, inside)
