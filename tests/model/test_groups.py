"""What optics groups of few particles borrow from all others, and what those of many keep."""

import numpy as np
import pytest
import torch

from emspatialvae.config import (
    SimulateConfig,
)
from emspatialvae.model.batch import Batch
from emspatialvae.model.steerable.fourier_plane import FourierPlane
from emspatialvae.model.steerable.groups import (
    LEAST_SHARE,
    Reliability,
    between_variance,
    shrunk_scales,
    shrunk_spectra,
)
from emspatialvae.model.steerable.noise import Sums
from emspatialvae.model.steerable.observation import Spectra
from emspatialvae.results.read_run import read_latents
from emspatialvae.simulation.stack import simulate_stack

PLANE = FourierPlane(40)
RINGS = PLANE.rings - 1
SIZES = PLANE.ring_sizes[1:].float()
POOLED = 1 + 8 * torch.exp(-torch.arange(RINGS) / 4.0)
SURE = Reliability(SIZES)


def shrunk(ratio: torch.Tensor, particles: list[int], pooled: torch.Tensor = POOLED) -> torch.Tensor:
    """The power relative to the pooled one, of groups that show ``ratio`` [groups, rings] of it."""
    n = torch.tensor(particles, dtype=torch.float32)
    return shrunk_spectra(ratio * pooled, pooled, n[:, None].expand(ratio.shape), n, SURE) / pooled


