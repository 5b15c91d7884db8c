"""What a particle file or a run holds, in words: ``emsvae info``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emspatialvae.config import InputConfig, ModelConfig, PrepareConfig, TrainConfig
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.inference.infer import load_model
from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.io.star import StarFile
from emspatialvae.model.device import pick_device
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.particles.load import followed, load_particles, missing_ctf_columns, open_stacks_of
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results import summary
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.read_run import latents_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.training.workers import worker_count
from emspatialvae.workflows import room


def particles_text(source: InputConfig, prepare: PrepareConfig) -> str:
    """Contents, oddities, and what training would do unless told otherwise; a stack that cannot be used says so at the end."""
    source = followed(source)
    table = load_particles(source, open_stacks=False)
    try:
        stack = open_stacks_of(table, source)
        model = ModelConfig()
        preparation, said, _ = decide(stack, prepare, engine=model.engine)
        notes, read = stack.notes, f"read images of {', '.join(map(str, stack.boxes))} px"
        place = prepare.cache or Path.cwd()
        needs = room.sentences(len(stack), preparation, prepare.cache_dtype, place, stack.channels)
        time = _time(stack, preparation)
        plan = [read, *said, f"{model.engine} engine, {_coordinates(model.z_dim)}", *needs, *time]
    except EmsvaeError as error:
        notes, plan = table.notes, [f"stop: {error}"]
    lines = [f"{table.source}: {_kind(table)}", *(f"  {line}" for line in _contents(table))]
    lines += ["odd:", *(f"  {note}" for note in notes)] if notes else ["odd: nothing"]
    lines += ["train would:", *(f"  {line}" for line in plan)]
    return "\n".join(lines)


def _time(stack: ParticleStack, preparation: Preparation) -> Iterator[str]:
    """How long training takes on this machine; nothing on a GPU, on which no whole run was measured."""
    train = TrainConfig()
    device = pick_device(train.device)
    if device.type == "cpu":
        threads, _ = worker_count(train.threads, device)
        trained = min(len(stack), train.train_particles)
        yield room.time_sentence(len(stack), trained, preparation, max(stack.boxes), threads)


def _kind(table: ParticleStack) -> str:
    if table.kind == "star":
        assert isinstance(table.metadata, StarFile)
        optics = any(block.name == "optics" for block in table.metadata.blocks)
        return "RELION 3.1 or later (optics and particles)" if optics else "RELION, one table without optics"
    return {
        "cs": "cryoSPARC particles",
        "mrc": "a bare image stack",
        "npy": "pictures, a .npy stack",
        "folder": "pictures, a file each",
    }[table.kind]


def _contents(table: ParticleStack) -> Iterator[str]:
    yield f"{len(table):,} particles in {len(table.paths):,} stack(s)"
    counts = Counter(table.optics_of.tolist())
    for number, group in enumerate(table.optics):
        done = ", phase-flipped" if group.phase_flipped else ", CTF-multiplied" if group.ctf_premultiplied else ""
        size = "pixel size unknown" if np.isnan(group.pixel_size_A) else f"{group.pixel_size_A:.4g} A per pixel"
        yield f"optics group {group.name}: {counts[number]:,} particles, {size}{done}"
    if table.ctf is None or not table.ctf.known.any():
        lacking = missing_ctf_columns(table)
        yield "no CTF parameters" + (f": {lacking}" if lacking else "")
    else:
        known = table.ctf.known
        defocus = (table.ctf.defocus_u_A + table.ctf.defocus_v_A)[known] / 2
        spread = f"mean defocus {defocus.min():.0f} to {defocus.max():.0f} A"
        yield f"CTF parameters for {int(known.sum()):,} particles, {spread}"
    if table.pose is None:
        yield "no poses"
    else:
        kind = "of a 3-D refinement" if table.has_3d_pose else "in the plane"
        shifts_px = table.pose.shift_px[~table.pose.unset]
        rms_px = np.sqrt((shifts_px**2).mean()) if len(shifts_px) else np.nan
        # Offsets in angstrom are no pixels until the pixel size is known.
        yield f"poses {kind}" + (f"; shifts {rms_px:.2f} px rms per axis" if np.isfinite(rms_px) else "")
    if table.kind in ("star", "cs"):
        yield Y_AXIS


Y_AXIS = (
    "y axis: taken as stored, the first row is y = 0, for images, poses, astigmatism and coordinates alike; nothing is flipped (RELION and cryoSPARC"
    " read some movies upside down to each other: where one has the images of the other, psi and the astigmatism angle change sign)"
)
"""What no file says and every program assumes."""


def run_text(path: Path) -> str:
    """Settings, state and results of a run folder."""
    run = RunDir(path)
    manifest = run.manifest
    lines = [f"{path}: a run on {manifest.config.input.particles}, {manifest.n_particles:,} particles"]
    lines += [f"  {sentence}" for sentence in manifest.assumed]
    lines.append("now:")
    lines += [f"  {line}" for part in (_model(run, manifest), _training(run), _results(run, manifest)) for line in part]
    return "\n".join(lines)


def _coordinates(z_dim: int | None) -> str:
    if z_dim is None:
        return "as many latent coordinates as it finds"
    return f"{z_dim} latent coordinate{'s' if z_dim > 1 else ''}"


def _line(name: str, text: str) -> str:
    return f"{name:<12} {text}"


def _model(run: RunDir, manifest: Manifest) -> Iterator[str]:
    """The engine, and what it learned beside its networks."""
    config = manifest.config.model
    engine = f"{config.engine}, decoder {config.decoder}"
    if config.engine == "coordinate":
        yield _line("engine", engine)
        yield _line("noise", config.noise)
        return
    try:
        model = load_model(run)
    except RunFolderError as error:
        yield _line("engine", f"{engine}; {error}")
        return
    assert isinstance(model, SteerableVAE)
    yield _line("engine", f"{engine}, {model.basis.size} components")
    groups = len(model.spectra.noise)
    each = f", a spectrum for each of {groups} optics groups" if groups > 1 and not model.spectra.white else ""
    yield _line("noise", ("white" if model.spectra.white else "coloured") + each)
    if model.search.translate:
        prior_px = float(model.search.shift_sd_px)
        learned = "" if config.shift_prior_px is not None else ", learned from the particles"
        yield _line(
            "shift prior", f"{prior_px:.3g} px ({prior_px * manifest.preparation.pixel_size_A:.3g} A) s.d.{learned}"
        )


def _training(run: RunDir) -> Iterator[str]:
    metrics = run.metrics()
    if not metrics:
        return
    last = metrics[-1]
    held_out = f", held-out {last['test_elbo']:.2f}" if np.isfinite(last["test_elbo"]) else ""
    kl = f"KL of z {last['train_kl_z']:.2f}"
    yield _line("training", f"{len(metrics)} epochs, ELBO {last['train_elbo']:.2f}{held_out} nats per particle; {kl}")


def _results(run: RunDir, manifest: Manifest) -> Iterator[str]:
    if not (run.latents.is_file() and run.star.is_file()):
        yield _line("results", "no results yet: go on with --resume")
        return
    config = manifest.config.model
    latents = latents_of(run)
    yield from summary.sureness(latents, config)
    if latents.junk is not None:
        above = int((latents.junk[latents.used] > LIKELY).sum())
        yield _line("junk", f"{above:,} particles with a score above {LIKELY:g}")
    if latents.class_number is not None:
        yield _line("classes", f"{int(latents.class_number.max())}, see {run.path / 'classes'}")
    behind = run.behind()
    if behind is not None:
        yield _line("results", behind)
    yield _line("results", f"written, {int(latents.used.sum()):,} particles used, {int((~latents.used).sum()):,} not")
