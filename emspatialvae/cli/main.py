"""The command line: which command is meant, and what its errors mean for the user; each command has a module beside this one.

``emsvae --help`` must answer at once, so torch and pandas are imported by the commands that need them, not here.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from emspatialvae import __version__
from emspatialvae.cli.streams import steady_output
from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs.interrupt import Ended, ended_by_signals

COMMANDS = (
    "demo",
    "info",
    "train",
    "infer",
    "watch",
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
BY_RANKS = ("train", "infer", "classes")
"""Those that several processes do together when ``torchrun`` has started them."""

HELP = """\
emsvae: single-particle EM images without their in-plane pose (a spatial-VAE for RELION and cryoSPARC stacks)

  emsvae demo                                a simulated stack from beginning to end
  emsvae info particles.star                 what is in it, what is odd about it, what train would do with it
  emsvae train particles.star                learn z, theta and shift -> particles_emsvae/
  emsvae infer particles_emsvae other.star   the same for other particles
  emsvae watch particles_emsvae particles.star   the same again and again, for the particles that a growing file adds
  emsvae export particles_emsvae --star out.star | --cs out.cs | --csv out.csv | --aligned out.mrcs
  emsvae view particles_emsvae               see the particles in napari; or particles.star, to train from there
  emsvae analyze particles_emsvae            classes, figures and a report to read: particles_emsvae/analysis/report.html
  emsvae classes particles_emsvae --k 20     classes of particles that look alike, and averages of the raw images of each
  emsvae path particles_emsvae --from 12@stack.mrcs --to 34@stack.mrcs --out path.mrcs   what lies between two
  emsvae manifold particles_emsvae --out manifold.png     a map of what the model draws
  emsvae select particles_emsvae --where "class_number in (1, 4) and z1 > 0.5" --out subset.star
  emsvae simulate hinge --out sim            a stack with known truth; also views, symmetric, noise, ...
  emsvae evaluate sim_emsvae --truth sim/truth.star
  emsvae relion-job --in_parts parts.star --o External/job012/   train as an External job of RELION's GUI

emsvae COMMAND --help lists a command's options. emsvae --version. Any command takes --debug for a full traceback.
Exit codes: 0 done, 1 a defect of the program, 2 bad input (one line says what to do), 3 empty selection, 130 interrupted by Ctrl-C,
143, 129, 138 by SIGTERM, SIGHUP, SIGUSR1: a training has then written its results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    # Threads that wait for each other sleep. By default they spin, and beside one other busy program `emsvae classes` of 4,500 particles took
    # 27 s on two cores instead of 4; asleep they take 5, whatever else runs. OpenMP reads it when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with steady_output() as lost:
        code = _main(list(sys.argv[1:] if argv is None else argv))
    if lost.full and code == 0:
        print("emsvae: what was printed could not all be written: the disk is full", file=sys.stderr)
        return 2
    return code


def _main(arguments: list[str]) -> int:
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
    if not _has_work(arguments[0]):
        return 0
    try:
        with ended_by_signals():
            try:
                command = import_module(f"emspatialvae.cli.{arguments[0].replace('-', '_')}")
                return command.main(arguments[1:])
            finally:
                _tell_leftovers()
    except EmsvaeError as error:
        if debug:
            raise
        if str(error):  # else another rank has said it
            print(f"emsvae: {error}", file=sys.stderr)
        return error.exit_code
    except Ended as ended:
        print(f"emsvae: {ended}", file=sys.stderr)
        return 128 + ended.number
    except KeyboardInterrupt:
        print("emsvae: interrupted", file=sys.stderr)
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        found = None if debug else _explain(error)
        if found is None:
            raise
        print(f"emsvae: {found}", file=sys.stderr)
        return 2


def _has_work(command: str) -> bool:
    """Whether this process does anything: of several that ``torchrun`` has started with a command for one of them, the first alone works."""
    count, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if command in BY_RANKS or count in ("", "1"):
        return True
    if rank == "0":
        print(f"emsvae: {command} works in one process; the other ranks of {count} have nothing to do", file=sys.stderr)
    return rank == "0"


def _tell_leftovers() -> None:
    """What killed commands had left and this one has removed; nothing where no command has written."""
    leftovers = sys.modules.get("emspatialvae.io.leftovers")
    for sentence in leftovers.told() if leftovers else ():
        print(f"emsvae: {sentence}", file=sys.stderr)


_USERS_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY, errno.ESTALE),
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EPIPE, errno.ENXIO, errno.ENODEV),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""In what torch says then, on each device in its own way."""


def _explain(error: OSError | MemoryError | RuntimeError) -> str | None:
    """A line about an error that is the machine's or the user's; None of a defect of the program."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return "the memory is not enough for that; try a smaller --box or --batch-size, fewer units (--hidden), or a larger machine"
    if isinstance(error, OSError):
        if error.errno not in _USERS_ERRORS:
            return None
        if error.errno in _FULL:
            return f"the disk is full ({_printable(error.filename) or 'while writing'}); make room and run again"
        return f"{_printable(error.filename) or 'a file'}: {error.strerror}"
    return f"{text}; follow the links and mend them" if text.startswith("Symlink loop") else None


def _printable(name: str | bytes | int | None) -> str:
    return "" if name is None or isinstance(name, int) else os.fsdecode(name)


if __name__ == "__main__":
    sys.exit(main())
