"""How much memory is free, as the kernel's files tell it: of the machine, and of control groups of both versions."""

from pathlib import Path

import pytest

from emspatialvae.io import room

GB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * GB // 1024} kB\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_of_a_machine_without_limits(tmp_path):
    assert room.free_memory(machine(tmp_path, {})) == 8 * GB


def test_nothing_is_known_where_nothing_is_told(tmp_path):
    assert room.free_memory(tmp_path) is None


def test_a_group_of_version_2_and_the_one_around_it(tmp_path):
    """Slurm limits the job, the step within it has no limit of its own; file pages are given back when asked for."""
    job, step = "sys/fs/cgroup/job_7", "sys/fs/cgroup/job_7/step_0"
    files = {
        "proc/self/cgroup": "0::/job_7/step_0\n",
        f"{job}/memory.max": f"{4 * GB}\n",
        f"{job}/memory.current": f"{3 * GB}\n",
        f"{job}/memory.stat": f"anon 5\ninactive_file {GB}\n",
        f"{step}/memory.max": "max\n",
        f"{step}/memory.current": f"{3 * GB}\n",
    }
    assert room.free_memory(machine(tmp_path, files)) == 2 * GB


def test_a_group_of_version_1(tmp_path):
    own = "sys/fs/cgroup/memory/slurm"
    files = {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/slurm\n0::/\n",
        f"{own}/memory.limit_in_bytes": f"{3 * GB}",
        f"{own}/memory.usage_in_bytes": f"{GB}",
        f"{own}/memory.stat": f"total_inactive_file {GB // 2}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{7 * GB}",
    }
    assert room.free_memory(machine(tmp_path, files)) == 2.5 * GB


def test_a_container_sees_its_group_as_the_root(tmp_path):
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        "sys/fs/cgroup/memory.max": f"{GB}",
        "sys/fs/cgroup/memory.current": "0",
    }
    assert room.free_memory(machine(tmp_path, files)) == GB


def test_a_full_group_has_nothing_left(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GB}",
        "sys/fs/cgroup/memory.current": f"{2 * GB}",
    }
    assert room.free_memory(machine(tmp_path, files)) == 0


def test_the_disk_of_a_place_that_is_not_there_yet(tmp_path):
    free = room.free_disk(tmp_path / "run" / "cache")
    assert free is not None
    assert free == pytest.approx(room.free_disk(tmp_path), rel=0.05)
