"""A training run from beginning to end: read, prepare, train, infer, draw, write.

Command line and plugin call these; ``say`` receives each sentence for the user.
"""

import dataclasses
import hashlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io import leftovers, lock, switch
from emspatialvae.io.mask import read_mask
from emspatialvae.io.star_text import as_cells
from emspatialvae.jobs import ranks
from emspatialvae.jobs.interrupt import noticed_by_training
from emspatialvae.particles.load import followed, input_files, load_particles
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages, forget_other_caches, prepared_images
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import Portion, Preparation, file_poses, without_ctf
from emspatialvae.results import export
from emspatialvae.results.followed_run import FollowedRun
from emspatialvae.results.identity import Identity, check_stacks, rows_of
from emspatialvae.results.own_files import never_began
from emspatialvae.results.run_folder import Manifest, RunDir
from emspatialvae.workflows import room
from emspatialvae.workflows.export import said_of_names
from emspatialvae.workflows.progress import Say

if TYPE_CHECKING:
    from emspatialvae.model.image_spec import ImageSpec
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.results.latents import Latents
    from emspatialvae.training.trainer import Trainer

BASIS_PARTICLES, BASIS_BATCH = 20_000, 500
"""Particles that the steerable basis is learned from, and how many at a time."""

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
    manifest = Manifest(config, preparation, images, len(stack), assumed, stack.optics_names)
    with RunDir.creating(out, manifest, force=force, keep_lock=True) as run:
        run.save_identity(Identity.of(stack))
        _report(
            run,
            say,
            f"{stack.source}: {len(stack):,} particles in {len(stack.files)} stack(s), {len(stack.optics)} optics group(s)",
        )
        for sentence in assumed:
            _report(run, say, f"  {sentence}")
        # Not of the coordinate engine, whose memory was not measured.
        cache = config.prepare.cache or out
        needs = room.sentences(len(stack), preparation, config.prepare.cache_dtype, cache, stack.channels)
        for sentence in needs if config.model.engine == "steerable" else ():
            _report(run, say, f"  {sentence}")
        if particle is not None:
            run.save_profiles(particle.table(preparation.pixel_size_A))
        open_images(run, stack, say=say)
    return RunDir(out), stack


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
    moved = _run_order(run, stack)
    begun = not never_began(run.path)
    if begun:
        load_model(run)  # complains before anything is written
    said = lock.acquire(run.path)
    leftovers.sweep(run.path)
    if said is not None:
        _report(run, say, said)
    _report(run, say, f"going on with {out}" if begun else f"{out} had not begun to learn; it begins now")
    if moved is not None:
        _report(
            run, say, f"{stack.source}: rows have moved since the run began; they are followed by their image names"
        )
    return run, stack


def _run_order(run: RunDir, stack: ParticleStack) -> NDArray[np.int64] | None:
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
    team = ranks.present()
    resume = team.by_first(lambda: resume and not never_began(run.path))
    count, sentence = worker_count(train.threads, pick_device(train.device))
    if sentence:
        _report(run, say, sentence + (f", {team.count} ranks with as many each" if team.count > 1 else ""))
    try:
        if team.first:
            lock.acquire(run.path)
        with noticed_by_training(), at_most(count):
            return _train_run(run, stack, train, resume=resume, figures=figures, say=say)
    finally:
        if team.first:
            lock.release(run.path)


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


def _check_same_particles(stack: ParticleStack) -> None:
    """Every rank must have the same particles before it.

    Raises
    ------
    EmsvaeError
        They differ; the first rank says so.
    """
    team = ranks.present()
    if team.count > 1:
        identity = repr(Identity.of(stack)).encode("utf-8", "surrogatepass")
        team.check_alike(
            hashlib.sha256(identity).hexdigest(),
            f"the ranks see different particles as {stack.source}: give all of them one file and its stacks on a disk that they share",
        )


def _check_enough(images: PreparedImages) -> None:
    """Every rank needs a particle to work on.

    Raises
    ------
    EmsvaeError
        There are more ranks.
    """
    team, count = ranks.present(), int(images.usable.sum())
    if count < team.count:
        raise _once(
            f"{team.count} ranks for {count} particles that can be used; expected at least one for each rank: start fewer"
        )


def _train_run(
    run: RunDir, stack: ParticleStack, train: configuration.TrainConfig, *, resume: bool, figures: bool, say: Say
) -> bool:
    """`train_run`, on as many threads as torch may use now."""
    import torch

    from emspatialvae.training.trainer import Trainer

    manifest = run.manifest
    _check_same_particles(stack)
    order = _run_order(run, stack)
    stack_of_file, stack = stack, stack if order is None else stack.subset(order)
    team = ranks.present()
    if team.count > 1:  # only the first rank makes or mends the cache
        team.by_first(lambda: len(open_images(run, stack, say=say)))
    images = open_images(run, stack, say=say)
    _check_enough(images)
    known = ~without_ctf(stack, manifest.preparation.ctf) if manifest.preparation.skip_bad_ctf else True
    bad = np.flatnonzero(~images.usable & known)
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
    finish_run(run, stack, images, train.device, stack_of_file, order, figures=figures, say=say)
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
    return file_poses(stack, preparation, "--init-poses", all_set=False) if config.train.init_poses else None


