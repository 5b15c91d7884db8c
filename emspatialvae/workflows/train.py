"""A training run from beginning to end: read, prepare, train, infer, write, draw.

Command line and plugin call these; ``say`` receives each sentence for the user.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.mask import read_mask
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages, prepared_images
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import Portion, Preparation, file_poses
from emspatialvae.results import export
from emspatialvae.results.run_folder import Manifest, RunDir
from emspatialvae.workflows.progress import Say

if TYPE_CHECKING:
    from emspatialvae.model.interface import ImageSpec, ParticleVAE
    from emspatialvae.training.trainer import Trainer

BASIS_PARTICLES, BASIS_BATCH = 20_000, 500
"""Particles that the steerable basis is learned from, and how many at a time."""

RESUMABLE = {"particles", "project_dir", "epochs", "max_epochs", "patience", "checkpoint_minutes", "device", "threads"}
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
    RunDir.check_free(out, force=force)
    if config.input.particles.resolve().is_relative_to(out.resolve()):
        raise EmsvaeError(
            f"{config.input.particles} lies inside {out}, which --force would replace; choose another --out"
        )
    device = pick_device(config.train.device)
    stack = load_particles(config.input)
    preparation, said, particle = decide(
        stack, config.prepare, bernoulli=config.model.noise == "bernoulli", engine=config.model.engine
    )
    config = dataclasses.replace(config, input=_absolute(config.input), poses=_poses(config))
    _start_poses(config, stack, preparation)
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
    manifest = Manifest(config, preparation, images, len(stack), assumed, _optics(stack))
    with RunDir.creating(out, manifest, force=force) as run:
        _report(
            run,
            say,
            f"{stack.source}: {len(stack):,} particles in {len(stack.files)} stack(s), {len(stack.optics)} optics group(s)",
        )
        for sentence in assumed:
            _report(run, say, f"  {sentence}")
        if particle is not None:
            run.save_profiles(particle.table(preparation.pixel_size_A))
        open_images(run, stack)
    return RunDir(out), stack


def _optics(stack: ParticleStack) -> tuple[str, ...]:
    return tuple(group.name for group in stack.optics)


def open_run(config: RunConfig, out: Path, *, say: Say = print) -> tuple[RunDir, ParticleStack]:
    """Open a run to go on with it; ``config`` may differ from the run's own in `RESUMABLE` settings only.

    Raises
    ------
    RunFolderError
        A setting that shapes the result differs from the run's, or its checkpoint cannot be used.
    """
    from emspatialvae.inference.infer import load_model

    run = RunDir(out)
    manifest, config = run.manifest, dataclasses.replace(config, input=_absolute(config.input))
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
    if len(stack) != manifest.n_particles:
        raise RunFolderError(
            f"{config.input.particles} now has {len(stack)} particles, the run has {manifest.n_particles}; train anew with --force"
        )
    load_model(run)  # complains before anything is written
    _report(run, say, f"going on with {out}")
    return run, stack


def train_run(
    run: RunDir,
    stack: ParticleStack,
    train: configuration.TrainConfig,
    *,
    resume: bool = False,
    figures: bool = True,
    say: Say = print,
) -> bool:
    """Train until done, then infer, write the results and draw the figures (and ``consensus.mrc``) unless told not to.

    Returns
    -------
    False when the user interrupted the training; the results are then those of the model so far.
    """
    from emspatialvae.model.device import keep_freed_memory, pick_device
    from emspatialvae.training.workers import at_most, worker_count

    keep_freed_memory()
    count, sentence = worker_count(train.threads, pick_device(train.device))
    if sentence:
        _report(run, say, sentence)
    with at_most(count):
        return _train_run(run, stack, train, resume=resume, figures=figures, say=say)


def _train_run(
    run: RunDir, stack: ParticleStack, train: configuration.TrainConfig, *, resume: bool, figures: bool, say: Say
) -> bool:
    """`train_run`, on as many threads as torch may use now."""
    import torch

    from emspatialvae.training.trainer import Trainer

    manifest = run.manifest
    images = open_images(run, stack)
    bad = np.flatnonzero(~images.usable)
    if len(bad):
        listed = ", ".join(str(name) for name in stack.names[bad[:5]])
        _report(
            run,
            say,
            f"{len(bad)} images are constant or hold NaN and are left out of training: {listed}{' ...' if len(bad) > 5 else ''}",
        )
    mask = None if train.hold_still is None else read_mask(train.hold_still, manifest.images.box)
    torch.manual_seed(train.seed)
    train = configuration.train_for(train, manifest.config.model.engine)
    trainer = Trainer(
        new_engine(run, images, train, resume=resume, say=say),
        images,
        stack.names,
        train,
        run,
        start=_start_poses(dataclasses.replace(manifest.config, train=train), stack, manifest.preparation),
        learn_shift_prior=manifest.config.model.shift_prior_px is None,
    )
    if resume:
        trainer.resume()
    finished = _fit(trainer, run, say)
    if trainer.objective.remark:
        _report(run, say, trainer.objective.remark)
    _report(run, say, _verdict(run, trainer))
    _check_signal(run, trainer, stack, say)
    left = trainer.fix_gauge(mask)
    if manifest.config.model.poses_fixed:
        _report(run, say, "poses are those of the file: no common reference was fitted")
    elif left is None and manifest.config.model.engine == "steerable":
        _report(
            run,
            say,
            "particles look too different for one common reference (views of a 3-D object do): the angles of similar particles refer to "
            "similar frames, and those of a class to its average once `emsvae classes` was called",
        )
    if left is not None:
        what = "one consensus" if mask is None else f"the part of the consensus under {train.hold_still}"
        _report(run, say, f"poses refer to {what}, whatever z, within {left[0]:.2f} degrees and {left[1]:.3f} px")
    if trainer.progress.epoch <= trainer.z_delay:
        _report(
            run,
            say,
            f"z was held at zero all the while (--z-delay {trainer.z_delay}): it means nothing yet, train longer",
        )
    finish_run(run, stack, images, train.device, figures=figures, say=say)
    return finished


def new_engine(
    run: RunDir, images: PreparedImages, train: configuration.TrainConfig, *, resume: bool = False, say: Say = print
) -> "ParticleVAE":
    """The model that training begins with, or goes on with."""
    from emspatialvae.inference.infer import load_model
    from emspatialvae.model.batch import Batch
    from emspatialvae.model.coordinate.vae import SpatialVAE
    from emspatialvae.model.steerable.initialise import new_model
    from emspatialvae.training.trainer import split

    manifest = run.manifest
    if resume:
        return load_model(run).train()
    if manifest.config.model.engine == "coordinate":
        return SpatialVAE(manifest.config.model, manifest.images)
    rows, _ = split(images.usable, train.holdout, train.seed)
    some = np.sort(np.random.default_rng(train.seed).permutation(rows)[:BASIS_PARTICLES])

    def batches() -> Iterator[Batch]:
        for part in np.split(some, range(BASIS_BATCH, len(some), BASIS_BATCH)):
            portion = images.portion(part)
            yield Batch.of(portion.images, portion.group, portion.ctf_power)

    model = new_model(manifest.config.model, manifest.images, int(images.group.max()) + 1, batches)
    pixels = round(np.pi * model.basis.radius_px**2)
    kind = "white" if model.spectra.white else "coloured"
    _report(run, say, f"{model.basis.size} steerable components for the {pixels} pixels of the disk, noise {kind}")
    return model


def _start_poses(config: RunConfig, stack: ParticleStack, preparation: Preparation) -> Pose2D | None:
    """The file's poses where they are to be used, in prepared pixels."""
    if config.model.poses_fixed:
        return file_poses(stack, preparation, "--poses-fixed")
    return file_poses(stack, preparation, "--init-poses") if config.train.init_poses else None


