"""The command line: one thin function per command, every one a few calls into `workflow`.

``emsvae --help`` must answer at once, so torch and pandas are imported by the commands that need them, not here.
"""

import errno
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from emspatialvae import __version__
from emspatialvae import config as configuration
from emspatialvae.config import Device, InputConfig, Poses, RunConfig, SimulateConfig
from emspatialvae.errors import EmsvaeError

T = TypeVar("T")

HELP = """\
emsvae: single-particle EM images without their in-plane pose (a spatial-VAE for RELION and cryoSPARC stacks)

  emsvae demo                                a simulated stack from beginning to end
  emsvae info particles.star                 what is in it, what is odd about it, what train would do with it
  emsvae train particles.star                learn z, theta and shift -> particles_emsvae/
  emsvae infer particles_emsvae other.star   the same for other particles
  emsvae export particles_emsvae --star out.star | --cs out.cs | --csv out.csv | --aligned out.mrcs
  emsvae simulate hinge --out sim            a stack with known truth; also views, symmetric, noise, ...
  emsvae evaluate sim_emsvae --truth sim/truth.star

emsvae COMMAND --help lists a command's options. emsvae --version. Any command takes --debug for a full traceback.
Exit codes: 0 done, 1 a defect of the program, 2 bad input (one line says what to do), 130 interrupted."""


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
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"emsvae: no command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return command(arguments[1:])
    except EmsvaeError as error:
        if debug:
            raise
        print(f"emsvae: {error}", file=sys.stderr)
        return 2
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


