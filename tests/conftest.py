"""Fixtures that several test files share."""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

# A worker of pytest-xdist per core: more threads than that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real particle files: ``$EMSVAE_TEST_DATA``, or ``shared/data`` beside the checkout; skips without."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EMSVAE_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real particle files here; point EMSVAE_TEST_DATA at them")
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command came back with."""

    code: int
    out: str
    err: str


class Emsvae:
    """The command line in this process: calling it runs a command, `refused` also holds it to the rules for bad input."""

    TINY = ("--epochs", "2", "--hidden", "16", "--encoder-hidden", "16", "--device", "cpu", "--infer-turns", "2")
    """Flags of a training that takes no time."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> Answer:
        from emspatialvae.cli.main import main

        self.capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *self.capsys.readouterr())

    def done(self, *words: object) -> Answer:
        """Run a command that must succeed."""
        answer = self(*words)
        assert answer.code == 0, answer.err
        return answer

    def refused(self, *words: object) -> str:
        """Run a command on bad input: exit code 2, one line on stderr (returned), every file under the current folder as before."""
        before = contents(Path.cwd())
        answer = self(*words)
        assert answer.code == 2, answer
        assert contents(Path.cwd()) == before
        lines = answer.err.splitlines()
        assert len(lines) == 1, answer.err
        assert lines[0].startswith("emsvae: ")
        return lines[0]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file (and folder: None) below a folder with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def emsvae(capsys: pytest.CaptureFixture[str]) -> Emsvae:
    """The command line; see `Emsvae`."""
    return Emsvae(capsys)


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process draw nothing, which is most of the time of a tiny one, but in tests that are marked ``draws``."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr("emspatialvae.workflows.finish_run._draw", lambda *_: None)


@pytest.fixture(scope="session")
def easy_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `emsvae simulate`: 48 hinges of 24 px at SNR 1. Copy it before you change it."""
    from emspatialvae.config import SimulateConfig
    from emspatialvae.simulation.stack import simulate_stack

    out = tmp_path_factory.mktemp("easy") / "sim"
    return simulate_stack(SimulateConfig("hinge", out, particles=48, box=24, snr=1.0, shift_px=1.0))


@pytest.fixture(scope="session")
def clear_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `emsvae simulate`: 200 hinges of 24 px at SNR 2, enough for a few epochs to see them. Copy it before you change it."""
    from emspatialvae.config import SimulateConfig
    from emspatialvae.simulation.stack import simulate_stack

    out = tmp_path_factory.mktemp("clear") / "sim"
    return simulate_stack(SimulateConfig("hinge", out, particles=200, box=24, snr=2.0, shift_px=1.0))


@pytest.fixture(scope="session")
def tiny_run(easy_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on `easy_stack`, figures and all. Copy it before you change it."""
    from emspatialvae.cli.main import main

    out = tmp_path_factory.mktemp("tiny") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", str(easy_stack / "particles.star"), "--out", str(out), *Emsvae.TINY]) == 0
    return out
