"""The process that `emspatialvae.jobs.background` starts: a command whose end can be told from outside."""

import json
import sys
from pathlib import Path

from emspatialvae.cli.main import main
from emspatialvae.io.atomic import atomic_path
from emspatialvae.jobs.interrupt import interrupted_by
from emspatialvae.jobs.lock import lock


def run(folder: Path) -> int:
    """Run the command of ``folder``/job.json and leave its exit code there."""
    words = json.loads((folder / "job.json").read_text())["words"]
    with (folder / "alive").open("w+b") as alive:
        lock(alive, wait=True)
        code = 1
        try:
            with interrupted_by(folder / "cancel"):
                code = main(words)
        finally:
            with atomic_path(folder / "ended") as temporary:
                temporary.write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