def _check_signal(run: RunDir, trainer: "Trainer", stack: ParticleStack, say: Say) -> None:
    """Refuse to write what a model without evidence says.

    Raises
    ------
    EmsvaeError
        Particles that were not trained on are explained no better than by noise alone.
    """
    if not trainer.model.against_noise:
        return
    each = trainer.evidences()
    mean = float(each.mean())
    error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.inf
    if not mean > 0:
        raise _once(
            f"no signal found in {stack.source}: images held out from training are explained no better than by noise alone "
            f"({mean:.2f} +- {error:.2f} nats per particle); look at them with `emsvae info`, check --invert, --ctf and "
            "--particle-diameter-a; no results were written"
        )
    explained = float((each > 0).double().mean())
    if explained < 0.5:
        _report(
            run,
            say,
            f"{100 * (1 - explained):.0f} % of the images held out are explained no better than by noise alone; what was learned comes from the "
            "others, which may be outliers of heavy-tailed noise, contamination, or few particles among much junk: look at them before you "
            "believe it",
        )
    if mean < 3 * error:
        _report(
            run, say, f"the signal is weak or the images are few: {mean:.2f} +- {error:.2f} nats per particle held out"
        )


def _once(message: str) -> EmsvaeError:
    """An error that comes up in all ranks alike, to be raised; one of them says it."""
    return ranks.present().said_once(EmsvaeError(message))


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


def open_images(run: RunDir, stack: ParticleStack, say: Say = lambda _: None) -> PreparedImages:
    """The prepared images of a run's own stack, from its cache, made if need be.

    Raises
    ------
    ParticleFileError
        None of them can be used.
    """
    from emspatialvae.workflows.progress import bar

    manifest = run.manifest
    cache = manifest.config.prepare.cache or run.path / "cache"
    with bar(len(stack), "preparing images", lambda line: _report(run, say, line)) as progress:
        images = prepared_images(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype, progress, say)
    if manifest.config.prepare.cache is None:
        forget_other_caches(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype)
    if not images.usable.any():
        raise ParticleFileError(f"{stack.source}: every image is constant or holds NaN; there is nothing to learn from")
    return images


def finish_run(
    run: RunDir,
    stack: ParticleStack,
    images: PreparedImages,
    device: configuration.Device,
    stack_of_file: ParticleStack | None = None,
    order: NDArray[np.int64] | None = None,
    *,
    figures: bool = True,
    say: Say = print,
) -> None:
    """Results and figures of a trained run: ``latents.csv``, ``particles.star`` (and ``.cs``), ``figures/``; all of them, or none.

    ``stack`` and ``images`` are in the order that the run was trained in; where its file has another one by now, ``stack_of_file`` is
    that, and ``order`` says where the particles stand in it.
    """
    from emspatialvae.inference.infer import infer, load_model
    from emspatialvae.results import summary
    from emspatialvae.workflows.progress import bar

    team = ranks.present()
    team.exchanged(None)  # the first rank has written the checkpoint by now
    model = load_model(run)
    run.record_z_dim(model.z_dim)
    manifest = run.manifest
    chunks = np.array_split(np.arange(len(stack)), max(1, len(stack) // 1024))
    with bar(len(stack), "inferring poses", lambda line: _report(run, say, line)) as progress:

        def portions() -> Iterator[Portion]:
            for rows in team.share(chunks):
                yield images.portion(rows)
                progress(len(rows) * team.count)

        # A resumed run may go on elsewhere than where it began.
        settings = dataclasses.replace(manifest.config.train, device=device)
        fixed = manifest.config.model.poses_fixed
        given = file_poses(stack, manifest.preparation, "--poses-fixed") if fixed else None
        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings, given, team)
    lost = int((images.usable & ~latents.used).sum())
    if lost == int(images.usable.sum()):
        raise _once(
            "what the model says of every particle is not a number; train again with a lower --learning-rate; no results were written"
        )
    if not team.first:
        return
    if lost:
        _report(run, say, f"of {lost:,} particles the model says nothing that is a number: they count as unusable")
    with switch.switching(run.path) as parts:
        stale = run.derived
        parts.remove += [folder.name for folder in stale]
        ours = latents if order is None else latents[np.argsort(order)]
        written = export.write_run(ours, stack_of_file or stack, run, parts.folder)
        run.save_state_of_results(parts.folder)
        latents = written if order is None else written[order]
        failure = _draw(run, model, images, latents, parts.folder) if figures else None
    if stale:
        made = " and ".join(map(str, stale))
        _report(run, say, f"removed {made}, made from older results: make them again with emsvae classes and analyze")
    if failure is not None:
        _report(run, say, f"results without figures: {run.latents}, {run.star}")
        raise failure
    for line in summary.sureness(latents, manifest.config.model):
        _report(run, say, line)
    table = f", {run.star.with_suffix('.cs')}" if stack.kind == "cs" else ""
    own = " (for emsvae's own commands: RELION reads no pictures)" if stack.of_pictures else ""
    drawn = f", figures in {run.figures}" if figures else ""
    _report(run, say, f"results: {run.latents}, {run.star}{own}{table}{drawn}")
    if stack.kind == "cs" and (sentence := said_of_names(stack, run.path)):
        _report(run, say, sentence)


def _draw(
    run: RunDir, model: "ParticleVAE", images: PreparedImages, latents: "Latents", folder: Path
) -> BaseException | None:
    """Draw the figures into a folder; an error that comes up is given back, with nothing drawn: it must not cost the results."""
    from emspatialvae.analysis.report import run_figures

    try:
        run_figures.draw(run, model, images, latents, folder)
    except BaseException as error:
        leftovers.remove(folder / "figures")
        leftovers.remove(folder / "consensus.mrc")
        return error
    return None


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


def _report(run: RunDir, say: Say, message: str) -> None:
    run.log(message.strip())
    say(message)
