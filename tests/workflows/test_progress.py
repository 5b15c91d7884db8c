"""What is said of a training that nobody watches on a terminal."""

import pytest

from emspatialvae.workflows import progress
from emspatialvae.workflows.progress import TrainingBar, bar

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
    assert said[1:] == ["epoch 2: ELBO 5.00, KL 2.00 z; 200 particles/s"]


def test_each_epoch_is_a_line(clock):
    """Also of a quick training, and the last one: a log file is read by programs."""
    said: list[str] = []
    with TrainingBar(10_000, open_end=False, say=said.append) as shown:
        for epoch in range(25):
            steps(shown, clock, epoch, 0.5, [1.0, 1.0])
    assert [line.split(":")[0] for line in said] == [f"epoch {number}" for number in range(1, 26)]


def test_an_epoch_that_failed_is_not_told(clock):
    said: list[str] = []
    with pytest.raises(ValueError, match="lost"), TrainingBar(10_000, open_end=False, say=said.append) as shown:
        steps(shown, clock, 0, 1.0, [1.0])
        raise ValueError("lost")
    assert said == []


def test_an_epoch_of_one_step_has_no_rate(clock):
    said: list[str] = []
    with TrainingBar(10_000, open_end=False, say=said.append) as shown:
        steps(shown, clock, 0, 20.0, [1.0])
    assert said == ["epoch 1: ELBO 1.00, KL 2.00 z"]


def test_long_preparations_say_a_few_lines(clock, capsys):
    """After 30 s, 60 s, 120 s ...: 11 lines would be 3 hours. What is done at once says nothing, and no carriage return is written."""
    with bar(10_000, "preparing images") as progress:
        for _ in range(100):
            clock[0] += 2.0
            progress(100)
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert lines.splitlines() == [
        f"preparing images: {done} of 10,000 particles, about {left} left"
        for done, left in (("1,500", "3 min"), ("3,000", "2 min"), ("6,000", "80 s"))
    ]
    with bar(10_000, "preparing images") as progress:
        for _ in range(100):
            clock[0] += 0.2
            progress(100)
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_no_carriage_returns(easy_stack, tmp_path, emsvae):
    """The whole command as a queue runs it: a line for each of five epochs, in its output and in run.log."""
    stack, out = easy_stack / "particles.star", tmp_path / "run"
    answer = emsvae.done("train", stack, "--out", out, *emsvae.TINY, "--epochs", "5")
    assert "\r" not in answer.out + answer.err
    for text in (answer.out, (out / "run.log").read_text()):
        assert [f"epoch {number}: ELBO" in text for number in range(1, 7)] == [True] * 5 + [False]
