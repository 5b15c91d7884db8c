"""The training loop, on one screen, and the state it can be resumed from."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emspatialvae.config import TrainConfig, train_for
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.jobs import ranks
from emspatialvae.jobs.interrupt import asked_to_end
from emspatialvae.model import device
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.interface import Elbo, ParticleVAE
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.results.checkpoint import load_state
from emspatialvae.results.run_folder import RunDir
from emspatialvae.training.coordinate import AmortisedObjective
from emspatialvae.training.loader import Loader
from emspatialvae.training.objective import Objective
from emspatialvae.training.steerable import SearchedObjective
from emspatialvae.training.stopping import PARTS, Progress, portions_of
from emspatialvae.training.workers import ALONE, Workers

KL_WARMUP_EPOCHS = 10
ANGLE_JUDGES = 1000
"""Held-out particles that tell whether angles mean anything, at most."""


def _over_parts(
    weights: list[torch.nn.Parameter], gradients: list[tuple[torch.Tensor | None, ...]]
) -> list[torch.Tensor | None]:
    """The gradient of each weight summed over the parts of a batch, in their order; None where no part has any."""
    found: list[torch.Tensor | None] = []
    for of_one in zip(*gradients, strict=True) if gradients else [()] * len(weights):
        there = [gradient for gradient in of_one if gradient is not None]
        found.append(torch.stack(there).sum(0) if there else None)
    return found


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
    start
        Poses that the search begins with, shifts in prepared pixels [default: none; the steerable engine searches everywhere].
    learn_shift_prior
        Let the s.d. of the shift's prior follow the shifts that are found.
    workers
        Threads that share each batch; the numbers are the same however many they are.
    """

    def __init__(
        self,
        model: ParticleVAE,
        images: PreparedImages,
        names: NDArray[Any],
        config: TrainConfig,
        run: RunDir,
        show: Callable[[int, int, list[float]], None] = lambda *_: None,
        *,
        start: Pose2D | None = None,
        learn_shift_prior: bool = True,
        workers: Workers = ALONE,
    ) -> None:
        config = train_for(config, "steerable" if isinstance(model, SteerableVAE) else "coordinate")
        self.config, self.run, self.images, self.names, self.show = config, run, images, names, show
        self.device = device.pick_device(config.device)
        self.model = model.to(self.device)
        self._loader = Loader(images, self.device)
        self.ranks = ranks.present()
        self.objective = self._objective(start, learn_shift_prior)
        self.objective.ranks = self.ranks
        self.workers = self.objective.workers = workers
        self.optimiser = self._new_optimiser()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.progress = Progress()
        self.train_rows, self.test_rows = split(images.usable, config)
        self.objective.rows = np.concatenate([self.train_rows, self.test_rows])
        self.limit = config.epochs or config.max_epochs
        assert config.batch_size is not None
        self.batch_size: int = config.batch_size
        self.portions = 1 if config.epochs else portions_of(len(self.train_rows), self.batch_size)
        """Epochs in which every particle is seen once."""
        self.z_delay: int = config.z_delay or 0
        self.patience: int = config.patience or 1

    def _objective(self, start: Pose2D | None, learn_shift_prior: bool) -> Objective:
        dtype = device.pick_precision(self.config.precision, self.device)
        if isinstance(self.model, SteerableVAE):
            return SearchedObjective(
                self.model,
                self._loader.load,
                len(self.images),
                self.config,
                self.device,
                start,
                learn_shift_prior=learn_shift_prior,
                groups=self.images.group,
            )
        assert isinstance(self.model, SpatialVAE)
        return AmortisedObjective(self.model, self._loader.load, self.config, self.device, dtype)

    def _new_optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=self.config.learning_rate)

    def fit(self) -> bool:
        """Train until the epochs are done or the ELBO has settled; False when the user interrupted.

        An interrupt (Ctrl-C, or a signal that `jobs.interrupt.noticed_by_training` has noticed) ends the training after the current
        step, so that the checkpoint is one of a whole step; a second Ctrl-C ends the program.
        """
        self.save()
        self._check_ranks_agree()
        saved = time.monotonic()
        with asked_to_end() as interrupted:
            while not self.progress.stopped:
                self._begin_epoch()
                batches = self._batches(self.progress.epoch)[self.progress.step :]
                for rows, coming in zip_longest(batches, batches[1:]):
                    if coming is not None:
                        self._loader.expect(coming)
                    end = self.step(rows, interrupted)
                    if end or time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                        self.save()
                        saved = time.monotonic()
                    if end:
                        return False
                self._end_epoch()
                self._check_ranks_agree()
        self.save()
        return True

    def _begin_epoch(self) -> None:
        self.workers.follow()
        if self.progress.step == 0:
            self.objective.begin_epoch(self.progress.epoch)
            if self.progress.epoch == 0:  # networks of another size may have been made
                self.optimiser = self._new_optimiser()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self._cooling()

    def _cooling(self) -> float:
        """Factor on the learning rate in the current epoch."""
        if not self.config.cooling:
            return 1.0
        if self.config.epochs is None:
            return 0.1 if self.progress.cooling else 1.0
        left = (self.config.epochs - self.progress.epoch) / self.config.epochs
        return min(1.0, max(0.1, 3 * left))

    def step(self, rows: NDArray[np.int64], interrupted: Callable[[], bool] = lambda: False) -> bool:
        """One optimiser step, the batch taken in parts so that memory stays bounded and hidden layers in the cache.

        Returns True if any rank has been interrupted by now.
        """
        size = self.objective.part(self.batch_size)
        parts = np.split(rows, range(size, len(rows), size))
        # Each part has random numbers and gradients of its own, which are summed in their order: the same whoever works on them.
        seeds = torch.randint(2**62, (len(parts),), generator=self.generator).tolist()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        kl_weight = self._kl_weight()

        def differentiated(part: tuple[NDArray[np.int64], int]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
            elbo = self._elbo(part[0], torch.Generator().manual_seed(part[1]), training=True)
            loss = -elbo.weighted(kl_weight).sum() / len(rows)
            sums = torch.stack(list(vars(elbo).values())).detach().sum(1)
            return sums, torch.autograd.grad(loss, weights, allow_unused=True)

        own = self.ranks.share(list(zip(parts, seeds, strict=True)))
        found = self.workers.each(differentiated, own)
        gradients = _over_parts(weights, [slopes for _, slopes in found])
        totals = torch.zeros(len(parts), len(PARTS), device=self.device)
        for number, (total, _) in zip(self.ranks.share(range(len(parts))), found, strict=True):
            totals[number] = total
        end = interrupted()
        if self.ranks.count > 1:
            gradients, totals, end = self._exchanged(rows, [part for part, _ in own], weights, gradients, totals, end)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        sums = totals.sum(0).tolist()
        if not math.isfinite(sums[0]):
            self._raise_not_finite(rows)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.sums = [a + b for a, b in zip(self.progress.sums, sums, strict=True)]
        self.progress.step += 1
        seen = min(self.progress.step * self.batch_size, self._epoch_size(self.progress.epoch))
        self.show(self.progress.epoch, len(rows), [s / seen for s in self.progress.sums])
        return end

    def _exchanged(
        self,
        rows: NDArray[np.int64],
        own: list[NDArray[np.int64]],
        weights: list[torch.nn.Parameter],
        gradients: list[torch.Tensor | None],
        totals: torch.Tensor,
        end: bool,
    ) -> tuple[list[torch.Tensor | None], torch.Tensor, bool]:
        """Gradients and ``totals`` [parts, 4] of all ranks together, and whether any is to end; the objective learns what they remember of the batch.

        All of it goes in one sum over the ranks, with zeros where a rank has nothing: every message is a wait for the slowest.
        """
        memory = self.objective.remembered(rows)
        memory[~torch.from_numpy(np.isin(rows, np.concatenate([*own, rows[:0]])))] = 0
        there = torch.tensor([gradient is not None for gradient in gradients] + [end], dtype=torch.float32)
        parts = [
            *(
                torch.zeros_like(weight) if gradient is None else gradient
                for weight, gradient in zip(weights, gradients, strict=True)
            ),
            totals,
            memory.to(self.device),
            there.to(self.device),
        ]
        flat = self.ranks.summed(torch.cat([part.flatten() for part in parts]))
        *summed, totals, memory, there = (
            values.view_as(part)
            for values, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
        )
        self.objective.learn(rows, memory.cpu())
        *known, end = (there > 0).tolist()
        return [gradient if has else None for gradient, has in zip(summed, known, strict=True)], totals, end

    def _check_ranks_agree(self) -> None:
        """Refuse to go on with models that are no longer the same.

        Raises
        ------
        EmsvaeError
            The ranks have different weights.
        """
        if self.ranks.count > 1:
            digest = hashlib.sha256()
            for tensor in self.model.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self.ranks.check_alike(
                digest.hexdigest(),
                f"after epoch {self.progress.epoch} the ranks hold different weights: their processors calculate differently; take machines of "
                "one kind, and go on with --resume",
            )

    def _kl_weight(self) -> float:
        per_epoch = -(-self._epoch_size(0) // self.batch_size)
        steps = self.progress.epoch * per_epoch + self.progress.step + 1
        return min(1.0, steps / max(1, min(self.config.kl_warmup_steps or 0, KL_WARMUP_EPOCHS * per_epoch)))

    def _elbo(self, rows: NDArray[np.int64], generator: torch.Generator, *, training: bool, keep: bool = True) -> Elbo:
        return self.objective.elbo(
            rows,
            generator,
            freeze_z=self.progress.epoch < self.z_delay,
            training=training,
            keep=keep,
        )

    def _epoch_size(self, epoch: int) -> int:
        """Particles of an epoch."""
        return len(range(epoch % self.portions, len(self.train_rows), self.portions))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The particles of an epoch in batches: of a shuffled pass over all of them every ``portions``-th.

        The shuffle depends on seed and pass only, so a resumed run repeats it.
        """
        order = np.random.default_rng([self.config.seed, epoch // self.portions]).permutation(self.train_rows)
        rows = order[epoch % self.portions :: self.portions]
        return np.split(rows, range(self.batch_size, len(rows), self.batch_size))

    def _end_epoch(self) -> None:
        p = self.progress
        train = [s / self._epoch_size(p.epoch) for s in p.sums]
        test = self.held_out()
        row: dict[str, Any] = {"epoch": p.epoch + 1}
        row |= {f"train_{name}": value for name, value in zip(PARTS, train, strict=True)}
        row |= {f"test_{name}": value for name, value in zip(PARTS, test or [""] * len(PARTS), strict=True)}
        self.run.append_metrics(row)
        p.next_epoch()
        if self.objective.finish_epoch(p.epoch, self.test_rows, self._held_out_bounds, (test or [math.nan])[0]):
            self.optimiser = self._new_optimiser()
        # While z is frozen, noise is measured or the KL terms are warming up something else is maximised; that does not count.
        unsettled = p.epoch <= max(self.z_delay, self.objective.unsettled_epochs) or self._kl_weight() < 1
        p.judge((test or train)[0], counts=not unsettled, limit=self.limit, patience=self.patience, config=self.config)

    @torch.no_grad()
    def held_out(self) -> list[float] | None:
        """Means of `PARTS` over the held-out particles, always with the same noise; None when none are held out."""
        if not len(self.test_rows):
            return None
        return self._each(self.test_rows).mean(1).tolist()

    def _held_out_bounds(self) -> NDArray[np.float64]:
        """ELBO of each held-out particle, of which nothing is remembered; [n]."""
        return self._each(self.test_rows, keep=False)[0].numpy()

    @torch.no_grad()
    def _each(self, rows: NDArray[np.int64], *, keep: bool = True) -> torch.Tensor:
        """`PARTS` of particles that are looked at but not learned from; [parts, n]."""

        @torch.no_grad()
        def look(part: tuple[int, NDArray[np.int64]]) -> torch.Tensor:
            generator = torch.Generator().manual_seed(self.config.seed + part[0])
            elbo = self._elbo(part[1], generator, training=False, keep=keep)
            return torch.stack(list(vars(elbo).values())).cpu().double()

        parts = np.split(rows, range(self.batch_size, len(rows), self.batch_size))
        own = self.ranks.share(list(enumerate(parts)))
        looked = self.workers.each(look, own)
        if keep:
            self.objective.share([part for _, part in own])
        return torch.cat(self.ranks.in_order(looked, len(parts)), 1)

    def evidences(self) -> torch.Tensor:
        """ELBO of each held-out particle (of all where none are held out); [n]."""
        return self._each(self.test_rows if len(self.test_rows) else self.train_rows, keep=False)[0]

    def gain_by_angles(self) -> tuple[float, float] | None:
        """How many nats more likely held-out particles are as the model draws them than averaged over all angles: mean and standard error.

        None where none are held out, or no angles are searched.
        """
        if len(self.test_rows) < 2:
            return None
        some = np.sort(np.random.default_rng(self.config.seed).permutation(self.test_rows)[:ANGLE_JUDGES])
        gain = self.objective.gain_by_angles(some)
        return None if gain is None else (float(gain.mean()), float(gain.std()) / math.sqrt(len(gain)))

    def fix_gauge(self, mask: NDArray[np.float32] | None = None) -> tuple[float, float] | None:
        """Refer the poses of all latents to one frame, where the engine knows how: see `SteerableVAE.fix_gauge`.

        Returns
        -------
        What is left of turn (degrees) and move (prepared px), r.m.s. over latents; None where there is no common frame.
        """
        left = self.objective.fix_gauge(mask)
        self.save()
        return left

    def _raise_not_finite(self, rows: NDArray[np.int64]) -> None:
        with torch.no_grad():
            elbo = self._elbo(rows, torch.Generator().manual_seed(0), training=False).bound.cpu().numpy()
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
                "objective": self.objective.state_dict(),
                "progress": asdict(self.progress),
            }
        )

    def resume(self) -> None:
        """Go on from the run's checkpoint, as if it had never stopped.

        Raises
        ------
        RunFolderError
            It is damaged, or of another model.
        """
        state = self.run.load_checkpoint()
        load_state(self.model, state["model"], self.run.path)
        try:
            load_state(self.optimiser, state["optimiser"], self.run.path)
            self.generator.set_state(state["generator"])
            self.objective.load_state_dict(state["objective"])
            self.progress = Progress.of(state["progress"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            found = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
            raise RunFolderError(f"{self.run.path / 'checkpoint.pt'} is damaged ({found}); train again") from None
        self.run.forget_metrics_after(self.progress.epoch)
        settled = self.config.epochs is None and self.progress.stale_epochs >= self.patience
        if not settled and self.progress.epoch < self.limit:
            self.progress.stopped = ""


def split(usable: NDArray[np.bool_], config: TrainConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, by chance: among them all that are usable, or ``config.train_particles``.

    Of fewer than 20 none are held out.
    """
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(usable))[: config.train_particles]
    n_test = int(config.holdout * len(rows)) if len(rows) >= 20 else 0
    return np.sort(rows[n_test:]), np.sort(rows[:n_test])
