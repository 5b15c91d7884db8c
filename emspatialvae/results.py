"""What a finished run is good for: results out of it, and poses for other particles."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emspatialvae import export
from emspatialvae.config import Device, InputConfig, Poses
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.geometry import Pose2D
from emspatialvae.identity import check_stacks, rows_of
from emspatialvae.infer import Latents, infer, load_model
from emspatialvae.io.atomic import check_outputs, check_writable
from emspatialvae.loading import find_stack, input_files, load_particles, read_mask
from emspatialvae.own_files import check_not_own
from emspatialvae.particles import ParticleStack
from emspatialvae.prepare import Portion, Preparation, check_ctf, file_poses, prepare
from emspatialvae.progress import Say, bar
from emspatialvae.run import Manifest, RunDir

REGISTERED = 4000
"""Contents that a new frame is fitted to."""


def read_run(path: Path, project_dir: Path | None = None) -> tuple[RunDir, Latents, ParticleStack]:
    """A run with its results and its particles, both in the order of the particles' file as it is now.

    Rows that have moved in it since are followed by their image names.

    Raises
    ------
    RunFolderError
        The particles or their stacks are not those of the run any more.
    """
    run, latents = read_latents(path)
    stack, order = _particles(run, latents, project_dir)
    return run, latents if order is None else latents[np.argsort(order)], stack


def read_latents(path: Path) -> tuple[RunDir, Latents]:
    """A run with its results, in the order of ``latents.csv``; of its particles it looks at nothing."""
    run = RunDir(path)
    return run, export.results_of(run)


def read_particles(run: RunDir, latents: Latents, project_dir: Path | None = None) -> ParticleStack:
    """The particles of a run in the order of its results, whatever that of their file is by now; raises as `read_run`."""
    stack, order = _particles(run, latents, project_dir)
    return stack if order is None else stack.subset(order)


def input_paths(run: RunDir, project_dir: Path | None = None) -> list[Path]:
    """Files that the run was made from, as far as they are found now: no command that is given the run may write there."""
    source = run.manifest.config.input
    source = dataclasses.replace(source, project_dir=project_dir or source.project_dir)
    found = [source.particles, *([source.passthrough] if source.passthrough else [])]
    known = run.identity()
    for stack in [] if known is None else known.stacks:
        with contextlib.suppress(EmsvaeError):  # it was moved: then nobody writes over it by its name
            found.append(find_stack(stack.name, source))
    return [path for path in found if path.is_file()]


def _particles(
    run: RunDir, latents: Latents, project_dir: Path | None
) -> tuple[ParticleStack, NDArray[np.int64] | None]:
    """The particles as their file has them now, and where those of the results stand in it; None: in the same order."""
    source = run.manifest.config.input
    stack = load_particles(dataclasses.replace(source, project_dir=project_dir or source.project_dir))
    order = rows_of([str(name) for name in latents.names], [str(name) for name in stack.names], stack.source)
    known = run.identity()
    if known is not None:
        check_stacks(known, stack)
    return stack, order


def export_run(
    path: Path,
    wanted: dict[str, Path],
    *,
    poses: Poses | None = None,
    project_dir: Path | None = None,
    hold_still: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Write the results of a run; ``wanted`` maps star, cs, csv and aligned to the files to make.

    ``hold_still``: a mask on the run's consensus; poses then refer to that part of the particle.
    """
    for destination in wanted.values():
        check_writable(destination, force)
    check_outputs(wanted.values())
    # These two can be made again: they are what this command writes.
    check_not_own(wanted.values(), [path / f"particles.{kind}" for kind in ("star", "cs") if kind in wanted])
    run, latents, stack = read_run(path, project_dir)
    inputs = input_files(stack, run.manifest.config.input)
    check_outputs(wanted.values(), [*inputs, *([hold_still] if hold_still else [])])
    behind = run.behind()
    if behind is not None:
        say(behind)
    if hold_still is not None:
        latents = held_still(run, latents, hold_still)
    for kind, destination in wanted.items():
        if kind == "aligned":
            with bar(len(stack), "aligning") as progress:
                export.write_aligned(latents, stack, destination, force=force, progress=progress)
        else:
            write = {"star": export.write_star, "cs": export.write_cs, "csv": export.write_csv}[kind]
            write(latents, stack, destination, poses=poses or run.manifest.config.poses, force=force)
        say(f"{len(latents):,} particles: {destination}")