def _check_signal(run: RunDir, trainer: "Trainer", stack: ParticleStack, say: Say) -> None:
    """Refuse to write what a model without evidence says.

    Raises
    ------
    EmsvaeError
        Particles that were not trained on are explained no better than by noise alone.
    """
    from emspatialvae.model.steerable.vae import SteerableVAE

    if not isinstance(trainer.model, SteerableVAE):
        return
    mean, error = trainer.evidence()
    if not mean > 0:
        raise EmsvaeError(
            f"no signal found in {stack.source}: images held out from training are explained no better than by noise alone "
            f"({mean:.2f} +- {error:.2f} nats per particle); look at them with `emsvae info`, check --invert, --ctf and "
            "--particle-diameter-a; no results were written"
        )
    if mean < 3 * error:
        _report(
            run, say, f"the signal is weak or the images are few: {mean:.2f} +- {error:.2f} nats per particle held out"
        )


def _fit(trainer: "Trainer", run: RunDir, say: Say) -> bool:
    """Run the trainer under a progress bar; False when interrupted."""
    import torch

    from emspatialvae.training.workers import working
    from emspatialvae.workflows.progress import TrainingBar

    with (
        working(torch.get_num_threads(), trainer.device) as workers,
        TrainingBar(
            trainer.limit * len(trainer.train_rows),
            open_end=trainer.config.epochs is None,
            say=lambda line: _report(run, say, line),
        ) as bar,
    ):
        trainer.show = bar.show
        return trainer.fit(workers)


