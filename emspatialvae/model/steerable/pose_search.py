"""The posterior over theta and shift, evaluated on grids and summed: no network guesses a pose.

For a reference b (coefficients of the canonical image) the log-likelihood ratio at all angles is one small matrix product over
angular orders (`SteerableBasis.correlate`); a shift is a phase in the Fourier plane. Three searches share that:

* `PoseSearch.global_search`: many templates x shifts over the whole prior x all angles, at low angular resolution, for particles of
  which nothing is known;
* `PoseSearch.local_search`: one reference each, a few shifts and a window of angles round a known pose, differentiable in the
  reference: the likelihood that training maximises;
* `PoseSearch.joint_search`: many references each (latents drawn from the posterior of z) round a known pose, for posterior means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emspatialvae.imaging import geometry
from emspatialvae.model.steerable.basis import SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.observation import Observation, half_norm
from emspatialvae.model.steerable.ring_metric import RingMetric

ANGLES_EVERYWHERE, ORDERS_EVERYWHERE = 56, 16
"""Angles of the global search, and the highest angular order that it looks at: a step is less than a third of its period."""
COMPONENTS_EVERYWHERE, COARSE_POWER = 128, 0.98
"""Of the basis: the strongest ones in the templates decide where to look closely; of their power, what is enough."""
ANGLES_REGISTERED = 64
"""Angles at which one image is registered on another."""
ANGLES_NEARBY = 32
ANGLES_JOINTLY = 20
COARSE_STEP_PX = 2.0
"""Spacing of the triangular lattice of shifts in the global search: none is farther than 1.2 px from one of them."""
CELLS, GPU_CELLS = 3_000_000, 200_000_000
"""Hypotheses held in memory at once."""
SMALLEST_PART = 32
"""Images that are looked at together at least."""
APART_RAD = math.pi / 6
"""Candidates of one template differ by at least this much in angle."""
HEX_AREA = math.sqrt(3) / 2
"""Of a lattice cell whose points lie a unit apart."""


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


class PoseSearch(nn.Module):
    """Searches poses of observations with references in a steerable basis.

    Parameters
    ----------
    rotate, translate
        Which parts of the pose are unknown; the others are zero.
    max_shift_px
        Poses beyond are not considered.
    fixed
        Poses are known for certain: `local_search` and `joint_search` look at them and at no others, without a prior.

    Buffers: ``shift_sd_px``, s.d. of the shift's prior; ``theta_step_rad`` and ``shift_step_px``, how finely the posterior must be
    looked at, set by `set_steps`.
    """

    shift_sd_px: Tensor
    theta_step_rad: Tensor
    shift_step_px: Tensor

    def __init__(
        self,
        basis: SteerableBasis,
        plane: FourierPlane,
        *,
        rotate: bool,
        translate: bool,
        shift_sd_px: float,
        max_shift_px: float,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        # Owned by the model; kept out of this module's own state.
        self._shared = (basis, plane, RingMetric(basis, plane))
        self.rotate, self.translate, self.max_shift_px, self.fixed = rotate, translate, max_shift_px, fixed
        self.register_buffer("shift_sd_px", torch.tensor(float(shift_sd_px)))
        self.register_buffer("theta_step_rad", torch.tensor(2 * math.pi / ANGLES_NEARBY))
        self.register_buffer("shift_step_px", torch.tensor(1.0))
        self._matrices: dict[tuple[float, int], Tensor] = {}
        self._coarse_matrix: tuple[Any, Tensor, Tensor] | None = None

    @property
    def basis(self) -> SteerableBasis:
        """Of the references."""
        return self._shared[0]

    @property
    def plane(self) -> FourierPlane:
        """Of the observations."""
        return self._shared[1]

    @property
    def metric(self) -> RingMetric:
        """Of references."""
        return self._shared[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PoseSearch":
        """To another device or precision, with what is not this module's own state."""
        super()._apply(fn, recurse)
        self.metric._apply(fn, recurse)
        self._matrices.clear()
        self._coarse_matrix = None
        return self

    # ------------------------------------------------------------------------------------------------ coefficients

    def coefficients(self, plane: Tensor, step_px: float = 0.0, reach: int = 0) -> tuple[Tensor, Tensor]:
        """Coefficients [n, S, 2 R] of observations moved back by each point of a hexagon, and the points [S, 2] in pixels."""
        shifts = hexagon(reach) * step_px if reach else torch.zeros(1, 2)
        key = (step_px, reach)
        matrix = self._matrices.get(key)  # held: another thread may clear the store
        if matrix is None:
            if len(self._matrices) > 12:
                self._matrices.clear()
            matrix = self._matrices[key] = self.plane.analysis(self.basis, shifts.to(self.plane.fx)).to(plane)
        found = plane @ matrix
        return found.unflatten(-1, (len(shifts), -1)), shifts.to(plane)

    def upright(self, observation: Observation, poses: Poses) -> Tensor:
        """Coefficients of the canonicalised images, Wiener-filtered: what an encoder of z may look at; [n, 2 R]."""
        plane = observation.plane
        if observation.wiener is not None:
            plane = plane * self.plane.by_ring(observation.wiener)
        return self.canonical(plane, poses)

    def canonical(self, plane: Tensor, poses: Poses) -> Tensor:
        """Coefficients [n, 2 R] of images in the Fourier plane [n, 2 F] with their poses taken out."""
        moved = self.plane.move_back(plane, poses.shift_px) if self.translate else plane
        return self.basis.rotate(self.coefficients(moved)[0][:, 0], -poses.theta_rad)

    def around(
        self, observation: Observation, poses: Poses, step_px: float, reach: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients [n, S, 2 R] turned back by theta, at shifts [n, S, 2] round the pose; with the log prior [n, S]."""
        if not self.translate:
            here = self.basis.rotate(self.coefficients(observation.plane)[0], -poses.theta_rad[:, None])
            return here, poses.shift_px[:, None], torch.zeros_like(poses.theta_rad)[:, None]
        if self.fixed:
            upright = self.canonical(observation.plane, poses)[:, None]
            return upright, poses.shift_px[:, None], torch.zeros_like(poses.theta_rad)[:, None]
        moved = self.plane.move_back(observation.plane, poses.shift_px)
        found, steps = self.coefficients(moved, step_px, reach)
        shifts = poses.shift_px[:, None] + steps
        cell = math.log(HEX_AREA * step_px**2) if reach else 0.0
        log_prior = self.log_shift_prior(shifts) + cell
        # Beyond the largest shift nothing is considered; the pose itself is, wherever it lies.
        beyond = shifts.norm(dim=-1) > self.max_shift_px
        beyond[:, 0] = False
        log_prior = log_prior.masked_fill(beyond, -1e4)
        return self.basis.rotate(found, -poses.theta_rad[:, None]), shifts, log_prior

    def log_shift_prior(self, shifts_px: Tensor) -> Tensor:
        """Log density of the Gaussian prior, per square pixel; [...]."""
        variance = self.shift_sd_px**2
        return -0.5 * (shifts_px**2).sum(-1) / variance - torch.log(2 * math.pi * variance)

    def window(self, step_rad: float, count: int = ANGLES_NEARBY) -> tuple[Tensor, float]:
        """Angles [G] round a known one, and the log prior of each."""
        device = self.shift_sd_px.device
        if self.fixed or not self.rotate:
            return torch.zeros(1, device=device), 0.0
        step = min(step_rad, 2 * math.pi / count)
        offsets = (torch.arange(count, device=device) - count // 2) * step
        return offsets, math.log(step / (2 * math.pi))

    # ---------------------------------------------------------------------------------------------------- searches

    def local_search(
        self,
        observation: Observation,
        poses: Poses,
        references: Tensor,
        log_weight: Tensor | None = None,
        *,
        zoom: float = 1.0,
        reach: int = 1,
        reach_rad: float = math.pi,
    ) -> LocalPosterior:
        """Sum over a window of angles, a hexagon of shifts, and K references each, with log weights [n, K] [default: of 1].

        Differentiable in ``references`` [n, K, 2 R] (or [n, 2 R] for one) and the weights. ``zoom`` multiplies the steps; the window
        ends at ``reach_rad`` to either side, however far that would go.
        """
        many = references if references.dim() == 3 else references[:, None]
        with torch.no_grad():
            step_px = self._quantised(zoom * float(self.shift_step_px))
            found, shifts, log_prior = self.around(observation, poses, step_px, reach)
        angles, log_angle = self.window(min(zoom * float(self.theta_step_rad), 2 * reach_rad / ANGLES_NEARBY))
        cross = self.basis.correlate(found[:, None], many[:, :, None], angles)  # [n, K, S, G]
        half = half_norm(many, observation, self.metric)
        of_reference = -half if log_weight is None else log_weight - half
        fit = cross + log_prior[:, None, :, None] + of_reference[..., None, None]
        log_evidence = torch.logsumexp(fit.flatten(1), 1) + log_angle
        with torch.no_grad():
            weight = torch.softmax(fit.flatten(1), 1).view_as(fit)
            of_shift = weight.sum((1, 3))
            mean = self._mean(weight.sum((1, 2)), of_shift, angles, shifts, poses)
            agreement = (weight * cross).flatten(1).sum(1)
            norm = 2 * (weight.sum((2, 3)) * half).sum(1)
            square = (of_shift * (shifts**2).sum(-1)).sum(1)
        return LocalPosterior(log_evidence, mean, square, agreement, norm)

    @torch.no_grad()
    def joint_search(
        self, observation: Observation, poses: Poses, references: Tensor, *, zoom: float = 1.5, reach: int = 2
    ) -> JointPosterior:
        """Sum over a window of angles and a hexagon of shifts, for K references [n, K, 2 R] each."""
        step_px = self._quantised(zoom * float(self.shift_step_px))
        found, shifts, log_prior = self.around(observation, poses, step_px, reach)
        angles, log_angle = self.window(zoom * float(self.theta_step_rad), ANGLES_JOINTLY)
        fit = self._fits(found, references, angles)  # [n, K, S, G]
        fit += log_prior[:, None, :, None]
        flat = fit.flatten(2)
        log_evidence = torch.logsumexp(flat, 2) + log_angle - half_norm(references, observation, self.metric)
        weight = torch.softmax(flat, 2).view_as(fit)
        of_angle, of_shift = weight.sum(2), weight.sum(3)
        turn, move = of_angle @ angles, of_shift @ shifts
        theta_var = of_angle @ angles**2 - turn**2
        shift_var = of_shift @ shifts**2 - move**2
        theta = geometry.wrapped(poses.theta_rad[:, None] + turn)
        move = move if self.translate else poses.shift_px[:, None].expand_as(move)
        return JointPosterior(log_evidence, Poses(theta, move), theta_var.clamp(min=0), shift_var.clamp(min=0))

    @torch.no_grad()
    def global_search(
        self, observation: Observation, templates: Tensor, radius_px: float, modes: int = 1, others: int = 0
    ) -> Candidates:
        """Candidate poses over J templates [J, 2 R], all angles, and all shifts within a radius.

        The first ``modes`` are the best at angles apart from each other, whatever the template; ``others`` more are the best of
        templates that are not among them yet.
        """
        coarse = self._coarse(templates, radius_px)
        parts = []
        size = max(SMALLEST_PART, self._cells // coarse.hypotheses)
        for start in range(0, len(observation), size):
            parts.append(self._best_of(coarse, observation[start : start + size], modes, min(others, len(templates))))
        theta, shift, template, score = (torch.cat(column) for column in zip(*parts, strict=True))
        return Candidates(Poses(theta, shift), template, score)

    @property
    def _cells(self) -> int:
        """Hypotheses that a global search works on at once: as many as stay in a CPU's cache, or keep a GPU busy."""
        return CELLS if self.shift_sd_px.device.type == "cpu" else GPU_CELLS

    def _coarse(self, templates: Tensor, radius_px: float) -> "_Coarse":
        """What a global search needs of templates [J, 2 R], worked out once."""
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
        key = (tuple(both.tolist()), radius_px)
        held = self._coarse_matrix  # another thread may replace it
        if held is None or held[0] != key:
            held = (key, *self._coarse_analysis(offsets, both))
            self._coarse_matrix = held
        seen = torch.zeros_like(templates)
        seen[:, both] = templates[:, both]
        angles = 2 * math.pi * torch.arange(ANGLES_EVERYWHERE, device=templates.device) / ANGLES_EVERYWHERE
        return _Coarse(
            templates=templates[:, both],
            whole=seen,
            order=basis.order[chosen],
            frequencies=held[1],
            matrix=held[2],
            offsets=offsets,
            log_prior=self.log_shift_prior(offsets) if self.translate else offsets.new_zeros(1),
            angles=angles if self.rotate else angles[:1],
        )

    def _coarse_analysis(self, offsets: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The frequencies where some coefficients have nearly all of their power, and the matrix from these to them at each offset."""
        matrix = self.plane.analysis(self.basis, offsets.to(self.plane.fx), columns).to(offsets)
        power = (matrix[:, : len(columns)] ** 2).sum(1).view(2, -1).sum(0)
        of_ring = power.new_zeros(self.plane.rings).index_add_(0, self.plane.ring, power)
        enough = int((of_ring.cumsum(0) < COARSE_POWER * of_ring.sum()).sum())
        within = torch.nonzero(self.plane.ring <= enough)[:, 0]
        frequencies = torch.cat([within, within + len(self.plane.ring)])
        return frequencies, matrix[frequencies].contiguous()

    def _best_of(
        self, coarse: "_Coarse", some: Observation, modes: int, others: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angles [n, c], shifts [n, c, 2], templates [n, c] and scores [n, c] of the candidates of a few images."""
        n, count, moves = len(some), len(coarse.templates), len(coarse.offsets)
        images = (some.plane[:, coarse.frequencies] @ coarse.matrix).view(n, moves, -1)
        by_move = images.transpose(0, 1).reshape(moves * n, -1)
        of_move = images.new_empty(count, n, len(coarse.angles))
        size = max(1, count * self._cells // (coarse.hypotheses * n))
        for start in range(0, count, size):
            some_templates = slice(start, start + size)
            fit = _fits_by_order(by_move, coarse.templates[some_templates], coarse.order, coarse.angles)
            fit = fit.view(len(coarse.angles), -1, moves, n)
            fit += coarse.log_prior[:, None]
            of_move[some_templates] = fit.amax(2).permute(1, 2, 0)
        of_move -= half_norm(coarse.whole.expand(n, -1, -1), some, self.metric).T[..., None]
        of_angle, best = of_move.max(0)  # over templates; [n, G]
        rows = torch.arange(n, device=images.device)
        picked: list[tuple[Tensor, Tensor]] = []
        for _ in range(modes):
            g = of_angle.argmax(1)
            picked.append((best[rows, g], g))
            apart = geometry.wrapped(coarse.angles - coarse.angles[g][:, None]).abs()
            of_angle = of_angle.masked_fill(apart < APART_RAD, -1e9)
        if others:
            of_template, g = of_move.max(2)  # [J, n]
            for template, _ in picked:
                of_template[template, rows] = -1e9
            for template in of_template.topk(others, dim=0).indices:
                picked.append((template, g[template, rows]))
        template, g = (torch.stack(column, 1) for column in zip(*picked, strict=True))
        at = (template, rows[:, None], g)
        order = of_move[at].argsort(1, descending=True)
        order = order if others else torch.arange(modes, device=images.device).expand(n, -1)
        template, g = template.gather(1, order), g.gather(1, order)
        at = (template, rows[:, None], g)
        turned = _turned(coarse.templates, coarse.order, template, coarse.angles[g])
        move = ((images[:, None] * turned[:, :, None]).sum(-1) + coarse.log_prior).argmax(-1)
        return coarse.angles[g], coarse.offsets[move], template, of_move[at]

    def fits_at(self, images: Tensor, templates: Tensor, angles_rad: Tensor) -> Tensor:
        """``<image, turned template>`` of all pairs of coefficients [n, 2 R] and [J, 2 R] at angles [G]; [G, J, n]."""
        order, size = self.basis.order, self.basis.size
        columns = torch.cat(
            [torch.cat([rows, rows + size]) for rows in (torch.nonzero(order == m)[:, 0] for m in order.unique())]
        )
        return _fits_by_order(images[:, columns], templates[:, columns], order, angles_rad.to(images))

    # ----------------------------------------------------------------------------------------------------- details

    def _mean(self, of_angle: Tensor, of_shift: Tensor, angles: Tensor, shifts: Tensor, poses: Poses) -> Poses:
        """Posterior means from weights of the window's angles [n, G] and of the shifts [n, S]."""
        if self.fixed:
            return poses
        theta = geometry.wrapped(poses.theta_rad + of_angle @ angles)
        shift = (of_shift[..., None] * shifts).sum(1)
        return Poses(theta, shift if self.translate else poses.shift_px)

    def _fits(self, images: Tensor, references: Tensor, angles: Tensor) -> Tensor:
        """``<image, turned reference>`` of all pairs: [n, S, 2 R] and [n, K, 2 R] to [n, K, S, G]."""
        count = self.basis.highest_order + 1
        n = max(len(images), len(references))
        shape = (count, n, references.shape[1], images.shape[1])
        re, im = images.new_zeros(shape), images.new_zeros(shape)
        for m, real, imaginary in self._orders:
            ir, ii = images[..., real], images[..., imaginary]
            both = torch.cat([references[..., real], references[..., imaginary]], -1)
            torch.matmul(both, torch.cat([ir, ii], -1).transpose(-1, -2), out=re[m])
            torch.matmul(both, torch.cat([ii, -ir], -1).transpose(-1, -2), out=im[m])
        # Orders stay the outermost axis: the product then needs no copy of the large arrays.
        cos, sin = self.basis.waves(angles)
        fit = re.view(count, -1).T @ cos
        return fit.addmm_(im.view(count, -1).T, sin, alpha=-1).view(*shape[1:], len(angles))

    @property
    def _orders(self) -> list[tuple[int, slice, slice]]:
        """Each order m with the places of its components' real and imaginary parts, which lie side by side."""
        size, start, found = self.basis.size, 0, []
        for m, count in zip(*torch.unique_consecutive(self.basis.order, return_counts=True), strict=True):
            stop = start + int(count)
            found.append((int(m), slice(start, stop), slice(size + start, size + stop)))
            start = stop
        return found

    @staticmethod
    def _quantised(step_px: float) -> float:
        """The nearest power of sqrt(2), so that few matrices are needed."""
        return 2.0 ** (round(2 * math.log2(step_px)) / 2)

    # ------------------------------------------------------------------------------------------------------- steps

    @torch.no_grad()
    def information(self, references: Tensor, factors: Tensor | None) -> Tensor:
        """Fisher information [n, 3, 3] of (theta, shift_x, shift_y) in the canonical frame, given references [n, 2 R].

        ``factors``: mean ring information [rings], None for 1.
        """
        slopes = torch.stack([self.basis.turning(references), *self.gradients(references)], 1)
        if factors is None:
            return slopes @ slopes.transpose(1, 2)
        pairs = (slopes[:, :, None].expand(-1, 3, 3, -1), slopes[:, None].expand(-1, 3, 3, -1))
        return self.metric.products(*pairs, factors.expand(len(slopes), -1))

    def gradients(self, references: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by a move along x and y, as coefficients."""
        plane = self.plane.transform(self.basis.images(references))
        re, im = plane.chunk(2, -1)
        moved = []
        for frequency in (self.plane.fx, self.plane.fy):
            k = 2 * math.pi * frequency
            moved.append(self.coefficients(torch.cat([im * k, -re * k], -1))[0][:, 0])
        return moved[0], moved[1]

    @torch.no_grad()
    def set_steps(self, references: Tensor, factors: Tensor | None) -> None:
        """Choose the grids' steps by how sharply typical references [n, 2 R] define poses."""
        information = self.information(references, factors).diagonal(dim1=1, dim2=2).mean(0)
        self.theta_step_rad.fill_(float((information[0] + 1e-12) ** -0.5))
        self.shift_step_px.fill_(float((information[1:].mean() + 1e-12) ** -0.5))
        self.theta_step_rad.clamp_(2 * math.pi / 5000, 2 * math.pi / ANGLES_NEARBY)
        self.shift_step_px.clamp_(0.03, 1.5)


@dataclass(frozen=True)
class _Coarse:
    """Templates of a global search at low angular resolution.

    ``templates`` [J, 2 C] of the C components chosen, of ``order`` [C]; ``whole`` [J, 2 R], the same with zeros for the others;
    ``matrix`` [f, O * 2 C] from those ``frequencies`` [f] of the Fourier plane to the coefficients at each of the ``offsets`` [O, 2], which
    have a ``log_prior`` [O]; ``angles`` [G].
    """

    templates: Tensor
    whole: Tensor
    order: Tensor
    frequencies: Tensor
    matrix: Tensor
    offsets: Tensor
    log_prior: Tensor
    angles: Tensor

    @property
    def hypotheses(self) -> int:
        """About each image."""
        return len(self.templates) * len(self.offsets) * len(self.angles)


def _fits_by_order(images: Tensor, templates: Tensor, order: Tensor, angles: Tensor) -> Tensor:
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


def _turned(templates: Tensor, order: Tensor, which: Tensor, angle_rad: Tensor) -> Tensor:
    """Templates [J, 2 C] number ``which`` [n, c] turned by angles [n, c]; columns as in `_fits_by_order`, [n, c, 2 C]."""
    orders, counts = torch.unique_consecutive(order, return_counts=True)
    turned, start = [], 0
    for m, count in zip(orders.tolist(), counts.tolist(), strict=True):
        real, imaginary = templates[:, start : start + 2 * count][which].split(count, -1)
        cos, sin = torch.cos(m * angle_rad)[..., None], torch.sin(m * angle_rad)[..., None]
        turned += [real * cos + imaginary * sin, imaginary * cos - real * sin]
        start += 2 * count
    return torch.cat(turned, -1)
