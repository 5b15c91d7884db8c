"""How far a training has come, and when it stops."""

import math
from dataclasses import dataclass, field
from typing import Any

from emspatialvae.config import TrainConfig

PARTS = ("elbo", "kl_z", "kl_theta", "kl_shift")
"""What is summed over the particles of an epoch."""
LEAST_GAIN = 2e-3
"""By this share the ELBO must have risen to count as better: creeping on for a hundred epochs changes nothing that one can see."""
COOLING_PATIENCE = 3
"""Epochs without a better ELBO after which a run that is cooling down ends."""

EPOCH_STEPS, MOST_PORTIONS = 200, 4
"""Without --epochs an epoch of a large stack is a portion of its particles, the next one each time: of about so many steps, and no less than that
part of a pass. So a run ends when the model has settled, not after so many passes, and what is remembered of a particle stays fresh."""


def portions_of(particles: int, batch_size: int) -> int:
    """Epochs in which each of so many particles is seen once, without --epochs."""
    return min(max(1, -(-particles // (EPOCH_STEPS * batch_size))), MOST_PORTIONS)


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
    cooling: bool = False
    """The ELBO has settled once and the learning rate was lowered."""
    stopped: str = ""
    """Why the training ended; empty while it has not."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Progress":
        """What ``asdict`` made of one; TypeError or ValueError where it is damaged."""
        found, plain = cls(**values), cls()
        missing = vars(plain).keys() - values.keys()
        if missing:
            raise ValueError(f"progress has no {min(missing)}")
        for name, value in vars(found).items():
            if type(value) is not type(getattr(plain, name)):
                raise TypeError(f"progress.{name} is {value!r}")
        if found.epoch < 0 or found.step < 0 or len(found.sums) != len(PARTS):
            raise ValueError("progress is out of range")
        return found

    def next_epoch(self) -> None:
        """One more is completed."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0] * len(PARTS)

    def judge(self, elbo: float, *, counts: bool, limit: int, patience: int, config: TrainConfig) -> None:
        """After an epoch: whether the ELBO has risen, and if it has not for long, cool down or stop.

        Parameters
        ----------
        elbo
            That is watched, in nats per particle.
        counts
            Whether it can be compared with those of other epochs; where it cannot, the epoch counts as a better one.
        limit
            Epochs after which the training stops whatever it does.
        patience
            Epochs without a better ELBO after which it has settled.
        """
        gain = LEAST_GAIN * abs(self.best_elbo) if math.isfinite(self.best_elbo) else 0.0
        better = elbo > self.best_elbo + gain or not counts
        self.best_elbo = elbo if better else self.best_elbo
        self.stale_epochs = 0 if better else self.stale_epochs + 1
        if self.epoch >= limit:
            self.stopped = "done" if config.epochs else "--max-epochs reached before the ELBO had settled"
        elif config.epochs is None and self.stale_epochs >= patience:
            if config.cooling and not self.cooling:
                self.cooling, self.stale_epochs = True, max(0, patience - COOLING_PATIENCE)
            else:
                self.stopped = f"settled, no better ELBO for {patience} epochs"
