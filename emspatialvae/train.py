"""The training loop, on one screen, and the state it can be resumed from."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae import compute
from emspatialvae.config import TrainConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.model.spatial_vae import Elbo, SpatialVAE
from emspatialvae.prepare import PreparedImages
from emspatialvae.run import RunDir, load_state

KL_WARMUP_EPOCHS = 10
PARTS = ("elbo", "log_likelihood", "kl_z", "kl_theta", "kl_shift")


@dataclass
class Progress:
    """How far the training has come: everything but the weights that a resumed run needs."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed in the current epoch."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    """Of the ELBO and its parts over the current epoch's particles so far."""
    best_elbo: float = -math.inf
    """Best ELBO watched so far (held-out where particles are held out)."""
    stale_epochs: int = 0
    """Epochs since."""
    stopped: str = ""
    """Why the training ended; empty while it has not."""


@contextmanager
def _noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into an answer instead of an exception in the middle of a step; the second one is raised."""
    noticed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: bool(noticed)
    finally:
        signal.signal(signal.SIGINT, before)


class Trainer:
    """Trains a model on prepared images and keeps the run folder up to date.

    Parameters
    ----------
    run
        Where checkpoints and metrics go.
    names
        Image names, for messages; shape [n].
    show
        Called after every step with the epoch (from 0), the particles of the step, and the means of `PARTS` over the epoch
        so far.
    """

    def __init__(
        self,
        model: SpatialVAE,
        images: PreparedImages,
        names: NDArray[Any],
        config: TrainConfig,
        run: RunDir,
        show: Callable[[int, int, list[float]], None] = lambda *_: None,
    ) -> None:
        self.config, self.run, self.images, self.names, self.show = config, run, images, names, show
        self.device = compute.pick_device(config.device)
        self.dtype = compute.pick_precision(config.precision, self.device)
        self.model = model.to(self.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.progress = Progress()
        self.train_rows, self.test_rows = split(images.usable, config.holdout, config.seed)
        self.limit = config.epochs or config.max_epochs
        self.part = compute.part_size(config.batch_size, model.floats_per_particle, self.device, self.dtype)

    def fit(self) -> bool:
        """Train until the epochs are done or the ELBO has settled; False when the user interrupted.

        An interrupt (Ctrl-C) ends the training after the current step, so that the checkpoint is one of a whole step; a second
        one ends the program.
        """
        self.save()
        saved = time.monotonic()
        with _noticing_interrupts() as interrupted:
            while not self.progress.stopped:
                for rows in self._batches(self.progress.epoch)[self.progress.step :]:
                    self._step(rows)
                    if interrupted() or time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                        self.save()
                        saved = time.monotonic()
                    if interrupted():
                        return False
                self._end_epoch()
        self.save()
        return True

    def _step(self, rows: NDArray[np.int64]) -> None:
        """One optimiser step, the batch taken in parts so that memory stays bounded and hidden layers in the cache."""
        turns = 2 * math.pi * torch.rand(len(rows), generator=self.generator) * self.config.augment_rotation
        totals = []
        for part, turn in zip(
            np.split(rows, range(self.part, len(rows), self.part)), turns.split(self.part), strict=True
        ):
            elbo = self._elbo(part, self.generator, turn)
            (-elbo.weighted(self._kl_weight()).sum() / len(rows)).backward()
            totals.append(torch.stack([elbo.total, *vars(elbo).values()]).detach().sum(1))
        sums = torch.stack(totals).sum(0).tolist()
        if not math.isfinite(sums[0]):
            self._raise_not_finite(rows)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.sums = [a + b for a, b in zip(self.progress.sums, sums, strict=True)]
        self.progress.step += 1
        seen = min(self.progress.step * self.config.batch_size, len(self.train_rows))
        self.show(self.progress.epoch, len(rows), [s / seen for s in self.progress.sums])

    def _kl_weight(self) -> float:
        per_epoch = -(-len(self.train_rows) // self.config.batch_size)
        steps = self.progress.epoch * per_epoch + self.progress.step + 1
        return min(1.0, steps / max(1, min(self.config.kl_warmup_steps, KL_WARMUP_EPOCHS * per_epoch)))

    def _elbo(self, rows: NDArray[np.int64], generator: torch.Generator, turns: torch.Tensor | None) -> Elbo:
        images = torch.from_numpy(self.images.batch(rows)).to(self.device)
        with compute.matmul_precision(self.device, self.dtype):
            return self.model.elbo(
                images,
                generator,
                turn_rad=None if turns is None or not self.config.augment_rotation else turns.to(self.device),
                freeze_z=self.progress.epoch < self.config.z_delay,
            )

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The particles of an epoch in batches; the shuffle depends on seed and epoch only, so a resumed run repeats it."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train_rows)
        return np.split(order, range(self.config.batch_size, len(order), self.config.batch_size))

    def _end_epoch(self) -> None:
        p = self.progress
        train = [s / len(self.train_rows) for s in p.sums]
        test = self.held_out()
        row: dict[str, Any] = {"epoch": p.epoch + 1}
        row |= {f"train_{name}": value for name, value in zip(PARTS, train, strict=True)}
        row |= {f"test_{name}": value for name, value in zip(PARTS, test or [""] * len(PARTS), strict=True)}
        self.run.append_metrics(row)
        p.epoch, p.step, p.sums = p.epoch + 1, 0, [0.0] * len(PARTS)
        watched = (test or train)[0]
        # While z is frozen or the KL terms are warming up something else is maximised; what it reached does not count.
        better = watched > p.best_elbo or p.epoch <= self.config.z_delay or self._kl_weight() < 1
        p.best_elbo = watched if better else p.best_elbo
        p.stale_epochs = 0 if better else p.stale_epochs + 1
        if p.epoch >= self.limit:
            p.stopped = "done" if self.config.epochs else "--max-epochs reached before the ELBO had settled"
        elif self.config.epochs is None and p.stale_epochs >= self.config.patience:
            p.stopped = f"settled, no better ELBO for {self.config.patience} epochs"

    @torch.no_grad()
    def held_out(self) -> list[float] | None:
        """Means of `PARTS` over the held-out particles, always with the same noise; None when none are held out."""
        if not len(self.test_rows):
            return None
        generator = torch.Generator().manual_seed(self.config.seed)
        sums = torch.zeros(len(PARTS), dtype=torch.float64)
        for rows in np.split(
            self.test_rows, range(self.config.batch_size, len(self.test_rows), self.config.batch_size)
        ):
            elbo = self._elbo(rows, generator, None)
            sums += torch.stack([elbo.total, *vars(elbo).values()]).sum(1).cpu().double()
        return (sums / len(self.test_rows)).tolist()

    def _raise_not_finite(self, rows: NDArray[np.int64]) -> None:
        with torch.no_grad():
            elbo = self._elbo(rows, torch.Generator().manual_seed(0), None).total.cpu().numpy()
        names = (
            ", ".join(str(name) for name in self.names[rows[~np.isfinite(elbo)]][:5])
            or "no single particle of the batch"
        )
        self.optimiser.zero_grad()
        raise EmsvaeError(
            f"the ELBO is no longer a number in epoch {self.progress.epoch + 1}, for {names}; look at these images, or lower "
            "--learning-rate; the checkpoint holds the last good state"
        )

    # ---------------------------------------------------------------------------------------------------- resume

    def save(self) -> None:
        """Write the checkpoint."""
        self.run.save_checkpoint(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "progress": asdict(self.progress),
            }
        )

    def resume(self) -> None:
        """Go on from the run's checkpoint, as if it had never stopped."""
        state = self.run.load_checkpoint()
        load_state(self.model, state["model"], self.run.path)
        load_state(self.optimiser, state["optimiser"], self.run.path)
        self.generator.set_state(state["generator"])
        self.progress = Progress(**state["progress"])
        self.run.forget_metrics_after(self.progress.epoch)
        settled = self.config.epochs is None and self.progress.stale_epochs >= self.config.patience
        if not settled and self.progress.epoch < self.limit:
            self.progress.stopped = ""


def split(usable: NDArray[np.bool_], holdout: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, among the usable ones; of fewer than 20 none are held out."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    n_test = int(holdout * len(rows)) if len(rows) >= 20 else 0
    return np.sort(rows[n_test:]), np.sort(rows[:n_test])
