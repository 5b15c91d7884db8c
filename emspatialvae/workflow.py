"""What one command does from beginning to end, without parsing or printing: the rooms below, put in order.

Command line and plugin call these. ``say`` receives each sentence for the user; `progress` shows a bar on a terminal.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emspatialvae import config as configuration
from emspatialvae import export, geometry
from emspatialvae.config import InputConfig, RunConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.loading import load_particles
from emspatialvae.particles import ParticleStack
from emspatialvae.prepare import PreparedImages, Preparation, decide, prepare, prepared_images
from emspatialvae.run import Manifest, RunDir

if TYPE_CHECKING:
    from emspatialvae.analysis.metrics import Evaluation
    from emspatialvae.infer import Latents
    from emspatialvae.train import Trainer

Say = Callable[[str], None]

DEMO_EPOCHS = 30

RESUMABLE = {"particles", "project_dir", "cache", "epochs", "max_epochs", "patience", "checkpoint_minutes", "device"}
"""Settings that may change when a run is resumed: where things lie, how long to train."""


def start_run(config: RunConfig, out: Path, *, force: bool = False, say: Say = print) -> tuple[RunDir, ParticleStack]:
    """Read the particles, settle how they are prepared, and make the run folder: nothing is written before all of it is checked."""
    from emspatialvae import compute

    configuration.check(config)
    RunDir.check_free(out, force=force)
    device = compute.pick_device(config.train.device)
    stack = load_particles(config.input)
    preparation, said = decide(stack, config.prepare, bernoulli=config.model.noise == "bernoulli")
    config = dataclasses.replace(config, input=_absolute(config.input))
    images, shift_said = _image_spec(config, preparation)
    precision = str(compute.pick_precision(config.train.precision, device)).removeprefix("torch.")
    assumed = (*stack.notes, *said, shift_said, f"device {device}, matrix products in {precision}", _poses_said(config, stack))
    run = RunDir.create(out, Manifest(config, preparation, images, len(stack), assumed), force=force)
    _report(run, say, f"{stack.source}: {len(stack):,} particles in {len(stack.files)} stack(s), {len(stack.optics)} optics group(s)")
    for sentence in assumed:
        _report(run, say, f"  {sentence}")
    return run, stack


def open_run(config: RunConfig, out: Path, *, say: Say = print) -> tuple[RunDir, ParticleStack]:
    """Open a run to go on with it; ``config`` may differ from the run's own in `RESUMABLE` settings only.

    Raises
    ------
    RunFolderError
        A setting that shapes the result differs from the run's.
    """
    run = RunDir(out)
    manifest = run.manifest
    for part in ("input", "prepare", "model", "train"):
        theirs, ours = getattr(manifest.config, part), getattr(config, part)
        for field in dataclasses.fields(theirs):
            there, here = getattr(theirs, field.name), getattr(ours, field.name)
            if there != here and field.name not in RESUMABLE:
                raise RunFolderError(
                    f"{out} was trained with {field.name} = {there}, not {here}; leave that option out to go on with the run's "
                    "own, or start anew with --force"
                )
    stack = load_particles(config.input)
    if len(stack) != manifest.n_particles:
        raise RunFolderError(f"{config.input.particles} now has {len(stack)} particles, the run has {manifest.n_particles}; train anew with --force")
    _report(run, say, f"going on with {out}")
    return run, stack


def train_run(run: RunDir, stack: ParticleStack, train: configuration.TrainConfig, *, resume: bool = False, say: Say = print) -> bool:
    """Train until done, then infer, write the results and draw the figures.

    Returns
    -------
    False when the user interrupted the training; the results are then those of the model so far.
    """
    import torch

    from emspatialvae import compute
    from emspatialvae.model.spatial_vae import SpatialVAE
    from emspatialvae.train import Trainer

    compute.keep_freed_memory()
    manifest = run.manifest
    images = open_images(run, stack, say=say)
    bad = np.flatnonzero(~images.usable)
    if len(bad):
        listed = ", ".join(str(name) for name in stack.names[bad[:5]])
        _report(run, say, f"{len(bad)} images are constant or hold NaN and are left out of training: {listed}{' ...' if len(bad) > 5 else ''}")
    if len(bad) == len(stack):
        raise ParticleFileError(f"{stack.source}: every image is constant or holds NaN; there is nothing to learn from")
    torch.manual_seed(train.seed)
    trainer = Trainer(SpatialVAE(manifest.config.model, manifest.images), images, stack.names, train, run)
    if resume:
        trainer.resume()
    finished = _fit(trainer, run, say)
    _report(run, say, f"training {trainer.progress.stopped or 'interrupted'} after {trainer.progress.epoch} epochs")
    finish_run(run, stack, images, say=say)
    return finished


def _fit(trainer: "Trainer", run: RunDir, say: Say) -> bool:
    """Run the trainer under a progress bar; False when interrupted."""
    from emspatialvae.progress import TrainingBar

    with TrainingBar(trainer.limit * len(trainer.train_rows), open_end=trainer.config.epochs is None, say=lambda line: _report(run, say, line)) as bar:
        trainer.show = bar.show
        try:
            trainer.fit()
        except KeyboardInterrupt:
            return False
    return True


def open_images(run: RunDir, stack: ParticleStack, *, say: Say = print) -> PreparedImages:
    """The prepared images of a run's own stack, from its cache, made if need be."""
    from emspatialvae.progress import bar

    manifest = run.manifest
    cache = manifest.config.prepare.cache or run.path / "cache"
    with bar(len(stack), "preparing images") as progress:
        return prepared_images(stack, manifest.preparation, cache, manifest.config.prepare.cache_dtype, progress)


