"""Small helpers that make controls of one kind: every one of them with a tooltip."""

from collections.abc import Callable, Sequence

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QBoxLayout,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QLayout,
    QLineEdit,
    QListWidget,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QFlowLayout


class Choice(QComboBox):
    """A list to choose from that keeps the letters typed into it, which would act as the window's shortcuts otherwise."""

    def event(self, event: QEvent | None) -> bool:
        """Qt asks the widget that has the focus before a shortcut acts."""
        return keeps_letters(event) or super().event(event)


class Entries(QListWidget):
    """A list of entries; see `Choice`."""

    def event(self, e: QEvent | None) -> bool:
        """See `Choice`."""
        return keeps_letters(e) or super().event(e)


def keeps_letters(event: QEvent | None) -> bool:
    """Accept the question whether a typed letter belongs to a widget rather than to a shortcut."""
    if not isinstance(event, QKeyEvent) or event.type() != QEvent.Type.ShortcutOverride:
        return False
    plain = event.modifiers() in (Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ShiftModifier)
    if plain and event.text() and event.text().isprintable():
        event.accept()
        return True
    return False


def button(text: str, tip: str, clicked: Callable[[], object]) -> QPushButton:
    """A button."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setAccessibleName(text)
    made.setAutoDefault(False)
    made.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
    made.clicked.connect(lambda _=False: clicked())
    return made


def choice(options: Sequence[str], tip: str, changed: Callable[[str], object] | None = None) -> QComboBox:
    """A list to choose one from; long entries of a list that is filled later do not make the window wide."""
    made = Choice()
    made.addItems(list(options))
    made.setToolTip(tip)
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(max([7, *map(len, options)]))
    made.setAccessibleName(tip.partition("\n")[0])
    made.setMaxVisibleItems(24)
    if changed is not None:
        made.textActivated.connect(changed)
    return made


def whole_number(low: int, high: int, value: int, tip: str) -> QSpinBox:
    """A field for a whole number."""
    made = QSpinBox()
    made.setRange(low, high)
    made.setValue(value)
    made.setToolTip(tip)
    made.setAccessibleName(tip)
    return made


def number(
    low: float, high: float, value: float, step: float, tip: str, *, decimals: int = 1, suffix: str = ""
) -> QDoubleSpinBox:
    """A field for a number."""
    made = QDoubleSpinBox()
    made.setRange(low, high)
    made.setDecimals(decimals)
    made.setSingleStep(step)
    made.setValue(value)
    made.setSuffix(suffix)
    made.setToolTip(tip)
    made.setAccessibleName(tip)
    return made


def tick(text: str, tip: str, changed: Callable[[bool], object] | None = None, *, on: bool = False) -> QCheckBox:
    """A box to tick."""
    made = QCheckBox(text)
    made.setToolTip(tip)
    made.setChecked(on)
    if changed is not None:
        made.toggled.connect(changed)
    return made


def field(placeholder: str, tip: str, width: int | None = None) -> QLineEdit:
    """A field for a text."""
    made = QLineEdit()
    made.setPlaceholderText(placeholder)
    made.setToolTip(tip)
    made.setAccessibleName(tip)
    if width is not None:
        made.setMaximumWidth(width)
    return made


def words(text: str = "", tip: str = "", *, wrap: bool = False) -> QLabel:
    """A text that can be marked and copied."""
    made = QLabel(text)
    made.setToolTip(tip)
    made.setWordWrap(wrap)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


def flow(*parts: QWidget | str) -> QLayout:
    """Side by side, in as many lines as the width needs; a text becomes a label."""
    made = QFlowLayout()
    made.setContentsMargins(0, 0, 0, 0)
    made.setHorizontalSpacing(6)
    made.setVerticalSpacing(4)
    for part in parts:
        widget = words(part) if isinstance(part, str) else part
        widget.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        made.addWidget(widget)
    return made


def together(*parts: QWidget | str) -> QWidget:
    """Side by side and never torn apart by `flow`: a field and its name."""
    made = QWidget()
    made.setLayout(row(*parts))
    return made


def scrolled(page: QWidget) -> QScrollArea:
    """A page in a frame that scrolls when the window is too small for it."""
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QScrollArea.Shape.NoFrame)
    area.setWidget(page)
    area.setMinimumSize(120, 90)
    return area


def row(*parts: QWidget | QLayout | str | None) -> QHBoxLayout:
    """Side by side; a text becomes a label, None takes the room that is left."""
    made = QHBoxLayout()
    _fill(made, parts)
    return made


def column(*parts: QWidget | QLayout | str | None) -> QVBoxLayout:
    """One below the other, as `row`."""
    made = QVBoxLayout()
    _fill(made, parts)
    return made


def _fill(layout: QBoxLayout, parts: Sequence[QWidget | QLayout | str | None]) -> None:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(6)
    for part in parts:
        _put(layout, part)


def _put(layout: QBoxLayout, part: QWidget | QLayout | str | None) -> None:
    if part is None:
        layout.addStretch(1)
    elif isinstance(part, str):
        label = words(part)
        label.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Preferred)
        layout.addWidget(label)
    elif isinstance(part, QWidget):
        layout.addWidget(part)
    else:
        layout.addLayout(part)
