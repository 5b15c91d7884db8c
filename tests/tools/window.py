"""What one does in the explorer's window: wait, point, drag, look."""

import numpy as np
from matplotlib.backend_bases import MouseEvent

PARTICLES = 60
"""Of the run that the plugin's tests open."""
PATIENCE_MS = 60_000


def quiet(explorer, qtbot):
    """Wait until no work is under way."""
    qtbot.waitUntil(lambda: not explorer.session.is_working, timeout=PATIENCE_MS)
    qtbot.wait(20)


def groups(explorer):
    """The explorer's layers that are on the canvas: group -> names of images."""
    found = {}
    for layer in explorer.session.viewer.layers:
        note = layer.metadata.get("emsvae", {})
        if "group" in note and layer.visible and layer._type_string == "image" and note["name"] != "frames":
            found.setdefault(note["group"], []).append(note["name"])
    return found


def mouse(canvas, name, xy, button=None, **more):
    """A mouse event at a point of the plane."""
    x, y = canvas.axes.transData.transform(xy)
    event = MouseEvent(name, canvas, x, y, button, **more)
    canvas.callbacks.process(name, event)


def drag(canvas, points):
    """Draw with the left button held down."""
    mouse(canvas, "button_press_event", points[0], 1)
    for point in points[1:]:
        mouse(canvas, "motion_notify_event", point, 1, buttons=[1])
    mouse(canvas, "button_release_event", points[-1], 1)


def left_half(view):
    """Corners of a box that holds the left half of what is in view."""
    left, right = view.left + 0.02 * view.size[0], view.left + 0.5 * view.size[0]
    bottom, top = view.bottom + 0.02 * view.size[1], view.top - 0.02 * view.size[1]
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]])
