"""How well views of a 3-D object are told apart: by classes, and by neighbours in z. Pure functions of arrays.

A particle of view (rot, tilt) and in-plane angle theta is seen through the rotation ``A(rot, tilt, theta)``
(`emspatialvae.imaging.geometry.view_rotations`). Whoever reports an in-plane angle says how to turn the particle back; what is left then is

    R = Rz(theta_reported)^T A(rot, tilt, theta) = A(rot, tilt, theta - theta_reported).

Particles that look alike once they are turned back have equal R, up to a turn of the picture that all of them share. Two such
rotations differ by the angle of ``R_1 R_2^T``, from 0 to 180 degrees. The mean of rotations is the chordal one: the rotation nearest to
the sum of the matrices (Moakher, SIAM J. Matrix Anal. Appl. 24, 2002; Hartley et al., Int. J. Computer Vision 103, 2013).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import view_rotations

OFF_DEG = 30.0
"""Two views further apart than this are different ones."""
NEIGHBOURS = 10
SURE = 0.99
"""Reported probability of a pose above which it passes for known."""
FITTED_VIEWS = 20_000
"""Views that the best classes are fitted to."""
RESTARTS, ROUNDS = 3, 40


@dataclass(frozen=True)
class ViewScores:
    """How far apart in view the particles are that were put together. Angles in degrees, shares from 0 to 1.

    Attributes
    ----------
    n, k
        Particles, and classes that hold any of them; None without classes.
    view_class_median_deg, view_class_within_30
        Angle of each particle to the mean rotation of its class: the median, and the share up to 30 degrees.
    view_best_median_deg, view_best_within_30
        The same for as many classes made of the true views, each particle turned as well as can be.
    view_neighbour_median_deg
        Angle between a particle and its nearest neighbour in z, the median.
    view_neighbours_off
        Share of the particles for which more than half of the ten nearest in z are more than 30 degrees off.
    view_sure, view_sure_wrong
        Share of the particles whose pose is called more than 99 % sure, and the share of those that are wrong: off from most of their
        ten neighbours in z or, without z, more than 30 degrees from the mean of their class.
    """

    n: int
    k: int | None = None
    view_class_median_deg: float | None = None
    view_class_within_30: float | None = None
    view_best_median_deg: float | None = None
    view_best_within_30: float | None = None
    view_neighbour_median_deg: float | None = None
    view_neighbours_off: float | None = None
    view_sure: float | None = None
    view_sure_wrong: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON can hold."""
        return asdict(self)

    def table(self) -> str:
        """Aligned text for a person: a row per quantity, what is best possible beside it, and its meaning."""
        rows = [
            (name, _said(getattr(self, field)), _said(getattr(self, best, None)), meaning)
            for field, best, name, meaning in _ROWS
            if getattr(self, field) is not None
        ]
        with_best = any(best for _, _, best, _ in rows)
        lines = [("", "found", "best" if with_best else "", ""), *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        text = [
            f"{name:<{widths[0]}}  {found:>{widths[1]}}  {best:>{widths[2]}}  {meaning}".rstrip()
            for name, found, best, meaning in lines
        ]
        classes = "" if self.k is None else f" in {self.k} classes"
        return "\n".join([f"{self.n} particles{classes}", *text])


_ROWS = [
    (
        "view_class_median_deg",
        "view_best_median_deg",
        "view in class [deg]",
        "angle to the mean view of the class, median",
    ),
    (
        "view_class_within_30",
        "view_best_within_30",
        "view within 30 deg",
        "share of the particles as near to that mean",
    ),
    ("view_neighbour_median_deg", "", "next in z [deg]", "angle to the nearest particle in z, median"),
    (
        "view_neighbours_off",
        "",
        "mostly off in z",
        "share with more than half of the ten nearest in z over 30 degrees off",
    ),
    ("view_sure", "", "sure", "share whose pose is called more than 99 % sure"),
    ("view_sure_wrong", "", "wrong of the sure", "share of those that are off (in z; without z, from their class)"),
]


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 1.0005 else f"{value:.1f}"


def rotations_left(rot_rad: ArrayLike, tilt_rad: ArrayLike, theta_rad: Floats, reported_rad: Floats) -> Floats:
    """R [n, 3, 3] of n particles once the reported in-plane angles [n] were taken out; all angles in radians."""
    return view_rotations(rot_rad, tilt_rad, theta_rad - reported_rad)


def angles_deg(first: Floats, second: Floats) -> Floats:
    """Angles [...] between rotations [..., 3, 3], in degrees from 0 to 180; broadcasts."""
    # |R1 - R2|^2 = 8 sin^2(angle / 2): exact for small angles, where the arc cosine of the trace is not
    chord = np.sqrt(np.sum((first - second) ** 2, (-2, -1)) / 8)
    return 2 * np.degrees(np.arcsin(np.clip(chord, 0, 1)))


def mean_rotation(rotations: Floats) -> Floats:
    """Chordal mean [3, 3] of rotations [n, 3, 3]: ``U diag(1, 1, det(U V^T)) V^T`` of the SVD of their sum."""
    u, _, vt = np.linalg.svd(rotations.sum(0))
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return u @ vt


def to_class_mean_deg(rotations: Floats, class_number: NDArray[Any]) -> Floats:
    """Angle [n] of each rotation [n, 3, 3] to the chordal mean of its class [n], in degrees."""
    found = np.zeros(len(rotations))
    for members in _members(class_number):
        found[members] = angles_deg(rotations[members], mean_rotation(rotations[members]))
    return found


def best_to_class_mean_deg(view: Floats, k: int, seed: int = 0) -> Floats:
    """`to_class_mean_deg` [n] of k classes of the true views [n, 3], by k-means on the sphere, and of the best in-plane angles.

    A view is the unit vector along which the object is looked at: the last row of its rotation. In-plane angles and means are
    improved in turn. Classes can hardly be tighter than these, whoever made them.
    """
    rotations = view_rotations(np.arctan2(view[:, 1], view[:, 0]), np.arccos(np.clip(view[:, 2], -1, 1)), 0.0)
    nearest = nearest_view(view, view_centres(view, k, seed))
    for members in _members(nearest):
        own = rotations[members]
        mean = own[np.argmax(own[:, 2] @ own[:, 2].sum(0))]  # a member near the middle, to start with
        for _ in range(5):
            own = _turned_to(own, mean)
            mean = mean_rotation(own)
        rotations[members] = own
    return to_class_mean_deg(rotations, nearest)


def view_centres(view: Floats, k: int, seed: int = 0) -> Floats:
    """Centres [k, 3] of k-means on the sphere for views [n, 3], all unit vectors; the tightest of some starts."""
    rng = np.random.default_rng(seed)
    some = view if len(view) <= FITTED_VIEWS else view[rng.choice(len(view), FITTED_VIEWS, replace=False)]
    best, best_fit = some[:1], -np.inf
    for _ in range(RESTARTS):
        centres = _spread_start(some, k, rng)
        for _ in range(ROUNDS):
            nearest = nearest_view(some, centres)
            sums = np.stack([np.bincount(nearest, axis, minlength=len(centres)) for axis in some.T], -1)
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(length > 1e-12, sums / np.maximum(length, 1e-12), centres)
        fit = float((some @ centres.T).max(1).mean())
        if fit > best_fit:
            best, best_fit = centres, fit
    return best


def _spread_start(view: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Views [k, 3] to start from, far apart as a rule: k-means++ (Arthur and Vassilvitskii 2007)."""
    centres = [view[rng.integers(len(view))]]
    far = 1 - view @ centres[0]
    for _ in range(min(k, len(view)) - 1):
        weight = np.maximum(far, 0) + 1e-15
        centres.append(view[rng.choice(len(view), p=weight / weight.sum())])
        far = np.minimum(far, 1 - view @ centres[-1])
    return np.stack(centres)


def nearest_view(view: Floats, centres: Floats) -> NDArray[np.int64]:
    """Which of the centres [k, 3] each view [n, 3] is nearest to; [n]."""
    return np.concatenate([np.argmax(part @ centres.T, 1) for part in np.array_split(view, -(-len(view) // 10_000))])


def _turned_to(rotations: Floats, mean: Floats) -> Floats:
    """Rotations [n, 3, 3], each turned in its plane until it is as near as can be to ``mean`` [3, 3].

    ``trace(mean^T Rz(phi) R) = cos(phi) (B_00 + B_11) + sin(phi) (B_01 - B_10) + B_22`` with ``B = R mean^T``.
    """
    b = rotations @ mean.T
    phi = np.arctan2(b[:, 0, 1] - b[:, 1, 0], b[:, 0, 0] + b[:, 1, 1])
    turn = view_rotations(0.0, 0.0, phi)
    return turn @ rotations


def neighbours_deg(rotations: Floats, z: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """Angles [n, m] of each rotation [n, 3, 3] to those of its m nearest in z [n, d], the nearest first, in degrees.

    m is ``neighbours``, or n - 1 where that is less. Distances are Euclid's, in double precision.
    """
    m = min(neighbours, len(z) - 1)
    _, near = KDTree(np.asarray(z, dtype=np.float64)).query(z, k=m + 1)
    near = np.asarray(near)
    # A particle is its own nearest neighbour, but among particles of equal z another one may come first.
    own = near == np.arange(len(z))[:, None]
    own[~own.any(1), -1] = True
    others = near[~own].reshape(len(z), m)
    return angles_deg(rotations[:, None], rotations[others])


def view_scores(
    rotations: Floats,
    class_number: NDArray[Any] | None = None,
    z: Floats | None = None,
    peak_weight: Floats | None = None,
    seed: int = 0,
    *,
    on_classes: Floats | None = None,
) -> ViewScores:
    """All of `ViewScores` that can be said.

    Parameters
    ----------
    rotations
        Shape [n, 3, 3], n >= 2; see `rotations_left`.
    class_number
        Shape [n]; any names.
    z
        Shape [n, d], d >= 1; coordinates that say something, in one scale.
    peak_weight
        Shape [n]; reported probability of the pose.
    on_classes
        Shape [n, 3, 3]; rotations left by the angles that lay particles on the average of their class [default: the same].
    """
    found: dict[str, Any] = {"n": len(rotations)}
    wrong = None
    if class_number is not None:
        k = len(np.unique(class_number))
        laid = rotations if on_classes is None else on_classes
        own, best = to_class_mean_deg(laid, class_number), best_to_class_mean_deg(rotations[:, 2], k, seed)
        wrong = own > OFF_DEG
        found |= {"k": k, **_spread("view_class", own), **_spread("view_best", best)}
    if z is not None:
        near = neighbours_deg(rotations, z)
        wrong = (near > OFF_DEG).mean(1) > 0.5
        found |= {"view_neighbour_median_deg": float(np.median(near[:, 0])), "view_neighbours_off": float(wrong.mean())}
    if peak_weight is not None:
        sure = peak_weight > SURE
        found["view_sure"] = float(sure.mean())
        if wrong is not None and sure.any():
            found["view_sure_wrong"] = float(wrong[sure].mean())
    return ViewScores(**found)


def _spread(name: str, off_deg: Floats) -> dict[str, float]:
    return {f"{name}_median_deg": float(np.median(off_deg)), f"{name}_within_30": float(np.mean(off_deg <= OFF_DEG))}


def _members(class_number: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Rows of each class."""
    _, number = np.unique(class_number, return_inverse=True)
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
