"""Modes of a posterior over poses: doubles, means on the circle, and what two of them say together."""

import math

import pytest
import torch

from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.interface import Estimate
from emspatialvae.model.steerable.modes import AGREED, IMPOSSIBLE, best_of, mean_of_two, mixture, without_doubles
from emspatialvae.model.steerable.poses import Poses


def content(z: float, theta: float, shift: float = 0.0, n: int = 1) -> LatentAndPose:
    return LatentAndPose(torch.full((n, 1), z), torch.full((n,), theta), torch.full((n, 2), shift))


def test_modes_that_met_count_once():
    theta = torch.tensor([[0.0, 0.1, 3.0], [3.1, -3.1, 0.0], [0.0, 0.0, 0.0]])
    shift = torch.zeros(3, 3, 2)
    shift[2, 1] = torch.tensor([5.0, 0.0])
    evidence = torch.tensor([[1.0, 2.0, 0.0], [7.0, 7.0, 1.0], [4.0, 3.0, 4.0]])
    found = without_doubles(evidence, Poses(theta, shift))
    gone = IMPOSSIBLE
    assert found.tolist() == [[gone, 2, 0], [7, gone, 1], [4, 3, gone]]


def test_a_mode_far_in_shift_or_angle_is_another_one():
    theta = torch.tensor([[0.0, 0.3, 0.4], [0.0, 0.0, 0.0]])
    shift = torch.zeros(2, 3, 2)
    shift[1, 1, 0], shift[1, 2, 0] = 1.9, 2.1
    found = without_doubles(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), Poses(theta, shift))
    # The third is near the second, which is none itself: it ended where a better one lies all the same.
    assert found.tolist() == [[3, IMPOSSIBLE, IMPOSSIBLE], [3, IMPOSSIBLE, IMPOSSIBLE]]


def test_a_mixture_is_a_mean_on_the_circle():
    poses = Poses(torch.tensor([[3.1, -3.1], [0.2, 0.6]]), torch.tensor([[[1.0, 0], [3, 0]], [[0, 2], [0, -2]]]))
    found = mixture(poses, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert float(found.theta_rad[0].abs()) == pytest.approx(math.pi, abs=1e-5)
    assert float(found.theta_rad[1]) == pytest.approx(0.2, abs=1e-6)
    assert found.shift_px.tolist() == [[2, 0], [0, 2]]


def test_modes_that_agree_are_averaged():
    """z and the s.d. of z always; the pose where its mean means something."""
    a, b = content(0.0, 0.2, 1.0), content(1.0, 0.6, 2.0)
    sd_a, sd_b = content(0.3, 0.1, 0.2), content(0.4, 0.2, 0.3)
    mean, sd = mean_of_two(a, sd_a, b, sd_b, torch.tensor([[0.75, 0.25]]))
    assert float(mean.z) == pytest.approx(0.25)
    assert float(sd.z) ** 2 == pytest.approx(0.75 * (0.3**2 + 0.25**2) + 0.25 * (0.4**2 + 0.75**2))
    direction = 0.75 * complex(math.cos(0.2), math.sin(0.2)) + 0.25 * complex(math.cos(0.6), math.sin(0.6))
    assert float(mean.theta_rad) == pytest.approx(math.atan2(direction.imag, direction.real), abs=1e-6)
    assert mean.shift_px[0].tolist() == pytest.approx([1.25, 1.25])
    assert float(sd.theta_rad) == pytest.approx(0.1) and sd.shift_px[0].tolist() == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(("weight", "best"), [(0.55, 0), (0.45, 1)])
def test_of_modes_upside_down_to_each_other_the_better_is_kept(weight, best):
    """Their mean angle would be nobody's; the length of their mean is below the limit."""
    assert abs(2 * weight - 1) < AGREED
    poses = (content(0.0, 0.2, 1.0), content(1.0, 0.2 - math.pi, 2.0))
    mean, _ = mean_of_two(
        poses[0], content(0.1, 0.1), poses[1], content(0.1, 0.2), torch.tensor([[weight, 1 - weight]])
    )
    assert float(mean.theta_rad) == pytest.approx(float(poses[best].theta_rad), abs=1e-6)
    assert mean.shift_px[0].tolist() == poses[best].shift_px[0].tolist()
    assert float(mean.z) == pytest.approx(1 - weight)


def test_the_best_mode_has_its_share_of_the_evidence():
    """Two particles, three modes each; only the second particle's rival was looked at closely, and turned out better."""
    first = Estimate(content(0.0, 0.1, n=2), content(0.2, 0.1, n=2), torch.tensor([12.0, 10.0]), misfit=torch.zeros(2))
    second = Estimate(content(1.0, 3.0), content(0.2, 0.2), torch.tensor([13.0]))
    rough = torch.tensor([[11.0, 2.0, IMPOSSIBLE], [9.0, 8.0, 6.0]])
    found = best_of(first, second, torch.tensor([1]), rough)
    assert found.peak_weight is not None
    # Rough evidence rises by what the best mode gained: by 1 in both.
    alone, rival = torch.softmax(torch.tensor([12.0, 3.0]), 0), torch.softmax(torch.tensor([10.0, 13.0, 7.0]), 0)
    assert found.peak_weight.tolist() == pytest.approx([float(alone.max()), float(rival.max())], abs=1e-6)
    total = [float(torch.logsumexp(torch.tensor(e), 0)) for e in ([12.0, 3.0], [10.0, 13.0, 7.0])]
    assert found.log_likelihood.tolist() == pytest.approx(total, abs=1e-5)
    assert float(found.mean.theta_rad[0]) == pytest.approx(0.1)
    assert float(found.mean.theta_rad[1]) == pytest.approx(3.0, abs=0.06)
    assert rough[1].tolist() == [9, 8, 6]
    assert float(found.mean.z[1]) == pytest.approx(float(torch.sigmoid(torch.tensor(3.0))), abs=1e-6)


def test_without_a_rival_the_best_is_all_there_is():
    first = Estimate(content(0.5, 1.0, 2.0), content(0.2, 0.1), torch.tensor([5.0]), misfit=torch.ones(1))
    found = best_of(first, None, torch.zeros(0, dtype=torch.long), torch.tensor([[4.0, IMPOSSIBLE]]))
    assert found.mean is first.mean and found.sd is first.sd
    assert found.peak_weight is not None and float(found.peak_weight) == 1 and float(found.misfit) == 1
