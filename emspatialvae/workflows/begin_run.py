"""A run folder to train in: a new one, an older one to go on with, or that of the first of several ranks."""

import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io import leftovers, lock
from emspatialvae.io.mask import read_mask
from emspatialvae.io.star_text import as_cells
from emspatialvae.jobs import ranks
from emspatialvae.particles.load import followed, input_files, load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import Preparation, file_poses
from emspatialvae.results import export
from emspatialvae.results.followed_run import FollowedRun
from emspatialvae.results.identity import Identity, check_stacks, rows_of
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.own_files import never_began
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows import room
from emspatialvae.workflows.progress import Say
from emspatialvae.workflows.run_images import open_images

if TYPE_CHECKING:
    from emspatialvae.model.image_spec import ImageSpec


RESUMABLE = {
    "particles",
    "project_dir",
    "strip_prefix",
    "epochs",
    "max_epochs",
    "patience",
    "checkpoint_minutes",
    "device",
    "threads",
}
"""Settings that may change when a run is resumed: where things lie, how long to train."""


def start_run(config: RunConfig, out: Path, *, force: bool = False, say: Say = print) -> tuple[RunDir, ParticleStack]:
    """Read and prepare the particles and make the run folder, which appears when all of that went well.

    Raises
    ------
    EmsvaeError
        Anything wrong with settings, particles, images or ``out``; an older run there is then left as it was.
    """
    from emspatialvae.model.device import pick_device, pick_precision

    config = configuration.resolved(configuration.check(config))
    config = dataclasses.replace(config, input=followed(config.input))
    RunDir.check_free(out, force=force)
    given = [config.input.particles, config.input.passthrough, config.train.hold_still]
    _check_inputs_outside(out, [path for path in given if path is not None])
    device = pick_device(config.train.device)
    stack = load_particles(config.input)
    _check_inputs_outside(out, input_files(stack, config.input))
    _check_names(stack)
    preparation, said, particle = decide(
        stack, config.prepare, bernoulli=config.model.noise == "bernoulli", engine=config.model.engine
    )
    config = dataclasses.replace(config, input=_absolute(config.input), poses=_poses(config))
    start_poses(config, stack, preparation)
    images, shift_said = _image_spec(config, preparation, stack.channels)
    if config.train.hold_still is not None:
        read_mask(config.train.hold_still, images.box)
    dtype = "float32"  # the steerable engine's differences of log-likelihoods need it
    if config.model.engine == "coordinate":
        dtype = str(pick_precision(config.train.precision, device)).removeprefix("torch.")
    assumed = (
        *stack.notes,
        *said,
        shift_said,
        f"device {device}, matrix products in {dtype}",
        _poses_said(config, stack),
    )
    manifest = Manifest(config, preparation, images, len(stack), assumed, stack.optics_names)
    with RunDir.creating(out, manifest, force=force, keep_lock=True) as run:
        run.save_identity(Identity.of(stack))
        say = run.saying(say)
        say(
            f"{stack.source}: {len(stack):,} particles in {len(stack.files)} stack(s), {len(stack.optics)} optics group(s)",
        )
        for sentence in assumed:
            say(f"  {sentence}")
        # Not of the coordinate engine, whose memory was not measured.
        cache = config.prepare.cache or out
        needs = room.sentences(len(stack), preparation, config.prepare.cache_dtype, cache, stack.channels)
        for sentence in needs if config.model.engine == "steerable" else ():
            say(f"  {sentence}")
        if particle is not None:
            run.save_profiles(particle.table(preparation.pixel_size_A))
        open_images(run, stack, say=say)
    return RunDir(out), stack


def open_run(config: RunConfig, out: Path, *, say: Say = print) -> tuple[RunDir, ParticleStack]:
    """Open a run to go on with it; ``config`` may differ from the run's own in `RESUMABLE` settings only.

    Raises
    ------
    RunFolderError
        A setting that shapes the result differs from the run's, or its checkpoint cannot be used.
    """
    from emspatialvae.inference.infer import load_model

    run = RunDir(out)
    manifest, config = run.manifest, dataclasses.replace(config, input=_absolute(followed(config.input)))
    for part in ("input", "prepare", "model", "train"):
        theirs, ours = getattr(manifest.config, part), getattr(config, part)
        for field in dataclasses.fields(theirs):
            there, here = getattr(theirs, field.name), getattr(ours, field.name)
            if there != here and field.name not in RESUMABLE:
                raise RunFolderError(
                    f"{out} was trained with {field.name} = {there}, not {here}; leave that option out to go on with the run's "
                    "own, or start anew with --force"
                )
    if config.poses != manifest.config.poses:
        raise RunFolderError(
            f"{out} was trained with --poses {manifest.config.poses}; leave that option out, `emsvae export` takes --poses, too"
        )
    stack = load_particles(config.input)
    moved = run_order(run, stack)
    begun = not never_began(run.path)
    if begun:
        load_model(run)  # complains before anything is written
    said = lock.acquire(run.path)
    leftovers.sweep(run.path)
    say = run.saying(say)
    if said is not None:
        say(said)
    say(f"going on with {out}" if begun else f"{out} had not begun to learn; it begins now")
    if moved is not None:
        say(f"{stack.source}: rows have moved since the run began; they are followed by their image names")
    return run, stack


