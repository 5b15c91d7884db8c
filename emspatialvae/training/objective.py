"""What a training step maximises, and what must be remembered between steps: all that the loop knows of a model's kind."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.jobs.ranks import ALONE as ONE_RANK
from emspatialvae.jobs.ranks import Ranks
from emspatialvae.model.batch import Batch
from emspatialvae.model.interface import Elbo
from emspatialvae.training.workers import ALONE, Workers

Rows = NDArray[np.int64]
Load = Callable[[Rows], Batch]
"""Particles by their row numbers, on the training's device."""


class Objective(ABC):
    """The evidence lower bound of particles, by row number, and what it must remember between steps."""

    workers: Workers = ALONE
    """For what is done particle by particle."""
    ranks: Ranks = ONE_RANK
    """Processes that share the particles of a batch."""
    rows: Rows = np.zeros(0, np.int64)
    """The particles that this training is about: those that it learns from, and those held out."""
    unsettled_epochs: int = 0
    """Epochs over which what is measured still changes, so that their bounds cannot be compared with later ones."""

    def gain_by_angles(self, rows: Rows) -> Tensor | None:
        """How many nats more likely each particle [k] is as the model draws it than averaged over all angles; None where no angles are searched."""
        return None

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch (from 0)."""

    def finish_epoch(
        self, epoch: int, judges: Rows, bound: Callable[[], NDArray[np.float64]], held_out: float = math.nan
    ) -> bool:
        """Decide what there is to decide after so many epochs.

        ``judges`` are particles that are not trained on, ``bound()`` the ELBO of each of them [n] by the model as it is, ``held_out`` its mean
        with what is remembered of them. Returns True if the model's networks have another size now.
        """
        return False

    @abstractmethod
    def elbo(
        self, rows: Rows, generator: torch.Generator, *, freeze_z: bool, training: bool, keep: bool = True
    ) -> Elbo:
        """The bound for some particles.

        With ``training`` it may augment, and gradients flow; without ``keep`` nothing of what it finds is remembered.
        """

    def remembered(self, rows: Rows) -> Tensor:
        """What is remembered of some particles; [k, numbers]."""
        return torch.zeros(len(rows), 0)

    def learn(self, rows: Rows, memory: Tensor) -> None:  # noqa: B027 - one that remembers nothing has nothing to learn
        """Take over what has been `remembered` of some particles elsewhere."""

    def share(self, parts: list[Rows]) -> None:
        """Tell the other ranks what is remembered of these particles, which this rank has seen, and learn what they know of theirs."""
        if self.ranks.count > 1:
            rows = np.concatenate([*parts, np.zeros(0, np.int64)])
            for others, memory in self.ranks.exchanged((rows, self.remembered(rows))):
                self.learn(others, memory)

    def fix_gauge(self, mask: NDArray[np.float32] | None) -> tuple[float, float] | None:
        """Refer the poses of all latents to one frame; what is left of turn (degrees) and move (prepared px), None where there is none.

        ``mask`` [box, box] weighs the pixels of the domain that is to lie still.
        """
        return None

    @property
    def remark(self) -> str:
        """What was chosen on the way that the user should know of; empty where there is nothing to say."""
        return ""

    @abstractmethod
    def part(self, batch_size: int) -> int:
        """How many particles of a batch to take at once."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
