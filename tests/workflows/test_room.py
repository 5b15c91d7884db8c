"""What is said beforehand about memory and disk."""

import re

import numpy as np
import pytest

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess.cache import prepared_images
from emspatialvae.preprocess.plan import decide
from emspatialvae.workflows import room


@pytest.fixture
def prepared(easy_stack):
    stack = load_particles(InputConfig(easy_stack / "particles.star"))
    return stack, decide(stack, PrepareConfig(), engine="steerable").preparation


def test_enough_is_said_and_too_little_is_a_warning(prepared, tmp_path, monkeypatch):
    _, preparation = prepared
    needed = room.memory_needed(1_000_000, preparation)
    monkeypatch.setattr(room.room, "free_disk", lambda _: 5_000_000_000)
    monkeypatch.setattr(room.room, "free_memory", lambda: needed)
    memory, disk = room.sentences(1_000_000, preparation, "float16", tmp_path)
    assert memory == "memory: needs about 1.9 GB, 1.9 GB are free"
    assert disk.startswith("disk: needs about 1.2 GB, 5.0 GB are free")
    monkeypatch.setattr(room.room, "free_memory", lambda: 1_000_000_000)
    monkeypatch.setattr(room.room, "free_disk", lambda _: 100_000_000)
    memory, disk = room.sentences(1_000_000, preparation, "float16", tmp_path)
    assert memory.startswith("warning: memory: needs about 1.9 GB, 1.0 GB are free; ")
    assert disk.startswith("warning: disk: needs about 1.2 GB, 0.1 GB are free (prepared images); ")
    monkeypatch.setattr(room.room, "free_memory", lambda: None)
    assert next(room.sentences(1_000_000, preparation, "float16", tmp_path)) == "memory: needs about 1.9 GB"


def test_the_estimate_meets_what_was_measured(prepared):
    """The peaks of benchmarks/README.md, within a fifth; another box than those of its tests may be wrong by more."""
    from dataclasses import replace

    _, preparation = prepared
    for box, n, peak_GB in ((32, 100_000, 0.68), (32, 1_000_000, 1.98), (64, 20_000, 1.55)):
        found = room.memory_needed(n, replace(preparation, box=box)) / 1e9
        assert found == pytest.approx(peak_GB, rel=0.2)


def test_the_time_holds_what_was_measured(prepared):
    """Whole commands of benchmarks/README.md."""
    from dataclasses import replace

    _, preparation = prepared
    for box, n, threads, seconds in (
        (64, 1_000_000, 2, 2772),  # hinges
        (64, 60_000, 2, 553),  # hinges
        (64, 4_000, 2, 132),  # hinges
        (64, 4_000, 1, 208),  # hinges
        (64, 4_554, 2, 374),  # beta-galactosidase
        (64, 4_554, 1, 640),  # beta-galactosidase
        (64, 6_000, 1, 355),  # the ribosome, views from all directions
        (40, 20_000, 2, 114),  # hinges
    ):
        least, most = room.time_needed(n, min(n, 200_000), replace(preparation, box=box), box, threads)
        assert 0.65 * least < seconds < most
        assert most < 9 * least


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_disk_is_what_the_cache_takes(prepared, tmp_path, dtype):
    stack, preparation = prepared
    prepared_images(stack, preparation, tmp_path / "cache", dtype)
    taken = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.npy"))
    needed = room.disk_needed(len(stack), preparation, dtype)
    assert needed <= taken <= needed + 4 * (256 + 16 * len(stack))
    assert np.dtype(dtype).itemsize * len(stack) * preparation.box**2 <= needed


def test_info_says_it(easy_stack, emsvae, monkeypatch):
    monkeypatch.setattr(room.room, "free_memory", lambda: 10_000_000)
    answer = emsvae.done("info", easy_stack / "particles.star")
    assert "  warning: memory: needs about 0.5 GB, 10 MB are free; " in answer.out
    assert "  disk: needs about " in answer.out
    assert re.search(r"^  time: about \d+ s to \d+ (s|min) on \d+ threads?, ", answer.out, re.MULTILINE)


def test_training_says_it_before_it_begins(easy_stack, tmp_path, monkeypatch):
    from emspatialvae.config import RunConfig
    from emspatialvae.workflows.begin_run import start_run

    monkeypatch.setattr(room.room, "free_memory", lambda: 10_000_000)
    said: list[str] = []
    start_run(RunConfig(InputConfig(easy_stack / "particles.star")), tmp_path / "run", say=said.append)
    assert any(line.startswith("  warning: memory: needs about 0.5 GB, 10 MB are free; ") for line in said)
    assert "warning: memory" in (tmp_path / "run" / "run.log").read_text()
