"""How many latent coordinates the particles need: no more than particles that were not trained on profit from.

Training begins with one coordinate. Once it has found its way, as many again are added, which change nothing at first, and training goes on
for some epochs. Then the held-out particles are judged twice by the same model: as it is, and with the new coordinates held at 0. If the new ones
make held-out particles clearly more likely they stay, and the next size is tried; otherwise they are taken out again. They must also have become more
likely than they were before the trial: trained for long enough, two coordinates share what one could say, and neither can be held at 0 then. A coordinate
that only learns the noise of the training particles by heart makes held-out particles less likely, so it is noticed; the ELBO of the training
particles would rise with each coordinate.

Where the number is given nothing is tried, but training begins with one coordinate all the same: coordinates that all open at once often map
particles like a fan, with one corner of what they can do in the middle, and no later step mends that.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FIRST_EPOCHS, TRIAL_EPOCHS = 8, 6
"""Epochs with one coordinate before the first trial, and epochs of each trial."""
LEARNING_EPOCHS = 10
"""That must be left after a trial, to learn the number that was found from the beginning."""
FEWEST_EPOCHS = FIRST_EPOCHS + TRIAL_EPOCHS + LEARNING_EPOCHS
"""Of a training with trials; a shorter one has no time for them."""
LEAST_GAIN_NATS, LEAST_GAIN_SD = 0.05, 3.0
"""By how much held-out particles must become more likely on average, in nats and in standard errors of that mean."""
LEAST_GAIN_SHARE = 2e-3
"""The same as a share of their ELBO: what ends a training, too. Where images say much, a second coordinate gains a little for as long as the
first has not settled, although there is one motion only."""


@dataclass
class LatentTrials:
    """The trials of 1, 2, 4, ... latent coordinates, one after the other.

    Attributes
    ----------
    most
        The largest number that is tried; where it is ``given`` the one that is taken in any case.
    epochs
        At most, of the whole training.
    size, kept
        The number that is being trained, and the number that has proved itself.
    ends_after
        The epoch (counted from 1) after which the present trial is judged.
    over
        No more is tried.
    story
        What was tried: the number, and what its new coordinates gained on held-out particles, in nats.
    best_before, best
        ELBO of held-out particles at its best with the number that has proved itself, and with the one that is tried.

    Examples
    --------
    >>> trials = LatentTrials(most=8)
    >>> trials.due(7), trials.due(8)
    (False, True)
    >>> trials.begin(8), trials.size
    (None, 2)
    >>> trials.judge(np.array([0.1, -0.2, -0.1]), elbo=60.0)
    False
    >>> trials.kept, trials.over
    (1, True)
    """

    most: int
    epochs: int = 1000
    given: bool = False
    size: int = 1
    kept: int = 1
    ends_after: int = FIRST_EPOCHS
    over: bool = False
    story: list[tuple[int, float]] = field(default_factory=list)
    best_before: float = -math.inf
    best: float = -math.inf

    def watch(self, elbo: float) -> None:
        """The ELBO of held-out particles after an epoch, where it can be compared with that of others."""
        self.best = max(self.best, elbo)

    def due(self, epoch: int) -> bool:
        """Whether something is to be decided after so many epochs."""
        return not self.over and epoch >= self.ends_after

    def begin(self, epoch: int) -> None:
        """Start to try more coordinates, or end where there are as many as there may be or too few epochs are left."""
        self.over = self.kept >= self.most or epoch + TRIAL_EPOCHS + LEARNING_EPOCHS > self.epochs
        if self.over:
            return
        self.size = self.most if self.given else min(2 * self.kept, self.most)
        self.ends_after = epoch + TRIAL_EPOCHS
        self.best_before, self.best = self.best, -math.inf

    def judge(self, gain: NDArray[np.float64], elbo: float) -> bool:
        """Whether the new coordinates stay, by the gain in ELBO of each held-out particle [n] and the mean of these ELBOs, in nats."""
        risen = self.best - self.best_before if math.isfinite(self.best_before) else math.inf
        mean = min(float(gain.mean()), risen)
        error = float(gain.std()) / max(len(gain), 1) ** 0.5
        self.story.append((self.size, mean))
        if mean > max(LEAST_GAIN_NATS, LEAST_GAIN_SHARE * abs(elbo), LEAST_GAIN_SD * error):
            self.kept = self.size
            return True
        self.over, self.size = True, self.kept
        return False