def held_still(run: RunDir, latents: Latents, mask: Path) -> Latents:
    """The same results with poses that refer to the part of the consensus under a mask.

    Raises
    ------
    EmsvaeError
        The run is one of the coordinate engine, which has no common frame.
    """
    import torch

    from emspatialvae.model.pose_search import Poses
    from emspatialvae.model.steerable_vae import SteerableVAE

    run.check_results_belong()
    model = load_model(run)
    if not isinstance(model, SteerableVAE):
        raise EmsvaeError(
            f"--hold-still: {run.path} was trained with --engine coordinate, whose poses have no common frame"
        )
    weights = torch.from_numpy(read_mask(mask, model.images.box))
    z = torch.tensor(latents.z).float()
    common = Poses(torch.tensor(latents.pose.theta_rad).float(), torch.tensor(latents.pose.shift_px).float())
    raw = model.gauge.out_of_common(common, z)
    used = np.flatnonzero(latents.used)
    model.fix_gauge(z[torch.from_numpy(np.random.default_rng(0).permutation(used)[:REGISTERED])], weights)
    poses = model.gauge.into_common(raw, z)
    pose = Pose2D(poses.theta_rad.double().numpy(), poses.shift_px.double().numpy())
    return dataclasses.replace(latents, pose=pose)


def infer_other(
    run: RunDir,
    source: InputConfig,
    out: Path,
    *,
    poses: Poses,
    device: Device = "auto",
    force: bool = False,
    say: Say = print,
) -> None:
    """Infer the particles of another file with a trained model, prepared as the run's own were, and write them to ``out``."""
    from emspatialvae import compute

    export.check_destination(out, force=force)
    check_not_own([out])
    compute.keep_freed_memory()
    manifest, model = run.manifest, load_model(run)
    stack = load_particles(source)
    check_outputs([out], [*input_files(stack, source), *input_paths(run, source.project_dir)])
    check_fits(stack, manifest.preparation, run)
    given = None
    if manifest.config.model.poses_fixed:
        asked = f"{run.path} was trained with --poses-fixed, which"
        given = file_poses(stack, manifest.preparation, asked, "give a file that has them")
        poses = "keep" if poses == "auto" else poses
    groups = _groups_of_run(stack, manifest, say)
    with bar(len(stack), "inferring poses") as progress:

        def portions() -> Iterator[Portion]:
            for portion in prepare(stack, manifest.preparation):
                yield dataclasses.replace(portion, group=groups[portion.group])
                progress(len(portion))

        settings = dataclasses.replace(manifest.config.train, device=device)
        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings, given)
    export.write(latents, stack, out, poses=poses, force=force)
    say(f"{len(latents):,} particles, {int((~latents.used).sum())} unusable: {out}")


def _groups_of_run(stack: ParticleStack, manifest: Manifest, say: Say) -> NDArray[np.int32]:
    """Which number each optics group of another file has in the run, by its name; beyond the last where the run does not know it."""
    numbers = {name: number for number, name in enumerate(manifest.optics)}
    found = np.array([numbers.get(group.name, len(numbers)) for group in stack.optics], np.int32)
    unknown = [stack.optics[group].name for group in np.unique(stack.optics_of) if found[group] == len(numbers)]
    if unknown and len(numbers) > 1 and manifest.config.model.engine == "steerable":
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        say(
            f"optics group {unknown[0]}{others} did not occur in training: the noise of all particles of the run is taken"
        )
    return found


def check_fits(stack: ParticleStack, preparation: Preparation, run: RunDir) -> None:
    """Refuse a stack that the run's model cannot look at.

    Its field of view must hold the model's at the same scale, and its CTF must be known where the run's was used.
    """
    field_A = preparation.box * preparation.pixel_size_A
    widths = np.array([file.width for file in stack.files])[stack.file_of]
    smallest = float((widths * stack.pixel_size_A).min())
    if smallest < field_A * (1 - 1e-3) or stack.pixel_size_A.max() > preparation.pixel_size_A * (1 + 1e-3):
        raise ParticleFileError(
            f"{stack.source}: {smallest:.4g} A across at {stack.pixel_size_A.max():.4g} A per pixel; the model of {run.path} needs "
            f"{field_A:.4g} A at {preparation.pixel_size_A:.4g} A or finer; extract the particles in a larger box"
        )
    channels = run.manifest.images.channels
    if stack.channels != channels:
        raise ParticleFileError(
            f"{stack.source}: images of {stack.channels} channel(s); the model of {run.path} was trained on {channels}"
        )
    check_ctf(stack, preparation.ctf, f"use a run trained with --ctf none ({run.path} was trained with the CTF)")
