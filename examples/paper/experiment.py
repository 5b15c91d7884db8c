"""What the rows share: settings of the paper, training through emsvae's own workflow, posing of images, tables."""

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from emspatialvae.inference.infer import load_model
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import to_json
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.results import read_run
from emspatialvae.results.latents import Latents, read_csv
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows import infer
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.train import train_run

NOT_RUN = "not run"
SIZES = ("small", "full")
"""What a table has a column for; "tiny" is for the tests, and none of its numbers is worth a look."""

Values = dict[str, Any]

REUSED_S: list[float] = []
"""Wall times of trainings that were finished before and not done again; a row's time is to count them."""

QUICK: dict[str, Any] = {"activation": "silu", "start_detail": 6.0}
"""What makes clean pictures appear in few steps: not the paper's, for sizes that cannot afford the paper's number of epochs."""


@dataclass(frozen=True)
class StackSize:
    """How much is done of an experiment with both engines on one stack."""

    images: int
    """Simulated; of a stack of the user's, all are taken."""
    coordinate_images: int
    """Of those to learn from, what the paper's models are trained on; the steerable engine gets all of them."""
    hidden: int
    epochs: int
    learning_rate: float
    steerable_epochs: int | None
    """None: until it has settled, as by default."""


@dataclass(frozen=True)
class Place:
    """Where a row finds and leaves things."""

    work: Path
    """Data and runs; can be deleted at any time."""
    mnist: Path
    """Folder of the idx files."""
    galaxies: Path | None = None
    """Folder of Galaxy Zoo pictures, if the user has them."""
    pdb: Path | None = None
    """A structure to hinge, if the user has one."""
    stack: Path | None = None
    """A negative-stain stack (.star, .cs, .mrcs), if the user has one."""


@dataclass(frozen=True)
class Trained:
    """A finished run and the wall time from raw images to results."""

    run: RunDir
    seconds: float
    reused: bool = False
    """It was finished before."""

    @property
    def elbo(self) -> float:
        """Held-out ELBO of the last epoch, in nats per image."""
        return self.run.metrics()[-1]["test_elbo"]

    @property
    def latents(self) -> Latents:
        """What was found of the run's own images."""
        return read_run.read_latents(self.run.path)[1]


def paper(
    particles: Path,
    *,
    hidden: int,
    epochs: int,
    learning_rate: float = 1e-4,
    train: Mapping[str, Any] | None = None,
    **model: Any,
) -> RunConfig:
    """The paper's settings (``--preset paper``) for some images, with the sizes and priors of one experiment."""
    base = configuration.with_preset(RunConfig(InputConfig(particles)), "paper")
    given = {"encoder_hidden": hidden} | model
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, hidden=hidden, **given),
        train=dataclasses.replace(base.train, epochs=epochs, learning_rate=learning_rate, **(train or {})),
    )


def default(particles: Path, *, train: Mapping[str, Any] | None = None, **model: Any) -> RunConfig:
    """Our own settings (``emsvae train`` without flags), but for what is named."""
    return RunConfig(InputConfig(particles), model=ModelConfig(**model), train=TrainConfig(**(train or {})))


def trained(config: RunConfig, out: Path) -> Trained:
    """Train as ``emsvae train`` does, without its figures; a finished run of the same settings is taken as it is."""
    done = _train_once(config, out)
    REUSED_S.extend([done.seconds] if done.reused else [])
    return done


def all_trained(jobs: Sequence[tuple[RunConfig, Path]]) -> list[Trained]:
    """`trained` for several that do not wait for each other: on a CPU with as many at a time as it has threads, one for each.

    A small model leaves a second thread idle half of the time.
    """
    threads = 1 if torch.cuda.is_available() else torch.get_num_threads()
    if min(threads, len(jobs)) == 1:
        return [trained(*job) for job in jobs]
    # Spawned, because torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(threads, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    with pool:
        done = list(pool.map(_train_once, *zip(*jobs, strict=True)))
    REUSED_S.append(sum(one.seconds for one in done if one.reused) / threads)
    return done


def _train_once(config: RunConfig, out: Path) -> Trained:
    note, settings = out / "experiment.json", to_json(config)
    if note.is_file():
        earlier = json.loads(note.read_text())
        if earlier["settings"] == settings:
            return Trained(RunDir(out), earlier["seconds"], reused=True)
    print(f"\n-- {out.parent.name}/{out.name}", flush=True)
    start = time.perf_counter()
    run, stack = start_run(config, out, force=True, say=_quiet)
    if not train_run(run, stack, config.train, figures=False, say=_quiet):
        raise KeyboardInterrupt
    seconds = time.perf_counter() - start
    print(
        run.path.joinpath("run.log").read_text().split("training ended")[-1].splitlines()[0],
        f"{seconds:.0f} s",
        flush=True,
    )
    with atomic_path(note) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "seconds": seconds}))
    return Trained(run, seconds)


def _quiet(_: str) -> None:
    """All of it stands in run.log."""


def inferred(run: RunDir, particles: Path, out: Path) -> Latents:
    """What the model of a run says of other particles, as ``emsvae infer`` does."""
    infer.infer_other(run, InputConfig(particles), out, poses="auto", force=True, say=_quiet)
    manifest = run.manifest
    return read_csv(out, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)


def drawn(run: RunDir, z: np.ndarray) -> np.ndarray:
    """What a run's model draws for contents z [n, d] at pose zero; [n, channels, box, box]."""
    model, content = load_model(run), torch.from_numpy(np.ascontiguousarray(z)).float()
    parts = []
    for some in content.split(64):
        parts.append(model.render(LatentAndPose(some, torch.zeros(len(some)), torch.zeros(len(some), 2))))
    return torch.cat(parts).numpy()


# ------------------------------------------------------------------------------------------------------------- tables


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(results: Mapping[str, Values], size: str, *keys: str, form: str = ".2f", unit: str = "") -> str:
    """One number of the results of a size; "not run" where there is none, a dash where there was nothing to measure."""
    found: Any = results
    for key in (size, *keys):
        if key not in found:
            return NOT_RUN
        found = found[key]
    return "-" if found is None else f"{found:{form}}{unit}"


def machine() -> str:
    """What it ran on, for the reader of a time."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