def finish_run(run: RunDir, stack: ParticleStack, images: PreparedImages, *, say: Say = print) -> None:
    """Results and figures of a trained run: ``latents.csv``, ``particles.star`` (and ``.cs``), ``figures/``."""
    from emspatialvae.analysis import report
    from emspatialvae.infer import infer, load_model
    from emspatialvae.progress import bar

    manifest = run.manifest
    model = load_model(run)
    chunks = np.array_split(np.arange(len(stack)), max(1, len(stack) // 1024))
    with bar(len(stack), "inferring poses") as progress:

        def portions():  # noqa: ANN202
            for rows in chunks:
                yield rows, images.batch(rows)[:, 0], images.usable[rows]
                progress(len(rows))

        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, manifest.config.train)
    export.write_csv(latents, run.latents, force=True)
    write_results(latents, stack, run.path / "particles", manifest.config, force=True)
    report.draw(run, model, images, latents)
    _report(run, say, f"results: {run.star}, {run.latents}, figures in {run.figures}")


def write_results(latents: "Latents", stack: ParticleStack, stem: Path, config: RunConfig, *, force: bool) -> list[Path]:
    """Write the STAR file, and for a .cs source the .cs file, beside each other; returns what was written."""
    written = [stem.with_suffix(".star")]
    export.write_star(latents, stack, written[0], poses=config.poses, force=force)
    if stack.kind == "cs":
        written.append(stem.with_suffix(".cs"))
        export.write_cs(latents, stack, written[1], poses=config.poses, force=force)
    return written


def infer_other(run: RunDir, source: InputConfig, out: Path, *, poses: configuration.Poses, force: bool, say: Say = print) -> None:
    """Infer the particles of another file with a trained model, prepared as the run's own were, and write them to ``out``."""
    from emspatialvae import compute
    from emspatialvae.infer import infer, load_model
    from emspatialvae.progress import bar

    if out.suffix not in (".star", ".cs", ".csv"):
        raise EmsvaeError(f"--out {out}: expected a name ending in .star, .cs or .csv")
    export.check_free(out, force=force)
    compute.keep_freed_memory()
    manifest, model = run.manifest, load_model(run)
    stack = load_particles(source)
    check_fits(stack, manifest.preparation, run)
    with bar(len(stack), "inferring poses") as progress:

        def portions():  # noqa: ANN202
            for rows, images, usable in prepare(stack, manifest.preparation):
                yield rows, images, usable
                progress(len(rows))

        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, manifest.config.train)
    write_one(latents, stack, out, poses=poses, force=force)
    say(f"{len(latents):,} particles, {int((~latents.used).sum())} unusable: {out}")


def write_one(latents: "Latents", stack: ParticleStack, out: Path, *, poses: configuration.Poses, force: bool) -> None:
    """Write results in the format that the ending of ``out`` names."""
    if out.suffix == ".csv":
        export.write_csv(latents, out, force=force)
    else:
        {".star": export.write_star, ".cs": export.write_cs}[out.suffix](latents, stack, out, poses=poses, force=force)


