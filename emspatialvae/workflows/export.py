"""``emsvae export``: the results of a run into files."""

import dataclasses
from pathlib import Path

import numpy as np

from emspatialvae.config import Poses
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.atomic import check_outputs, check_writable
from emspatialvae.io.mask import read_mask
from emspatialvae.particles.load import input_files
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.results import export, export_aligned, export_coordinates
from emspatialvae.results.latents import Latents
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.read_run import read_run
from emspatialvae.results.run_folder import RunDir
from emspatialvae.results.stack_links import make_links, planned_links, unread_by_relion
from emspatialvae.workflows.progress import Say, bar

REGISTERED = 4000
"""Latents that a new frame is fitted to."""


def export_run(
    path: Path,
    wanted: dict[str, Path],
    *,
    poses: Poses | None = None,
    project_dir: Path | None = None,
    hold_still: Path | None = None,
    link_stacks: Path | None = None,
    micrograph_pixel_size_A: float | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Write the results of a run; ``wanted`` maps star, cs, csv, coordinates and aligned to the files to make.

    ``link_stacks``: a folder for links ending in .mrcs, by which the STAR file then names the images.
    ``hold_still``: a mask on the run's consensus; poses then refer to that part of the particle.
    """
    if link_stacks is not None and "star" not in wanted:
        raise EmsvaeError("--link-stacks is for the names in a STAR file; give that with --star")
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
    links = {} if link_stacks is None else planned_links(stack, link_stacks, force=force)
    if hold_still is not None:
        latents = held_still(run, latents, hold_still)
    for kind, destination in wanted.items():
        if kind == "aligned":
            with bar(len(stack), "aligning") as progress:
                export_aligned.write_aligned(latents, stack, destination, force=force, progress=progress)
        else:
            how = poses or run.manifest.config.poses
            if kind == "coordinates":
                say(
                    export_coordinates.write_coordinates(
                        latents, stack, destination, micrograph_pixel_size_A, poses=how, force=force
                    )
                )
            elif kind == "star":
                names = {"rlnImageName": make_links(stack, links)} if links else {}
                export.write_star(latents, stack, destination, poses=how, force=force, replaced=names)
            else:
                {"cs": export.write_cs, "csv": export.write_csv}[kind](
                    latents, stack, destination, poses=how, force=force
                )
        say(f"{len(latents):,} particles: {destination}")
    if link_stacks is not None:
        say(f"{len(links):,} links to stacks: {link_stacks}")
    elif "star" in wanted and (sentence := said_of_names(stack, path)):
        say(sentence)


def said_of_names(stack: ParticleStack, run: Path) -> str | None:
    """What is said of stacks that RELION refuses because of their names; None where it reads them all."""
    unread = unread_by_relion(stack)
    if not unread:
        return None
    return (
        f"RELION reads stacks from names that end in .mrcs only, {len(unread):,} of {len(stack.paths):,} do not (the first is {unread[0]}): "
        f"`emsvae export {run} --star FILE --link-stacks DIR` makes links that do"
    )


def held_still(run: RunDir, latents: Latents, mask: Path) -> Latents:
    """The same results with poses that refer to the part of the consensus under a mask.

    Raises
    ------
    EmsvaeError
        The run is one of the coordinate engine, which has no common frame.
    """
    import torch

    from emspatialvae.model.steerable.poses import Poses
    from emspatialvae.model.steerable.vae import SteerableVAE

    run.check_results_belong()
    from emspatialvae.inference.infer import load_model  # torch takes seconds to load, and only this needs it

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
