"""Progress: a bar on a terminal; where the output goes into a file, a line per epoch, and a few lines of what takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

Say = Callable[[str], None]
"""Receives each sentence for the user."""
FIRST_WORD_S = 30.0
"""After so long something without a terminal says how far it is, then after twice as long, and so on: a few lines in an hour."""


@contextmanager
def bar(total: int, what: str, say: Say | None = None) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` particles; the value is called with how many more are done.

    Without a terminal ``say`` [default: a line on stderr] receives a few sentences, and none of what is quickly done.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit="particle", leave=False) as shown:
            yield lambda n: (shown.update(n), None)[1]
        return
    done, began, wait_s = 0, time.monotonic(), FIRST_WORD_S

    def count(more: int) -> None:
        nonlocal done, wait_s
        done += more
        passed_s = time.monotonic() - began
        if passed_s >= wait_s and done < total:
            while wait_s <= passed_s:
                wait_s *= 2
            left_s = passed_s * (total - done) / max(1, done)
            line = f"{what}: {done:,} of {total:,} particles, about {duration(left_s)} left"
            print(line, file=sys.stderr, flush=True) if say is None else say(line)

    yield count


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class TrainingBar:
    """ELBO and its parts, particles per second and time left, while a model trains.

    Parameters
    ----------
    total
        Particles over all epochs.
    open_end
        The run may settle before.
    say
        Receives a line for every epoch that is over when there is no terminal.
    """

    def __init__(self, total: int, *, open_end: bool, say: Callable[[str], None]) -> None:
        self.open_end, self.say = open_end, say
        self.terminal = sys.stderr.isatty()
        # The rate and time left count from here on, also in a resumed run.
        self.bar: Any = tqdm(
            total=total, unit="particle", unit_scale=True, disable=not self.terminal, smoothing=0.1, dynamic_ncols=True
        )
        self.epoch, self.line, self.seen = -1, "", 0
        self.began = self.stepped = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if error is None:
            self._say_epoch()

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
        if self.terminal or not self.line:
            return
        rate = f"; {self.seen / (self.stepped - self.began):,.0f} particles/s" if self.seen > 0 else ""
        self.say(f"epoch {self.epoch + 1}: {self.line}{rate}")
        self.line = ""
