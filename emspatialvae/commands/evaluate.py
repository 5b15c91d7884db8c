"""``emsvae evaluate``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.commands.parsing import parse


@dataclass(frozen=True)
class EvaluateCommand:
    """Compare what a run found with the truth, with the Cramer-Rao bound and the Bayes oracle beside it where they are known."""

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    truth: Path
    """truth.star of `emsvae simulate`."""
    json: bool = False
    """Print JSON instead of a table."""
    oracle_particles: int = 500
    """Particles that the oracle (the Bayes estimator that knows the true generator) looks at; 0 = leave it out."""


def main(argv: list[str]) -> int:
    """``emsvae evaluate``."""
    asked = parse(EvaluateCommand, argv)
    from emspatialvae.judge import evaluate_run

    judged = evaluate_run(asked.run, asked.truth, asked.oracle_particles, lambda line: print(line, file=sys.stderr))
    if asked.json:
        print(json.dumps(judged.as_dict(), indent=2))
    else:
        print(judged.table())
    return 0
