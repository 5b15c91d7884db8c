"""What the steerable engine learns from the particles before the first step of training: noise, signal, basis, consensus."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from emspatialvae.config import ModelConfig
from emspatialvae.imaging import geometry, masks
from emspatialvae.model.batch import Batch
from emspatialvae.model.device import Each, in_turn
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable.basis import affordable_frequency
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.noise import noise_within
from emspatialvae.model.steerable.observation import Observation, Spectra
from emspatialvae.model.steerable.pca import FullDisk
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.model.steerable.vae import SteerableVAE, particle_disk

LEAST, MOST = 128, 192
"""Components kept, at least and at most."""
LEAST_NOISE = 0.01
"""Power of the noise of prepared images, at least; 1 is the rule."""
LEAST_SIGNAL, LARGEST_FLOOR, MARGIN_RINGS = 0.002, 0.005, 1.5
"""Rings whose signal is a smaller share of the noise say next to nothing; see `resolved_frequency`."""
RESTARTS = 4
CONSENSUS_PARTICLES = 1500
FIRST_ROUNDS, LAST_ROUNDS = 4, 4
"""Of alignment and averaging: of each start, and of the best one afterwards."""
PART, GPU_PART = 256, 8192
"""Particles aligned at a time, on a CPU and on a GPU."""

Batches = Callable[[], Iterable[Batch]]


@torch.no_grad()
def new_model(config: ModelConfig, images: ImageSpec, groups: int, batches: Batches) -> SteerableVAE:
    """An untrained model whose noise, signal and basis are those of the particles.

    Parameters
    ----------
    batches
        Gives the particles to learn from, batch by batch; called several times.
    """
    plane = FourierPlane(images.box)
    spectra = Spectra(groups, plane.rings)
    error = _measure(spectra, plane, images, batches)
    where = particle_disk(images)
    limit = min(affordable_frequency(images.box, where.radius_px), resolved_frequency(spectra, error, images.box))
    disk = FullDisk(where, limit)
    # Whitened images have noise of power 1 on average, so no covariance of the noise is needed.
    seen = disk.covariances(plane.images(spectra.observe(batch, plane).plane) for batch in batches())
    basis, ratio = disk.principal(seen, least=LEAST, most=MOST)
    model = SteerableVAE(config, images, basis, groups)
    model.spectra.load_state_dict(spectra.state_dict())
    # Standardised inputs, components that are mostly noise shrunk as a Wiener filter would.
    signal = ratio.clamp(min=0).repeat(2)
    spread = torch.sqrt(_mean_square(model, batches))
    spread = torch.where(spread > 1e-6 * spread.max(), spread, torch.ones_like(spread))
    model.encoder.scale.copy_(model.basis.live * (signal + 0.02) / (signal + 0.3) / spread)
    return model


def resolved_frequency(spectra: Spectra, error: Tensor, box: int) -> float:
    """The frequency (cycles/px) beyond which rings of the Fourier plane hold noise alone, with a margin.

    Signal ends before the first gap: in many rings one that stands out is likely to be chance or an error of the noise's power,
    and components of high frequencies that hold noise alone would be taken instead of those with a little signal.
    ``error`` [rings]: standard error of the whitened signal.
    """
    signal = spectra.whitened_signal
    # Images divided by the s.d. of some hundred pixels of their own have noise of a power a little above 1.
    floor = signal[len(signal) // 2 :].median().clamp(max=LARGEST_FLOOR)
    mean_of_three = torch.nn.functional.avg_pool1d(signal[None], 3, 1, 1, count_include_pad=False)[0]
    last, gap = box // 8, max(3, len(signal) // 8)
    for ring in torch.nonzero(mean_of_three > floor + LEAST_SIGNAL + 2 * error)[:, 0].tolist():
        if ring > last + gap:
            break
        last = max(last, ring)
    return min(0.5, (last + MARGIN_RINGS) / box)


def _measure(spectra: Spectra, plane: FourierPlane, images: ImageSpec, batches: Batches) -> Tensor:
    """Noise power from outside the particles, signal power from what the whole images have beyond it.

    Returns
    -------
    Standard error of the whitened signal's power, rather too large; [rings].
    """
    outside = torch.from_numpy(~masks.circular_mask(images.box, images.mask_radius_px)).float()
    share = float(outside.mean())
    if share > 0.1:
        noise = noise_within(batches, outside, len(spectra.noise), plane)
        # Images without noise (projections, drawings) are taken to have a little.
        spectra.set_noise(noise.clamp(min=LEAST_NOISE))
        spectra.outside.copy_(torch.cat([spectra.noise, spectra.pooled[None]]))
    surplus, passed, weight, information = (torch.zeros(plane.rings) for _ in range(4))
    count = 0
    for batch in batches():
        ctf = torch.ones(1, plane.rings) if batch.ctf_power is None else batch.ctf_power
        power = plane.ring_means(plane.transform(batch.images[:, 0]))
        surplus += (power - ctf * spectra.noise[batch.group]).sum(0)
        passed += ctf.expand_as(power).sum(0)
        weight += (ctf**2).expand_as(power).sum(0)
        information += (ctf / spectra.noise[batch.group]).sum(0)
        count += len(batch)
    if not spectra.white or float((information / count - 1).abs().max()) > 1e-6:
        spectra.gain.copy_((information / count).sqrt())
    spectra.signal.copy_((surplus / weight.clamp(min=1e-6)).clamp(min=1e-3 * float(spectra.noise.min())))
    independent = count * plane.ring_sizes.clamp(min=1) * max(share, 0.1)
    return torch.sqrt(2 / independent) * passed / weight.clamp(min=1e-6)


def _mean_square(model: SteerableVAE, batches: Batches) -> Tensor:
    total, n = torch.zeros(2 * model.basis.size), 0
    for batch in batches():
        observation = model.observe(batch)
        still = Poses(torch.zeros(len(batch)), torch.zeros(len(batch), 2))
        total += (model.search.upright(observation, still) ** 2).sum(0)
        n += len(batch)
    return total / max(n, 1)


# ---------------------------------------------------------------------------------------------------------- consensus


@torch.no_grad()
def find_consensus(model: SteerableVAE, observation: Observation, seed: int, each: Each = in_turn) -> Tensor:
    """Coefficients [2 R] of one image that explains all, by expectation maximisation from several random particles.

    Each start is one particle, denoised; poses and reference then improve each other. The start that ends with the most
    evidence wins: with one alone, one in some ends in a reference that is upside down with respect to itself. ``each``: who works on the
    parts of the observation.
    """
    generator = torch.Generator().manual_seed(seed)
    still = Poses(torch.zeros(1, device=model.anchors.device), torch.zeros(1, 2, device=model.anchors.device))
    first = torch.randint(len(observation), (RESTARTS,), generator=generator).tolist()
    references = torch.stack([model.wiener_mean(observation[n : n + 1], still) for n in first])
    evidence = torch.zeros(RESTARTS)
    for _ in range(FIRST_ROUNDS):
        references, evidence = _improved(model, observation, references, each)
    best = references[int(evidence.argmax())][None]
    for _ in range(LAST_ROUNDS):
        best, _ = _improved(model, observation, best, each)
    return best[0]


def _improved(model: SteerableVAE, observation: Observation, references: Tensor, each: Each) -> tuple[Tensor, Tensor]:
    """Means [K, 2 R] of all images aligned to each of K references [K, 2 R], and the mean log evidence with these; [K]."""
    model.search.set_steps(references, model.mean_information(observation))

    @torch.no_grad()
    def align(some: Observation) -> list[tuple[Poses, Tensor]]:
        found = model.search.global_search(some, references, model.search_radius_px, 1, len(references) - 1)
        in_turn_of_references = found.template.argsort(1)
        near = []
        for reference, candidate in zip(references, in_turn_of_references.T, strict=True):
            poses = found.poses[torch.arange(len(some), device=candidate.device), candidate]
            here = model.search.local_search(some, poses, reference.expand(len(some), -1))
            near.append((here.mean, here.log_evidence))
        return near

    means, evidence = [], []
    for parts in zip(*each(align, observation.parts(PART, GPU_PART)), strict=True):
        poses = Poses(torch.cat([p.theta_rad for p, _ in parts]), torch.cat([p.shift_px for p, _ in parts]))
        means.append(centred(model, model.wiener_mean(observation, poses), poses))
        evidence.append(torch.cat([log_evidence for _, log_evidence in parts]).mean())
    return torch.stack(means), torch.stack(evidence)


def centred(model: SteerableVAE, reference: Tensor, poses: Poses) -> Tensor:
    """The reference moved so that the particles' shifts, seen in its own frame, average to zero."""
    if not model.search.translate:
        return reference
    cos, sin = torch.cos(poses.theta_rad), torch.sin(poses.theta_rad)
    x, y = geometry.rotate_xy(poses.shift_px[:, 0], poses.shift_px[:, 1], cos, -sin)
    offset = torch.stack([x.mean(), y.mean()])[None]
    plane = model.plane.transform(model.basis.images(reference[None]))
    return model.search.coefficients(model.plane.move_back(plane, -offset))[0][0, 0]
