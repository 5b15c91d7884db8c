"""What a model draws without pose, and filters by which particles become comparable with it."""

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae.imaging import masks
from emspatialvae.imaging.arrays import Floats
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.interface import ParticleVAE
from emspatialvae.model.steerable.fourier_plane import FourierPlane

RENDERED = 200
"""Latents that go into the mean of what a model draws."""
LEAST_POWER = 1.0
"""Added to a ring's sum of CTF^2, the Wiener filter's noise over signal: one more particle with nothing on it."""


def canonical(model: ParticleVAE, z: Floats) -> NDArray[np.float32]:
    """What the model draws for latents z [n, d] at pose zero, of colour the mean; shape [n, box, box].

    The steerable engine draws them in the common frame, registered on the consensus: they do not turn or move against each
    other. The coordinate engine has no such frame, and what it draws may turn with z.
    """
    content = torch.from_numpy(np.ascontiguousarray(z)).float()
    still = LatentAndPose(content, torch.zeros(len(z)), torch.zeros(len(z), 2))
    parts = [model.render(still[i : i + 64]).mean(1) for i in range(0, len(z), 64)]
    return seen(model, torch.cat(parts).numpy())


def seen(model: ParticleVAE, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [n, box, box] with zeros where the model never saw a pixel and draws whatever it likes."""
    if model.draws_disk_only:
        return images
    return np.where(masks.circular_mask(model.images.box, model.images.mask_radius_px), images, np.float32(0))


def consensus(model: ParticleVAE, z: Floats) -> NDArray[np.float32]:
    """The image that reported poses refer to, ``particle(p) ~ consensus(R(-theta) (p - shift))``; shape [box, box].

    The steerable engine registers all latents on it. The coordinate engine has no such frame: the mean of what it draws for
    latents z [n, d] then stands for it.
    """
    common = model.common_image()
    return canonical(model, evenly(z, RENDERED)).mean(0) if common is None else common.numpy()


def restored(total: Floats, power: Floats) -> NDArray[np.float32]:
    """Sums of CTF-multiplied images [k, box, box] over their sums of CTF^2 [rings] or [k, rings]."""
    return by_ring(total, 1 / (power + LEAST_POWER))


def by_ring(images: Floats, factors: Floats | None) -> NDArray[np.float32]:
    """Images [n, box, box] with each ring of the Fourier plane multiplied by ``factors`` [rings] or [n, rings]."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))
    if factors is None:
        return pixels.numpy()
    plane = FourierPlane(pixels.shape[-1])
    spread = plane.by_ring(torch.from_numpy(np.asarray(factors, dtype=np.float32)))
    return plane.images(plane.transform(pixels) * spread).numpy()


def evenly(values: NDArray, count: int) -> NDArray:
    """At most ``count`` of the values, evenly spread over them."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)]
