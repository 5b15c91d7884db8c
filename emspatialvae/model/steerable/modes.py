"""Modes of a posterior over poses: which of them are one and the same, what they say together, how sure the best one is."""

import torch
from torch import Tensor

from emspatialvae.imaging import geometry
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.interface import Estimate
from emspatialvae.model.steerable.poses import Poses

IMPOSSIBLE = -1e6
"""Log evidence of a mode that is none."""
SAME_MODE_RAD, SAME_MODE_PX = 0.35, 2.0
"""Poses closer than that belong to one mode."""
AGREED = 0.25
"""Length of the mean of modes as directions, 0 to 1, above which their mean angle means something."""


def without_doubles(evidence: Tensor, poses: Poses) -> Tensor:
    """Log evidence [n, k] of modes, none for those that ended where a better one lies."""
    theta, shift = poses.theta_rad, poses.shift_px
    near = geometry.wrapped(theta[:, :, None] - theta[:, None]).abs() < SAME_MODE_RAD
    near &= (shift[:, :, None] - shift[:, None]).norm(dim=-1) < SAME_MODE_PX
    index = torch.arange(evidence.shape[1], device=evidence.device)
    mine, other = evidence[:, :, None], evidence[:, None]
    better = (other > mine) | ((other == mine) & (index < index[:, None]))
    return evidence.masked_fill((near & better).any(2), IMPOSSIBLE)


def mixture(poses: Poses, weight: Tensor) -> Poses:
    """Mean of poses [n, K] with weights [n, K]; theta on the circle."""
    sin, cos = ((weight * f(poses.theta_rad)).sum(1) for f in (torch.sin, torch.cos))
    return Poses(torch.atan2(sin, cos), (weight[..., None] * poses.shift_px).sum(1))


def best_of(first: Estimate, second: Estimate | None, close: Tensor, rough: Tensor) -> Estimate:
    """Posterior means over the modes; the best one's share of the evidence of all is the peak weight.

    The s.d. of theta and shift are those within the best mode: the peak weight tells of the others. Where two modes are about as
    likely and far apart in angle, a mean would be a pose that the particle certainly does not have; the best mode's is kept.

    Parameters
    ----------
    first, second
        Modes looked at closely: of all n particles, and of those with a rival (rows ``close``).
    rough
        Log evidence of all modes at the z that the encoder said, best first; [n, modes].
    """
    # A rival by its rough evidence counts for as much more as the best gained from the closer look.
    evidence = rough + (first.log_likelihood - rough[:, 0])[:, None]
    chosen = first
    if second is not None:
        evidence[close, 1] = second.log_likelihood
        weight = torch.softmax(evidence[close, :2], 1)
        mean, sd = mean_of_two(first.mean[close], first.sd[close], second.mean, second.sd, weight)
        chosen = Estimate(first.mean.put(close, mean), first.sd.put(close, sd), first.log_likelihood)
    share = torch.softmax(evidence, 1).max(1).values
    return Estimate(chosen.mean, chosen.sd, torch.logsumexp(evidence, 1), share, misfit=first.misfit)


def mean_of_two(
    a: LatentAndPose, a_sd: LatentAndPose, b: LatentAndPose, b_sd: LatentAndPose, weight: Tensor
) -> tuple[LatentAndPose, LatentAndPose]:
    """Mean and s.d. of two modes with weights [n, 2]; see `best_of`."""
    wa, wb = weight[:, :1], weight[:, 1:]
    z = wa * a.z + wb * b.z
    z_var = wa * (a_sd.z**2 + (a.z - z) ** 2) + wb * (b_sd.z**2 + (b.z - z) ** 2)
    ahead = weight[:, 0] >= weight[:, 1]
    theta, shift, theta_sd, shift_sd = (
        torch.where(ahead if x.dim() == 1 else ahead[:, None], x, y)
        for x, y in (
            (a.theta_rad, b.theta_rad),
            (a.shift_px, b.shift_px),
            (a_sd.theta_rad, b_sd.theta_rad),
            (a_sd.shift_px, b_sd.shift_px),
        )
    )
    sin, cos = (wa[:, 0] * f(a.theta_rad) + wb[:, 0] * f(b.theta_rad) for f in (torch.sin, torch.cos))
    agreed = torch.hypot(sin, cos) > AGREED
    theta = torch.where(agreed, torch.atan2(sin, cos), theta)
    shift = torch.where(agreed[:, None], wa * a.shift_px + wb * b.shift_px, shift)
    return LatentAndPose(z, theta, shift), LatentAndPose(z_var.sqrt(), theta_sd, shift_sd)