def follow_run(out: Path, source: configuration.InputConfig) -> tuple[RunDir, ParticleStack]:
    """The run that the first rank has started or opened, as another rank sees it.

    Raises
    ------
    EmsvaeError
        This rank does not see the run folder or the particles.
    """
    if not (out / "config.json").is_file():
        raise RunFolderError(
            f"rank {ranks.present().rank} on {platform.node()} does not see {out}: the run folder must lie on a disk that all ranks share"
        )
    return FollowedRun(out), load_particles(followed(source))


def run_order(run: RunDir, stack: ParticleStack) -> NDArray[np.int64] | None:
    """Rows of the particles of a run, in the order that it was trained in; None where it is that of the file.

    Raises
    ------
    RunFolderError
        The particles or their stacks are not those of the run any more.
    """
    known, n = run.identity(), run.manifest.n_particles
    if known is None:  # a run of an older version, which knows no more than that
        if len(stack) != n:
            raise RunFolderError(
                f"{stack.source} now has {len(stack)} particles, the run has {n}; train anew with --force"
            )
        return None
    order = rows_of(known.names, [str(name) for name in stack.names], stack.source)
    check_stacks(known, stack)
    if run.manifest.optics != stack.optics_names:
        raise RunFolderError(
            f"{stack.source} now has the optics groups {', '.join(stack.optics_names)}, the run has {', '.join(run.manifest.optics)}, in this "
            "order; give back the file that the run was trained on, or train anew with --force"
        )
    return order


def _check_inputs_outside(out: Path, inputs: list[Path]) -> None:
    """What is read must not lie where the run goes: ``--force`` would remove it."""
    place = Path(os.path.realpath(out))
    for path in inputs:
        if any(Path(where).is_relative_to(place) for where in (os.path.realpath(path), os.path.abspath(path))):  # noqa: PTH100
            raise EmsvaeError(f"{path} lies inside {out}, which the run would take the place of; choose another --out")


def _check_names(stack: ParticleStack) -> None:
    """Refuse names that no result can be written under, before hours of training."""
    if stack.kind == "star":
        return  # they came out of cells, and stay as they are
    try:
        as_cells("rlnImageName", list(stack.paths))
    except ValueError as error:
        raise ParticleFileError(f"{stack.source}: {error}; rename the stack, and the path in the file") from None


def start_poses(config: RunConfig, stack: ParticleStack, preparation: Preparation) -> Pose2D | None:
    """The file's poses where they are to be used, in prepared pixels."""
    if config.model.poses_fixed:
        return file_poses(stack, preparation, "--poses-fixed")
    return file_poses(stack, preparation, "--init-poses", all_set=False) if config.train.init_poses else None


def _image_spec(config: RunConfig, preparation: Preparation, channels: int) -> "tuple[ImageSpec, str]":
    """Shift prior and limit in prepared pixels, and a sentence about them."""
    from emspatialvae.model.image_spec import ImageSpec

    model = config.model
    limit = model.max_shift_A / preparation.pixel_size_A if model.max_shift_A is not None else 0.2 * preparation.box
    if limit > preparation.box / 2:
        raise EmsvaeError(
            f"--max-shift-a {model.max_shift_A} is {limit:.1f} px in a box of {preparation.box}; expected at most half the box "
            f"({preparation.box * preparation.pixel_size_A / 2:.4g} A)"
        )
    prior = model.shift_prior_px if model.shift_prior_px is not None else limit / 2
    if model.shift_prior_px is not None and model.max_shift_A is None:
        limit = float("inf")
    # A circle of the box's own size as radius holds the corners, too.
    radius = float(preparation.box) if model.whole_image else preparation.mask_radius_px
    spec = ImageSpec(preparation.box, radius, prior, limit, channels, preparation.particle_radius_px)
    if model.poses_fixed:
        return spec, "theta and shift are those of the file (--poses-fixed): z alone is learned"
    if not (model.translate and model.decoder != "vanilla"):
        return spec, "shifts are not inferred"
    said = f"shift prior {prior:.3g} px ({prior * preparation.pixel_size_A:.3g} A) s.d."
    return spec, said + (f", at most {limit:.3g} px" if np.isfinite(limit) else ", no limit")


def _absolute(source: InputConfig) -> InputConfig:
    """The input with absolute paths, so that a run can be opened from any folder."""
    paths = {key: getattr(source, key) for key in ("particles", "project_dir", "passthrough")}
    return dataclasses.replace(source, **{key: path.absolute() for key, path in paths.items() if path is not None})


def _poses(config: RunConfig) -> configuration.Poses:
    """A model that infers no pose has none to put in the place of the file's."""
    model = config.model
    inferred = model.decoder != "vanilla" and (model.rotate or model.translate) and not model.poses_fixed
    return config.poses if inferred or config.poses == "overwrite" else "keep"


def _poses_said(config: RunConfig, stack: ParticleStack) -> str:
    if not export.protects_poses(stack, config.poses):
        return "our psi and origin will be written as rlnAnglePsi and rlnOrigin"
    why = "poses are kept" if config.poses == "keep" else "the file holds poses of a 3-D refinement"
    return f"{why}: our psi and origin will go to emsvaeAnglePsi, emsvaeOriginXAngst, emsvaeOriginYAngst"
