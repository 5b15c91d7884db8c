"""The command line: which command is meant, and what its errors mean for the user; each command has a module beside this one.

``emsvae --help`` must answer at once, so torch and pandas are imported by the commands that need them, not here.
"""

import errno
import sys
from collections.abc import Sequence
from importlib import import_module

from emspatialvae import __version__
from emspatialvae.errors import EmsvaeError

COMMANDS = (
    "demo",
    "info",
    "train",
    "infer",
    "export",
    "select",
    "simulate",
    "evaluate",
    "relion-job",
    "path",
    "manifold",
    "classes",
    "analyze",
    "view",
)
"""Each a module of `emspatialvae.cli`."""

HELP = """\
emsvae: single-particle EM images without their in-plane pose (a spatial-VAE for RELION and cryoSPARC stacks)

  emsvae demo                                a simulated stack from beginning to end
  emsvae info particles.star                 what is in it, what is odd about it, what train would do with it
  emsvae train particles.star                learn z, theta and shift -> particles_emsvae/
  emsvae infer particles_emsvae other.star   the same for other particles
  emsvae export particles_emsvae --star out.star | --cs out.cs | --csv out.csv | --aligned out.mrcs
  emsvae view particles_emsvae               see the particles in napari; or particles.star, to train from there
  emsvae analyze particles_emsvae            classes, figures and a report to read: particles_emsvae/analysis/report.html
  emsvae classes particles_emsvae --k 20     classes by content, and averages of the raw images of each
  emsvae path particles_emsvae --from 12@stack.mrcs --to 34@stack.mrcs --out path.mrcs   what lies between two
  emsvae manifold particles_emsvae --out manifold.png     a map of what the model draws
  emsvae select particles_emsvae --where "class_number in (1, 4) and z1 > 0.5" --out subset.star
  emsvae simulate hinge --out sim            a stack with known truth; also views, symmetric, noise, ...
  emsvae evaluate sim_emsvae --truth sim/truth.star
  emsvae relion-job --in_parts parts.star --o External/job012/   train as an External job of RELION's GUI

emsvae COMMAND --help lists a command's options. emsvae --version. Any command takes --debug for a full traceback.
Exit codes: 0 done, 1 a defect of the program, 2 bad input (one line says what to do), 3 empty selection, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        print(f"emsvae {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"emsvae: no command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = import_module(f"emspatialvae.cli.{arguments[0].replace('-', '_')}")
        return command.main(arguments[1:])
    except EmsvaeError as error:
        if debug:
            raise
        print(f"emsvae: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if debug or error.errno not in _USERS_ERRORS:
            raise
        print(f"emsvae: {_explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emsvae: interrupted", file=sys.stderr)
        return 130


_USERS_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EPIPE,
}


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'while writing'}); make room and run again"
    return f"{error.filename or 'a file'}: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
