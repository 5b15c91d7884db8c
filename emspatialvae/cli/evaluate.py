"""``emsvae evaluate``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from emspatialvae.cli.parsing import parse
from emspatialvae.errors import EmsvaeError


@dataclass(frozen=True)
class EvaluateCommand:
    """Compare what a run found with the truth, with the Cramer-Rao bound and the Bayes oracle beside it where they are known.

    Where the truth holds views of a 3-D object (rlnAngleRot, rlnAngleTilt), say how far apart in view the particles of a class are,
    and neighbours in z, for a run or for any program's STAR file.
    """

    run: Positional[Path]
    """The run folder that `emsvae train` made; where the truth holds views, also a STAR file with rlnAnglePsi and rlnClassNumber of
    any program, say run_it025_data.star of RELION's Class2D."""
    truth: Path
    """truth.star of `emsvae simulate`; for views, any STAR file with rlnAngleRot, rlnAngleTilt and rlnAnglePsi."""
    json: bool = False
    """Print JSON instead of a table."""
    oracle_particles: int = 500
    """Particles that the oracle (the Bayes estimator that knows the true generator) looks at; 0 = leave it out."""


def main(argv: list[str]) -> int:
    """``emsvae evaluate``."""
    asked = parse(EvaluateCommand, argv)
    from emspatialvae.analysis.accuracy.run_views import evaluate_views, has_views
    from emspatialvae.workflows.evaluate import evaluate_run

    if has_views(asked.truth):
        judged = evaluate_views(asked.run, asked.truth)
    elif asked.run.suffix == ".star":
        raise EmsvaeError(
            f"{asked.truth} holds no views (rlnAngleRot, rlnAngleTilt), by which alone a STAR file can be judged; give a run folder,"
            " or the truth.star of `emsvae simulate views --map`"
        )
    else:
        judged = evaluate_run(asked.run, asked.truth, asked.oracle_particles, lambda line: print(line, file=sys.stderr))
    if asked.json:
        print(json.dumps(judged.as_dict(), indent=2))
    else:
        print(judged.table())
    return 0
