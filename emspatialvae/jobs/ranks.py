"""Several processes that train or infer together: the ranks of ``torchrun``, on one machine or on many.

Every rank holds the whole model and the whole table of latents and poses, and goes through the same steps in the same order. What there is to
be computed for a batch is shared out to the ranks, and what comes out is exchanged, so that all of them know the same afterwards. The first
rank alone writes.

A program that was not started by ``torchrun`` is `ALONE`; then nothing here is exchanged, and torch is not even loaded.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from emspatialvae.errors import EmsvaeError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")

PATIENCE = timedelta(days=2)
"""How long a rank waits for another one that is alive: the first one may prepare images for hours. One that has died is noticed at once."""

LAST_WORDS_S = 3.0
"""How long the first rank, with which all others end, waits after an error for those that meet the same one."""


class Board(Protocol):
    """Numbers that all ranks see, kept by the first one (or by ``torchrun``): a store of torch.distributed."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, 0 at first, and return what it is now."""
        ...


class EndedElsewhere(EmsvaeError):
    """Another rank has said what is wrong; this one ends without a word."""

    def __init__(self, exit_code: int = 2) -> None:
        super().__init__("")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """A process among those that work together.

    Attributes
    ----------
    rank, count
        Number of this process, from 0, and how many there are.
    local_rank, local_count
        The same among those of its own machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Which of the items, the same ones in every rank, this rank is to work on."""
        return list(items[self.rank :: self.count])

    def in_order(self, mine: list[U], total: int) -> list[U]:
        """The results of all ``total`` items in their order, from what each rank made of its `share`."""
        if self.count == 1:
            return mine
        every = self.exchanged(mine)
        return [every[number % self.count][number // self.count] for number in range(total)]

    def exchanged(self, mine: U) -> list[U]:
        """What each rank has given, in the order of the ranks."""
        if self.count == 1:
            return [mine]
        from torch import distributed

        every: list[Any] = [None] * self.count
        with _all_alive():
            distributed.all_gather_object(every, mine)
        return every

    def summed(self, mine: "Tensor") -> "Tensor":
        """The sum of the tensors of all ranks, the same number for number in each of them."""
        if self.count == 1:
            return mine
        from torch import distributed

        with _all_alive():
            distributed.all_reduce(mine)
        return mine

    def by_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which the first rank alone does; the others get a copy.

        Raises
        ------
        EndedElsewhere
            In the other ranks, where it failed in the first.
        """
        if self.count == 1:
            return work()
        if not self.first:
            told: list[Any] = self.exchanged((None, 0))
            value, code = told[0]
            if code:
                raise EndedElsewhere(code)
            return value
        try:
            value = work()
        except BaseException as error:
            self.exchanged((None, error.exit_code if isinstance(error, EmsvaeError) else 1))
            raise
        self.exchanged((value, 0))
        return value

    def check_alike(self, value: Any, difference: str) -> None:
        """Refuse to go on where a value is not the same in every rank.

        Raises
        ------
        EmsvaeError
            It differs; ``difference`` is the sentence that says so. It may name what each rank has, so the first one says it.
        """
        every = self.exchanged(value)
        if any(other != every[0] for other in every):
            raise EmsvaeError(difference) if self.first else EndedElsewhere


ALONE = Ranks()
_present = ALONE


def present() -> Ranks:
    """Where this process stands now."""
    return _present


@contextmanager
def _all_alive() -> Generator[None, None, None]:
    """Say in one line that another rank has gone."""
    try:
        yield
    except RuntimeError as error:
        raise EmsvaeError(
            f"rank {_present.rank}: another rank has ended before its time, so this one cannot go on; what that one said stands above. Start the "
            "same command again (train: with --resume), with as many ranks as you like"
        ) from error


def of_environment(environment: Mapping[str, str]) -> Ranks:
    """Where ``torchrun`` has put this process, by its variables; `ALONE` without them.

    Raises
    ------
    EmsvaeError
        Some of them are missing, or are no numbers.
    """
    if "WORLD_SIZE" not in environment:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing and environment["WORLD_SIZE"] != "1":
        raise EmsvaeError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} and {missing[0]} is not set: several ranks are started by torchrun, which sets all "
            "of them; without it unset WORLD_SIZE"
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = [environment.get(name, usual) for name, usual in zip(names, ("0", "1", "0", "1"), strict=True)]
    for name, text in zip(names, texts, strict=True):
        if not text.isdecimal():
            raise EmsvaeError(f"{name} is {text!r}; expected a whole number, as torchrun sets it")
    found = Ranks(*map(int, texts))
    if not 0 <= found.rank < found.count:
        raise EmsvaeError(
            f"RANK is {found.rank} and WORLD_SIZE {found.count}; expected ranks from 0 to {found.count - 1}"
        )
    return found


@contextmanager
def _said_once(ranks: Ranks, board: Board) -> Generator[None, None, None]:
    """Let one rank alone say an error that several of them meet.

    The others may be anywhere in their work: what they are told goes through no exchange that they take part in.

    Raises
    ------
    EndedElsewhere
        Another rank was the first to meet this error.
    """
    try:
        yield
    except EndedElsewhere:
        _leave(ranks, board)
        raise
    except EmsvaeError as error:
        text = hashlib.sha256(str(error).encode("utf-8", "surrogatepass")).hexdigest()
        try:
            said = board.add(f"said {text}", 1) > 1
        except RuntimeError:  # the first rank was killed and has taken the board with it
            raise error from None
        _leave(ranks, board)
        if said:
            raise EndedElsewhere(error.exit_code) from error
        raise


def _leave(ranks: Ranks, board: Board) -> None:
    """Let the first rank stay until all have met an error, but not for long: the others may wait for its results, and end when it does."""
    until = time.monotonic() + LAST_WORDS_S
    try:
        board.add("left", 1)
        while ranks.first and board.add("left", 0) < ranks.count and time.monotonic() < until:
            time.sleep(0.05)
    except RuntimeError:
        return


@contextmanager
def joined() -> Generator[Ranks, None, None]:
    """Meet the other ranks, if there are any; within, the ranks but the first print nothing on standard output.

    Raises
    ------
    EmsvaeError
        The variables of ``torchrun`` are incomplete, or the others cannot be reached.
    EndedElsewhere
        In place of an error that another rank has met, too, and says.
    """
    global _present
    ranks = of_environment(os.environ)
    if ranks.count == 1:
        yield ranks
        return
    import torch

    # Its functions have the group of all ranks as a default value. Loaded first, they hold none; loaded later, as the optimiser does, they keep the
    # group's threads alive past the end, where Python aborts every now and then ("terminate called without an active exception").
    import torch.distributed.nn.functional
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if distributed.is_nccl_available() else "gloo"
    try:
        board, *_ = next(rendezvous("env://", timeout=PATIENCE))
        distributed.init_process_group(backend, store=board, rank=ranks.rank, world_size=ranks.count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise EmsvaeError(
            f"rank {ranks.rank} does not reach the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error})"
        ) from None
    silent, before, _present = open(os.devnull, "w"), sys.stdout, ranks  # noqa: SIM115, PTH123
    try:
        if not ranks.first:
            sys.stdout = silent
            os.environ["TQDM_DISABLE"] = "1"  # no progress bars but the first rank's
        with _said_once(ranks, board):
            yield ranks
        ranks.exchanged(None)  # torchrun ends all ranks when one does not end well: the first must have written by then
    finally:
        sys.stdout, _present = before, ALONE
        silent.close()
        distributed.destroy_process_group()
