"""Draw docs/conventions.png: axes and signs of a pose, placed by the functions that the package itself uses."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from emspatialvae.imaging.geometry import Pose2D, object_to_image_xy, to_relion

BOX, THETA_DEG, SHIFT = 16, 35.0, (-2.0, -1.5)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
"""Okabe and Ito's colours, told apart by colour-blind readers, too."""


def place(points: np.ndarray, theta_rad: float, shift: tuple[float, float]) -> np.ndarray:
    """Points [n, 2] of the object, where they lie in the image."""
    x, y = object_to_image_xy(points[:, 0], points[:, 1], np.cos(theta_rad), np.sin(theta_rad), *shift)
    return np.stack([x, y], -1)


def panel(axes: Axes, title: str, theta_rad: float, shift: tuple[float, float], said: str) -> None:
    """One state of the object."""
    # An outline that looks different in every orientation, so that a mirror image would be seen.
    outline = np.array([[-5, -1.5], [3, -1.5], [3, -3], [6, 0], [3, 3], [3, 1.5], [-1, 1.5], [-1, 4], [-5, 4]], float)
    half = BOX // 2
    for line in range(-half, half + 1):
        axes.axhline(line - 0.5, color="#e6e6e6", lw=0.6, zorder=0)
        axes.axvline(line - 0.5, color="#e6e6e6", lw=0.6, zorder=0)
    axes.add_patch(plt.Polygon(place(outline, theta_rad, shift), color=BLUE, alpha=0.35, lw=0))
    (dot,) = place(np.array([[6.0, 0.0]]), theta_rad, shift)
    (centre,) = place(np.zeros((1, 2)), theta_rad, shift)
    axes.plot(*dot, "o", color=ORANGE, ms=9)
    axes.plot(*centre, "o", color=BLUE, ms=5)
    axes.plot(0, 0, "+", color="black", ms=11, mew=1.6)
    for end, name in (((half - 1, 0), "+x"), ((0, half - 1), "+y")):
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.4})
        axes.annotate(
            name, end, color=GREY, fontsize=11, xytext=(-4, 6) if name == "+x" else (6, 0), textcoords="offset points"
        )
    if any(shift):
        axes.annotate("", centre, (0, 0), arrowprops={"arrowstyle": "->", "color": "black", "lw": 1.8})
    if theta_rad:
        # From the centre parallel to +x, to the dot: the way theta turns.
        angles = np.linspace(0, theta_rad, 40)
        ring = place(
            np.stack([4.0 * np.cos(angles - theta_rad), 4.0 * np.sin(angles - theta_rad)], -1), theta_rad, shift
        )
        axes.plot(*ring.T, color=ORANGE, lw=1.8)
        axes.annotate("", ring[-1], ring[-4], arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 1.8})
        axes.annotate("theta", ring[20], xytext=(5, -3), textcoords="offset points", color=ORANGE, fontsize=11)
        axes.plot(*np.array([centre, centre + np.array([5.2, 0])]).T, ":", color=GREY, lw=1)
    # Rows are counted downwards, as they are stored.
    axes.set(xlim=(-half - 0.5, half - 0.5), ylim=(half - 0.5, -half - 0.5), aspect="equal", title=title)
    axes.set_xlabel(said)
    axes.set_xticks([-half, 0, half - 1], ["column 0", f"column {half}", f"column {BOX - 1}"])
    axes.set_yticks([-half, 0, half - 1], ["row 0", f"row {half}", f"row {BOX - 1}"])
    axes.tick_params(labelsize=8)


def main() -> None:
    """Draw it."""
    theta = np.deg2rad(THETA_DEG)
    psi, origin = to_relion(Pose2D(np.array([theta]), np.array([SHIFT])), 1.0)
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(12.6, 4.9), layout="constrained")
    panel(first, "the object", 0, (0, 0), f"box {BOX}: the origin is pixel {BOX // 2}")
    panel(second, "turned by theta", theta, (0, 0), f"theta = +{THETA_DEG:g} degrees: from +x towards +y")
    panel(
        third,
        "and moved by the shift: the image",
        theta,
        SHIFT,
        f"shift = ({SHIFT[0]:+g}, {SHIFT[1]:+g}) px.  RELION, 1 A per pixel:\n"
        f"rlnAnglePsi = {psi[0]:g}\nrlnOriginXAngst = {origin[0, 0]:g}, rlnOriginYAngst = {origin[0, 1]:g}",
    )
    figure.savefig(Path(__file__).parent / "conventions.png", dpi=110)


if __name__ == "__main__":
    main()
