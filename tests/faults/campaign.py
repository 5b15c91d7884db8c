"""The whole campaign of faults: ``python -m tests.faults.campaign docs/faults.md`` writes a table of tries, survived, lost.

Every command is killed at each of its file events (``--every 3``: at each third) and at random times, run with files that cannot grow beyond
a size, and run beside another one that is done while it stands still at an event. After each try the inputs must be untouched, results
complete or absent and of one kind, the same command (or ``--resume``) must then end well with the bytes of an undisturbed one, and
nothing must be left over. Some hours on one core; ``--every 10`` some minutes.
"""

import argparse
import platform
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import harness

SIZES = (0, 1, 60, 300, 1_000, 3_000, 10_000, 20_000, 40_000, 60_000, 100_000, 150_000, 200_000, 250_000, 300_000)
PAIRS = (
    *(("train", "train"), ("resume", "resume"), ("force", "force"), ("classes", "classes"), ("analyze", "analyze")),
    *(("export", "export"), ("select", "select"), ("force", "resume"), ("force", "classes"), ("resume", "classes")),
)
Try = tuple[str, str, str, Callable[[], list[str]]]


def tries(server: harness.Server, cases: dict[str, harness.Case], scratch: Path, every: int) -> Iterator[Try]:
    """What kind of fault, in which command, where exactly, and how to try it; the value of the latter is what is wrong."""
    for case in cases.values():
        for at in range(1, case.events + 1, every):
            yield (
                "killed at a file event",
                case.name,
                f"event {at}",
                lambda at=at, case=case: harness.killed(server, case, at, scratch),
            )
    randomly = random.Random(1)
    for case in cases.values():
        for _ in range(max(3, 30 // every)):
            seconds = randomly.uniform(0.05, 4.0)
            yield (
                "killed at a random time",
                case.name,
                f"{seconds:.3f} s",
                lambda s=seconds, case=case: harness.killed_after(server, case, s, scratch),
            )
    for case in cases.values():
        for size in SIZES[:: max(1, every // 4)]:
            yield (
                "disk full (RLIMIT_FSIZE)",
                case.name,
                f"{size} bytes",
                lambda size=size, case=case: harness.full(server, case, size, scratch),
            )
    for name, other in PAIRS:
        case = cases[name]
        for at in range(1, case.events + 1, 3 * every):
            words = cases[other].words
            yield (
                f"beside {other}",
                name,
                f"event {at}",
                lambda at=at, case=case, words=words: harness.beside(server, case, at, words, scratch),
            )


def main() -> int:
    """Run, print what is lost as it happens, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the table says so")
    asked = parser.parse_args()
    count: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    lost: list[str] = []
    began, ended = time.monotonic(), ""
    with harness.Server() as server, tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cases = harness.cases(server, scratch)
        todo = list(tries(server, cases, scratch, asked.every))
        if asked.minutes < 1e9:  # of every kind some
            random.Random(2).shuffle(todo)
        for number, (kind, name, where, attempt) in enumerate(todo):
            if time.monotonic() - began > 60 * asked.minutes:
                ended = f" Stopped after {asked.minutes:g} minutes: {number} of {len(todo)} tries, drawn at random."
                break
            wrong = attempt()
            count[kind, name][0] += 1
            count[kind, name][1] += not wrong
            if wrong:
                lost.append(f"{kind}, {name}, {where}: {'; '.join(wrong)}")
                print(lost[-1], flush=True)
    lines = [f"| {kind} | {name} | {n} | {good} | {n - good} |" for (kind, name), (n, good) in sorted(count.items())]
    total, good = (sum(values[k] for values in count.values()) for k in range(2))
    text = "\n".join(
        [
            "# Faults",
            "",
            f"`python -m tests.faults.campaign docs/faults.md --every {asked.every}`, {time.strftime('%Y-%m-%d')}, {platform.system()}, Python "
            f"{platform.python_version()}.{ended}",
            "",
            "A try survives if the inputs are untouched, results are complete or absent and belong together, the command can be repeated (or",
            "resumed) with the bytes of an undisturbed one as result, no traceback was seen and nothing is left over.",
            "",
            "| fault | command | tries | survived | lost |",
            "|---|---|---|---|---|",
            *lines,
            f"| all | | {total} | {good} | {total - good} |",
            "",
            *([] if not lost else ["Lost:", "", *(f"* {entry}" for entry in lost), ""]),
        ]
    )
    print(text)
    if asked.table is not None:
        asked.table.write_text(text)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