def _parse(cls: type[T], argv: list[str], default: Any = None) -> T:
    """Flags to a dataclass.

    Raises
    ------
    EmsvaeError
        What tyro says about the flags in a box of many lines, in one.
    """
    command = f"emsvae {cls.__name__.removesuffix('Command').removesuffix('Config').lower()}"
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(cls, args=argv, prog=command, default=default, config=(OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        lines = [line.strip("\u2502\u256d\u256e\u2570\u256f\u2500 ") for line in said.getvalue().splitlines()[1:]]
        found = " ".join(takewhile(lambda line: line and line != "Got errors:", lines)).rstrip(".")
        raise EmsvaeError(f"{found}; see {command} --help") from None


# -------------------------------------------------------------------------------------------------------------- train


@dataclass(frozen=True)
class TrainCommand:
    """Learn content z, rotation and shift of every particle, and write them back into the particles' own file.

    Everything has a default; what was assumed is printed and stored in the run folder.
    """

    run: RunConfig
    out: Path | None = None
    """The run folder [default: NAME_emsvae in the current folder]."""
    force: bool = False
    """Replace an older run there."""
    resume: bool = False
    """Go on with a run that was killed or interrupted, with its own settings."""
    preset: Literal["none", "paper"] = "none"
    """paper: the EM settings of Bepler et al. 2019; flags given beside it win."""


def train(argv: list[str]) -> int:
    """``emsvae train``: returns 130 when the user interrupted the training (the results so far are written)."""
    default = RunConfig(InputConfig(tyro.MISSING))
    preset = _value_of("--preset", argv)
    if preset is not None and preset in configuration.PRESETS:
        default = configuration.with_preset(default, preset)
    asked = _parse(TrainCommand, argv, TrainCommand(default))
    from emspatialvae import workflow
    from emspatialvae.run import RunDir, default_out

    out = asked.out or default_out(asked.run.input.particles)
    if not asked.resume:
        run, stack = workflow.start_run(asked.run, out, force=asked.force)
    elif asked.force:
        raise EmsvaeError("--resume goes on with a run, --force replaces it; give one of them")
    else:
        # Read again with the run's own settings as defaults, so that only flags that were given can differ.
        own = RunDir(out).manifest.config
        own = replace(own, input=replace(own.input, particles=tyro.MISSING))
        asked = _parse(TrainCommand, argv, TrainCommand(own))
        run, stack = workflow.open_run(asked.run, out)
    return 0 if workflow.train_run(run, stack, asked.run.train, resume=asked.resume) else 130


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The word after ``flag``, or after ``flag=``."""
    for word, following in zip_longest(argv, argv[1:]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


# ---------------------------------------------------------------------------------------------------- infer and export


@dataclass(frozen=True)
class InferCommand:
    """Infer z, rotation and shift of other particles with a trained run, and write them into those particles' own file."""

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    input: InputConfig
    out: Path
    """Where to write: a name ending in .star, .cs or .csv."""
    poses: Poses = "auto"
    """As in `emsvae train`."""
    device: Device = "auto"
    """Where to compute; the run may have been trained elsewhere."""
    force: bool = False
    """Replace what is there."""


def infer(argv: list[str]) -> int:
    """``emsvae infer``."""
    asked = _parse(InferCommand, argv)
    from emspatialvae.results import infer_other
    from emspatialvae.run import RunDir

    infer_other(RunDir(asked.run), asked.input, asked.out, poses=asked.poses, device=asked.device, force=asked.force)
    return 0


@dataclass(frozen=True)
class ExportCommand:
    """Write the results of a run: any of the formats, in one go."""

    run: Positional[Path]
    """The run folder that `emsvae train` made."""
    star: Path | None = None
    """The input STAR file with our columns (for other inputs a new RELION 3.1 file)."""
    cs: Path | None = None
    """The input .cs file with alignments2D and emsvae fields."""
    csv: Path | None = None
    """A table: z, theta, shift and their standard deviations."""
    aligned: Path | None = None
    """A stack of the raw images with rotation and shift taken out."""
    poses: Poses | None = None
    """As in `emsvae train` [default: as the run was trained]."""
    project_dir: Path | None = None
    """Where the images lie now, if they were moved."""
    hold_still: Path | None = None
    """Mask (.mrc, drawn on the run's consensus.mrc): poses refer to that part of the particle, say one domain of a hinge."""
    force: bool = False
    """Replace what is there."""


def export(argv: list[str]) -> int:
    """``emsvae export``."""
    asked = _parse(ExportCommand, argv)
    from emspatialvae.results import export_run

    wanted = {key: path for key in ("star", "cs", "csv", "aligned") if (path := getattr(asked, key)) is not None}
    if not wanted:
        raise EmsvaeError("nothing to export; give --star, --cs, --csv or --aligned with a file name")
    export_run(
        asked.run,
        wanted,
        poses=asked.poses,
        project_dir=asked.project_dir,
        hold_still=asked.hold_still,
        force=asked.force,
    )
    return 0


# --------------------------------------------------------------------------------------------------------------- info


@dataclass(frozen=True)
class InfoCommand:
    """What is in a particle file, what is odd about it, and what `emsvae train` would do with it; or what a run holds."""

    source: Annotated[Positional[Path], arg(metavar="PATH")]
    """Particle file, or run folder."""
    project_dir: Path | None = None
    """As in `emsvae train`."""
    passthrough: Path | None = None
    """As in `emsvae train`."""
    pixel_size_A: Annotated[float | None, arg(name="pixel-size-a")] = None
    """As in `emsvae train`."""
    box: int | None = None
    """As in `emsvae train`."""


def info(argv: list[str]) -> int:
    """``emsvae info``."""
    asked = _parse(InfoCommand, argv)
    from emspatialvae import describe

    if asked.source.is_dir():
        print(describe.run_text(asked.source))
    else:
        source = InputConfig(asked.source, asked.project_dir, asked.passthrough, asked.pixel_size_A)
        print(describe.particles_text(source, configuration.PrepareConfig(box=asked.box)))
    return 0


# ------------------------------------------------------------------------------------------ simulate, evaluate, demo


def simulate(argv: list[str]) -> int:
    """``emsvae simulate``."""
    asked = _parse(SimulateConfig, argv)
    from emspatialvae.simulation.stack import simulate_stack

    out = simulate_stack(asked)
    strength = "no signal" if asked.kind == "noise" else f"SNR {asked.snr}"
    print(
        f"{asked.particles:,} particles of {asked.box} px, {strength}: {out}/particles.star, truth in {out}/truth.star"
    )
    return 0


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


def evaluate(argv: list[str]) -> int:
    """``emsvae evaluate``."""
    asked = _parse(EvaluateCommand, argv)
    from emspatialvae.judge import evaluate_run

    judged = evaluate_run(asked.run, asked.truth, asked.oracle_particles, lambda line: print(line, file=sys.stderr))
    if asked.json:
        print(json.dumps(judged.as_dict(), indent=2))
    else:
        print(judged.table())
    return 0


@dataclass(frozen=True)
class DemoCommand:
    """Simulate a stack of hinged particles, train on it, write the STAR file and the figures, and say what was found."""

    out: Path = Path("emsvae_demo")
    """Folder for the stack and the run."""
    force: bool = False
    """Replace an older demo there."""


def demo(argv: list[str]) -> int:
    """``emsvae demo``."""
    asked = _parse(DemoCommand, argv)
    from emspatialvae.demo import demo as run_demo

    return 0 if run_demo(asked.out, force=asked.force) else 130


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "info": info,
    "train": train,
    "infer": infer,
    "export": export,
    "simulate": simulate,
    "evaluate": evaluate,
}


if __name__ == "__main__":
    sys.exit(main())
