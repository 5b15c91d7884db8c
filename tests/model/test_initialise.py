"""What is learned before the first step: noise, signal, the highest frequency that says something, the basis."""

import numpy as np
import pytest
import torch

from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.model.batch import Batch
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.initialise import MARGIN_RINGS, new_model, resolved_frequency
from emspatialvae.model.steerable.observation import Spectra
from emspatialvae.model.steerable.poses import Poses
from emspatialvae.simulation.stack import clean_image, hinge_object
from tests.tools.hinges import CONFIGS, noisy_hinges, seeded


def test_new_model_knows_noise_and_signal():
    """White noise is found to be white, and the basis holds the particles."""
    images = noisy_hinges(1500, 5, 32)
    spec = ImageSpec(32, 14.4, 1.5, 6.0)
    batch = Batch.of(images, np.zeros(len(images)))
    torch.manual_seed(0)
    model = new_model(CONFIGS["z1"], spec, 1, lambda: [batch[:700], batch[700:]])
    assert model.spectra.white
    clean = clean_image(hinge_object(), np.linspace(-1, 1, 20), Pose2D.identity(20), 32)
    held = model.basis.coefficients(torch.from_numpy(clean).float())
    assert 0.98 < float((held**2).sum()) / float((clean**2).sum()) < 1.002
    upright = model.search.upright(model.observe(batch), Poses(torch.zeros(1500), torch.zeros(1500, 2)))
    assert float((upright * model.encoder.scale).std(0).max()) < 1.5


def test_new_model_in_coloured_noise_of_two_groups():
    """Noise of each optics group, from outside the particle."""
    n, box = 1200, 32
    plane = FourierPlane(box)
    rings = torch.arange(plane.rings)
    power = torch.stack([0.5 + 3 * torch.exp(-rings / 4.0), torch.full((plane.rings,), 2.0)])
    group = np.arange(n) % 2
    white = plane.transform(torch.randn(n, box, box, generator=seeded()))
    noise = plane.images(white * plane.by_ring(power[group].sqrt()))
    spec = ImageSpec(box, 12.0, 1.5, 6.0)
    batch = Batch.of(noise.numpy(), group)
    model = new_model(CONFIGS["z1"], spec, 2, lambda: [batch])
    assert not model.spectra.white
    found = model.spectra.noise
    # Seen through a window the spectrum is blurred over a ring or two.
    assert torch.allclose(found[:, 4:-1], power[:, 4:-1], rtol=0.15)


# ------------------------------------------------------------------------------------------------------ how far it sees


def spectra_with(signal: torch.Tensor) -> Spectra:
    """White noise of power 1 and a signal of some power per ring."""
    spectra = Spectra(1, len(signal))
    spectra.signal.copy_(signal)
    return spectra


@pytest.mark.parametrize("last", [6, 9, 13])
def test_rings_without_signal_are_left_out(last):
    """Up to a ring or two beyond the last one with signal: mean of three, and a margin."""
    box, rings = 48, torch.arange(25)
    signal = torch.where(rings <= last, 1.0, 0.0)
    found = resolved_frequency(spectra_with(signal), torch.full((25,), 1e-4), box)
    assert found == pytest.approx((last + 1 + MARGIN_RINGS) / box)


def test_signal_ends_before_a_gap():
    """Not at a zero of the CTF, but before a ring far out that stands alone."""
    signal = torch.where(torch.arange(41) < 12, 1.0, 0.0)
    signal[8:10] = 0  # a zero of the CTF
    signal[30] = 0.5  # an error of the noise's power
    found = resolved_frequency(spectra_with(signal), torch.full((41,), 1e-4), 80)
    assert found == pytest.approx((12 + MARGIN_RINGS) / 80)


def test_some_rings_are_always_looked_at():
    """Of noise alone an eighth of the box is kept; never beyond the Nyquist frequency."""
    nothing, all_of_it = torch.zeros(25), torch.ones(25)
    assert resolved_frequency(spectra_with(nothing), torch.zeros(25), 48) == pytest.approx((6 + MARGIN_RINGS) / 48)
    assert resolved_frequency(spectra_with(all_of_it), torch.zeros(25), 48) == 0.5


def test_chance_is_not_signal():
    """What is seen must stand out of its standard error."""
    signal = torch.where(torch.arange(25) == 8, 0.02, 0.0) + torch.where(torch.arange(25) < 5, 1.0, 0.0)
    near, far = (resolved_frequency(spectra_with(signal), torch.full((25,), e), 48) for e in (1e-2, 1e-4))
    assert near == pytest.approx((6 + MARGIN_RINGS) / 48) and far == pytest.approx((9 + MARGIN_RINGS) / 48)


def test_a_surplus_of_all_rings_is_not_signal():
    """Images divided by a noisy s.d. have a little too much power everywhere."""
    signal = torch.full((25,), 0.004) + torch.where(torch.arange(25) < 8, 1.0, 0.0)
    found = resolved_frequency(spectra_with(signal), torch.full((25,), 1e-4), 48)
    assert found == pytest.approx((8 + MARGIN_RINGS) / 48)


def test_the_standard_error_of_the_signal_is_that_of_repeats():
    """The spread of the measured signal over stacks of noise alone."""
    from emspatialvae.model.steerable.initialise import _measure

    n, box, generator = 200, 24, seeded()
    spec, plane = ImageSpec(box, 8.0, 1.0, 3.0), FourierPlane(box)
    found, errors = [], []
    for _ in range(40):
        batch = Batch.of(torch.randn(n, box, box, generator=generator).numpy(), np.zeros(n))
        spectra = Spectra(1, plane.rings)
        errors.append(_measure(spectra, plane, spec, lambda batch=batch: [batch]))
        means = plane.ring_means(plane.transform(batch.images[:, 0])).mean(0)
        found.append(means - spectra.noise[0])
    spread, said = torch.stack(found).std(0)[2:-1], torch.stack(errors).mean(0)[2:-1]
    ratio = spread / said
    # Noise is measured on the pixels outside, a part of the box with a soft spectrum: about as large as said.
    assert 0.5 < float(ratio.median()) < 1.5


@pytest.mark.parametrize("ctf_power", [None, 0.5])
def test_a_level_of_each_image_changes_nothing(ctf_power):
    """Backgrounds off by chance: the basis, and what it sees, stay what they are."""
    images = noisy_hinges(300, 5, 32)
    level = np.random.default_rng(0).normal(size=(300, 1, 1)).astype(np.float32)
    power = None if ctf_power is None else np.full((300, 17), ctf_power)
    spec = ImageSpec(32, 14.4, 1.5, 6.0)
    torch.manual_seed(0)
    batch, moved = (Batch.of(i, np.zeros(300), power) for i in (images, images + level))
    model = new_model(CONFIGS["z1"], spec, 1, lambda: [batch])
    still = Poses(torch.zeros(300), torch.zeros(300, 2))
    plain, other = (model.search.upright(model.observe(b), still) for b in (batch, moved))
    assert float((other - plain).abs().max()) < 1e-3 * float(plain.abs().max())
