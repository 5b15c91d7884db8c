"""Errors of poses against a known truth, with the freedom of the canonical frame (the gauge) taken out.

Algebra of the gauge. Two poses draw the same image from canonical images that differ by a rigid motion exactly if
``theta' = theta + turn`` and ``shift' = shift + R(theta) offset``. In complex numbers (x + iy) both ``exp(i (theta' -
theta))`` and ``exp(-i theta) (shift' - shift)`` are functions of z alone, so each is one linear regression.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.accuracy.regression import CrossFit, halves
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of n poses; shifts as complex numbers x + iy, in the image frame."""

    one_turn_rad: Floats
    """[n]; error of theta after one best turn for all particles."""
    theta_rad: Floats
    """[n]; after the turn that depends on z."""
    drift_rad: Floats
    """[n]; that turn minus the one for all."""
    one_offset_px: NDArray[np.complex128]
    """[n]; error of the shift after one best offset in the canonical frame."""
    shift_px: NDArray[np.complex128]
    """[n]; after the offset that depends on z."""
    drift_px: NDArray[np.complex128]
    """[n]; that offset, in the canonical frame, minus its mean."""


def pose_errors(z: Floats, pose: Pose2D, true_pose: Pose2D, degree: int, *, symmetry: int = 1) -> PoseErrors:
    """Errors of poses, with the gauge as a polynomial of some degree in z [n, d] taken out.

    For an object with n-fold ``symmetry`` about its origin the true theta is one of n. Then ``exp(i n (theta' -
    theta))`` is the same for all of them, and so is ``exp(-i theta') (shift' - shift)`` with the *estimated* angle.
    """
    split = halves(len(z))
    phasor = np.exp(1j * symmetry * (pose.theta_rad - true_pose.theta_rad))
    gauge = CrossFit.fit(z, phasor, degree, split).values
    one_turn, theta, drift = (
        np.angle(a * np.conj(b)) / symmetry
        for a, b in ((phasor, phasor.mean()), (phasor, gauge), (gauge, phasor.mean()))
    )
    moved = np.asarray((pose.shift_px - true_pose.shift_px) @ np.array([1, 1j]), dtype=np.complex128)
    own = np.exp(-1j * pose.theta_rad)
    # The estimated angle seen in the truth's frame. With symmetry, the gauge has no n-th root that goes along with z
    # without a jump; the estimate's own frame serves as well.
    upright = own * np.exp(1j * np.angle(gauge)) if symmetry == 1 else own
    offset = CrossFit.fit(z, moved * upright, degree, split).values
    return PoseErrors(
        one_turn_rad=one_turn,
        theta_rad=theta,
        drift_rad=drift,
        one_offset_px=moved - (moved * own).mean() / own,
        shift_px=moved - offset / upright,
        drift_px=offset - offset.mean(),
    )
