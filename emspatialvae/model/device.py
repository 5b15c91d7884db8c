"""Where and how fast the arithmetic runs: device, precision, and memory that is not handed back at every step."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch

from emspatialvae.errors import EmsvaeError

CPU_PART_BYTES = 24 << 20
"""Largest hidden layer of one part of a batch on a CPU: big enough for a good matrix product, small enough for the cache."""


T = TypeVar("T")
U = TypeVar("U")

MOST_SIDE_BY_SIDE = 8
"""Parts of a stack that are worked on at once, each with memory of its own."""


class Each(Protocol):
    """Does a piece of work for each of some items, perhaps several at once; the results come in the order of the items."""

    def __call__(self, work: Callable[[T], U], items: Iterable[T], /) -> list[U]:
        """``work`` of each."""
        ...


def in_turn(work: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """`Each`, one after the other."""
    return [work(item) for item in items]


def pick_device(wanted: str) -> torch.device:
    """The device asked for; ``auto`` takes CUDA, else Apple's MPS, else the CPU.

    Raises
    ------
    EmsvaeError
        The device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        there = [name for name, is_there in available.items() if is_there]
        raise EmsvaeError(f"--device {wanted}: this machine has none that torch can use; available: {', '.join(there)}")
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The number format of matrix products; ``auto`` takes bfloat16 where the hardware multiplies it natively."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def matmul_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run what is inside with matrix products in ``dtype``; parameters and sums stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@contextmanager
def side_by_side(device: torch.device) -> Iterator[int]:
    """How many threads of ours may work at once; within, each operation gets its share of torch's threads.

    Many small operations one after the other are spread over the cores badly; whole parts of the work are spread well.
    """
    threads = torch.get_num_threads()
    count = min(threads, MOST_SIDE_BY_SIDE) if device.type == "cpu" else 1
    torch.set_num_threads(threads // count)
    try:
        yield count
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks that are freed instead of returning them to the system.

    Each training step frees and asks again for the same hidden layers; returned blocks come back as untouched pages, and on a
    CPU half of the time goes into page faults (measured: 14 against 43 images/s). A no-op where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def part_size(batch_size: int, floats_per_particle: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many particles of a batch to run at once: all on a GPU, on a CPU as many as keep a hidden layer in the cache."""
    if device.type != "cpu":
        return batch_size
    return max(1, min(batch_size, CPU_PART_BYTES // (floats_per_particle * dtype.itemsize)))
