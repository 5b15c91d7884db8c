"""A start of training for particles that look different: many templates, aligned, and laid out in the space of z.

One consensus aligns particles that differ a little. Views of a 3-D object differ altogether: their consensus looks like nothing, and
poses found with it are wrong. So single particles, denoised, are taken as templates, as many as there are views to tell apart;
particles are aligned to the template that explains them best, and each template becomes the restored mean of its particles
(expectation maximisation, as in RELION's Class2D, but with all poses of a particle scored in one matrix product). A few rounds are
enough: each template starts as a view that exists.

Then the templates are turned so that similar ones lie alike (angular synchronisation: Singer, Appl. Comput. Harmon. Anal. 30, 20
(2011)), and get a place z by how similar they are; the decoder
learns to draw each template at its place. From there training goes on as ever.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csgraph
from torch import Tensor

from emspatialvae.model.classical_scaling import classical_scaling
from emspatialvae.model.device import Each, in_turn
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.poses import Candidates
from emspatialvae.model.steerable.vae import SteerableVAE

PARTICLES_PER_TEMPLATE = 45
MOST_TEMPLATES = 128
FEWEST_TEMPLATES = 8
ROUNDS = 6
"""Of alignment and averaging."""
PART, GPU_PART = 512, 8192
"""Particles looked at at a time, on a CPU and on a GPU."""
LEAST_SHIFT_SD_PX = 0.5
"""Of the prior of shifts between rounds."""
ROUGH_ROUNDS = 1
"""The first rounds, in which poses stay on the grid of the global search."""
FEWEST_MEMBERS = 4
"""A template with fewer particles is given up for another single particle."""
GAIN_NATS, GAIN = 5.0, 0.3
"""By how much templates must explain particles better than one consensus does: in nats per particle, and as a share of what it explains."""
FIRST_LOOK_PARTICLES, FIRST_LOOK_ROUNDS, LEAST_PROMISE = 1500, 2, 0.1
"""A few templates of so many particles come first: where they gain less than this share of what they must, more are not tried. It takes a twelfth
of the time; where templates were better in the end, it had gained half as much or more (`benchmarks/README.md`)."""
LAYOUT_PARTICLES = 3000
"""Particles that templates are laid out by, at most."""
OTHERS, SHARED_NATS = 7, 8.0
"""Templates looked at beside the best one of a particle, and how many nats less likely than it still count as shared."""
NEIGHBOURS = 6
"""Of each template in the graph along which distances are measured."""
ISLANDS_APART = 1.2
"""Parts of the graph that nothing connects lie so many times the longest way apart."""
LEAST_AXIS = 0.15
"""Axes of the layout that hold a smaller share of what the first one holds are left for training to open."""
DECODER_STEPS, DECODER_RATE, DECODER_BATCH = 800, 3e-3, 128
PLACE_SD = 0.1
"""Of the places z that a template is drawn at while the decoder learns it."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Templates:
    """K templates: coefficients [K, 2 R], and how many particles each is the mean of [K]."""

    coefficients: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)


