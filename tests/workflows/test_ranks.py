"""Several processes train and infer together, as torchrun starts them: the result is that of one process, and nothing hangs or is lost."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from emspatialvae.cli.main import main
from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs import ranks
from emspatialvae.jobs.ranks import ALONE, Ranks, of_environment
from emspatialvae.particles.load import load_particles
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.run_images import images_of_rank
from tests.conftest import Emsvae

FLAGS = (*Emsvae.TINY[2:], "--z-dim", "1", "--threads", "1")
PATIENCE_S = 200


def start(
    count: int,
    *words: object,
    others: tuple[object, ...] | None = None,
    program: tuple[str, ...] = ("-m", "emspatialvae"),
) -> list[subprocess.Popen[str]]:
    """As many ranks of one command, as torchrun sets them up; all but the first may be given other words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, others if rank and others else words)],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    told = [process.communicate(timeout=PATIENCE_S) for process in processes]
    return [(process.returncode, *words) for process, words in zip(processes, told, strict=True)]


def done(count: int, *words: object) -> str:
    """What the first rank printed; all must end well, and the others print nothing."""
    first, *others = ended(start(count, *words))
    assert first[0] == 0, first[2]
    assert all(code == 0 and out == "" for code, out, _ in others), others
    return first[1]


def same(one: Path, other: Path) -> None:
    """Results that differ by no more than what another order of summation makes of them."""
    a, b = pd.read_csv(one / "latents.csv"), pd.read_csv(other / "latents.csv")
    assert (a.image_name == b.image_name).all()
    np.testing.assert_allclose(a.z1, b.z1, atol=0.02 * a.z1_sd.median())
    turn = np.angle(np.exp(1j * (a.theta_rad - b.theta_rad)))
    assert np.abs(turn).max() < 0.02 * a.theta_sd_rad.median()
    np.testing.assert_allclose(a.shift_x_A, b.shift_x_A, atol=0.02 * a.shift_x_sd_A.median())
    np.testing.assert_allclose(a.junk, b.junk, atol=0.01)
    metrics = [pd.read_csv(folder / "metrics.csv") for folder in (one, other)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def alone(clear_stack, tmp_path_factory):
    """A stack of particles, and a run on it by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", str(clear_stack / "particles.star"), "--out", str(out), "--epochs", "2", *FLAGS]) == 0
    return clear_stack / "particles.star", out


def test_two_ranks_train_and_infer_as_one_process_does(alone, tmp_path):
    particles, run = alone
    told = done(2, "train", particles, "--out", tmp_path / "two", "--epochs", "2", *FLAGS)
    assert "2 ranks" in told and told.count("results:") == 1
    same(run, tmp_path / "two")

    done(2, "infer", run, particles, "--out", tmp_path / "two.csv")
    assert main(["infer", str(run), str(particles), "--out", str(tmp_path / "one.csv")]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "one.csv"), pd.read_csv(tmp_path / "two.csv"))


def test_two_ranks_make_the_classes_of_one(alone, tmp_path):
    particles, run = alone
    pair = [tmp_path / name for name in ("one", "two")]
    for copy in pair:
        shutil.copytree(run, copy)
    assert main(["classes", str(pair[0]), "--k", "3", "--project-dir", str(particles.parent)]) == 0
    told = done(2, "classes", pair[1], "--k", "3", "--project-dir", particles.parent)
    assert told.count("class  particles") <= 1 and "classes.mrcs" in told
    one, two = (pd.read_csv(copy / "classes" / "classes.csv") for copy in pair)
    pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-4)
    images = [mrcfile.read(copy / "classes" / "classes.mrcs") for copy in pair]
    np.testing.assert_allclose(*images, atol=1e-3)
    assert (pair[0] / "particles.star").read_text() == (pair[1] / "particles.star").read_text()

    told = ended(start(2, "classes", pair[1], "--k", "100000", "--project-dir", particles.parent))
    lines = [line for _, _, errors in told for line in errors.splitlines() if line.startswith("emsvae:")]
    assert [code for code, _, _ in told] == [2, 2]
    assert len(lines) == 1 and "--k 100000" in lines[0]


@pytest.mark.slow
def test_four_ranks_are_as_good_and_a_run_goes_on_with_another_number(alone, tmp_path):
    particles, run = alone
    done(4, "train", particles, "--out", tmp_path / "run", "--epochs", "2", *FLAGS)
    same(run, tmp_path / "run")
    done(2, "train", particles, "--out", tmp_path / "run", "--resume", "--epochs", "3")
    assert main(["train", str(particles), "--out", str(tmp_path / "long"), "--epochs", "3", *FLAGS]) == 0
    same(tmp_path / "long", tmp_path / "run")


def test_ranks_that_see_different_particles_are_refused_by_one_line(alone, tmp_path):
    particles, _ = alone
    fewer = tmp_path / "fewer.star"
    fewer.write_text("\n".join(particles.read_text().rstrip().splitlines()[:-5]) + "\n")
    words = ("--project-dir", particles.parent, "--out", tmp_path / "run", "--epochs", "1", *FLAGS)
    told = ended(start(2, "train", particles, *words, others=("train", fewer, *words)))
    assert [code for code, _, _ in told] == [2, 2]
    lines = [line for _, _, errors in told for line in errors.splitlines() if line.startswith("emsvae:")]
    assert len(lines) == 1 and "see different particles" in lines[0]


@pytest.mark.slow
def test_more_ranks_than_particles_are_refused_by_one_line(alone, tmp_path):
    particles, _ = alone
    told = ended(start(3, "train", particles, "--limit", "2", "--out", tmp_path / "run", "--epochs", "1", *FLAGS))
    assert [code for code, _, _ in told] == [2, 2, 2]
    lines = [line for _, _, errors in told for line in errors.splitlines() if line.startswith("emsvae:")]
    assert len(lines) == 1 and "3 ranks for 2 particles" in lines[0]


def begun(run: Path) -> None:
    """Wait until a training has ended its first epoch."""
    until = time.monotonic() + PATIENCE_S
    while not (run / "metrics.csv").exists():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_run_goes_on(alone, tmp_path):
    particles, _ = alone
    ranks = start(2, "train", particles, "--out", tmp_path / "run", "--epochs", "500", *FLAGS)
    begun(tmp_path / "run")
    ranks[1].kill()
    code, _, errors = ended(ranks)[0]
    assert code == 2 and "another rank has ended before its time" in errors and "Traceback" not in errors
    assert main(["train", str(particles), "--out", str(tmp_path / "run"), "--resume", "--epochs", "2"]) == 0
    assert (tmp_path / "run" / "latents.csv").is_file()


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_with_results(alone, tmp_path):
    """As with Slurm's warning before a job's time is up: the whole step in all ranks, then the results."""
    particles, _ = alone
    ranks = start(2, "train", particles, "--out", tmp_path / "run", "--epochs", "500", *FLAGS)
    begun(tmp_path / "run")
    ranks[1].send_signal(signal.SIGUSR1)
    told = ended(ranks)
    assert told[1][0] == 138 and "interrupted" in told[0][1]
    assert len(pd.read_csv(tmp_path / "run" / "latents.csv")) == RunDir(tmp_path / "run").manifest.n_particles


# --------------------------------------------------------------------------------------------------------- in one process


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_half_a_set_of_variables_is_refused(environment, said):
    with pytest.raises(EmsvaeError, match=said):
        of_environment(environment)


def test_without_torchrun_a_process_is_alone():
    assert of_environment({}) == of_environment({"RANK": "3"}) == ALONE
    assert of_environment({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    found = of_environment(
        {
            "WORLD_SIZE": "4",
            "RANK": "3",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "a",
            "MASTER_PORT": "1",
        }
    )
    assert found == Ranks(3, 4, 1, 2) and not found.first


@pytest.mark.parametrize("total", [0, 1, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_come_back_in_order(monkeypatch, count, total):
    items = [f"item {number}" for number in range(total)]
    shares = [Ranks(rank, count).share(items) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    monkeypatch.setattr(Ranks, "exchanged", lambda self, mine: shares)
    for rank in range(count):
        assert Ranks(rank, count).in_order(shares[rank], total) == items


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_machine_with_a_disk_of_its_own_prepares_images_there(alone, tmp_path, monkeypatch, local_rank):
    """``--cache`` names a folder that the first machine has filled, and the second one has not."""
    particles, run = alone
    shutil.copytree(run, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    cache, stack = copy.path / "cache", load_particles(InputConfig(particles))
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr(Ranks, "exchanged", lambda self, mine: [(len(stack), 0)])
    monkeypatch.setattr(ranks, "_present", Ranks(2 + local_rank, 4, local_rank, 2))
    if local_rank:  # the first rank of this machine has put them where this one does not look
        with pytest.raises(EmsvaeError, match=re.escape(f"rank 3 on {socket.gethostname()} does not see")):
            images_of_rank(copy, stack)
    else:
        assert len(images_of_rank(copy, stack)) == len(stack)
        assert {file.name: file.read_bytes() for file in cache.iterdir()} == before


ONE_ERROR = """
import sys, time
from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs.ranks import joined
with joined() as team:
    time.sleep(0.4 * (team.rank == {late}))  # one meets it later than the other
    raise EmsvaeError({text})
"""


@pytest.mark.parametrize("late", [0, 1])
def test_one_rank_says_what_comes_up_in_all(late):
    told = ended(start(2, program=("-c", ONE_ERROR.format(late=late, text="'no signal'"))))
    last = [errors.strip().splitlines()[-1] for _, _, errors in told]
    assert "EmsvaeError: no signal" in last[1 - late] and "EndedElsewhere" in last[late]


def test_ranks_say_errors_of_their_own():
    told = ended(start(2, program=("-c", ONE_ERROR.format(late=0, text="f'rank {team.rank} sees nothing'"))))
    for rank, (_, _, errors) in enumerate(told):
        assert f"rank {rank} sees nothing" in errors.splitlines()[-1]


def test_what_every_rank_finds_wrong_is_one_line(alone, tmp_path):
    _, run = alone
    for words in (
        ("infer", run, tmp_path / "none.star", "--out", tmp_path / "out.csv"),
        ("classes", tmp_path),
    ):
        told = ended(start(2, *words))
        assert [code for code, _, _ in told] == [2, 2]
        lines = [line for _, _, errors in told for line in errors.splitlines()]
        assert len(lines) == 1 and str(tmp_path) in lines[0], lines


THREADS_LEFT = """
import glob, pathlib, torch
from emspatialvae.jobs.ranks import joined
with joined() as team:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = team.summed(torch.ones(3))
    torch.optim.Adam([weight]).step()
names = [pathlib.Path(name).read_text().strip() for name in glob.glob("/proc/self/task/*/comm")]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_outlives_the_ranks():
    """Threads of torch that are left when Python ends abort it every now and then."""
    for code, out, errors in ended(start(2, program=("-c", THREADS_LEFT))):
        assert (code, out) == (0, "[]\n"), errors


def test_a_command_for_one_process_runs_in_one(alone, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["info", str(alone[0])]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["info", str(alone[0])]) == 0
    shown = capsys.readouterr()
    assert "particles" in shown.out and "info works in one process" in shown.err


def test_the_script_for_slurm_is_one_that_a_shell_reads():
    script = Path(__file__).parents[2] / "examples" / "cluster" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert f"{name}=" in text
