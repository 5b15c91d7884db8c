"""`emsvae relion-job` as an External job of RELION's own pipeline, run by `relion_pipeliner` in a scratch project."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emspatialvae.io.star import StarFile

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="RELION is not installed"),
]

FINISHED, FAILED, ABORTED = "2", "3", "4"
"""rlnPipeLineProcessStatus of RELION 3.1."""
JOB = Path("External/job001")
TINY = "--epochs 2 --hidden 16 --encoder-hidden 16 --infer-turns 2"


class Project:
    """A RELION project with particles in Extract/job000, and External jobs in it."""

    def __init__(self, root: Path, stack: Path) -> None:
        self.root = root
        (root / "Extract" / "job000").mkdir(parents=True)
        shutil.copy(stack / "particles.mrcs", root / "Extract" / "job000")
        # As RELION has it: names of images are relative to the project, not to the STAR file.
        text = (stack / "particles.star").read_text().replace("@particles.mrcs", "@Extract/job000/particles.mrcs")
        (root / "Extract" / "job000" / "particles.star").write_text(text)
        (root / "default_pipeline.star").write_text("\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 1\n\n")

    def add(self, parameters: dict[str, str], arguments: str = "") -> None:
        """Add an External job with ``parameters`` (label -> value) and more ``arguments``, as one fills in its form in the GUI."""
        options = {
            "fn_exe": f"{sys.executable} -m emspatialvae relion-job",
            "in_part": "Extract/job000/particles.star",
            "nr_threads": "1",
            "other_args": f"{TINY} {arguments}",
        }
        for number, (label, value) in enumerate(parameters.items(), 1):
            options |= {f"param{number}_label": label, f"param{number}_value": value}
        rows = "".join(f'{name} "{value}"\n' for name, value in options.items())
        (self.root / "external.star").write_text(
            "data_job\n\n_rlnJobType 99\n_rlnJobIsContinue 0\n\n"
            f"data_joboptions_values\n\nloop_\n_rlnJobOptionVariable #1\n_rlnJobOptionValue #2\n{rows}\n"
        )
        subprocess.run(["relion_pipeliner", "--addJobFromStar", "external.star"], cwd=self.root, check=True, timeout=60)

    def start(self) -> subprocess.Popen[bytes]:
        """Let RELION run the job; the process ends when RELION sees that the job has."""
        words = ["relion_pipeliner", "--RunJobs", f"{JOB}/", "--sec_wait_after", "1"]
        return subprocess.Popen(words, cwd=self.root, stdout=subprocess.DEVNULL)

    def run(self) -> None:
        self.start().wait(120)

    def pairs(self, block: str, first: str, second: str) -> list[tuple[str, str]]:
        """Two columns of ``default_pipeline.star``, side by side."""
        columns = StarFile.read(self.root / "default_pipeline.star").block(block).columns(first, second)
        return list(zip(columns[first], columns[second], strict=True))

    @property
    def status(self) -> str:
        name = f"{JOB}/"
        return dict(self.pairs("pipeline_processes", "rlnPipeLineProcessName", "rlnPipeLineProcessStatus"))[name]

    def read(self, name: str) -> str:
        return (self.root / JOB / name).read_text()


@pytest.fixture
def project(tmp_path, easy_stack) -> Project:
    return Project(tmp_path, easy_stack)


def images(file: Path) -> list[str]:
    return StarFile.read(file).block("particles").columns("rlnImageName")["rlnImageName"]


def test_an_external_job_from_start_to_node_and_once_more(project):
    project.add({"z_dim": "3", "no-rotate": "", "classes": "3"})
    project.run()
    assert project.status == FINISHED, project.read("run.err")
    node, model, averages = (
        f"{JOB}/{name}" for name in ("particles.star", "run/classes/run_model.star", "run/classes/classes.mrcs")
    )
    known = dict(project.pairs("pipeline_nodes", "rlnPipeLineNodeName", "rlnPipeLineNodeType"))
    assert (known[node], known[model], known[averages]) == ("3", "8", "5")
    assert project.pairs("pipeline_output_edges", "rlnPipeLineEdgeProcess", "rlnPipeLineEdgeToNode") == [
        (f"{JOB}/", made) for made in (node, model, averages)
    ]
    assert (project.root / ".Nodes" / "3" / node).exists()  # where the GUI's browse button looks
    assert project.read("run.err") == ""
    assert "External/job001/run/particles.star, figures in" in project.read("run.out")
    assert images(project.root / node) == images(project.root / "Extract/job000/particles.star")
    assert "emsvaeZ3" in StarFile.read(project.root / node).block("particles").labels
    assert json.loads(project.read("run/config.json"))["config"]["model"]["rotate"] is False
    written = (project.root / node).read_bytes()
    project.run()  # RELION's "Continue" runs the same command in the same folder
    assert project.status == FINISHED, project.read("run.err")
    assert "going on with External/job001/run" in project.read("run.out")
    assert (project.root / node).read_bytes() == written


def test_a_job_that_cannot_work_is_shown_as_failed(project):
    project.add({"z_dim": "0"})
    project.run()
    assert project.status == FAILED
    assert project.read("run.err") == "emsvae: --z-dim is 0; expected a number above 0\n"
    assert not (project.root / JOB / "particles.star").exists()


@pytest.mark.slow
def test_abort_running(project):
    project.add({}, "--epochs 100000")
    pipeliner = project.start()
    until = time.monotonic() + 60
    while not (project.root / JOB / "run" / "metrics.csv").exists():
        assert time.monotonic() < until, project.read("run.err")
        time.sleep(0.2)
    (project.root / JOB / "RELION_JOB_ABORT_NOW").touch()
    assert pipeliner.wait(60) == 0
    assert project.status == ABORTED, project.read("run.err")
    assert "interrupted" in project.read("run.out")
    assert (project.root / JOB / "particles.star").exists()
