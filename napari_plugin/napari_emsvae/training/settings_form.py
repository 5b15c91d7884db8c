"""Fields for every setting of a training: the often wanted ones in sight, the others folded away."""

from collections.abc import Iterable

from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QGridLayout, QGroupBox, QLineEdit, QWidget
from superqt import QCollapsible

from emspatialvae.config import RunConfig
from napari_emsvae.qt.controls import button, choice, column, field, row, tick, words
from napari_emsvae.training.settings import PARTS, Setting, settings

OFTEN = (
    *("model.z_dim", "train.epochs", "prepare.box", "prepare.particle_diameter_A", "model.max_shift_A", "input.limit"),
    *("prepare.invert", "prepare.ctf", "model.engine", "train.device"),
)
TITLES = {"input": "Input", "prepare": "Images", "model": "Model", "train": "Training", "": "Output"}
COLUMNS = 2
FIELD_PX, SHORTEST = 70, 6
"""Smallest width of a field, enough for the word automatic, and of a list, in letters."""


class SettingsForm(QWidget):
    """A field per setting. An empty one means the value that stands in it in grey."""

    def __init__(self, base: RunConfig) -> None:
        super().__init__()
        self.fields = {key: _field(setting) for key, setting in settings().items()}
        self.more = QCollapsible("More settings")
        self.more.setToolTip("All the other settings of emsvae train")
        self.more.setDuration(0)
        rest = [setting for key, setting in settings().items() if key not in OFTEN]
        for part in (*PARTS, ""):
            group = QGroupBox(TITLES[part])
            group.setLayout(self._grid(setting for setting in rest if setting.part == part))
            self.more.addWidget(group)
        layout = column(self._grid(settings()[key] for key in OFTEN), self.more)
        self.setLayout(layout)
        self.set_base(base)

    def set_base(self, base: RunConfig) -> None:
        """Show another configuration as the one that holds where nothing is typed; what was typed is forgotten."""
        for key, widget in self.fields.items():
            setting = settings()[key]
            if isinstance(widget, QLineEdit):
                widget.clear()
                widget.setPlaceholderText(setting.shown(base))
            elif isinstance(widget, QComboBox):
                widget.setCurrentText(setting.shown(base))
            else:
                widget.setChecked(setting.of(base))

    def typed(self) -> dict[str, str | bool]:
        """What stands in the fields, by key of `settings`."""
        return {key: _content(widget) for key, widget in self.fields.items()}

    def _grid(self, shown: Iterable[Setting]) -> QGridLayout:
        made = QGridLayout()
        made.setContentsMargins(0, 0, 0, 0)
        made.setHorizontalSpacing(8)
        for number, setting in enumerate(shown):
            line, place = divmod(number, COLUMNS)
            widget = self.fields[setting.key]
            made.addWidget(words(setting.label, setting.tip), line, 2 * place)
            if setting.kind == "path":
                assert isinstance(widget, QLineEdit)
                made.addLayout(row(widget, _chooser(widget, setting)), line, 2 * place + 1)
            else:
                made.addWidget(widget, line, 2 * place + 1)
        for place in range(COLUMNS):
            made.setColumnStretch(2 * place + 1, 1)
        return made


def _field(setting: Setting) -> QLineEdit | QComboBox | QCheckBox:
    if setting.kind == "yes-no":
        made = tick("", setting.tip)
    elif setting.kind == "choice":
        made = choice(setting.choices, setting.tip)
        made.setMinimumContentsLength(SHORTEST)
    else:
        made = field("", setting.tip)
        made.setMinimumWidth(FIELD_PX)
    made.setAccessibleName(setting.label)
    return made


def _content(widget: QLineEdit | QComboBox | QCheckBox) -> str | bool:
    if isinstance(widget, QCheckBox):
        return widget.isChecked()
    return widget.text() if isinstance(widget, QLineEdit) else widget.currentText()


def _chooser(target: QLineEdit, setting: Setting) -> QWidget:
    """A button that asks for a file, or, where the setting is one, a folder."""
    is_folder = setting.name in ("project_dir", "cache")
    ask = QFileDialog.getExistingDirectory if is_folder else lambda *a: QFileDialog.getOpenFileName(*a)[0]

    def choose() -> None:
        chosen = ask(target, setting.label, target.text())
        if chosen:
            target.setText(chosen)

    return button("\N{HORIZONTAL ELLIPSIS}", f"Choose: {setting.label}", choose)