def template_count(n: int) -> int:
    """How many templates n particles are worth; 0 where they are too few to start like this."""
    count = min(MOST_TEMPLATES, n // PARTICLES_PER_TEMPLATE)
    return count if count >= FEWEST_TEMPLATES else 0


def start_from_templates(
    model: SteerableVAE,
    learned: Observation,
    watched: Observation,
    consensus: Tensor,
    generator: torch.Generator,
    each: Each = in_turn,
) -> bool:
    """Find templates and let training start from them, if they explain other particles far better than one consensus does.

    Parameters
    ----------
    model
        Its decoder learns the templates, which become its search templates; nothing of it changes where False is returned.
    learned, watched
        Particles that templates are made of, and others that tell how good these are.
    consensus
        The one image that templates have to be better than; [2 R].
    each
        Who works on the parts of the observations.

    Returns
    -------
    Whether training starts from templates.
    """
    shift_sd_px = float(model.search.shift_sd_px)
    one = mean_evidence(model, watched, consensus[None], each)
    needed = max(GAIN_NATS, GAIN * abs(one))
    few = learned[:FIRST_LOOK_PARTICLES]
    looked_at = torch.Generator().manual_seed(generator.initial_seed())
    found = find_templates(model, few, template_count(len(few)), looked_at, each, FIRST_LOOK_ROUNDS)
    gain = mean_evidence(model, watched, found.coefficients, each) - one
    if gain > LEAST_PROMISE * needed:
        model.search.shift_sd_px.fill_(shift_sd_px)
        found = find_templates(model, learned, template_count(len(learned)), generator, each)
        gain = mean_evidence(model, watched, found.coefficients, each) - one
    if gain <= needed:
        model.search.shift_sd_px.fill_(shift_sd_px)
        model.search.set_steps(consensus[None], model.mean_information(watched))
        return False
    layout = lay_out(model, learned[:LAYOUT_PARTICLES], found, each)
    teach_decoder(model, layout.z, layout.turned, found.count, generator)
    model.anchors = layout.z
    model.search.set_steps(layout.turned, model.mean_information(watched))
    return True


@torch.no_grad()
def find_templates(
    model: SteerableVAE,
    observation: Observation,
    count: int,
    generator: torch.Generator,
    each: Each = in_turn,
    rounds: int = ROUNDS,
) -> Templates:
    """Templates of n observations, by ``count`` single particles and some rounds of alignment and averaging."""
    restore = _Restoration(model, observation, each)
    seeds = torch.randperm(len(observation), generator=generator)
    first = observation[seeds[:count]]
    templates = restore(model.search.coefficients(first.plane)[0][:, 0], _information(first, restore.rings))
    counts = torch.ones(count)
    spare = count
    for round_ in range(rounds):
        _set_steps(model, templates, observation)
        sums, information, counts = _summed(
            model, observation, templates, restore.rings, each, rough=round_ < ROUGH_ROUNDS
        )
        templates = restore(sums, information)
        lonely = torch.nonzero(counts < FEWEST_MEMBERS)[:, 0]
        if len(lonely) and round_ < rounds - 2:
            other = observation[seeds[torch.arange(spare, spare + len(lonely)) % len(seeds)]]
            spare += len(lonely)
            seen = model.search.coefficients(other.plane)[0][:, 0]
            templates[lonely] = restore(seen, _information(other, restore.rings))
    kept = counts >= FEWEST_MEMBERS
    return Templates(templates[kept], counts[kept])


def _set_steps(model: SteerableVAE, templates: Tensor, observation: Observation) -> None:
    model.search.set_steps(templates, model.mean_information(observation))


def _information(observation: Observation, rings: int) -> Tensor:
    if observation.information is not None:
        return observation.information
    return observation.plane.new_ones(len(observation), rings)


def _summed(
    model: SteerableVAE, observation: Observation, templates: Tensor, rings: int, each: Each, *, rough: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """For each template the sums over its particles of the images without their poses [K, 2 R] and of the information [K, rings]; counts [K]."""
    search = model.search
    sums = torch.zeros_like(templates)
    information = templates.new_zeros(len(templates), rings)
    counts = torch.zeros(len(templates))
    square = 0.0

    @torch.no_grad()
    def aligned(some: Observation) -> tuple[Tensor, Tensor, Tensor, float]:
        found = search.global_search(some, templates, model.search_radius_px)
        poses, template = found.poses[:, 0], found.template[:, 0]
        if not rough:
            poses = search.local_search(some, poses, templates[template], zoom=2.0).mean
        upright = search.canonical(some.plane, poses)
        return template, upright, _information(some, rings), float((poses.shift_px**2).sum())

    for template, upright, known, moved in each(aligned, observation.parts(PART, GPU_PART)):
        sums.index_add_(0, template, upright)
        information.index_add_(0, template, known)
        counts += torch.bincount(template.cpu(), minlength=len(templates))
        square += moved
    search.shift_sd_px.fill_(max(math.sqrt(square / (2 * len(observation))), LEAST_SHIFT_SD_PX))
    return sums, information, counts


class _Restoration:
    """Means of images from their sums: ``(sum of information + 1 / prior)^-1 sum of images``, order by order.

    The prior of each component is the variance that the images have there beyond that of noise.
    """

    def __init__(self, model: SteerableVAE, observation: Observation, each: Each) -> None:
        self.metric, self.rings = model.search.metric, model.plane.rings

        @torch.no_grad()
        def power(some: Observation) -> Tensor:
            return (model.search.coefficients(some.plane)[0][:, 0] ** 2).sum(0)

        total = torch.stack(each(power, observation.parts(PART, GPU_PART))).sum(0)
        live = model.basis.live
        self.prior = torch.where(live > 0, (total / len(observation) - 1).clamp(min=0.01), torch.full_like(live, 1e-6))

    def __call__(self, sums: Tensor, information: Tensor) -> Tensor:
        """Coefficients [K, 2 R] from sums of images [K, 2 R] and of their information [K, rings]."""
        out = torch.zeros_like(sums)
        for rows, matrix in zip(self.metric.rows, self.metric.matrices(information), strict=True):
            whole = matrix + torch.diag(1 / self.prior[rows])
            out[:, rows] = torch.linalg.solve(whole, sums[:, rows, None])[..., 0]
        return out


@torch.no_grad()
def mean_evidence(model: SteerableVAE, observation: Observation, templates: Tensor, each: Each = in_turn) -> float:
    """Mean log evidence, in nats, of images that the K templates [K, 2 R] were not made of, all of them as likely beforehand."""

    @torch.no_grad()
    def evidence(some: Observation) -> float:
        found = model.search.global_search(some, templates, model.search_radius_px)
        near = model.search.local_search(some, found.poses[:, 0], templates[found.template[:, 0]], zoom=2.0)
        near = model.search.local_search(some, near.mean, templates[found.template[:, 0]])
        return float(near.log_evidence.sum())

    return sum(each(evidence, observation.parts(PART, GPU_PART))) / len(observation) - math.log(len(templates))


# -------------------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Layout:
    """Templates in the space of z.

    ``z`` [K, z_dim], their places; ``turned`` [K, 2 R], the templates with similar ones alike; ``axes`` [K], how much of the distances
    between them each axis holds, as a share of the first.
    """

    z: Tensor
    turned: Tensor
    axes: Tensor


@torch.no_grad()
def lay_out(model: SteerableVAE, observation: Observation, templates: Templates, each: Each = in_turn) -> Layout:
    """Places of templates, and templates turned so that similar ones lie alike.

    How similar two templates are, and at which angle, is read off the particles: those that both of them explain nearly as well.
    """
    relation = shared_particles(model, observation, templates.coefficients, each)
    turn = torch.from_numpy(synchronised(relation)).to(templates.coefficients)
    turned = model.basis.rotate(templates.coefficients, turn)
    z, axes = places(np.abs(relation), templates.count.double().numpy(), model.z_dim)
    return Layout(torch.from_numpy(z).to(turned), turned, torch.from_numpy(axes))


@torch.no_grad()
def shared_particles(
    model: SteerableVAE, observation: Observation, templates: Tensor, each: Each = in_turn, nats: float = SHARED_NATS
) -> NDArray[np.complex128]:
    """How many particles each pair of K templates shares, times ``exp(i angle)`` by which the second is to be turned onto the first; [K, K].

    A particle is shared as far as either explains it as well as its best template, within some ``nats``.
    """
    count = len(templates)
    relation, shared = np.zeros((count, count), np.complex128), np.zeros(count)

    @torch.no_grad()
    def candidates(some: Observation) -> Candidates:
        return model.search.global_search(some, templates, model.search_radius_px, 1, OTHERS)

    for found in each(candidates, observation.parts(PART, GPU_PART)):
        weight = torch.softmax(found.score / nats, 1).double().cpu().numpy()
        wave = weight * np.exp(1j * found.poses.theta_rad.double().cpu().numpy())
        template = found.template.cpu().numpy()
        first, second = template[:, :, None], template[:, None]
        # The image is the first turned by its theta, and the second by its own.
        np.add.at(relation, np.broadcast_arrays(first, second), wave.conj()[:, :, None] * wave[:, None])
        np.add.at(shared, template, weight * (weight.sum(1, keepdims=True) - weight))
    np.fill_diagonal(relation, 0)
    scale = np.sqrt(shared + 1e-12)
    return relation / scale[:, None] / scale


def synchronised(relation: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Angles [K] that templates are to be turned by so that similar ones lie alike, from `shared_particles`."""
    relation = (relation + relation.conj().T) / 2
    root = np.sqrt(np.abs(relation).sum(1) + 1e-12)
    # b_k = b_l turned by a, and both turned by their angles are alike: angle_k + a = angle_l.
    _, vectors = np.linalg.eigh(relation.conj() / root[:, None] / root)
    return np.angle(vectors[:, -1])


def places(
    similarity: NDArray[np.float64], count: NDArray[np.float64], d: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of points with similarities [K, K]: classical scaling of the distances along the graph of nearest neighbours.

    Going from neighbour to neighbour, points that are far apart stay so (Tenenbaum, de Silva and Langford, Science 290, 2319 (2000)).
    The mean over the particles is 0, the variance along the first axis 1; axes that hold little are left at 0.

    Returns
    -------
    Places [K, d], and what each axis holds as a share of what the first one does, the largest first [K].
    """
    near = np.argsort(-similarity, 1)[:, :NEIGHBOURS]
    length = np.zeros_like(similarity)
    relative = (similarity / similarity.max()).clip(1e-6, 1 - 1e-3)
    np.put_along_axis(length, near, np.sqrt(-np.log(np.take_along_axis(relative, near, 1))), 1)
    along = csgraph.shortest_path(np.maximum(length, length.T), directed=False)
    farthest = along[np.isfinite(along)].max()
    along[~np.isfinite(along)] = ISLANDS_APART * farthest
    z, strength = classical_scaling(along, d, count)
    z[:, np.flatnonzero(strength[:d] <= LEAST_AXIS * strength[0])] = 0
    return z / np.sqrt(count / count.sum() @ z[:, 0] ** 2), strength / strength[0]


def teach_decoder(
    model: SteerableVAE, z: Tensor, coefficients: Tensor, count: Tensor, generator: torch.Generator
) -> None:
    """Make the decoder draw coefficients [K, 2 R] at places z [K, z_dim], templates of many particles before those of few.

    Of many places a part is looked at in each step.
    """
    mean = (count[:, None].to(coefficients) * coefficients).sum(0) / count.sum()
    model.decoder.start_from(mean, generator)
    weight = (count / count.sum()).to(coefficients)
    optimiser = torch.optim.Adam(model.decoder.parameters(), lr=DECODER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, DECODER_STEPS)
    with torch.enable_grad():
        for _ in range(DECODER_STEPS):
            some = slice(None)
            if len(z) > DECODER_BATCH:
                some = torch.randint(len(z), (DECODER_BATCH,), generator=generator).to(z.device)
            noise = torch.randn(z[some].shape, generator=generator).to(z)
            off = model.decoder(z[some] + PLACE_SD * noise) - coefficients[some]
            loss = (weight[some] / weight[some].sum() * (off**2).sum(1)).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    optimiser.zero_grad()
