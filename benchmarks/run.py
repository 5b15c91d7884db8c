"""All benchmarks, or some of them, one after the other; what each printed is kept as JSON with machine, commit, date and load.

    python benchmarks/run.py                      # a list of what there is, with sizes and about how long each takes
    python benchmarks/run.py quick                # those of a minute or two
    python benchmarks/run.py all
    python benchmarks/run.py threads recovery     # by name; words behind -- go to the script: recovery -- "SNR 1"

Writes ``benchmarks/results/NAME.json``: Markdown tables that a script prints become lists of rows, everything else is kept as lines. A
script that fails, or that this machine cannot run, is told at the end, and its older result stays.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Benchmark:
    """A script with the sizes that are meant for two cores, and minutes that it took there."""

    script: str
    words: tuple[str, ...] = ()
    minutes: float = 2


BENCHMARKS = {
    "class_averages": Benchmark("class_averages.py", minutes=3),
    "coordinate_speed": Benchmark("coordinate_speed.py", minutes=2),
    "steerable_speed": Benchmark("steerable_speed.py", minutes=3),
    "threads": Benchmark("threads.py", minutes=12),
    "ranks": Benchmark("ranks.py", minutes=3),
    "million_rows": Benchmark("million_rows.py", minutes=4),
    "select_million": Benchmark("select_million.py", minutes=4),
    "million_particles": Benchmark("million_particles.py", minutes=55),
    "recovery": Benchmark("recovery.py", minutes=90),
    "against_relion": Benchmark("against_relion.py", minutes=20),
}
QUICK_MINUTES = 3


def machine() -> dict[str, Any]:
    """What was measured on."""
    cpu, memory_GB = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
        memory_GB = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_GB": memory_GB,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "emspatialvae")},
    }


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


def parsed(printed: str) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Markdown tables, a dictionary per row with the head's cells as keys, and the lines that are no part of one."""
    tables: list[list[dict[str, str]]] = []
    others: list[str] = []
    head: list[str] | None = None
    for line in printed.splitlines():
        if not line.startswith("|"):
            head = None
            others += [line] if line.strip() else []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if head is None:
            head = cells
            tables.append([])
        elif not all(set(cell) <= set("-:") for cell in cells):
            tables[-1].append(dict(zip(head, cells, strict=False)))
    return tables, others


def measure(name: str, more: list[str]) -> str | None:
    """Run one and write its JSON; a sentence where that was not possible."""
    benchmark = BENCHMARKS[name]
    if not (HERE / benchmark.script).exists():
        return f"{name}: {benchmark.script} is missing"
    words = [*benchmark.words, *more]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(HERE / benchmark.script), *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"{name}: ended with code {done.returncode}"
    print(done.stdout, flush=True)
    tables, lines = parsed(done.stdout)
    found = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{benchmark.script}", *words]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "load_before": load,
        "seconds": round(time.perf_counter() - began, 1),
        "tables": tables,
        "lines": lines,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="quick, all, or names from the list")
    words: list[str] = sys.argv[1:]
    more: list[str] = []
    if "--" in words:
        more = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    names = parser.parse_args(words).names
    if not names:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:20} about {benchmark.minutes:g} min   python benchmarks/{benchmark.script}")
        return 0
    if names == ["all"]:
        names = list(BENCHMARKS)
    elif names == ["quick"]:
        names = [name for name, benchmark in BENCHMARKS.items() if benchmark.minutes <= QUICK_MINUTES]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; expected quick, all, or some of: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    failed = [told for name in names if (told := measure(name, more)) is not None]
    for told in failed:
        print(told, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
