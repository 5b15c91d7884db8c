"""Particles put into classes by what they look like: the decoded images of one class agree, whatever their z.

Distances are those of whitened images, so that half a squared distance is the log-likelihood (in nats) that a typical particle loses when
the one image is taken for the other.

Where the run has a common frame (a hinge, say) images are compared as they lie in it. More groups than wanted are made first, by
k-means, and the two that cost least are merged until the number is right (Ward): k-means alone often leaves two centres in one
cloud and one in two.

Views of a 3-D object have no common frame: see `emspatialvae.analysis.classes.view_classes`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.analysis.classes.view_classes import ViewPatches, small_groups
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.results.latents import Latents

ANGLES = 72
FITTED = 20_000
"""Particles that classes are fitted to; all others are put into them afterwards."""
SURPLUS, SMALLEST_GROUP = 3, 20
"""Times as many groups as classes are made at first, of at least so many particles on average."""
ROUNDS, LAST_ROUNDS = 12, 10
"""Of k-means before and after groups are merged."""
DISTINCT_NATS, DISTINCT_SHARE = 3.0, 0.35
"""Classes are told apart (``--k auto``) where half their squared distance is more than that, in nats and as a share of what a class explains."""
MOST_AUTO = 100
MOST_AUTO_GROUPS = 240
"""Small groups among which distinct views are counted, at most."""
BLOCK = 2048
SOLID = 0.3
"""Share of an average's highest density above which its pixels count for the centre of mass."""


@dataclass
class _Groups:
    """k groups of images: ``centre`` [k, 2 R] and ``size`` [k]."""

    centre: Tensor
    size: Tensor


@torch.no_grad()
def classified_by_image(
    model: SteerableVAE,
    latents: Latents,
    k: int | None,
    observe: Callable[[NDArray[np.int64]], Observation],
    seed: int = 0,
) -> Latents:
    """The same results with a class, its probability, and (without a common frame) the pose on the class's average.

    Classes are numbered from 1 by the number of their particles, the largest first. The same seed gives the same classes.

    Parameters
    ----------
    k
        Number of classes; None: as many as are distinct.
    observe
        The images of some particles as the model sees them; called only where there is no common frame.

    Raises
    ------
    EmsvaeError
        Fewer particles than classes, or less than one class.
    """
    used = np.flatnonzero(latents.used)
    if k is not None and not 1 <= k <= len(used):
        raise EmsvaeError(f"--k {k}: expected a number of classes from 1 to the {len(used):,} particles that were used")
    comparison = _Comparison(model, turn=not (model.gauge.fitted or model.search.fixed) and model.search.rotate)
    some = np.random.default_rng(seed).permutation(used)[:FITTED]
    if comparison.turn:
        k = k or _distinct_views(comparison, latents, some, seed)
        patches = ViewPatches.of_particles(model, observe, latents, some, k, seed)
        centre = patches.centre
        number, turn = patches.assigned(latents.z[used])
        probability = comparison.probability(latents, used, centre, number)
    else:
        centre = _grouped(comparison, comparison.images(latents, some), k, seed).centre
        number, turn, probability = comparison.assigned(latents, used, centre)
    size = np.bincount(number, minlength=len(centre))
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(1, len(size) + 1)
    of, sure = np.zeros(len(latents), dtype=np.int64), np.zeros(len(latents))
    of[used], sure[used] = rank[number], probability
    pose = None
    if comparison.turn:
        centre_px = _centre_of_mass(model, centre)
        pose = _on_averages(latents, used, turn, centre_px[number])
    return replace(latents, class_number=of, class_posterior=sure, class_pose=pose)


