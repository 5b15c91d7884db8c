"""What an image says about any reference: filtered by CTF over noise in the Fourier plane, ready for inner products.

With data ``y = CTF x + noise`` and noise power N per ring, the log-likelihood ratio of an object x against noise alone is

    log p(y | x) - log p(y | 0) = <CTF y / N, x> - 1/2 sum_k CTF^2 / N |X(k)|^2 .

The first term needs each image to be filtered once. The second needs only the ring power of the object and the ring average
of CTF^2 / N, because it hardly changes with the angle (astigmatism is what is left out there; the first term has it).

Everything is done with the *whitened* object ``x' = g x``, where g^2 is the average of CTF^2 / N over the particles: then images
``CTF y / (N g)`` have white noise on average, whatever CTF and noise are, and a basis learned from them is one for x'. The
information ``CTF^2 / (N g^2)`` of a particle scatters about 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.noise import Sums, ctf_power
from emspatialvae.model.steerable.ring_metric import RingMetric

LEAST_GAIN = 0.05
"""Frequencies with less than this share of the largest gain are not restored in full."""
WHITE = 0.03
"""Noise whose ring power departs from 1 by less than this (r.m.s.) is taken as white."""


@dataclass(frozen=True)
class Observation:
    """n images in the Fourier plane.

    Nothing is known at frequency zero: every image has a background level of its own, if only because the mean of some hundred
    noisy pixels was subtracted when it was normalised. z would learn it.

    Attributes
    ----------
    plane
        ``CTF F(y) / (N g)``, shape [n, 2 F].
    information
        Ring average of ``CTF^2 / (N g^2)``, shape [n, rings]; None when it is 1 but at frequency zero.
    wiener
        Ring factors that turn ``plane`` into the best guess of the image without CTF and noise (up to a scale), shape [n, rings];
        None when they would change nothing.
    """

    plane: Tensor
    information: Tensor | None
    wiener: Tensor | None

    def __len__(self) -> int:
        return len(self.plane)

    def parts(self, on_cpu: int, on_gpu: int) -> Iterator["Observation"]:
        """So many images at a time, by the device they lie on."""
        size = on_cpu if self.plane.device.type == "cpu" else on_gpu
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def scaled(self, scale: Tensor, prior: Tensor) -> "Observation":
        """The same images of particles that are ``scale`` [n] times as strong; ``prior`` [rings]: power of the whitened object."""
        information = self.information
        if information is None:
            information = of_unknown_level(self.plane.new_ones(len(self), len(prior)))
        information = information * scale[:, None] ** 2
        return Observation(self.plane * scale[:, None], information, 1 / (information + 1 / prior))

    def __getitem__(self, rows: slice | Tensor) -> "Observation":
        return Observation(
            self.plane[rows],
            None if self.information is None else self.information[rows],
            None if self.wiener is None else self.wiener[rows],
        )


class Spectra(nn.Module):
    """Power of noise and signal per ring, by which images become observations.

    Buffers: ``noise`` [groups, rings], mean |F|^2 / box^2 of the noise; ``pooled`` [rings], that of all particles, which stands for
    groups that are not known; ``signal`` [rings], that of the particles (without CTF); ``gain`` [rings], the g of the module;
    ``outside`` [groups + 1, rings], the noise as it is outside the particles, the last row of all.
    """

    noise: Tensor
    pooled: Tensor
    signal: Tensor
    gain: Tensor
    outside: Tensor
    white: Tensor

    def __init__(self, groups: int, rings: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.ones(groups, rings))
        self.register_buffer("pooled", torch.ones(rings))
        self.register_buffer("signal", torch.ones(rings))
        self.register_buffer("gain", torch.ones(rings))
        self.register_buffer("outside", torch.full((groups + 1, rings), torch.inf))
        self.register_buffer("white", torch.tensor(True))

    def set_noise(self, noise: Tensor) -> None:
        """Take the power of the noise [groups, rings], or with one more row that of all particles; [default: the groups' mean].

        Close to 1 it is taken as exactly 1, which is faster.
        """
        pixels = torch.arange(noise.shape[1], device=noise.device).to(noise)  # in a ring, in proportion
        departure = ((noise - 1) ** 2 * pixels).sum(1) / pixels.sum()
        self.white.fill_(bool(departure.max().sqrt() < WHITE))
        noise = torch.ones_like(noise) if self.white else noise.clamp(min=1e-3 * float(noise.max()))
        self.noise.copy_(noise[: len(self.noise)])
        self.pooled.copy_(noise[-1] if len(noise) > len(self.noise) else noise.mean(0))

    def noise_of(self, group: Tensor) -> Tensor:
        """Noise power of particles of optics groups [n]; of a group that is not known, as in another file, that of all; [n, rings]."""
        return torch.cat([self.noise, self.pooled[None]])[group.clamp(max=len(self.noise))]

    def observe(self, batch: Batch, plane: FourierPlane) -> Observation:
        """Filter a batch of images."""
        transform = plane.transform(batch.images[:, 0])
        if self.white and batch.ctf_power is None:
            return Observation(plane.without_level(transform), None, None)
        inverse = 1 / self.noise_of(batch.group)
        information = inverse if batch.ctf_power is None else inverse * batch.ctf_power
        information = of_unknown_level(information / self.gain**2)
        transform = plane.without_level(transform * plane.by_ring(inverse / self.gain))
        return Observation(transform, information, 1 / (information + 1 / self.whitened_signal))

    @property
    def whitened_signal(self) -> Tensor:
        """Power of the whitened object; [rings]."""
        return self.signal * self.gain**2

    def unwhitened(self, images: Tensor) -> Tensor:
        """Objects x of whitened ones [..., box, box], for the eye: where nothing is known of a frequency, nothing is made up."""
        if bool((self.gain == 1).all()):
            return images
        plane = FourierPlane(images.shape[-1]).to(images.device)
        rings = torch.arange(plane.rings, device=images.device).clamp(max=len(self.gain) - 1)
        gain = self.gain[rings]
        least = LEAST_GAIN * float(self.gain.max())
        return plane.images(plane.transform(images) * plane.by_ring(gain / (gain**2 + least**2)))

    @torch.no_grad()
    def estimate_noise(self, residuals: "list[Batch]", plane: FourierPlane) -> Tensor:
        """Power of the noise per group and ring, from images that hold nothing else (times their CTF); [groups + 1, rings].

        The last row is that of all particles, from which groups of few particles borrow.
        """
        found = Sums(len(self.noise), self.noise.shape[1], self.noise.device)
        for batch in residuals:
            images = batch.images[:, 0]
            found.add(batch.group, plane.ring_means(plane.transform(images)), ctf_power(batch, plane.rings))
        return found.noise()


def of_unknown_level(information: Tensor) -> Tensor:
    """Information per ring [..., rings] of images whose background level is not known: none at frequency zero."""
    return torch.cat([torch.zeros_like(information[..., :1]), information[..., 1:]], -1)


def half_norm(reference: Tensor, observation: Observation, metric: RingMetric) -> Tensor:
    """``1/2 sum CTF^2 / N |X|^2`` of references [n, ..., 2 R], one observation each; shape [n, ...]."""
    if observation.information is None:
        return 0.5 * ((reference**2).sum(-1) - (reference @ metric.level) ** 2)
    return 0.5 * metric.square(reference, observation.information)
