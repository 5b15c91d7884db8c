"""Every command and every line of Python of tutorials and how-to pages, in their order; smaller numbers where they train for long."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES, HOW_TO = ROOT / "docs" / "tutorials", ROOT / "docs" / "howto"
SMALLER = {
    "hinge": {
        "--particles 4000": "--particles 200",
        "--epochs 25": "--epochs 3",
        "--oracle-particles 100": "--oracle-particles 20",
    },
    "relion": {"--particles 1200": "--particles 200", "--epochs 12": "--epochs 3"},
    "cryosparc": {"--particles 1000": "--particles 200", "n = 1000": "n = 200", "--epochs 10": "--epochs 3"},
    "python": {"particles=2000": "particles=200", "epochs=12": "epochs=3"},
    "betagal": {
        "betagal_10017.star --out": "betagal_10017.star --limit 300 --epochs 2 --z-dim 2 --out",
        "--k 20": "--k 4",
    },
}
"""What is written on a page -> what is run."""
MADE = {
    "hinge": ["z_against_truth.png", "hinge.gif"],
    "relion": ["External/job001/RELION_OUTPUT_NODES.star", "Select/unbinned.star"],
    "cryosparc": ["chosen.cs", "all.cs"],
    "python": ["my_figure.png", "good.star"],
    "betagal": ["good.star", "rest.star", "betagal/analysis/report.html"],
}


def test_every_tutorial_is_run():
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} == set(SMALLER)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in SMALLER if n != "betagal"])
def test_every_command_of_a_tutorial(name, tmp_path):
    run(name, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.real
def test_every_command_of_the_tutorial_on_real_particles(real_data, tmp_path):
    for ending in ("star", "mrcs"):
        (tmp_path / f"betagal_10017.{ending}").symlink_to((real_data / "real" / f"betagal_10017.{ending}").resolve())
    run("betagal", tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The particles and the run that all how-to pages begin with."""
    folder = tmp_path_factory.mktemp("howto")
    run_page(HOW_TO / "index.md", folder)
    return folder / "project"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(HOW_TO.glob("*.md")) - {HOW_TO / "index.md"}), ids=lambda page: page.stem)
def test_every_command_of_a_how_to(page, project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    run_page(page, folder)
    written = [word for word in re.findall(r"--out (\S+)", page.read_text()) if "..." not in word]
    assert [name for name in written if not (folder / name).exists()] == []


SBATCH = """\
#!/bin/sh
# Gives a job two tasks, as Slurm would: one node, two ranks.
script=$1; shift
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=localhost SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_CPUS_PER_TASK=1
exec bash "$script" "$@"
"""
SRUN = """\
#!/bin/sh
shift  # --kill-on-bad-exit=0
(SLURM_PROCID=1 SLURM_LOCALID=1 "$@") & other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; first=$?
wait $other || exit $?
exit $first
"""
SLURM = {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/sh\necho localhost\n"}
"""Programs of Slurm that do what the page's script asks of them, on this machine."""


@pytest.mark.slow
def test_every_command_of_the_page_on_clusters(project, tmp_path):
    """With two ranks. The second command finds the run of the first and goes on with it."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in SLURM.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")
    smaller = {"--nproc-per-node 4": "--nproc-per-node 2", "--threads 1": "--threads 1 --epochs 2"}
    run_page(ROOT / "docs" / "cluster.md", folder, smaller)
    log = (folder / "run" / "run.log").read_text()
    assert "2 ranks" in log and "going on with run" in log
    assert log.count("results: ") == 2


def run(name: str, folder: Path) -> None:
    run_page(PAGES / f"{name}.md", folder, SMALLER[name])
    assert [file for file in MADE[name] if not (folder / file).exists()] == []


def run_page(page: Path, folder: Path, smaller: dict[str, str] | None = None) -> None:
    text = page.read_text()
    for written, instead in (smaller or {}).items():
        assert written in text
        text = text.replace(written, instead)
    blocks = re.findall(r"^( *)```(bash|python)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    blocks = [(language, textwrap.dedent(block)) for _, language, block in blocks]
    assert blocks
    python = folder / "page.py"  # blocks of a page go on from one another
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "emsvae").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m emspatialvae "$@"\n')
    (bin_ / "emsvae").chmod(0o755)
    path = os.pathsep.join((str(bin_), os.environ["PATH"]))
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    kept: list[str] = []

    def call(command: list[str]) -> None:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def call_python() -> None:
        if kept:
            python.write_text("\n".join(kept))
            call([sys.executable, str(python)])
            kept.clear()

    for language, block in blocks:
        if language == "python":
            kept.append(block)
        elif "relion_stack_create" not in block or shutil.which("relion_stack_create"):
            call_python()
            call(["bash", "-euc", block])
    call_python()