def drawn(particles: list[int], truth: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What groups show by chance, relative to the pooled power; [groups, rings]."""
    n = torch.tensor(particles, dtype=torch.float32)[:, None]
    return truth * torch.distributions.Chi2(n * SIZES).sample() / (n * SIZES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------------- spectra


def test_a_group_without_particles_is_the_pooled_one_and_one_of_many_its_own():
    own = torch.stack(
        [torch.full((RINGS,), float("nan")), 1 + 0.6 * torch.sin(torch.arange(RINGS) / 2.0), torch.ones(RINGS)]
    )
    found = shrunk(own, [0, 100_000, 100_000])
    torch.testing.assert_close(found[0], torch.ones(RINGS))
    torch.testing.assert_close(found[1:], own[1:], rtol=0.01, atol=0)
    # However sharp a line of its spectrum is.
    own[1, 7] = 3.0
    assert float(shrunk(own, [0, 100_000, 100_000])[1, 7]) == pytest.approx(3.0, rel=0.02)


def test_two_particles_are_near_the_pooled_spectrum():
    """A hundred groups of two among many particles: alone, the power of a ring would be known to 10 to 70 %."""
    particles = [*[2] * 100, 1, 5000]
    own = drawn(particles, torch.ones(RINGS))
    found = shrunk(own, particles)
    assert float((own[:100] - 1).std()) > 0.15
    assert float((found - 1).abs().max()) < 0.1
    assert float((found[:100] - 1).std()) < 0.025
    alone = shrunk(drawn([1, 5000], torch.ones(RINGS)), [1, 5000])
    assert float((alone - 1).abs().max()) < 0.15


def test_one_particle_has_a_gain_but_no_spectrum_of_its_own():
    tilted = torch.linspace(1.5, 0.5, RINGS)
    louder = torch.full((RINGS,), 1.5)
    found = shrunk(torch.stack([louder, torch.ones(RINGS)]), [1, 5000])[0]
    assert 1.2 < float(found.mean()) < 1.5
    assert float(found.std()) < 0.03
    # A line of three times the power in one ring is no line of the noise.
    line = torch.ones(RINGS)
    line[8] = 3.0
    assert float(shrunk(torch.stack([line, torch.ones(RINGS)]), [1, 5000])[0].max()) < 1.3
    of_two = shrunk(torch.stack([tilted, torch.ones(RINGS)]), [2, 5000])[0]
    assert float((of_two - 1).abs().max()) < float((tilted - 1).abs().max())


@pytest.mark.parametrize("gain", [0.6, 1.5, 3.0])
def test_a_louder_group_of_fifty_keeps_its_gain(gain):
    particles = [50, *[2] * 30, 3000]
    truth = torch.ones(len(particles), RINGS)
    truth[0] = gain
    found = shrunk(drawn(particles, truth), particles)
    assert float(found[0].mean()) == pytest.approx(gain, rel=0.1)
    assert float((found[1:] - 1).abs().max()) < 0.15


def test_two_microscopes_keep_their_spectra():
    particles = [800, 700]
    truth = torch.stack([torch.linspace(0.5, 1.4, RINGS), torch.linspace(1.6, 0.6, RINGS)])
    found = shrunk(drawn(particles, truth), particles)
    torch.testing.assert_close(found, truth, rtol=0.07, atol=0)


def test_groups_that_scatter_alike_teach_how_much_groups_scatter():
    """Fifty groups, each 40 % louder or softer: one of few particles is believed more than where all others agree."""
    particles = [*[100] * 50, 3]
    gains = torch.exp(0.4 * torch.randn(51, 1)).expand(-1, RINGS).clone()
    gains[-1] = 1.6
    among_others = shrunk(drawn(particles, gains), particles)[-1].mean()
    gains[:-1] = 1.0
    among_equals = shrunk(drawn(particles, gains), particles)[-1].mean()
    assert float(among_others) > float(among_equals) + 0.1
    assert float(among_others) > 1.4


def test_no_group_is_without_noise():
    own = torch.stack([torch.full((RINGS,), 1e-4), torch.full((RINGS,), -2.0), torch.ones(RINGS)])
    found = shrunk(own, [500, 3, 500])
    assert float(found.min()) >= LEAST_SHARE - 1e-6


def test_between_variance_is_what_is_left_beyond_the_errors():
    off = 0.5 * torch.randn(4000, dtype=torch.float64) + 0.3 * torch.randn(4000, dtype=torch.float64)
    variance, share = torch.full_like(off, 0.09), torch.zeros_like(off)
    assert float(between_variance(off, variance, share, 0.4)) == pytest.approx(0.25, rel=0.15)
    assert float(between_variance(off[:0], variance[:0], share[:0], 0.4)) == pytest.approx(0.16)
    assert float(between_variance(0 * off, variance, share, 0.4)) == pytest.approx(1e-4)


@pytest.mark.parametrize("groups", [1, 700, 1400])
def test_how_much_a_particle_tells_is_seen_from_the_particles(groups):
    """The pixels of a ring, whatever the power of the groups; junk among them changes little."""
    n = 1400
    group = torch.arange(n) % groups
    power = POOLED * torch.distributions.Chi2(SIZES).sample((n,)) / SIZES
    found = Reliability.of(group, power, torch.ones(n, RINGS))
    torch.testing.assert_close(found.evidence, SIZES, rtol=0.25, atol=0)
    assert found.shape_variance < 0.03
    assert found.gain_variance < 0.004
    power[::200] *= 30
    assert float((Reliability.of(group, power, torch.ones(n, RINGS)).evidence / SIZES).min()) > 0.3
    gains = torch.exp(0.2 * torch.randn(n, 1))
    assert Reliability.of(group, gains * power, torch.ones(n, RINGS)).gain_variance == pytest.approx(0.04, abs=0.02)


def test_sums_over_groups_and_over_particles_give_the_same():
    n, group = 300, torch.arange(300) % 7
    power, weight = torch.rand(n, PLANE.rings), torch.rand(n, PLANE.rings)
    one_by_one, in_groups = Sums(7, PLANE.rings), Sums(7, PLANE.rings)
    one_by_one.add(group, power, weight)
    in_groups.add_sums(torch.arange(7), torch.zeros(7, PLANE.rings).index_add_(0, group, power), group, weight)
    in_groups.samples = one_by_one.samples
    found = one_by_one.noise()
    assert found.shape == (8, PLANE.rings)
    torch.testing.assert_close(found, in_groups.noise())
    torch.testing.assert_close(found[:, 0], found[:, 1])
    torch.testing.assert_close(found[-1, 1:], (power.sum(0) / weight.sum(0))[1:])


def test_a_group_that_nobody_knows_gets_the_pooled_noise():
    spectra = Spectra(2, PLANE.rings)
    rows = torch.stack([torch.full((PLANE.rings,), power) for power in (0.5, 2.0, 1.4)])
    spectra.set_noise(rows)
    found = spectra.noise_of(torch.tensor([1, 0, 2, 57]))
    torch.testing.assert_close(found, rows[[1, 0, 2, 2]])
    images = torch.randn(3, 40, 40)
    known, unknown = (
        spectra.observe(Batch.of(images.numpy(), np.array(group)), PLANE) for group in ([0, 1, 1], [0, 1, 9])
    )
    torch.testing.assert_close(known.plane[:2], unknown.plane[:2])
    torch.testing.assert_close(known.plane[2] * 2.0, unknown.plane[2] * 1.4)


# ---------------------------------------------------------------------------------------------------------- amplitudes


def scales(amplitudes: list[float], particles: list[int], evidence: float = 150.0) -> torch.Tensor:
    n = torch.tensor(particles, dtype=torch.float32)
    return shrunk_scales(torch.tensor(amplitudes) * n * evidence, n * evidence, n, 0.3)


def test_amplitudes_of_few_particles_are_near_one_and_those_of_many_their_own():
    found = scales([1.6, 0.5, 1.0], [1, 2, 3000])
    assert abs(float(found[0]) - 1) < 0.1
    assert abs(float(found[1]) - 1) < 0.12
    two = scales([1.25, 0.75], [1000, 1000])
    torch.testing.assert_close(two, torch.tensor([1.25, 0.75]), rtol=0.02, atol=0)
    fifty = scales([1.3, *[1.0] * 20], [50, *[100] * 20])
    assert 1.12 < float(fifty[0]) < 1.3
    n = torch.tensor([50.0, *[100.0] * 20])
    assert float((fifty * n).sum() / n.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(scales([0.0, 1.0], [0, 100])).all()


# -------------------------------------------------------------------------------------------------------- from end to end


def regrouped(folder, name, groups):
    """The simulated STAR file with other optics groups; ``groups`` [n] from 1."""
    text = (folder / "particles.star").read_text()
    optics, particles = text.split("data_particles")
    rows = [line for line in optics.splitlines() if line.startswith("1\t")]
    assert len(rows) == 1
    made = "\n".join(rows[0].replace("1\topticsGroup1", f"{g}\topticsGroup{g}", 1) for g in range(1, max(groups) + 1))
    lines, left = particles.splitlines(), iter(groups)
    lines = [f"{line.rpartition(chr(9))[0]}\t{next(left)}" if "@" in line else line for line in lines]
    (folder / name).write_text(optics.replace(rows[0], made) + "data_particles" + "\n".join(lines) + "\n")
    return folder / name


@pytest.mark.slow
def test_groups_of_two_and_a_stray_come_out_as_if_all_were_one(tmp_path, emsvae):
    """Their likelihoods and poses are those of one group; and groups that training did not see are looked at, too."""
    sim = SimulateConfig(
        "hinge", tmp_path / "sim", particles=400, box=24, snr=0.5, shift_px=1.0, noise_colour="coloured"
    )
    simulate_stack(sim)
    groups = [*[1] * 319, *np.repeat(np.arange(2, 42), 2).tolist(), 42]
    settings = (
        "--z-dim",
        1,
        "--epochs",
        3,
        "--hidden",
        32,
        "--encoder-hidden",
        32,
        "--device",
        "cpu",
        "--invert",
        "no",
    )
    found = {}
    for name, of in (("one", [1] * 400), ("many", groups)):
        star = regrouped(tmp_path / "sim", f"{name}.star", of)
        emsvae.done("train", star, "--out", tmp_path / name, *settings)
        found[name] = read_latents(tmp_path / name)[1]
    one, many = found["one"], found["many"]
    of_small = np.array(groups) > 1
    assert one.misfit is not None
    assert many.misfit is not None
    assert many.log_likelihood[of_small].mean() == pytest.approx(one.log_likelihood[of_small].mean(), rel=0.1)
    assert abs(many.misfit[of_small].mean() - one.misfit[of_small].mean()) < 0.5
    apart = np.degrees(np.angle(np.exp(1j * (many.pose.theta_rad - one.pose.theta_rad))))
    assert np.median(np.abs(apart - np.median(apart))[of_small]) < 5
    # Names decide which group is which; what none of them knows is seen with the noise of all.
    other = regrouped(tmp_path / "sim", "other.star", [7] * 200 + [99] * 200)
    said = emsvae.done("infer", tmp_path / "many", other, "--out", tmp_path / "seen.star").out
    assert "did not occur in training: the noise of all particles of the run is taken" in said
    assert "opticsGroup99" in said
