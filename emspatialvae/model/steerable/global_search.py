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
from emspatialvae.model.steerable.shifted_coefficients import ShiftedCoefficients

ANGLES_EVERYWHERE, ORDERS_EVERYWHERE = 56, 16
"""Angles, and the highest angular order that is looked at: a step is less than a third of its period."""
COMPONENTS_EVERYWHERE, COARSE_POWER = 128, 0.98
"""Of the basis: the strongest ones in the templates decide where to look closely; of their power, what is enough."""
COARSE_STEP_PX = 2.0
"""Spacing of the triangular lattice of shifts: none is farther than 1.2 px from one of them."""
CELLS, GPU_CELLS = 1_000_000, 200_000_000
"""Hypotheses worked on at once: as many as stay in a CPU's cache, or keep a GPU busy."""
COEFFICIENTS, GPU_COEFFICIENTS = 4_000_000, 200_000_000
"""Of images at all shifts, as many as are calculated at once."""
FEWEST_IMAGES = 32
"""Images that are looked at together at least: a maximum over shifts of fewer images side by side takes several times as long."""
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
    coefficients
        Of images, at O shifts: the offsets.
    log_prior
        The log of the offsets' prior up to a constant; [O].
    angles
        In radians; [G].
    turns
        The templates at these angles.
    """

    templates: Tensor
    whole: Tensor
    order: Tensor
    coefficients: ShiftedCoefficients
    log_prior: Tensor
    angles: Tensor
    turns: "Turns"

    def __len__(self) -> int:
        return len(self.templates) * len(self.offsets) * len(self.angles)

    @property
    def offsets(self) -> Tensor:
        """Shifts in pixels; [O, 2]."""
        return self.coefficients.shifts


class GlobalSearch:
    """Compares observations with templates over the whole prior of poses; see `PoseSearch`, which owns one."""

    def __init__(
        self, basis: SteerableBasis, plane: FourierPlane, metric: RingMetric, *, rotate: bool, translate: bool
    ) -> None:
        self.basis, self.plane, self.metric, self.rotate, self.translate = basis, plane, metric, rotate, translate
        self._last: tuple[object, ShiftedCoefficients] | None = None

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
        of_image = len(hypotheses.offsets) * len(hypotheses.coefficients)
        size = max(FEWEST_IMAGES, _limit(templates, COEFFICIENTS, GPU_COEFFICIENTS) // of_image)
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
            offsets = lattice(radius_px, COARSE_STEP_PX) if self.translate else torch.zeros(1, 2)
            coefficients = ShiftedCoefficients(basis, self.plane, offsets.to(templates), both, COARSE_POWER)
            last = self._last = (key, coefficients)
        offsets = last[1].shifts
        seen = torch.zeros_like(templates)
        seen[:, both] = templates[:, both]
        angles = 2 * math.pi * torch.arange(ANGLES_EVERYWHERE, device=templates.device) / ANGLES_EVERYWHERE
        angles = angles if self.rotate else angles[:1]
        order = basis.order[chosen]
        return Hypotheses(
            templates=templates[:, both],
            whole=seen,
            order=order,
            coefficients=last[1],
            log_prior=log_shift_prior(offsets) if self.translate else offsets.new_zeros(1),
            angles=angles,
            turns=Turns(templates[:, both], order, angles),
        )

    def _best_of(
        self, hypotheses: Hypotheses, some: Observation, modes: int, others: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angles [n, c], shifts [n, c, 2], templates [n, c] and scores [n, c] of the candidates of a few images."""
        n, angles = len(some), hypotheses.angles
        images = hypotheses.coefficients(some.plane)
        of_move = _over_shifts(hypotheses, images)
        of_move -= half_norm(hypotheses.whole.expand(n, -1, -1), some, self.metric).T[..., None]
        template, g = _picked(of_move, angles, modes, others)
        rows = torch.arange(n, device=images.device)[:, None]
        score = of_move[template, rows, g]
        if others:
            order = score.argsort(1, descending=True)
            template, g, score = template.gather(1, order), g.gather(1, order), score.gather(1, order)
        turned_templates = turned(hypotheses.templates, hypotheses.order, template, angles[g])
        fit = turned_templates @ images.transpose(1, 2)
        return angles[g], hypotheses.offsets[(fit + hypotheses.log_prior).argmax(-1)], template, score


def _over_shifts(hypotheses: Hypotheses, images: Tensor) -> Tensor:
    """Of images, as coefficients at each offset [n, O, 2 C], the best log posterior over all shifts, less the template's norm; [J, n, G].

    Few hypotheses at a time, so that they stay in the cache between the product that makes them and the maximum that is taken of them.
    """
    n, moves, _ = images.shape
    count, angles = len(hypotheses.templates), len(hypotheses.angles)
    best = images.new_empty(count, n, angles)
    cells = _limit(images, CELLS, GPU_CELLS)
    some = max(FEWEST_IMAGES, cells // len(hypotheses))
    for first in range(0, n, some):
        few = images[first : first + some]
        by_move = few.permute(2, 1, 0).reshape(few.shape[2], -1)
        size = max(1, cells // (angles * by_move.shape[1]))
        for start in range(0, count, size):
            part = slice(start, start + size)
            fit = hypotheses.turns.fits(by_move, part).view(angles, -1, moves, len(few))
            fit += hypotheses.log_prior[:, None]
            best[part, first : first + some] = fit.amax(2).permute(1, 2, 0)
    return best


def _limit(near: Tensor, cpu: int, gpu: int) -> int:
    """The one for where a tensor lies."""
    return cpu if near.device.type == "cpu" else gpu


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


class Turns:
    """Templates at many angles, to be compared with images.

    Parameters
    ----------
    templates
        Coefficients [J, 2 C]: for each of the orders in ``order`` [C] the real parts of its components, then their imaginary parts.
    angles
        In radians; [G].
    """

    def __init__(self, templates: Tensor, order: Tensor, angles: Tensor) -> None:
        orders, counts = torch.unique_consecutive(order, return_counts=True)
        self._blocks = []
        for block in templates.split((2 * counts).tolist(), 1):
            real, imaginary = block.chunk(2, 1)
            self._blocks.append(torch.stack([block, torch.cat([imaginary, -real], 1)]))
        turns = orders * angles[:, None]
        self._waves = torch.stack([torch.cos(turns), torch.sin(turns)], 2).flatten(1)

    def fits(self, images: Tensor, part: slice = slice(None)) -> Tensor:
        """``<image, turned template>`` of all pairs of images [2 C, n] and the J templates of a part; [G, J, n]."""
        blocks = [block[:, part].flatten(0, 1) for block in self._blocks]
        products = images.new_empty(len(blocks), len(blocks[0]), images.shape[1])
        rows = images.split([block.shape[1] for block in blocks])
        for block, seen, product in zip(blocks, rows, products, strict=True):
            torch.matmul(block, seen, out=product)
        return (self._waves @ products.view(2 * len(blocks), -1)).view(len(self._waves), -1, images.shape[1])


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
