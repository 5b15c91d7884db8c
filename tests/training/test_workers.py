"""Threads that share a batch: the same numbers however many they are, and no more of them than cores are idle."""

import threading
import time

import numpy as np
import pytest
import torch

from emspatialvae.results.read_run import read_latents
from emspatialvae.training import workers
from emspatialvae.training.workers import ALONE, worker_count, working

CPU = torch.device("cpu")


@pytest.fixture
def torch_threads():
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_items_come_back_in_their_order():
    def slow_first(item: int) -> int:
        time.sleep(0.05 * (item == 0))
        return 10 * item

    for count in (1, 3):
        with working(count, CPU) as some:
            assert some.each(slow_first, range(6)) == [0, 10, 20, 30, 40, 50]


def test_they_work_side_by_side_on_one_thread_each(torch_threads):
    torch_threads(2)
    meeting = threading.Barrier(2, timeout=20)
    with working(2, CPU) as some:

        def meet(_: int) -> int:
            meeting.wait()  # passed only if two are here at once
            return torch.get_num_threads()

        assert some.each(meet, range(4)) == [1] * 4
    assert torch.get_num_threads() == 2


def test_a_gpu_has_one_caller():
    with working(8, torch.device("cuda")) as some:
        assert some is ALONE
    assert worker_count(8, torch.device("cuda")) == (1, "")


@pytest.mark.parametrize(
    ("allowed", "idle", "count"), [(4, 4, 4), (4, 1, 1), (4, -1, 1), (2, 8, 2), (1, 8, 1), (64, 64, 16)]
)
def test_never_more_than_are_idle_or_allowed(monkeypatch, torch_threads, allowed, idle, count):
    torch_threads(allowed)
    monkeypatch.setattr(workers, "idle_cores", lambda: idle)
    found, said = worker_count(None, CPU)
    assert found == count
    assert said.startswith(f"{count} thread")


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(workers, "idle_cores", lambda: 0)
    assert worker_count(3, CPU)[0] == 3


def test_their_number_follows_the_machine_between_epochs(monkeypatch):
    """A program that is busy when a run begins does not leave hours of it on one thread."""
    idle, now, said = [1], [0.0], []
    monkeypatch.setattr(workers, "idle_cores", lambda: idle[0])
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    with working(1, CPU, most=2, say=said.append) as some, working(1, CPU, say=said.append) as fixed:
        idle[0] = 4
        some.follow()
        assert some.count == 1  # counted a moment ago
        now[0] += workers.FOLLOW_S + 1
        some.follow()
        fixed.follow()
        assert (some.count, fixed.count) == (2, 1)
        meeting = threading.Barrier(2, timeout=20)
        assert some.each(lambda _: meeting.wait() >= 0, range(2)) == [True, True]
        now[0] += workers.FOLLOW_S + 1
        some.follow()
        idle[0] = 0
        now[0] += workers.FOLLOW_S + 1
        some.follow()
        assert some.count == 1
    assert [line.split(" (")[0] for line in said] == [
        "from here on 2 threads on 4 cores",
        "from here on 1 thread, 0 of 4 cores are idle",
    ]


@pytest.mark.skipif(not workers.STAT.exists(), reason="only Linux says how long each core was idle")
def test_a_busy_core_is_not_idle(monkeypatch, tmp_path):
    """Two looks at the counters of a machine with four cores, one of them busy."""
    ticks = 100 * workers.WATCHED_S
    looks = iter([f"cpu 10 0 5 {1000 + 3 * n * ticks:.0f} 0 0 0\n" for n in (0, 1)])
    stat = tmp_path / "stat"

    def look(*_, **__) -> str:
        return next(looks)

    monkeypatch.setattr(type(stat), "read_text", look)
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    monkeypatch.setattr(workers.os, "sysconf", lambda _: 100)
    assert workers.idle_cores() == 3


def test_the_number_of_threads_does_not_change_a_result(emsvae, clear_stack, tmp_path):
    stack = clear_stack / "particles.star"
    for threads in (1, 3):
        emsvae.done("train", stack, *emsvae.TINY, "--out", tmp_path / f"run{threads}", "--threads", threads)
    (run1, one), (run3, three) = (read_latents(tmp_path / f"run{threads}") for threads in (1, 3))
    assert run1.metrics() == run3.metrics()
    # the gauge is fitted by operations that use all threads at once
    np.testing.assert_allclose(one.z, three.z, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.pose.theta_rad, three.pose.theta_rad, rtol=1e-5, atol=1e-7)
    assert "3 threads (--threads)" in (tmp_path / "run3" / "run.log").read_text()


def test_no_thread_is_no_number_of_threads(emsvae, easy_stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--threads" in emsvae.refused("train", easy_stack / "particles.star", "--threads", 0)
