"""What a search of poses gives: poses, candidates, and the posterior round a pose."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Poses:
    """theta [...] in radians and shift [..., 2] in pixels, as tensors."""

    theta_rad: Tensor
    shift_px: Tensor

    def __getitem__(self, rows: Any) -> "Poses":
        return Poses(self.theta_rad[rows], self.shift_px[rows])


@dataclass(frozen=True)
class LocalPosterior:
    """The posterior over poses in a neighbourhood, given one reference per particle or several with weights."""

    log_evidence: Tensor
    """log of the likelihood ratio against noise alone, averaged over the prior of the neighbourhood's poses; [n]."""
    mean: Poses
    """[n]"""
    shift_square: Tensor
    """Posterior mean of the shift's length, squared; [n]."""
    cross: Tensor
    """Posterior mean of the inner product of image and reference; [n]."""
    norm: Tensor
    """Of the reference under the image's information: as large as ``cross`` where the reference is as strong as the particle; [n]."""

    def of_unit_amplitude(self, scale: Tensor) -> Tensor:
        """``cross`` and ``norm`` as they would be for amplitudes of 1, when they were found with ``scale`` [n]; [n, 2]."""
        return torch.stack([self.cross / scale, self.norm / scale**2], 1)

    def chosen(self, ours: Tensor, other: "LocalPosterior") -> "LocalPosterior":
        """For each particle this neighbourhood where ``ours`` [n] is true, the other one elsewhere."""

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(ours if a.dim() == 1 else ours[:, None], a, b)

        mean = Poses(pick(self.mean.theta_rad, other.mean.theta_rad), pick(self.mean.shift_px, other.mean.shift_px))
        rest = [pick(getattr(self, name), getattr(other, name)) for name in ("shift_square", "cross", "norm")]
        return LocalPosterior(pick(self.log_evidence, other.log_evidence), mean, *rest)


@dataclass(frozen=True)
class Candidates:
    """Poses that a global search found worth a closer look, best first.

    ``poses`` [n, c], the number of the ``template`` [n, c] that each was found with, and ``score`` [n, c], the log posterior up to a
    constant of the particle.
    """

    poses: Poses
    template: Tensor
    score: Tensor

    def __getitem__(self, rows: Any) -> "Candidates":
        return Candidates(self.poses[rows], self.template[rows], self.score[rows])


@dataclass(frozen=True)
class JointPosterior:
    """The posterior over poses in a neighbourhood, for each of K references per particle."""

    log_evidence: Tensor
    """As in `LocalPosterior`, per reference; [n, K]."""
    mean: Poses
    """[n, K]"""
    theta_var: Tensor
    """rad^2; [n, K]"""
    shift_var: Tensor
    """px^2; [n, K, 2]"""
