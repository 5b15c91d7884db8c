"""Points of a triangular lattice, at which shifts are looked at: of all grids it covers a plane with the fewest points."""

import math

import torch
from torch import Tensor

HEX_AREA = math.sqrt(3) / 2
"""Of a lattice cell whose points lie a unit apart."""


def hexagon(reach: int) -> Tensor:
    """Points of the triangular lattice of unit spacing within ``reach``, the origin first; [S, 2]."""
    points = [
        (i + j / 2, j * math.sqrt(3) / 2)
        for i in range(-2 * reach, 2 * reach + 1)
        for j in range(-reach - 1, reach + 2)
    ]
    inside = sorted((p for p in points if math.hypot(*p) <= reach + 1e-6), key=lambda p: math.hypot(*p))
    return torch.tensor(inside)


def lattice(radius_px: float, step_px: float) -> Tensor:
    """Points of a triangular lattice within a radius, the origin first; [S, 2]."""
    points = hexagon(math.ceil(radius_px / step_px)) * step_px
    return points[points.norm(dim=1) <= radius_px + 1e-6]
