"""Windows that fit their screens."""

from qtpy.QtCore import QSize
from qtpy.QtWidgets import QWidget

FRAME_PX = 32
"""Height of a title bar, where the system does not tell yet."""


def fit_into_screen(widget: QWidget, wanted: QSize | None = None) -> None:
    """Make the window of a widget at least as large as wanted and no larger than its screen, where all of it is seen."""
    window, screen = widget.window(), widget.screen()
    if window is None or screen is None or window.isMaximized() or window.isFullScreen():
        return
    room, frame, inner = screen.availableGeometry(), window.frameGeometry(), window.geometry()
    extra_w = max(frame.width() - inner.width(), 0)
    extra_h = max(frame.height() - inner.height(), FRAME_PX)
    wanted = QSize(0, 0) if wanted is None else wanted
    width = min(max(inner.width(), wanted.width()), room.width() - extra_w)
    height = min(max(inner.height(), wanted.height()), room.height() - extra_h)
    if (width, height) != (inner.width(), inner.height()):
        window.resize(width, height)
    frame = window.frameGeometry()
    left = max(room.left(), min(frame.left(), room.right() - extra_w - width + 1))
    top = max(room.top(), min(frame.top(), room.bottom() - extra_h - height + 1))
    if (left, top) != (frame.left(), frame.top()):
        window.move(left, top)
