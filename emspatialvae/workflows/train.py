"""Training of a run: from prepared images to results.

Command line and plugin call this; ``say`` receives each sentence for the user.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from emspatialvae import config as configuration
from emspatialvae.errors import EmsvaeError
from emspatialvae.io import lock
from emspatialvae.io.mask import read_mask
from emspatialvae.jobs import ranks
from emspatialvae.jobs.interrupt import noticed_by_training
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.preprocess.preparation import without_ctf
from emspatialvae.results.identity import Identity
from emspatialvae.results.own_files import never_began
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows import room
from emspatialvae.workflows.begin_run import run_order, start_poses
from emspatialvae.workflows.finish_run import finish_run
from emspatialvae.workflows.progress import Say
from emspatialvae.workflows.run_images import images_of_rank

if TYPE_CHECKING:
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.training.trainer import Trainer
    from emspatialvae.training.workers import Workers


BASIS_PARTICLES, BASIS_BATCH = 20_000, 500
"""Particles that the steerable basis is learned from, and how many at a time."""
LEAST_GAIN_BY_ANGLES = 0.5
"""Nats by which images must be more likely as they are drawn than averaged over all angles. Round ones come out at 0.2, not at 0: their shift is where
the drawn image has found it."""


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
    import torch

    from emspatialvae.model.device import keep_freed_memory, pick_device
    from emspatialvae.training.workers import at_most, worker_count

    keep_freed_memory()
    say, team = run.saying(say), ranks.present()
    resume = team.by_first(lambda: resume and not never_began(run.path))
    # Ranks of one machine would take each other for other programs.
    most = torch.get_num_threads() if train.threads is None and team.count == 1 else None
    count, sentence = worker_count(train.threads, pick_device(train.device))
    if sentence:
        say(sentence + (f", {team.count} ranks with as many each" if team.count > 1 else ""))
    if (
        sentence
        and team.count == 1
        and not resume
        and train.epochs is None
        and run.manifest.config.model.engine == "steerable"
    ):
        trained = min(len(stack), train.train_particles)
        say(room.time_sentence(len(stack), trained, run.manifest.preparation, max(stack.boxes), count))
    try:
        if team.first:
            lock.acquire(run.path)
        with noticed_by_training(), at_most(count):
            return _train_run(run, stack, train, most, resume=resume, figures=figures, say=say)
    finally:
        if team.first:
            lock.release(run.path)


def _train_run(
    run: RunDir,
    stack: ParticleStack,
    train: configuration.TrainConfig,
    most_threads: int | None,
    *,
    resume: bool,
    figures: bool,
    say: Say,
) -> bool:
    """`train_run`, on as many threads as torch may use now, and on as many as cores are idle later, if at most so many are allowed."""
    import torch

    from emspatialvae.model.device import pick_device
    from emspatialvae.training.workers import at_most, working

    manifest = run.manifest
    _check_same_particles(stack)
    order = run_order(run, stack)
    stack_of_file, stack = stack, stack if order is None else stack.subset(order)
    images = images_of_rank(run, stack, say)
    _check_enough(images)
    known = ~without_ctf(stack, manifest.preparation.ctf) if manifest.preparation.skip_bad_ctf else True
    bad = np.flatnonzero(~images.usable & known)
    if len(bad):
        listed = ", ".join(str(name) for name in stack.names[bad[:5]])
        say(
            f"{len(bad)} images are constant or hold NaN and are left out of training: {listed}{' ...' if len(bad) > 5 else ''}",
        )
    if train.train_particles < (count := int(images.usable.sum())):
        say(
            f"{train.train_particles:,} of {count:,} particles are trained on, chosen by chance (--train-particles); z and pose are then inferred "
            "for all of them"
        )
    device = pick_device(train.device)
    with working(torch.get_num_threads(), device, most_threads, say) as workers:
        finished = _trained(run, stack, images, train, workers, resume=resume, say=say)
        workers.follow()
    with at_most(workers.count if device.type == "cpu" else torch.get_num_threads()):
        finish_run(run, stack, images, train.device, stack_of_file, order, figures=figures, say=say)
    return finished


def _trained(
    run: RunDir,
    stack: ParticleStack,
    images: PreparedImages,
    train: configuration.TrainConfig,
    workers: "Workers",
    *,
    resume: bool,
    say: Say,
) -> bool:
    """Train, and leave the model in the run's checkpoint; False when the user interrupted."""
    import torch

    from emspatialvae.training.trainer import Trainer

    manifest = run.manifest
    mask = None if train.hold_still is None else read_mask(train.hold_still, manifest.images.box)
    torch.manual_seed(train.seed)
    train = configuration.train_for(train, manifest.config.model.engine)
    trainer = Trainer(
        model_to_train(run, images, train, resume=resume, say=say),
        images,
        stack.names,
        train,
        run,
        start=start_poses(dataclasses.replace(manifest.config, train=train), stack, manifest.preparation),
        learn_shift_prior=manifest.config.model.shift_prior_px is None,
        workers=workers,
    )
    if resume:
        trainer.resume()
    if trainer.portions > 1:
        say(
            f"an epoch is one of {trainer.portions} parts of the {len(trainer.train_rows):,} particles that are trained on, the next one each time "
            "(--epochs N: N times all of them)"
        )
    finished = _fit(trainer, say)
    if trainer.objective.remark:
        say(trainer.objective.remark)
    say(_verdict(run, trainer))
    _check_signal(run, trainer, stack, say)
    _check_angles(trainer, say)
    left = trainer.fix_gauge(mask)
    if manifest.config.model.poses_fixed:
        say("poses are those of the file: no common reference was fitted")
    elif left is None and manifest.config.model.engine == "steerable":
        say(
            "particles look too different for one common reference (views of a 3-D object do): the angles of similar particles refer to "
            "similar frames, and those of a class to its average once `emsvae classes` was called",
        )
    if left is not None:
        what = "one consensus" if mask is None else f"the part of the consensus under {train.hold_still}"
        say(f"poses refer to {what}, whatever z, within {left[0]:.2f} degrees and {left[1]:.3f} px")
    if trainer.progress.epoch <= trainer.z_delay:
        say(
            f"z was held at zero all the while (--z-delay {trainer.z_delay}): it means nothing yet, train longer",
        )
    return finished


