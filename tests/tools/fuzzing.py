"""The machinery of `tests/fuzz`: examples until the time is up, and bytes that are nearly right."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from emspatialvae.errors import EmsvaeError

SECONDS = float(os.environ.get("EMSVAE_FUZZ_SECONDS", "30"))
"""For all targets together."""
BATCH_EXAMPLES = 25


def fuzz(examples: st.SearchStrategy[Any], check: Callable[[Any], object], share: float) -> None:
    """Call ``check`` with examples until its share of the time is up; an `EmsvaeError` is an answer, anything else a defect.

    Hypothesis draws in batches, each with a seed of its own, and shrinks the first example that fails. The seeds of the usual run
    are always the same; those of a longer one begin at the clock and are part of what pytest prints.
    """
    by_hand = "EMSVAE_FUZZ_SECONDS" in os.environ
    end = time.monotonic() + share * SECONDS
    number = int(time.time()) if by_hand else 0

    while True:

        @seed(number)
        @settings(
            max_examples=BATCH_EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(examples)
        def batch(example: Any) -> None:
            with suppress(EmsvaeError):
                check(example)

        batch()
        number += 1
        if time.monotonic() > end:
            return


@st.composite
def spoiled(draw: st.DrawFn, wholes: list[bytes], words: list[bytes]) -> bytes:
    """One of some good files, with up to four places overwritten, cut out, repeated, or filled with words that matter to its format."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["word", "bytes", "cut", "repeat", "end", "move"]))
        piece = bytes(data[start : start + length])
        if kind == "word":
            data[start : start + draw(st.sampled_from([0, length]))] = draw(st.sampled_from(words))
        elif kind == "bytes":
            data[start : start + length] = draw(st.binary(max_size=12))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "repeat":
            data[start:start] = piece * draw(st.integers(1, 3))
        elif kind == "end":
            del data[start:]
        else:
            del data[start : start + length]
            at = draw(st.integers(0, len(data)))
            data[at:at] = piece
    return bytes(data)