def _verdict(run: RunDir, trainer: "Trainer") -> str:
    """How and where the training ended."""
    ended = f"training ended after {trainer.progress.epoch} epochs ({trainer.progress.stopped or 'interrupted'})"
    metrics = run.metrics()
    if not metrics:
        return ended
    held_out = metrics[-1]["test_elbo"]
    watched = f", held-out {held_out:.2f}" if np.isfinite(held_out) else " (too few particles to hold any out)"
    return f"{ended}: ELBO {metrics[-1]['train_elbo']:.2f} nats per particle{watched}"


def open_images(run: RunDir, stack: ParticleStack) -> PreparedImages:
    """The prepared images of a run's own stack, from its cache, made if need be.

    Raises
    ------
    ParticleFileError
        None of them can be used.
    """
    from emspatialvae.workflows.progress import bar

    manifest = run.manifest
    cache = manifest.config.prepare.cache or run.path / "cache"
    with bar(len(stack), "preparing images") as progress:
        images = prepared_images(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype, progress)
    if not images.usable.any():
        raise ParticleFileError(f"{stack.source}: every image is constant or holds NaN; there is nothing to learn from")
    return images


def finish_run(
    run: RunDir,
    stack: ParticleStack,
    images: PreparedImages,
    device: configuration.Device,
    *,
    figures: bool = True,
    say: Say = print,
) -> None:
    """Results and figures of a trained run: ``latents.csv``, ``particles.star`` (and ``.cs``), ``figures/``."""
    from emspatialvae.analysis.report import run_figures
    from emspatialvae.inference.infer import infer, load_model
    from emspatialvae.results import summary
    from emspatialvae.workflows.progress import bar

    model = load_model(run)
    run.record_z_dim(model.z_dim)
    manifest = run.manifest
    chunks = np.array_split(np.arange(len(stack)), max(1, len(stack) // 1024))
    with bar(len(stack), "inferring poses") as progress:

        def portions() -> Iterator[Portion]:
            for rows in chunks:
                yield images.portion(rows)
                progress(len(rows))

        # A resumed run may go on elsewhere than where it began.
        settings = dataclasses.replace(manifest.config.train, device=device)
        fixed = manifest.config.model.poses_fixed
        given = file_poses(stack, manifest.preparation, "--poses-fixed") if fixed else None
        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings, given)
    stale = run.forget_derived()
    if stale:
        made = " and ".join(map(str, stale))
        _report(run, say, f"removed {made}, made from older results: make them again with emsvae classes and analyze")
    latents = export.write_run(latents, stack, run)
    if figures:
        run_figures.draw(run, model, images, latents)
    for line in summary.sureness(latents, manifest.config.model):
        _report(run, say, line)
    table = f", {run.star.with_suffix('.cs')}" if stack.kind == "cs" else ""
    own = " (for emsvae's own commands: RELION reads no pictures)" if stack.of_pictures else ""
    drawn = f", figures in {run.figures}" if figures else ""
    _report(run, say, f"results: {run.latents}, {run.star}{own}{table}{drawn}")


def _image_spec(config: RunConfig, preparation: Preparation, channels: int) -> "tuple[ImageSpec, str]":
    """Shift prior and limit in prepared pixels, and a sentence about them."""
    from emspatialvae.model.interface import ImageSpec

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


def _report(run: RunDir, say: Say, message: str) -> None:
    run.log(message.strip())
    say(message)
