"""``emsvae export``: the results of a run into files."""

import dataclasses
from pathlib import Path

import numpy as np

from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.inference.infer import load_model
from emspatialvae.io.atomic import check_outputs, check_writable
from emspatialvae.io.mask import read_mask
from emspatialvae.particles.load import input_files
from emspatialvae.results import export, export_aligned
from emspatialvae.results.latents import Latents
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.read_run import read_run
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say, bar

REGISTERED = 4000
"""Contents that a new frame is fitted to."""


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
                export_aligned.write_aligned(latents, stack, destination, force=force, progress=progress)
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

    from emspatialvae.model.steerable.pose_search import Poses
    from emspatialvae.model.steerable.vae import SteerableVAE

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