class _Comparison:
    """Decoded images of particles and how far they lie from centres, at the best angle if ``turn``."""

    def __init__(self, model: SteerableVAE, *, turn: bool) -> None:
        self.model, self.turn = model, turn
        angles = 2 * math.pi * torch.arange(ANGLES) / ANGLES
        self.angles = angles if turn else angles[:1]

    def images(self, latents: Latents, rows: NDArray[np.int64]) -> Tensor:
        """Coefficients [n, 2 R] in the common frame, or in that of the decoder where there is none."""
        parts = []
        for part in np.array_split(rows, max(1, len(rows) // BLOCK)):
            z = torch.from_numpy(latents.z[part]).float()
            drawn = self.model.decoder(z)
            parts.append(drawn if self.turn else self.model.upright(drawn, self.model.gauge(z)))
        return torch.cat(parts)

    def nearest(self, images: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For images [n, 2 R] the nearest of k centres [n], the angle [n] by which it is turned in the image, and squared distances [n, k]."""
        fit = self.model.search.fits_at(images, centre, self.angles)  # [G, k, n]
        best, at = fit.max(0)
        square = (images**2).sum(1) + (centre**2).sum(1)[:, None] - 2 * best
        number = square.argmin(0)
        return number, self.angles[at[number, torch.arange(len(images))]], square.T.clamp(min=0)

    def probability(
        self, latents: Latents, rows: NDArray[np.int64], centre: Tensor, number: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Probability of the group that particles were put into [n], at the best angle to each centre."""
        sure = np.zeros(len(rows))
        norm = (centre**2).sum(1)
        for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // BLOCK)):
            fit = self.model.search.fits_at(self.images(latents, rows[part]), centre, self.angles).amax(0)  # [k, n]
            square = norm[:, None] - 2 * fit
            sure[part] = torch.softmax(-0.5 * square, 0)[number[part], torch.arange(len(part))].double().numpy()
        return sure

    def assigned(
        self, latents: Latents, rows: NDArray[np.int64], centre: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Group [n], turn [n] and probability of the group [n] of particles."""
        found = []
        for part in np.array_split(rows, max(1, len(rows) // BLOCK)):
            number, turn, square = self.nearest(self.images(latents, part), centre)
            sure = torch.softmax(-0.5 * square, 1).max(1).values
            found.append((number.numpy(), turn.double().numpy(), sure.double().numpy()))
        number, turn, sure = (np.concatenate(column) for column in zip(*found, strict=True))
        return number, turn, sure


def _distinct_views(comparison: _Comparison, latents: Latents, rows: NDArray[np.int64], seed: int) -> int:
    """How many views are distinct, of those that small groups in z show."""
    count = min(MOST_AUTO_GROUPS, max(1, len(rows) // SMALLEST_GROUP))
    groups = small_groups(comparison.model, latents, rows, count, seed)
    return len(_merged(comparison, _Groups(groups.mean, groups.size), None).centre)


def _grouped(comparison: _Comparison, images: Tensor, k: int | None, seed: int) -> _Groups:
    many = max(1, len(images) // SMALLEST_GROUP)
    wanted = MOST_AUTO if k is None else SURPLUS * k
    groups = _k_means(comparison, images, _seeds(comparison, images, max(k or 1, min(wanted, many)), seed), ROUNDS)
    groups = _merged(comparison, groups, k)
    return _k_means(comparison, images, groups.centre, LAST_ROUNDS)


def _seeds(comparison: _Comparison, images: Tensor, count: int, seed: int) -> Tensor:
    """Images that lie far apart, by chance (k-means++); [count, 2 R]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(images), (1,), generator=generator))]
    square = comparison.nearest(images, images[chosen])[2][:, 0]
    while len(chosen) < count:
        weight = square if float(square.sum()) > 0 else torch.ones_like(square)
        chosen.append(int(torch.multinomial(weight.double(), 1, generator=generator)))
        square = torch.minimum(square, comparison.nearest(images, images[chosen[-1:]])[2][:, 0])
    return images[chosen]


def _k_means(comparison: _Comparison, images: Tensor, centre: Tensor, rounds: int) -> _Groups:
    size = torch.zeros(len(centre))
    for _ in range(rounds):
        sums, size = torch.zeros_like(centre), torch.zeros(len(centre))
        for part in images.split(BLOCK):
            number, turn, _ = comparison.nearest(part, centre)
            sums.index_add_(0, number, comparison.model.basis.rotate(part, -turn))
            size += torch.bincount(number, minlength=len(centre))
        kept = size > 0
        centre, size = sums[kept] / size[kept, None], size[kept]
    return _Groups(centre, size)


def _merged(comparison: _Comparison, groups: _Groups, k: int | None) -> _Groups:
    """Merge the two groups whose union costs least until k are left, or until all are distinct."""
    centre, size = groups.centre, groups.size
    while len(centre) > (k or 1):
        angle, square = _pairs(comparison, centre)
        cost = size[:, None] * size[None] / (size[:, None] + size[None]) * square
        cost.fill_diagonal_(torch.inf)
        if k is None:
            explains = 0.25 * ((centre**2).sum(1)[:, None] + (centre**2).sum(1)[None])
            distinct = 0.5 * square > torch.maximum(torch.tensor(DISTINCT_NATS), DISTINCT_SHARE * explains)
            if bool(distinct.masked_fill(torch.eye(len(centre), dtype=torch.bool), True).all()):
                break
            cost = cost.masked_fill(distinct, torch.inf)
        one, other = divmod(int(cost.argmin()), len(centre))
        turned = comparison.model.basis.rotate(centre[other : other + 1], -angle[one, other][None])[0]
        whole = size[one] + size[other]
        centre[one] = (size[one] * centre[one] + size[other] * turned) / whole
        size[one] = whole
        kept = torch.arange(len(centre)) != other
        centre, size = centre[kept], size[kept]
    return _Groups(centre, size)


def _pairs(comparison: _Comparison, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Of all pairs of centres [k]: the angle by which the first is turned in the second, and squared distances; [k, k] each."""
    fit = comparison.model.search.fits_at(centre, centre, comparison.angles)
    best, at = fit.max(0)
    norm = (centre**2).sum(1)
    return comparison.angles[at], (norm[:, None] + norm[None] - 2 * best).clamp(min=0)


def _centre_of_mass(model: SteerableVAE, centre: Tensor) -> NDArray[np.float64]:
    """Where the density of averages [k, 2 R] lies, in pixels from the box's centre; [k, 2]."""
    images = model.pictures(centre).numpy()
    solid = np.where(images > SOLID * images.max((1, 2), keepdims=True), images, 0)
    x, y = geometry.pixel_grid(images.shape[-1])
    mass = solid.sum((1, 2)).clip(1e-12)
    return np.stack([(solid * x).sum((1, 2)) / mass, (solid * y).sum((1, 2)) / mass], 1)


def _on_averages(
    latents: Latents, used: NDArray[np.int64], turn_rad: NDArray[np.float64], centre_px: NDArray[np.float64]
) -> Pose2D:
    """Poses that align particles on the re-centred average of their class; those of unused particles stay."""
    theta, shift = latents.pose.theta_rad.copy(), latents.pose.shift_px.copy()
    whole = theta[used] + turn_rad
    x, y = geometry.rotate_xy(centre_px[:, 0], centre_px[:, 1], np.cos(whole), np.sin(whole))
    theta[used] = geometry.wrap_rad(whole)
    shift[used] += np.stack([x, y], 1)
    return Pose2D(theta, shift)