def check_fits(stack: ParticleStack, preparation: Preparation, run: RunDir) -> None:
    """Refuse a stack that the run's model cannot look at: its field of view must hold the model's at the same scale."""
    field_A = preparation.box * preparation.pixel_size_A
    widths = np.array([file.width for file in stack.files])[stack.file_of]
    smallest = float((widths * stack.pixel_size_A).min())
    if smallest < field_A * (1 - 1e-3) or stack.pixel_size_A.max() > preparation.pixel_size_A * (1 + 1e-3):
        raise ParticleFileError(
            f"{stack.source}: {smallest:.4g} A across at {stack.pixel_size_A.max():.4g} A per pixel; the model of {run.path} needs "
            f"{field_A:.4g} A at {preparation.pixel_size_A:.4g} A or finer; extract the particles in a larger box"
        )


def read_run(path: Path, project_dir: Path | None = None) -> tuple[RunDir, "Latents", ParticleStack]:
    """A run with its results and its particles."""
    run = RunDir(path)
    manifest = run.manifest
    latents = export.read_csv(run.latents, manifest.config.model.z_dim, manifest.preparation.pixel_size_A)
    source = manifest.config.input
    stack = load_particles(dataclasses.replace(source, project_dir=project_dir or source.project_dir))
    if len(stack) != len(latents):
        raise RunFolderError(f"{stack.source} now has {len(stack)} particles, the run has {len(latents)}; train anew with --force")
    return run, latents, stack


