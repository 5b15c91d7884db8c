"""Progress on the terminal: a bar where there is one, a line now and then where the output goes into a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

Say = Callable[[str], None]
"""Receives each sentence for the user."""


@contextmanager
def bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` particles; the value is called with how many more are done."""
    with tqdm(total=total, desc=what, unit="particle", leave=False, disable=not sys.stderr.isatty() or None) as shown:
        yield lambda n: (shown.update(n), None)[1]


class TrainingBar:
    """ELBO and its parts, particles per second and time left, while a model trains.

    Parameters
    ----------
    total
        Particles over all epochs.
    open_end
        The run may settle before.
    say
        Receives a line per epoch when there is no terminal, at most every ten seconds.
    """

    def __init__(self, total: int, *, open_end: bool, say: Callable[[str], None]) -> None:
        self.open_end, self.say = open_end, say
        self.terminal = sys.stderr.isatty()
        # The rate and time left count from here on, also in a resumed run.
        self.bar: Any = tqdm(
            total=total, unit="particle", unit_scale=True, disable=not self.terminal, smoothing=0.1, dynamic_ncols=True
        )
        self.epoch, self.seen, self.said = -1, 0, time.monotonic()
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def show(self, epoch: int, particles: int, means: list[float]) -> None:
        """After a step of the ``epoch`` (from 0): ``means`` are the ELBO and its parts over the epoch so far, in nats per particle."""
        self.seen += particles
        self.bar.update(particles)
        elbo, fit, kl_z, kl_theta, kl_shift = means
        line = f"ELBO {elbo:.2f} = {fit:.2f} - KL {kl_z:.2f} z, {kl_theta:.2f} theta, {kl_shift:.2f} shift"
        self.bar.set_description(f"epoch {epoch + 1}{', until settled' if self.open_end else ''}", refresh=False)
        self.bar.set_postfix_str(line, refresh=False)
        if not self.terminal and epoch != self.epoch and time.monotonic() - self.said > 10:
            rate = self.seen / (time.monotonic() - self.began)
            self.say(f"epoch {epoch + 1}: {line}; {rate:.0f} particles/s")
            self.epoch, self.said = epoch, time.monotonic()
