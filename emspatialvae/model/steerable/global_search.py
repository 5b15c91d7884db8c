"""Where nothing is known of a particle: all templates at all angles and all shifts, at low angular resolution."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emspatialvae.imaging import geometry
from emspatialvae.model.steerable.basis import SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.lattice import lattice
from emspatialvae.model.steerable.observation import Observation, half_norm
from emspatialvae.model.steerable.poses import Candidates, Poses
from emspatialvae.model.steerable.ring_metric import RingMetric

ANGLES_EVERYWHERE, ORDERS_EVERYWHERE = 56, 16
"""Angles, and the highest angular order that is looked at: a step is less than a third of its period."""
COMPONENTS_EVERYWHERE, COARSE_POWER = 128, 0.98
"""Of the basis: the strongest ones in the templates decide where to look closely; of their power, what is enough."""
COARSE_STEP_PX = 2.0
"""Spacing of the triangular lattice of shifts: none is farther than 1.2 px from one of them."""
CELLS, GPU_CELLS = 3_000_000, 200_000_000
"""Hypotheses worked on at once: as many as stay in a CPU's cache, or keep a GPU busy."""
SMALLEST_PART = 32
"""Images that are looked at together at least."""
APART_RAD = math.pi / 6
"""Candidates of one template differ by at least this much in angle."""


@dataclass(frozen=True)
class Hypotheses:
    """Templates at low angular resolution, with all angles and shifts.

    Attributes
    ----------
    templates
        Coefficients of the C components chosen, of one order after the other: the real parts, then the imaginary ones; [J, 2 C].
    whole
        The same in the whole basis, with zeros for the components left out; [J, 2 R].
    order
        Of the components; [C].
    frequencies, matrix
        The frequencies of the Fourier plane that are looked at [f], and the matrix [f, O * 2 C] from them to the coefficients at each offset.
    offsets, log_prior
        Shifts in pixels [O, 2], and the log of their prior up to a constant [O].
    angles
        In radians; [G].
    """

    templates: Tensor
    whole: Tensor
    order: Tensor
    frequencies: Tensor
    matrix: Tensor
    offsets: Tensor
    log_prior: Tensor
    angles: Tensor

    def __len__(self) -> int:
        return len(self.templates) * len(self.offsets) * len(self.angles)


