"""The measures of the spatial-VAE paper, against cases worked out by hand, and where `emsvae evaluate` prints them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from emspatialvae.analysis.accuracy.metrics import (
    best_pearson,
    circular_correlation,
    evaluate_latents,
    matched_accuracy,
)
from emspatialvae.imaging.geometry import Pose2D


def uniform(n: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, n)


# -------------------------------------------------------------------------------------------- circular correlation


@pytest.mark.parametrize("offset_deg", [0, 37, 180, -90])
def test_a_constant_offset_costs_nothing(offset_deg):
    a = uniform()
    assert circular_correlation(a, a + np.radians(offset_deg)) == pytest.approx(1)


def test_reflected_angles_are_minus_one():
    a = uniform()
    assert circular_correlation(a, 1.3 - a) == pytest.approx(-1)


def test_unrelated_angles_are_zero():
    assert abs(circular_correlation(uniform(seed=1), uniform(seed=2))) < 0.02


@pytest.mark.parametrize("sd", [0.1, 0.5, 1.0])
def test_uniform_angles_with_normal_noise(sd):
    """R of the difference is exp(-sd^2 / 2), R of the sum 0, and each sum of squares n / 2: so is the correlation."""
    a = uniform(200_000)
    b = a + sd * np.random.default_rng(3).standard_normal(len(a))
    assert circular_correlation(a, b) == pytest.approx(np.exp(-(sd**2) / 2), abs=0.01)


def test_four_angles_by_hand():
    """a = 0, 90, 180, 270 degrees have no mean direction; b is a but for the last, which is where the first is.

    R(a - b) and R(a + b) by hand: a - b = 0, 0, 0, 270: (3 - i) / 4; a + b = 0, 180, 0, 270: (1 - i) / 4.
    """
    a, b = np.radians([0, 90, 180, 270]), np.radians([0, 90, 180, 0])
    numerator = 4 * (abs(3 - 1j) - abs(1 - 1j)) / 4 / 2
    total, difference = np.angle(1 - 1j), np.angle(3 - 1j)
    spread = [np.sum(np.sin(x - m) ** 2) for x, m in ((a, (total + difference) / 2), (b, (total - difference) / 2))]
    assert circular_correlation(a, b) == pytest.approx(numerator / np.sqrt(spread[0] * spread[1]))
    assert circular_correlation(a, b) == pytest.approx(
        0.5 * (np.sqrt(10) - np.sqrt(2)) / np.sqrt(spread[0] * spread[1])
    )


def test_concentrated_angles_are_those_of_the_textbook():
    """With mean directions well defined the form with them gives the same."""
    rng = np.random.default_rng(4)
    a = 0.4 + 0.3 * rng.standard_normal(5000)
    b = a + 0.2 * rng.standard_normal(5000)
    sin_a, sin_b = (np.sin(x - np.angle(np.exp(1j * x).mean())) for x in (a, b))
    book = np.sum(sin_a * sin_b) / np.sqrt(np.sum(sin_a**2) * np.sum(sin_b**2))
    assert circular_correlation(a, b) == pytest.approx(book, abs=0.005)


# --------------------------------------------------------------------------------------------------- content, classes


def test_pearson_of_content_picks_a_coordinate_and_fits_nothing():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(10_000)
    noise = rng.standard_normal((10_000, 2))
    z = np.stack([noise[:, 0], -(truth + noise[:, 1])], 1)
    assert best_pearson(z, truth) == pytest.approx(np.sqrt(0.5), abs=0.02)  # the mirrored one, 1 part signal to 1 noise
    mixed = np.stack([truth + 3 * noise[:, 0], truth - 3 * noise[:, 0]], 1)  # their sum is the truth, exactly
    assert best_pearson(mixed, truth) == pytest.approx(np.sqrt(0.1), abs=0.03)
    assert best_pearson(np.zeros((5, 0)), np.arange(5.0)) == 0
    assert best_pearson(np.ones((5, 1)), np.arange(5.0)) == 0


def test_a_permutation_of_the_labels_is_right():
    truth = np.array([1, 1, 2, 2, 3, 3])
    assert matched_accuracy([7, 7, 5, 5, 1, 1], truth) == 1
    assert matched_accuracy(["b", "b", "a", "a", "c", "c"], truth) == 1


def test_accuracy_by_hand():
    """Class 1 holds a a b, class 2 holds b b a a a: 2 -> a and 1 -> b is right in 4 of 8, 1 -> a and 2 -> b as well.

    Greedy matching (2 -> a first) and the best one differ in the second case: 1 holds 5 a 4 b, 2 holds 4 a 0 b.
    """
    assert matched_accuracy([1, 1, 1, 2, 2, 2, 2, 2], list("aabbbaaa")) == pytest.approx(4 / 8)
    found = [1] * 9 + [2] * 4
    assert matched_accuracy(found, [*"aaaaabbbb", *"aaaa"]) == pytest.approx(8 / 13)


def test_classes_left_over_are_wrong():
    assert matched_accuracy([1, 2, 3, 3], ["a", "a", "b", "b"]) == pytest.approx(3 / 4)
    assert matched_accuracy([1, 1, 1, 1], ["a", "a", "b", "c"]) == pytest.approx(2 / 4)


def test_shifts_as_reported_keep_their_gauge():
    """An offset in the object's frame turns with the particle: the reported shifts follow the truth less, the others not."""
    rng = np.random.default_rng(0)
    n = 40_000
    z, theta, shift = rng.uniform(-1, 1, (n, 1)), rng.uniform(-np.pi, np.pi, n), rng.standard_normal((n, 2))
    moved = shift + np.stack([np.cos(theta), np.sin(theta)], 1) * np.sqrt(
        2
    )  # variance 1 along an axis, as the truth's own
    result = evaluate_latents(z, Pose2D(theta, moved), z, Pose2D(theta, shift))
    assert result.shift_pearson == pytest.approx((np.sqrt(0.5), np.sqrt(0.5)), abs=0.02)
    assert result.shift_r == pytest.approx((1, 1))
    still = evaluate_latents(z, Pose2D(theta, moved), z, Pose2D(theta, 0 * shift))
    assert still.shift_pearson == (None, None)


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def judged_run(tiny_run, easy_stack, tmp_path):
    """A copy of a run and of its truth, the run with classes that are the truth's but for their numbers and 4 particles."""
    run, truth = tmp_path / "run", tmp_path / "truth.star"
    shutil.copytree(tiny_run, run)
    table = pd.read_csv(run / "latents.csv", dtype={"image_name": str})
    true = np.arange(len(table)) % 3 + 1
    found = np.array([0, 2, 3, 1])[true]
    found[[0, 3, 6, 9]] = 3
    table["class_number"] = found
    table.to_csv(run / "latents.csv", index=False)
    text = (easy_stack / "truth.star").read_text().splitlines()
    last = max(k for k, line in enumerate(text) if line.startswith("_"))
    number = int(text[last].split("#")[1])
    rows = [f"{line} {label}" for line, label in zip([x for x in text[last + 1 :] if x.strip()], true, strict=True)]
    truth.write_text("\n".join([*text[: last + 1], f"_emsvaeTrueClass #{number + 1}", *rows, "", ""]))
    return run, truth


def test_evaluate_prints_the_papers_measures(judged_run, emsvae):
    run, truth = judged_run
    words = ("evaluate", run, "--truth", truth, "--oracle-particles", 0)
    said = emsvae.done(*words).out
    for name in ("z Pearson", "theta corr", "shift Pearson x", "shift Pearson y", "class accuracy"):
        assert name in said
    found = json.loads(emsvae.done(*words, "--json").out)
    assert found["class_accuracy"] == pytest.approx(44 / 48)
    assert len(found["shift_pearson"]) == 2
    assert 0 <= found["z_pearson"][0] <= 1


def test_without_classes_none_are_judged(tiny_run, easy_stack, emsvae):
    words = ("evaluate", tiny_run, "--truth", easy_stack / "truth.star", "--oracle-particles", 0)
    assert "class accuracy" not in emsvae.done(*words).out
    assert json.loads(emsvae.done(*words, "--json").out)["class_accuracy"] is None
