"""Places of points of which only the distances are known."""

import numpy as np
from numpy.typing import NDArray


def classical_scaling(
    apart: NDArray[np.float64], dimensions: int, weight: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of A points whose distances are as close to those given as places on a few axes allow (Torgerson, Psychometrika 17, 401 (1952)).

    Parameters
    ----------
    apart
        Distances [A, A].
    dimensions
        Axes; those that there is nothing for are 0.
    weight
        Of the points in the mean, which is the origin; [A] [default: all alike].

    Returns
    -------
    Places [A, dimensions], on the longest axis first, and the strength of all axes, the sum of squares along them, in the same order [A].

    Examples
    --------
    >>> places, strength = classical_scaling(np.array([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]]), 2)
    >>> np.abs(np.diff(places[:, 0])).round(6).tolist(), (strength.round(6) > 0).tolist()
    ([1.0, 2.0], [True, False, False])
    """
    share = np.full(len(apart), 1 / len(apart)) if weight is None else weight / weight.sum()
    centre = np.eye(len(apart)) - share
    inner = -0.5 * centre @ apart**2 @ centre.T
    strength, axes = np.linalg.eigh((inner + inner.T) / 2)
    order = np.argsort(-strength)
    places = np.zeros((len(apart), dimensions))
    kept = order[:dimensions]
    places[:, : len(kept)] = axes[:, kept] * np.sqrt(strength[kept].clip(0))
    return places, strength[order]