class GlobalSearch:
    """Compares observations with templates over the whole prior of poses; see `PoseSearch`, which owns one."""

    def __init__(
        self, basis: SteerableBasis, plane: FourierPlane, metric: RingMetric, *, rotate: bool, translate: bool
    ) -> None:
        self.basis, self.plane, self.metric, self.rotate, self.translate = basis, plane, metric, rotate, translate
        self._last: tuple[object, Tensor, Tensor] | None = None

    def candidates(
        self,
        observation: Observation,
        templates: Tensor,
        radius_px: float,
        log_shift_prior: Callable[[Tensor], Tensor],
        modes: int,
        others: int,
    ) -> Candidates:
        """See `PoseSearch.global_search`."""
        hypotheses = self._hypotheses(templates, radius_px, log_shift_prior)
        size = max(SMALLEST_PART, _cells(templates) // len(hypotheses))
        parts = [
            self._best_of(hypotheses, observation[start : start + size], modes, min(others, len(templates)))
            for start in range(0, len(observation), size)
        ]
        theta, shift, template, score = (torch.cat(column) for column in zip(*parts, strict=True))
        return Candidates(Poses(theta, shift), template, score)

    def _hypotheses(
        self, templates: Tensor, radius_px: float, log_shift_prior: Callable[[Tensor], Tensor]
    ) -> Hypotheses:
        """All that is compared with each image, for templates [J, 2 R]."""
        basis = self.basis
        offsets = lattice(radius_px, COARSE_STEP_PX).to(templates) if self.translate else templates.new_zeros(1, 2)
        strength = (templates**2).mean(0).view(2, -1).sum(0)
        strength = torch.where(basis.order <= ORDERS_EVERYWHERE, strength, -torch.ones_like(strength))
        chosen = strength.topk(min(COMPONENTS_EVERYWHERE, int((basis.order <= ORDERS_EVERYWHERE).sum()))).indices
        chosen = chosen.sort().values  # components lie in the sequence of their orders
        # Real and imaginary parts of one order side by side.
        both = torch.cat(
            [
                torch.cat([chosen[basis.order[chosen] == m], chosen[basis.order[chosen] == m] + basis.size])
                for m in basis.order[chosen].unique()
            ]
        )
        key = (tuple(both.tolist()), radius_px, templates.device, templates.dtype)
        last = self._last  # another thread may replace it
        if last is None or last[0] != key:
            last = self._last = (key, *self._analysis(offsets, both))
        seen = torch.zeros_like(templates)
        seen[:, both] = templates[:, both]
        angles = 2 * math.pi * torch.arange(ANGLES_EVERYWHERE, device=templates.device) / ANGLES_EVERYWHERE
        return Hypotheses(
            templates=templates[:, both],
            whole=seen,
            order=basis.order[chosen],
            frequencies=last[1],
            matrix=last[2],
            offsets=offsets,
            log_prior=log_shift_prior(offsets) if self.translate else offsets.new_zeros(1),
            angles=angles if self.rotate else angles[:1],
        )

    def _analysis(self, offsets: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The frequencies where some coefficients have nearly all of their power, and the matrix from these to them at each offset."""
        matrix = self.plane.analysis(self.basis, offsets.to(self.plane.fx), columns).to(offsets)
        power = (matrix[:, : len(columns)] ** 2).sum(1).view(2, -1).sum(0)
        of_ring = power.new_zeros(self.plane.rings).index_add_(0, self.plane.ring, power)
        enough = int((of_ring.cumsum(0) < COARSE_POWER * of_ring.sum()).sum())
        within = torch.nonzero(self.plane.ring <= enough)[:, 0]
        frequencies = torch.cat([within, within + len(self.plane.ring)])
        return frequencies, matrix[frequencies].contiguous()

    def _best_of(
        self, hypotheses: Hypotheses, some: Observation, modes: int, others: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angles [n, c], shifts [n, c, 2], templates [n, c] and scores [n, c] of the candidates of a few images."""
        n, angles = len(some), hypotheses.angles
        images = (some.plane[:, hypotheses.frequencies] @ hypotheses.matrix).view(n, len(hypotheses.offsets), -1)
        of_move = self._over_shifts(hypotheses, images)
        of_move -= half_norm(hypotheses.whole.expand(n, -1, -1), some, self.metric).T[..., None]
        template, g = _picked(of_move, angles, modes, others)
        rows = torch.arange(n, device=images.device)[:, None]
        score = of_move[template, rows, g]
        if others:
            order = score.argsort(1, descending=True)
            template, g, score = template.gather(1, order), g.gather(1, order), score.gather(1, order)
        turned_templates = turned(hypotheses.templates, hypotheses.order, template, angles[g])
        fit = (images[:, None] * turned_templates[:, :, None]).sum(-1)
        return angles[g], hypotheses.offsets[(fit + hypotheses.log_prior).argmax(-1)], template, score

    @staticmethod
    def _over_shifts(hypotheses: Hypotheses, images: Tensor) -> Tensor:
        """Of images, as coefficients at each offset [n, O, 2 C], the best log posterior over all shifts, less the template's norm; [J, n, G]."""
        n, moves, _ = images.shape
        angles, count = hypotheses.angles, len(hypotheses.templates)
        by_move = images.transpose(0, 1).reshape(moves * n, -1)
        best = images.new_empty(count, n, len(angles))
        size = max(1, count * _cells(images) // (len(hypotheses) * n))
        for start in range(0, count, size):
            part = slice(start, start + size)
            fit = fits_by_order(by_move, hypotheses.templates[part], hypotheses.order, angles)
            fit = fit.view(len(angles), -1, moves, n)
            fit += hypotheses.log_prior[:, None]
            best[part] = fit.amax(2).permute(1, 2, 0)
        return best


def _cells(near: Tensor) -> int:
    """Hypotheses to work on at once where a tensor lies."""
    return CELLS if near.device.type == "cpu" else GPU_CELLS


def _picked(score: Tensor, angles: Tensor, modes: int, others: int) -> tuple[Tensor, Tensor]:
    """Templates [n, c] and numbers of the angles [n, c] of candidates, given the score of each template and angle [J, n, G].

    First the best ``modes`` at angles apart from each other, whatever the template, then ``others`` of templates that are not among them.
    """
    of_angle, best = score.max(0)  # over templates; [n, G]
    rows = torch.arange(len(of_angle), device=score.device)
    picked: list[tuple[Tensor, Tensor]] = []
    for _ in range(modes):
        g = of_angle.argmax(1)
        picked.append((best[rows, g], g))
        apart = geometry.wrapped(angles - angles[g][:, None]).abs()
        of_angle = of_angle.masked_fill(apart < APART_RAD, -1e9)
    if others:
        of_template, g = score.max(2)  # [J, n]
        for template, _ in picked:
            of_template[template, rows] = -1e9
        for template in of_template.topk(others, dim=0).indices:
            picked.append((template, g[template, rows]))
    template, g = (torch.stack(column, 1) for column in zip(*picked, strict=True))
    return template, g


def fits_by_order(images: Tensor, templates: Tensor, order: Tensor, angles: Tensor) -> Tensor:
    """``<image, turned template>`` of all pairs: [n, 2 C] and [J, 2 C] to [G, J, n].

    Columns: for each of the orders in ``order`` [C] the real parts of its components, then their imaginary parts.
    """
    orders, counts = torch.unique_consecutive(order, return_counts=True)
    products = images.new_empty(2, len(orders), len(templates), len(images))
    start = 0
    for k, count in enumerate(counts.tolist()):
        columns = slice(start, start + 2 * count)
        real, imaginary = templates[:, columns].split(count, 1)
        seen = images[:, columns].T
        torch.matmul(templates[:, columns], seen, out=products[0, k])
        torch.matmul(torch.cat([imaginary, -real], 1), seen, out=products[1, k])
        start += 2 * count
    turns = orders * angles[:, None]
    waves = torch.cat([torch.cos(turns), torch.sin(turns)], 1)
    return (waves @ products.view(2 * len(orders), -1)).view(len(angles), len(templates), len(images))


def turned(templates: Tensor, order: Tensor, which: Tensor, angle_rad: Tensor) -> Tensor:
    """Templates [J, 2 C] number ``which`` [n, c] turned by angles [n, c]; columns as in `fits_by_order`, [n, c, 2 C]."""
    orders, counts = torch.unique_consecutive(order, return_counts=True)
    columns, start = [], 0
    for m, count in zip(orders.tolist(), counts.tolist(), strict=True):
        real, imaginary = templates[:, start : start + 2 * count][which].split(count, -1)
        cos, sin = torch.cos(m * angle_rad)[..., None], torch.sin(m * angle_rad)[..., None]
        columns += [real * cos + imaginary * sin, imaginary * cos - real * sin]
        start += 2 * count
    return torch.cat(columns, -1)
