"""A scatter to point at: particles as numbers inside the page, drawn by its script; where none runs, nothing is lost."""

import base64
import json

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.figures.scatter import Plane
from emspatialvae.analysis.latent_space.embedding import some_rows
from emspatialvae.analysis.report.html import Html, tag
from emspatialvae.io.image_names import parse_image_name

LIMIT = 20_000
"""Particles in it at most."""
FINEST = 2**16 - 1
"""Coordinates are whole numbers from 0 to this across the picture."""


def cloud(plane: Plane, names: NDArray, group: NDArray[np.integer] | None) -> Html | None:
    """Particles with their names [n] and classes [n] under the pointer; None for latents on a line."""
    if plane.points.shape[1] != 2:
        return None
    rows = some_rows(len(plane.points), LIMIT)
    points = plane.points[rows]
    low, high = points.min(0), points.max(0)
    span = np.where(high > low, high - low, 1)
    placed = np.rint((points - low) / span * FINEST)
    images = [parse_image_name(str(name)) for name in names[rows]]
    paths, of = np.unique([image.path for image in images], return_inverse=True)
    content = {
        "axes": plane.axes,
        "low": low.tolist(),
        "span": span.tolist(),
        "x": _packed(placed[:, 0]),
        "y": _packed(placed[:, 1]),
        "group": None if group is None else _packed(group[rows]),
        # A name is its number, if it has one, and one of a few paths, each path once.
        "numbers": "\n".join(
            # As it is spelled, zeros and all, so that it is found in the file.
            "" if image.number is None else name[: -len(image.path) - 1]
            for name, image in zip(map(str, names[rows]), images, strict=True)
        ),
        "paths": paths.tolist(),
        "path": _packed(of) if len(paths) <= FINEST else of.tolist(),
    }
    many, shown = len(plane.points), len(rows)
    which = f"All {many:,} particles" if many == shown else f"{shown:,} of {many:,} particles, drawn at random"
    coloured = "" if group is None else ", coloured by class"
    caption = (
        f"{which}{coloured}. Point at one for its name; a click keeps it, so that the name can be copied. With the keyboard: arrow keys "
        "go from particle to particle."
    )
    # In a script element only "<" can do harm.
    text = Html(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))
    return tag(
        "figure",
        tag("script", text, type="application/json"),
        tag("p", class_="said", aria_live="polite"),
        tag("figcaption", caption),
        class_="cloud",
        hidden=True,
    )


def _packed(values: NDArray) -> str:
    """Whole numbers below 2^16 as base64 of two bytes each, the lower first."""
    return base64.b64encode(values.astype("<u2").tobytes()).decode()
