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

import torch
from torch import Tensor, nn

from emspatialvae.imaging import geometry
from emspatialvae.model.steerable.basis import SteerableBasis
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.global_search import ANGLES_EVERYWHERE, GlobalSearch, Turns
from emspatialvae.model.steerable.lattice import HEX_AREA, hexagon
from emspatialvae.model.steerable.observation import Observation, half_norm
from emspatialvae.model.steerable.poses import Candidates, JointPosterior, LocalPosterior, Poses
from emspatialvae.model.steerable.ring_metric import RingMetric
from emspatialvae.model.steerable.shifted_coefficients import ShiftedCoefficients

ANGLES_REGISTERED = 64
"""Angles at which one image is registered on another."""
ANGLES_NEARBY = 32
ANGLES_JOINTLY = 20


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
        self._of_model = (basis, plane)  # in a tuple, for they are the model's own: their state is saved once, with it
        self.metric = RingMetric(basis, plane)
        self._global = GlobalSearch(basis, plane, self.metric, rotate=rotate, translate=translate)
        self.rotate, self.translate, self.max_shift_px, self.fixed = rotate, translate, max_shift_px, fixed
        self.register_buffer("shift_sd_px", torch.tensor(float(shift_sd_px)))
        self.register_buffer("theta_step_rad", torch.tensor(2 * math.pi / ANGLES_NEARBY))
        self.register_buffer("shift_step_px", torch.tensor(1.0))
        self._shifted: dict[tuple[float, int, torch.device, torch.dtype], ShiftedCoefficients] = {}

    @property
    def basis(self) -> SteerableBasis:
        """Of the references."""
        return self._of_model[0]

    @property
    def plane(self) -> FourierPlane:
        """Of the observations."""
        return self._of_model[1]

    # ------------------------------------------------------------------------------------------------ coefficients

    def coefficients(self, plane: Tensor, step_px: float = 0.0, reach: int = 0) -> tuple[Tensor, Tensor]:
        """Coefficients [n, S, 2 R] of observations moved back by each point of a hexagon, and the points [S, 2] in pixels."""
        key = (step_px, reach, plane.device, plane.dtype)
        shifted = self._shifted.get(key)  # held: another thread may clear the store
        if shifted is None:
            if len(self._shifted) > 12:
                self._shifted.clear()
            shifts = hexagon(reach) * step_px if reach else torch.zeros(1, 2)
            shifted = self._shifted[key] = ShiftedCoefficients(self.basis, self.plane, shifts.to(plane))
        return shifted(plane), shifted.shifts

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
    def evidence_at_all_angles(self, observation: Observation, poses: Poses, references: Tensor) -> Tensor:
        """Log evidence [n] of references [n, 2 R] each, summed over all angles and a hexagon of shifts round those of ``poses``."""
        step_px = self._quantised(float(self.shift_step_px))
        found, _, log_prior = self.around(observation, poses, step_px, reach=1)
        count = max(ANGLES_EVERYWHERE, math.ceil(2 * math.pi / float(self.theta_step_rad)))
        angles = 2 * math.pi * torch.arange(count, device=found.device) / count
        cross = self.basis.correlate(found, references[:, None], angles)  # [n, S, G]
        half = half_norm(references[:, None], observation, self.metric)
        fit = cross + log_prior[..., None] - half[..., None]
        return torch.logsumexp(fit.flatten(1), 1) - math.log(count)

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
        return self._global.candidates(observation, templates, radius_px, self.log_shift_prior, modes, others)

    def fits_at(self, images: Tensor, templates: Tensor, angles_rad: Tensor) -> Tensor:
        """``<image, turned template>`` of all pairs of coefficients [n, 2 R] and [J, 2 R] at angles [G]; [G, J, n]."""
        order, size = self.basis.order, self.basis.size
        columns = torch.cat(
            [torch.cat([rows, rows + size]) for rows in (torch.nonzero(order == m)[:, 0] for m in order.unique())]
        )
        return Turns(templates[:, columns], order, angles_rad.to(images)).fits(images[:, columns].T)

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
