"""Recovery of simulated truth by the default engine, beside the Bayes oracle: one row of the table per case.

    python benchmarks/recovery.py [CASE ...] [--folder DIR] [--epochs N] [--oracle 1000]

Each case is simulated once into DIR (kept), trained by ``emsvae train`` with no option (but what the case is
about), and evaluated on all its particles; the oracle, the estimator that knows the true generator, looks at some of them. Ratios
are ours over the oracle's: of the noise of z, of the rms of theta and of the shift. ``train s`` is the wall time of the whole
``emsvae train``: preparation, training, inference, figures.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HINGE = ["hinge", "--particles", "20000", "--box", "40"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "rotation only, SNR 0.1": ([*HINGE, "--shift-px", "0"], ["--no-translate"]),
    "shifts 2 px, SNR 0.1": ([*HINGE], []),
    "SNR 0.02": ([*HINGE, "--snr", "0.02"], []),
    "SNR 1": ([*HINGE, "--snr", "1"], []),
    "another hinge": (["hinge-b", *HINGE[1:]], []),
    "two hinges": (["two-hinges", *HINGE[1:]], []),
    "one hinge, z-dim 2": ([*HINGE], ["--z-dim", "2"]),
    "box 48": (["hinge", "--particles", "20000", "--box", "48"], []),
    "box 65": (["hinge", "--particles", "10000", "--box", "65"], []),
    "two optics groups, coloured noise, SNR 0.5": (
        [*HINGE, "--optics-groups", "2", "--noise-colour", "coloured", "--snr", "0.5"],
        [],
    ),
    "views over 60 degrees, 10 % junk": (["views", "--particles", "20000", "--box", "48", "--junk", "0.1"], []),
    "CTF, coloured noise, SNR 1": (
        ["hinge", "--particles", "8000", "--box", "64", "--ctf", "--noise-colour", "coloured", "--snr", "1"],
        [],
    ),
    "the same, --ctf none": (
        ["hinge", "--particles", "8000", "--box", "64", "--ctf", "--noise-colour", "coloured", "--snr", "1"],
        ["--ctf", "none"],
    ),
    "pseudo-symmetric": (["pseudo-symmetric", "--particles", "10000", "--box", "40"], []),
    "two-fold symmetric": (["symmetric", "--particles", "10000", "--box", "40"], []),
}


def emsvae(*words: str) -> str:
    """Run a command of this checkout and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "emspatialvae", *words], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"emsvae {' '.join(words)}: {done.stderr}")
    return done.stdout


def row(name: str, folder: Path, extra: list[str], oracle: int) -> str:
    """Simulate, train, evaluate; a row in Markdown."""
    simulate, train = CASES[name]
    stack = folder / "_".join(word.lstrip("-") for word in simulate)
    if not (stack / "truth.star").exists():
        emsvae("simulate", *simulate, "--out", str(stack))
    run = folder / "run"
    began = time.perf_counter()
    log = emsvae("train", str(stack / "particles.star"), "--out", str(run), "--force", *train, *extra)
    seconds = time.perf_counter() - began
    epochs = log.partition("training ended after ")[2].partition(" ")[0]
    found = json.loads(
        emsvae("evaluate", str(run), "--truth", str(stack / "truth.star"), "--json", "--oracle-particles", str(oracle))
    )
    best = found["oracle"]

    def ratio(key: str) -> str:
        ours, theirs = (found["on_the_same"] or found)[key], best and best[key]
        pairs = list(zip(ours, theirs or [], strict=False)) if isinstance(ours, list) else [(ours, theirs)]
        return ", ".join(f"{a / b:.2f}" if a and b else "-" for a, b in pairs)

    def number(key: str, digits: int) -> str:
        def text(source: dict | None) -> str:
            value = source and source[key]
            values = value if isinstance(value, list) else [value]
            return ", ".join("-" if v is None else f"{v:.{digits}f}" for v in values)

        return f"{text(found)} ({text(best)})"

    within = [found["z_within_1sd"], found["theta_within_1sd"], found["shift_within_1sd"]]
    shares = ", ".join(
        "-" if v is None else f"{v:.2f}" for part in within for v in (part if isinstance(part, list) else [part])
    )
    cells = [
        name,
        f"{seconds:.0f} s, {epochs} epochs",
        number("z_r_cubic", 3),
        number("theta_gauge_rms_deg", 2),
        number("shift_gauge_rms_px", 3),
        f"{ratio('z_noise')}; {ratio('theta_gauge_rms_deg')}; {ratio('shift_gauge_rms_px')}",
        shares,
        "-" if (found["junk"] or {}).get("auc") is None else f"{found['junk']['auc']:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all when none is named")
    parser.add_argument("--folder", type=Path, default=Path("recovery"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--oracle", type=int, default=1000)
    asked = parser.parse_args()
    unknown = [name for name in asked.cases if name not in CASES]
    if unknown:
        sys.exit(f"no case {unknown[0]!r}; expected some of: {'; '.join(CASES)}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    extra = ["--epochs", str(asked.epochs)] if asked.epochs else []
    print(f"{os.cpu_count()} cores; found (oracle); ratios of the noise of z; theta; shift")
    print(
        "| case | train | z corr | theta rms, deg | shift rms, px | ratios | within 1 s.d.: z, theta, shift | junk AUC |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in asked.cases or CASES:
        print(row(name, asked.folder, extra, asked.oracle), flush=True)


if __name__ == "__main__":
    main()