def export_run(
    path: Path,
    wanted: dict[str, Path],
    *,
    poses: configuration.Poses | None = None,
    project_dir: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Write the results of a run; ``wanted`` maps star, cs, csv and aligned to the files to make."""
    from emspatialvae.progress import bar

    for destination in wanted.values():
        export.check_free(destination, force=force)
    run, latents, stack = read_run(path, project_dir)
    poses = poses or run.manifest.config.poses
    for kind, destination in wanted.items():
        if kind == "aligned":
            with bar(len(stack), "aligning") as progress:
                export.write_aligned(latents, stack, destination, force=force, progress=progress)
        elif kind == "csv":
            export.write_csv(latents, destination, force=force)
        else:
            write = {"star": export.write_star, "cs": export.write_cs}[kind]
            write(latents, stack, destination, poses=poses, force=force)
        say(f"{len(latents):,} particles: {destination}")


def demo(out: Path, *, force: bool = False, say: Say = print) -> bool:
    """Simulate, train, write and judge, with settings that take about two minutes on a laptop."""
    from emspatialvae.simulate import simulate_stack

    say("1. simulating 3,000 hinged particles, 32 px, SNR 1, random rotation, shifts of 1 px")
    simulated = configuration.SimulateConfig("hinge", out, particles=3000, box=32, snr=1.0, shift_px=1.0, force=force)
    simulate_stack(simulated)
    say("2. training (emsvae train)")
    model = configuration.ModelConfig(z_dim=1, hidden=128, max_shift_A=4 * simulated.pixel_size_A)
    train = configuration.TrainConfig(epochs=DEMO_EPOCHS)
    run, stack = start_run(RunConfig(InputConfig(out / "particles.star"), model=model, train=train), out / "run", say=say)
    finished = train_run(run, stack, train, say=say)
    say("3. against the truth (emsvae evaluate)")
    judged = evaluate_run(run.path, out / "truth.star", oracle_particles=0)
    say(judged.evaluation.table(cramer_rao=judged.cramer_rao))
    say(f"STAR file for RELION: {run.star}\nfigures: {run.figures}\nopen it: napari {run.path}   (pip install -e '.[napari]')")
    return finished


@dataclass(frozen=True, eq=False)
class Judged:
    """An evaluation and the yardsticks that were at hand."""

    evaluation: "Evaluation"
    oracle: "Evaluation | None"
    cramer_rao: dict[str, float] | None


def evaluate_run(path: Path, truth: Path, oracle_particles: int) -> Judged:
    """Compare a run's results with the truth, joined on the image names.

    Parameters
    ----------
    truth
        STAR file with ``emsvaeTrueZ1..`` and RELION's pose labels, as `emspatialvae.simulate` writes it.
    oracle_particles
        Also run the Bayes oracle on this many particles when ``simulation.json`` lies beside the truth; 0 = do not.
    """
    from emspatialvae.analysis.metrics import evaluate_latents
    from emspatialvae.oracle import oracle_of_stack
    from emspatialvae.simulate import load_simulation

    run = RunDir(path)
    preparation = run.manifest.preparation
    latents = export.read_csv(run.latents, run.manifest.config.model.z_dim, preparation.pixel_size_A)
    true_z, true_pose, names, pixel_size_A = _read_truth(truth)
    row_of = {name: row for row, name in enumerate(names)}
    for table, where in ((names, truth), (latents.names, run.latents)):
        if len(set(table)) != len(table):
            raise ParticleFileError(f"{where}: image names repeat; expected each once, because particles are joined on them")
    missing = [name for name in latents.names if name not in row_of]
    if missing:
        raise ParticleFileError(f"{truth}: {len(missing)} of {len(latents)} particles of {path} are not in it, the first is {missing[0]}")
    latents = latents[latents.used]
    rows = np.array([row_of[name] for name in latents.names])
    # Errors of shifts are given in pixels of the original images, whatever the box that the model saw.
    pose = latents.pose.scaled(preparation.pixel_size_A / pixel_size_A[rows])
    evaluation = evaluate_latents(latents.z, pose, true_z[rows], true_pose[rows])
    beside = truth.parent / "simulation.json"
    if not beside.is_file():
        return Judged(evaluation, None, None)
    oracle = None
    if oracle_particles > 0:
        some, z, oracle_pose = oracle_of_stack(truth.parent, oracle_particles)
        oracle = evaluate_latents(z, oracle_pose, true_z[some], true_pose[some])
    return Judged(evaluation, oracle, load_simulation(beside).cramer_rao)


def _read_truth(truth: Path) -> tuple[np.ndarray, geometry.Pose2D, list[str], np.ndarray]:
    from emspatialvae.io.star import StarFile
    from emspatialvae.loading import particle_block

    if truth.suffix != ".star" or not truth.is_file():
        raise ParticleFileError(f"--truth {truth}: no such STAR file; `emsvae simulate` writes truth.star")
    stack = load_particles(InputConfig(truth), open_stacks=False)
    assert isinstance(stack.metadata, StarFile)
    block = particle_block(stack.metadata)
    labels = [label for label in block.labels if label.startswith("emsvaeTrueZ")]
    if not labels or stack.pose is None:
        raise ParticleFileError(f"{truth}: no emsvaeTrueZ1 or no rlnAnglePsi; expected the truth.star of `emsvae simulate`")
    columns = block.columns(*labels)
    true_z = np.stack([np.array(columns[label], dtype=np.float64) for label in labels], 1)
    return true_z, stack.pose, stack.names.tolist(), stack.pixel_size_A


def _image_spec(config: RunConfig, preparation: Preparation):  # noqa: ANN202
    """Shift prior and limit in prepared pixels, and a sentence about them."""
    from emspatialvae.model.spatial_vae import ImageSpec

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
    spec = ImageSpec(preparation.box, preparation.mask_radius_px, prior, limit)
    if not (model.translate and model.decoder == "spatial"):
        return spec, "shifts are not inferred"
    said = f"shift prior {prior:.3g} px ({prior * preparation.pixel_size_A:.3g} A) s.d."
    return spec, said + (f", at most {limit:.3g} px" if np.isfinite(limit) else ", no limit")


def _absolute(source: InputConfig) -> InputConfig:
    """The input with absolute paths, so that a run can be opened from any folder."""
    paths = {key: getattr(source, key) for key in ("particles", "project_dir", "passthrough")}
    return dataclasses.replace(source, **{key: path.absolute() for key, path in paths.items() if path is not None})


def _poses_said(config: RunConfig, stack: ParticleStack) -> str:
    if not export.protects_poses(stack, config.poses):
        return "our psi and origin will be written as rlnAnglePsi and rlnOrigin"
    why = "--poses keep" if config.poses == "keep" else "the file holds poses of a 3-D refinement"
    return f"{why}: our psi and origin will go to emsvaeAnglePsi, emsvaeOriginXAngst, emsvaeOriginYAngst"


def _report(run: RunDir, say: Say, message: str) -> None:
    run.log(message.strip())
    say(message)