def _check_same_particles(stack: ParticleStack) -> None:
    """Every rank must have the same particles before it.

    Raises
    ------
    EmsvaeError
        They differ.
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
        raise EmsvaeError(
            f"{team.count} ranks for {count} particles that can be used; expected at least one for each rank: start fewer"
        )


def model_to_train(
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
    rows, _ = split(images.usable, train)
    some = np.sort(np.random.default_rng(train.seed).permutation(rows)[:BASIS_PARTICLES])

    def batches() -> Iterator[Batch]:
        for part in np.split(some, range(BASIS_BATCH, len(some), BASIS_BATCH)):
            portion = images.portion(part)
            yield Batch.of(portion.images, portion.group, portion.ctf_power)

    model = new_model(manifest.config.model, manifest.images, int(images.group.max()) + 1, batches)
    pixels = round(np.pi * model.basis.radius_px**2)
    kind = "white" if model.spectra.white else "coloured"
    say(f"{model.basis.size} steerable components for the {pixels} pixels of the disk, noise {kind}")
    return model


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
        raise EmsvaeError(
            f"no signal found in {stack.source}: images held out from training are explained no better than by noise alone "
            f"({mean:.2f} +- {error:.2f} nats per particle); look at them with `emsvae info`, check --invert, --ctf and "
            "--particle-diameter-a; no results were written"
        )
    explained = float((each > 0).double().mean())
    if explained < 0.5:
        say(
            f"{100 * (1 - explained):.0f} % of the images held out are explained no better than by noise alone; what was learned comes from the "
            "others, which may be outliers of heavy-tailed noise, contamination, or few particles among much junk: look at them before you "
            "believe it",
        )
    if mean < 3 * error:
        say(f"the signal is weak or the images are few: {mean:.2f} +- {error:.2f} nats per particle held out")


def _check_angles(trainer: "Trainer", say: Say) -> None:
    """Say so where angles mean nothing: round particles get some, too, by their noise."""
    found = trainer.gain_by_angles()
    if found is not None and found[0] < max(LEAST_GAIN_BY_ANGLES, 3 * found[1]):
        say(
            f"theta means nothing that can be confirmed: images held out from training are explained {found[0]:.2f} +- {found[1]:.2f} nats better as "
            "they are drawn than averaged over all angles; the particles are round, or too faint or too few to show how they are turned"
        )


def _fit(trainer: "Trainer", say: Say) -> bool:
    """Run the trainer under a progress bar; False when interrupted."""
    from emspatialvae.workflows.progress import TrainingBar

    particles = trainer.limit * len(trainer.train_rows) // trainer.portions
    with TrainingBar(particles, open_end=trainer.config.epochs is None, say=say) as bar:
        trainer.show = bar.show
        return trainer.fit()


def _verdict(run: RunDir, trainer: "Trainer") -> str:
    """How and where the training ended."""
    ended = f"training ended after {trainer.progress.epoch} epochs ({trainer.progress.stopped or 'interrupted'})"
    metrics = run.metrics()
    if not metrics:
        return ended
    held_out = metrics[-1]["test_elbo"]
    watched = f", held-out {held_out:.2f}" if np.isfinite(held_out) else " (too few particles to hold any out)"
    return f"{ended}: ELBO {metrics[-1]['train_elbo']:.2f} nats per particle{watched}"
