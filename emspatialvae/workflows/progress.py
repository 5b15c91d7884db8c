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
SAY_EVERY_S = 10.0


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
        Receives a line for every epoch that is over when there is no terminal, at most every ten seconds.
    """

    def __init__(self, total: int, *, open_end: bool, say: Callable[[str], None]) -> None:
        self.open_end, self.say = open_end, say
        self.terminal = sys.stderr.isatty()
        # The rate and time left count from here on, also in a resumed run.
        self.bar: Any = tqdm(
            total=total, unit="particle", unit_scale=True, disable=not self.terminal, smoothing=0.1, dynamic_ncols=True
        )
        self.epoch, self.line, self.seen = -1, "", 0
        self.began = self.stepped = self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def show(self, epoch: int, particles: int, means: list[float]) -> None:
        """After a step of the ``epoch`` (from 0): ``means`` are the ELBO and its parts over the epoch so far, in nats per particle."""
        if epoch != self.epoch:
            self._say_epoch()
            # Of the first step only the end is known.
            self.epoch, self.seen, self.began = epoch, -particles, time.monotonic()
        self.seen, self.stepped = self.seen + particles, time.monotonic()
        self.bar.update(particles)
        elbo, kl_z, kl_theta, kl_shift = means
        kl = ", ".join(
            f"{value:.2f} {name}"
            for name, value in (("z", kl_z), ("theta", kl_theta), ("shift", kl_shift))
            if value or name == "z"  # where poses are summed out they have none of their own
        )
        self.line = f"ELBO {elbo:.2f}, KL {kl}"
        self.bar.set_description(f"epoch {epoch + 1}{', until settled' if self.open_end else ''}", refresh=False)
        self.bar.set_postfix_str(self.line, refresh=False)

    def _say_epoch(self) -> None:
        """The epoch that is over, where there is no bar; the rate is that of its steps, without the searches before them."""
        if self.terminal or not self.line or time.monotonic() - self.said < SAY_EVERY_S:
            return
        rate = f"; {self.seen / (self.stepped - self.began):,.0f} particles/s" if self.seen > 0 else ""
        self.say(f"epoch {self.epoch + 1}: {self.line}{rate}")
        self.said = time.monotonic()
