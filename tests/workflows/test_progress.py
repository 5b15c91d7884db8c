"""What is said of a training that nobody watches on a terminal."""

import pytest

from emspatialvae.workflows import progress
from emspatialvae.workflows.progress import TrainingBar

MEANS = [5.0, 2.0, 0.0, 0.0]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    return now


def steps(shown: TrainingBar, clock: list[float], epoch: int, seconds: float, elbos: list[float]) -> None:
    for elbo in elbos:
        shown.show(epoch, 200, [elbo, *MEANS[1:]])
        clock[0] += seconds


def test_epochs_are_told_when_they_are_over(clock):
    """With their last numbers and the rate of their steps, whatever the searches before them took."""
    said: list[str] = []
    with TrainingBar(10_000, open_end=False, say=said.append) as shown:
        clock[0] += 500  # consensus, search
        steps(shown, clock, 0, 2.0, [1.0, 2.0, 3.0])
        clock[0] += 60  # search
        assert said == []
        steps(shown, clock, 1, 1.0, [4.0, 5.0])
    assert said == ["epoch 1: ELBO 3.00, KL 2.00 z; 100 particles/s"]


def test_quick_epochs_are_not_all_told(clock):
    said: list[str] = []
    with TrainingBar(10_000, open_end=False, say=said.append) as shown:
        for epoch in range(25):
            steps(shown, clock, epoch, 0.5, [1.0, 1.0])
    assert [line.split(":")[0] for line in said] == ["epoch 10", "epoch 20"]


def test_an_epoch_of_one_step_has_no_rate(clock):
    said: list[str] = []
    with TrainingBar(10_000, open_end=False, say=said.append) as shown:
        steps(shown, clock, 0, 20.0, [1.0])
        steps(shown, clock, 1, 20.0, [1.0])
    assert said == ["epoch 1: ELBO 1.00, KL 2.00 z"]
