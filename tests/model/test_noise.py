"""Noise measured outside the particles, where a mask's edge must not spread strong frequencies over weak ones."""

import numpy as np
import pytest
import torch

from emspatialvae.imaging import masks, normalisation
from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.noise import noise_within
from emspatialvae.simulation.microscope import COLOURED, COLOURED_OTHER, NoiseSpectrum


def noise(spectrum: NoiseSpectrum, n: int, box: int, seed: int = 0) -> torch.Tensor:
    white = np.random.default_rng(seed).standard_normal((n, box, box)).astype(np.float32)
    colour = np.sqrt(spectrum.power(box))
    return torch.from_numpy(np.fft.irfft2(np.fft.rfft2(white) * colour, s=(box, box)).astype(np.float32))


def cut_out(spectrum: NoiseSpectrum, n: int, box: int, seed: int = 0) -> torch.Tensor:
    """The same from larger images, as particles are: opposite edges do not meet."""
    return noise(spectrum, n, 3 * box, seed)[:, :box, :box]


def rings_of(spectrum: NoiseSpectrum, plane: FourierPlane) -> torch.Tensor:
    power = torch.from_numpy(np.asarray(spectrum.power(plane.box), dtype=np.float32)).flatten()[plane.where]
    sums = torch.zeros(plane.rings).index_add_(0, plane.ring, power * plane.weight * plane.box**2)
    return sums / plane.ring_sizes


@pytest.mark.parametrize("box", [40, 33])
def test_the_noise_outside_a_disk_is_the_noise(box):
    """A particle inside, however bright, changes nothing; neither do the steepness of the spectrum, levels and slopes."""
    plane = FourierPlane(box)
    outside = torch.from_numpy(~masks.circular_mask(box, 0.45 * box)).float()
    images = cut_out(COLOURED, 3000, box)
    truth = plane.ring_means(plane.transform(images)).mean(0)
    windowed = plane.ring_means(plane.transform(images * outside)).mean(0) / outside.mean()
    images = images + 50 * (1 - outside) + torch.linspace(-9, 9, 3000)[:, None, None]
    images = images + torch.randn(3000, 1, 1, generator=torch.Generator().manual_seed(0)) * torch.linspace(-9, 9, box)
    found = noise_within(lambda: [Batch.of(images.numpy(), np.zeros(3000))], outside, 1, plane)[0]
    assert found[0] == found[1]
    assert float(found[1]) == pytest.approx(
        float(truth[1]), rel=0.16
    )  # 0.4 of it if what went with level and slope is left out
    assert torch.allclose(found[2:], truth[2:], rtol=0.08)
    assert float((found / truth)[1:].log().abs().mean()) < 0.025
    assert float((windowed / truth)[1:].log().abs().mean()) > 0.04  # what the plain way gives


def test_each_optics_group_has_its_own_noise_and_ctf():
    box, n = 40, 2000
    plane = FourierPlane(box)
    outside = torch.from_numpy(~masks.circular_mask(box, 0.42 * box)).float()
    groups = np.arange(2 * n) % 2
    images = torch.empty(2 * n, box, box)
    images[groups == 0], images[groups == 1] = noise(COLOURED, n, box), noise(COLOURED_OTHER, n, box, seed=1)
    # Prepared images were multiplied by their CTF once more; a third of its square is what is left of the noise here.
    ctf_power = np.full((2 * n, plane.rings), 1 / 3, dtype=np.float32)
    batches = [
        Batch.of(part.numpy() / np.sqrt(3), groups[rows], ctf_power[rows])
        for rows, part in ((slice(0, n), images[:n]), (slice(n, None), images[n:]))
    ]
    found = noise_within(lambda: batches, outside, 2, plane)
    for group, spectrum in enumerate((COLOURED, COLOURED_OTHER)):
        ratio = found[group] / rings_of(spectrum, plane)
        assert float(ratio.log().abs().mean()) < 0.04


def test_edges_and_neighbours_in_some_images_are_not_noise():
    box, n = 40, 2000
    plane = FourierPlane(box)
    outside = torch.from_numpy(~masks.circular_mask(box, 0.45 * box)).float()
    images = noise(NoiseSpectrum(1.0), n, box)
    images[::10, :, : box // 3] += 2.0
    found = noise_within(lambda: [Batch.of(images.numpy(), np.zeros(n))], outside, 1, plane)[0]
    assert torch.allclose(found, torch.ones(plane.rings), atol=0.1)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_what_normalisation_took_of_the_noise_is_put_back(share):
    """Level and slope are fitted to what lies outside, robustly; nearly half of the first ring goes with them."""
    box, n = 40, 6000
    plane = FourierPlane(box)
    radius = share * box / 2
    outside = torch.from_numpy(~masks.circular_mask(box, radius)).float()
    images = normalisation.normalise(noise(NoiseSpectrum(1.0), n, box).numpy(), radius)
    found = noise_within(lambda: [Batch.of(images, np.zeros(n))], outside, 1, plane)[0]
    assert torch.allclose(found, torch.ones(plane.rings), atol=0.07)


def test_noise_in_a_small_disk_is_never_taken_for_too_weak():
    """A steep spectrum, as filtered images have it: weak rings that say much would decide on everything."""
    box, n, wide = 64, 2000, 192
    radius, plane = 17.0, FourierPlane(box)
    spectrum = torch.hypot(torch.fft.fftfreq(wide)[:, None], torch.fft.rfftfreq(wide)) * box
    white = torch.randn(n, wide, wide, generator=torch.Generator().manual_seed(0))
    images = torch.fft.irfft2(torch.fft.rfft2(white) * torch.exp(-((spectrum / 4) ** 2)), s=(wide, wide))[:, :box, :box]
    truth = plane.ring_means(plane.transform(images)).mean(0)  # what the edges spread over weak rings included
    window = torch.from_numpy(masks.circular_mask(box, radius)).float()
    batches = [Batch.of(images.numpy(), np.zeros(n))]
    found, unsure = (noise_within(lambda: batches, window, 1, plane, reach)[0] for reach in (27.0, np.inf))
    assert 0.5 < float((found / truth)[2:-1].min()) < float((found / truth)[2:-1].max()) < 5
    assert float((unsure / truth)[2:20].min()) < 0.1  # what errors of the long lags make of it
