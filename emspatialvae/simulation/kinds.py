"""The built-in objects: hinges, a dimer with and without its symmetry, a solid seen from several directions.

All are written on a box of 40 px, in fortieths of the box (the wide ones in forty-eighths, which makes them smaller).
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import rotate_xy
from emspatialvae.simulation.phantom import JointedPhantom, Part, Phantom, TiltedPhantom

Kind = Literal["hinge", "hinge-b", "two-hinges", "views", "symmetric", "pseudo-symmetric", "noise"]

BLOB_SIGMA = 1.5 / 40


def phantom(kind: Kind, span_deg: float | None = None) -> Phantom:
    """The built-in object of that name; the same atoms every time.

    No atom is further than 0.36 box from the origin, which leaves six pixels of 40 for shifts.

    Parameters
    ----------
    span_deg
        Range of every joint, or of the tilt [default: `default_span_deg`].

    Raises
    ------
    EmsvaeError
        There is no such kind.
    """
    if kind not in get_args(Kind):
        raise EmsvaeError(f"there is no object {kind!r}; expected one of {', '.join(get_args(Kind))}")
    return _BUILDERS[kind](np.radians(default_span_deg(kind) if span_deg is None else span_deg))


def default_span_deg(kind: Kind) -> float:
    """Range of the coordinates where the user names none, in degrees."""
    return 60.0 if kind in ("views", "symmetric", "pseudo-symmetric") else 90.0


def hinge_object(span_deg: float = 90.0) -> JointedPhantom:
    """The built-in hinge: a body like a boot, an arm like a hook, joined at the ankle.

    At no angle but its own does the particle look like itself (correlation below 0.8 with any other, whatever the hinge
    and shift): with 0.88, tried first, one image in 500 at SNR 0.1 was taken upside down even by the oracle, and those
    few ruled every r.m.s.
    """
    return _hinge(float(np.radians(span_deg)))


def _ellipse(
    rng: np.random.Generator, n: int, centre: tuple[float, float], axes: tuple[float, float], tilt_deg: float
) -> Floats:
    """Points [n, 2] spread evenly over an ellipse, in fortieths of the box (as all lengths below)."""
    radius, phi = np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
    x, y = axes[0] * radius * np.cos(phi), axes[1] * radius * np.sin(phi)
    tilt = np.radians(tilt_deg)
    x, y = rotate_xy(x, y, np.cos(tilt), np.sin(tilt))
    return np.stack([x + centre[0], y + centre[1]], -1)


def _rod(rng: np.random.Generator, n: int, start: tuple[float, ...], end: tuple[float, ...], width: float) -> Floats:
    """Points [n, 2 or 3] along a straight rod."""
    along = rng.random((n, 1))
    return (1 - along) * np.array(start) + along * np.array(end) + width * (rng.random((n, len(start))) - 0.5)


def _hinge(span_rad: float) -> JointedPhantom:
    rng = np.random.default_rng(20191111)

    def hook(n: int, width: float) -> Floats:
        t = rng.random(n)
        spine = np.stack([1.0 + 12.0 * t - 3.5 * t**2, -2.5 * t + 9.5 * t**3], -1)
        return spine + width * (rng.random((n, 2)) - 0.5)

    body = [_ellipse(rng, 80, (-5.2, 1.4), (6.6, 3.2), -14.0), _ellipse(rng, 70, (-6.5, -5.5), (5.2, 3.0), 70.0)]
    arm = [hook(45, 2.6), _ellipse(rng, 14, (8.6, 6.6), (2.6, 2.0), 60.0)]
    parts = (Part(np.concatenate(body) / 40, (0.0,)), Part(np.concatenate(arm) / 40, (span_rad,)))
    return JointedPhantom(BLOB_SIGMA, parts=parts)


def _hinge_b(span_rad: float) -> JointedPhantom:
    """A flat ring with a knob on its rim, and a short clubbed arm."""
    rng = np.random.default_rng(20191112)
    radius, phi = 5.6 + 1.8 * (rng.random(130) - 0.5), 2 * np.pi * rng.random(130)
    ring = np.stack([radius * np.cos(phi) - 6.4, 0.85 * radius * np.sin(phi)], -1)
    knob = _ellipse(rng, 22, (-8.2, -6.2), (2.6, 1.8), 20.0)
    arm = [_rod(rng, 20, (0.5, 0.0), (6.0, 0.5), 1.6), _ellipse(rng, 45, (8.8, 1.2), (3.0, 3.6), 25.0)]
    parts = (Part(np.concatenate([ring, knob]) / 40, (0.0,)), Part(np.concatenate(arm) / 40, (span_rad,)))
    return JointedPhantom(BLOB_SIGMA, parts=parts)


def _two_hinges(span_rad: float) -> JointedPhantom:
    """A bean with a long thin arm at one end and a short thick one at the other; each has its own coordinate."""
    rng = np.random.default_rng(20191113)
    body = [_ellipse(rng, 95, (0.0, 3.6), (7.4, 3.4), 8.0), _ellipse(rng, 25, (4.4, 6.6), (3.0, 2.4), 0.0)]
    thin = [_rod(rng, 34, (0.0, 0.0), (2.0, -9.0), 1.8), _rod(rng, 20, (2.0, -9.0), (5.4, -10.0), 1.8)]
    thick = [_rod(rng, 30, (0.0, 0.0), (-3.0, -5.0), 3.0), _ellipse(rng, 30, (-3.8, -6.2), (2.9, 2.1), 30.0)]
    parts = (
        Part(np.concatenate(body) / 48, (0.0, 0.0)),
        Part(np.concatenate(thin) / 48, (span_rad, 0.0), (5.4 / 48, 1.0 / 48)),
        Part(np.concatenate(thick) / 48, (0.0, span_rad), (-5.6 / 48, 1.2 / 48)),
    )
    return JointedPhantom(BLOB_SIGMA, parts=parts)


def _views(span_rad: float) -> TiltedPhantom:
    """Rods and lumps in space, none in one plane with the others, so that a tilt to the left is not one to the right."""
    rng = np.random.default_rng(20191114)
    lumps = [((-6.0, 3.5, 4.0), 3.6, 50), ((5.5, -5.5, -6.5), 2.6, 30), ((4.0, 7.0, 7.5), 2.3, 24)]
    parts = [centre + size * _ball(rng, n) for centre, size, n in lumps]
    parts += [
        _rod(rng, 40, (-6.0, 3.5, 4.0), (5.5, -5.5, -6.5), 2.2),
        _rod(rng, 45, (-6.0, 3.5, 4.0), (-4.5, -10.5, 3.0), 2.2),
        _rod(rng, 32, (0.0, -1.0, -1.0), (4.0, 7.0, 7.5), 1.8),
    ]
    return TiltedPhantom(BLOB_SIGMA, atoms_xyz=np.concatenate(parts) / 40, span_rad=span_rad)


def _ball(rng: np.random.Generator, n: int) -> Floats:
    direction = rng.standard_normal((n, 3))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.random((n, 1)) ** (1 / 3)


def _symmetric(span_rad: float) -> JointedPhantom:
    """A two-fold dimer like an S: a core and two equal arms that bend together, so that the symmetry stays."""
    rng = np.random.default_rng(20191115)
    half_core = _ellipse(rng, 55, (-3.2, 0.6), (4.4, 3.0), 20.0)
    arm = np.concatenate([_rod(rng, 30, (0.0, 0.0), (1.2, -7.0), 2.2), _ellipse(rng, 24, (3.0, -7.8), (3.0, 1.9), 0.0)])
    pivot = (6.2 / 48, -1.6 / 48)
    parts = (
        Part(np.concatenate([half_core, -half_core]) / 48, (0.0,)),
        Part(arm / 48, (span_rad,), pivot),
        Part(-arm / 48, (span_rad,), (-pivot[0], -pivot[1])),
    )
    return JointedPhantom(BLOB_SIGMA, symmetry=2, parts=parts)


def _pseudo_symmetric(span_rad: float) -> JointedPhantom:
    """The dimer with a few blobs more on one side: theta and theta + 180 degrees differ by little."""
    whole = _symmetric(span_rad)
    extra = _ellipse(np.random.default_rng(20191116), 16, (-2.0, -5.6), (2.4, 1.7), 0.0)
    return JointedPhantom(BLOB_SIGMA, parts=(*whole.parts, Part(extra / 48, (0.0,))))


def _nothing(span_rad: float) -> JointedPhantom:
    """A single blob of height 0."""
    return JointedPhantom(BLOB_SIGMA, 0.0, parts=(Part(np.zeros((1, 2)), (span_rad,)),))


_BUILDERS: dict[str, Callable[[float], Phantom]] = {
    "hinge": _hinge,
    "hinge-b": _hinge_b,
    "two-hinges": _two_hinges,
    "views": _views,
    "symmetric": _symmetric,
    "pseudo-symmetric": _pseudo_symmetric,
    "noise": _nothing,
}
