"""Every setting of the program, written once: a dataclass field with its sentence of help.

The same field is the command-line flag (``z_dim`` is ``--z-dim``), the key in ``config.json`` and the row in the manual.
Imports neither torch nor pandas, so that ``emsvae --help`` answers at once.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from emspatialvae.errors import EmsvaeError

SMALLEST_PIXEL_A, LARGEST_PIXEL_A = 0.01, 1e4
"""No microscope has others: such a number is in another unit."""
Device = Literal["auto", "cpu", "cuda", "mps"]
Poses = Literal["auto", "overwrite", "keep"]
ClassMethod = Literal["images", "kmeans", "gmm"]
Engine = Literal["steerable", "coordinate"]


@dataclass(frozen=True)
class InputConfig:
    """Which particles are read."""

    particles: Positional[Path]
    """particles.star (RELION 3.0 to 5), particles.cs or .csg (cryoSPARC), a bare stack .mrcs, or pictures: images.npy of shape [n, h, w],
    [n, h, w, c] or [n, c, h, w], or a folder of png, jpg and tif files."""
    project_dir: Path | None = None
    """RELION or cryoSPARC project root that paths in the file are relative to; found by itself when the file lies inside it."""
    passthrough: Path | None = None
    """cryoSPARC passthrough .cs with the fields that the first one lacks, joined on uid."""
    pixel_size_A: Annotated[float | None, arg(name="pixel-size-a")] = None
    """Pixel size in angstrom; needed only where the file does not say it."""
    limit: int | None = None
    """Use the first N particles only."""
    strip_prefix: str | None = None
    """What to leave out at the beginning of paths in the file, where the stacks were moved: /old/project/ makes /old/project/Extract/a.mrcs
    Extract/a.mrcs. Stacks that were copied flat into --project-dir are found there by their names alone."""


@dataclass(frozen=True)
class PrepareConfig:
    """How images are made ready for the model."""

    box: int | None = None
    """Fourier-crop the images to this many pixels [default: 64, or the stack's own box if smaller]."""
    particle_diameter_A: Annotated[float | None, arg(name="particle-diameter-a", aliases=("--mask-diameter-a",))] = None
    """Diameter of a circle that holds the particle, in angstrom. What lies outside is background and neighbours and is not looked at
    [default: found from the images; coordinate engine 0.9 of the box]."""
    invert: Literal["auto", "yes", "no"] = "auto"
    """Multiply by -1 so that particles are bright; auto looks at the images and says what it found, and leaves pictures alone."""
    normalise: Literal["auto", "yes", "no"] = "auto"
    """Bring the background to mean 0 and s.d. 1; no: values from 0 to 1 as they are. auto: yes, but for --noise bernoulli and for
    pictures (.npy, png, jpg, tif) with the coordinate engine."""
    ctf: Literal["auto", "full", "phase-flip", "none"] = "auto"
    """full: multiply the images by their CTF and put its square into the likelihood (steerable engine); phase-flip: make its
    sign positive; none: leave the CTF alone; auto: full, or phase-flip for the coordinate engine, where parameters are known."""
    skip_bad_ctf: bool = False
    """Leave out particles whose CTF parameters are missing or impossible, and mark them (emsvaeUsed 0), instead of stopping."""
    hot_pixel_sd: float = 6.0
    """Lone pixels that stand out by this many s.d. are replaced by the median of their neighbours; 0 = never."""
    highpass_A: Annotated[float | None, arg(name="highpass-a")] = None
    """Take out what is coarser than this many angstrom: gradients of the ice, the broad density of a micelle or a membrane. Half of the
    amplitude is left at the period given [default: nothing is taken out but level and slope of the background]."""
    cache: Path | None = None
    """Where the prepared images are kept [default: cache/ in the run folder]; can be deleted at any time."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the prepared images."""


@dataclass(frozen=True)
class ModelConfig:
    """The spatial-VAE of Bepler et al. 2019, and the same model with the posterior over poses summed out."""

    engine: Engine = "steerable"
    """steerable: poses are searched and summed out in a basis where rotation is a phase, CTF and coloured noise in the likelihood;
    coordinate: the paper, with a decoder of coordinates and a network that guesses poses."""

    z_dim: int | None = None
    """Number of latent coordinates z [default: 1, 2, 4 or 8, as many as make particles that were not trained on more likely; 2 where that cannot
    be tried, in trainings of fewer than 24 epochs or without --holdout, and in the coordinate engine]."""
    decoder: Literal["auto", "coefficients", "spatial", "vanilla"] = "auto"
    """coefficients: z to a steerable basis (the steerable engine's own); spatial: a function of (coordinates, z), the paper's
    generator, for either engine; vanilla: z to pixels, the baseline without pose [default: as the engine]."""
    rotate: bool = True
    """Infer the in-plane rotation theta."""
    translate: bool = True
    """Infer the shift."""
    poses_fixed: bool = False
    """Take theta and shift of every particle from the file (rlnAnglePsi and rlnOrigin, alignments2D), for certain and to the end, and learn
    z only: for particles of a 3-D refinement; steerable engine. `emsvae infer` then does so, too."""
    hidden: int = 128
    """Units per hidden layer of the decoder."""
    layers: int = 2
    """Hidden layers of the decoder."""
    encoder_hidden: int = 256
    """Units per hidden layer of the encoder."""
    encoder_layers: int = 2
    """Hidden layers of the encoder."""
    z_view: Literal["canonical", "image"] = "canonical"
    """What the encoder of z looks at: the image with the inferred pose taken out, or (the paper) the image as it lies, with the
    same network for pose and z."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Non-linearity of both networks."""
    noise: Literal["unit", "fitted", "bernoulli"] = "unit"
    """Pixel likelihood: Gaussian with s.d. 1, Gaussian with a log-variance per pixel from the decoder, or Bernoulli for
    images in [0, 1]."""
    whole_image: bool = False
    """Encode and score every pixel of the square image (the paper), not only those within the mask."""
    non_negative: bool = False
    """Softplus on the decoder's mean, against learning the background."""
    residual: bool = False
    """Residual hidden layers in both networks."""
    squared_coordinates: bool = False
    """Also feed x^2, y^2 and xy to the spatial decoder."""
    bilinear: bool = False
    """Also feed the products of coordinates and z to the spatial decoder."""
    start_detail: float = 4.0
    """How fine the spatial decoder's first layer is before training: 1 (the paper), units change over half the box; more, over so
    many times less, and detail is learned in fewer steps."""
    pose_start_sd: float | None = 0.14
    """S.d. of the pose's posterior when training begins, theta in radians and the shift in units of its prior. A sharp one makes
    decoder and encoder agree on a pose; left at the networks' own 1 [none], noisy particles blur into a ring that no angle can
    improve."""
    theta_prior_rad: float = 3.141592653589793
    """S.d. of the prior on theta."""
    theta_kl: Literal["no-mean", "full"] = "no-mean"
    """KL of theta without a penalty on its mean (eq. 3 of the paper), or of the full Gaussian."""
    scale: Literal["auto", "none", "group", "particle"] = "auto"
    """Amplitude of the particles: all alike, one per optics group, or one per particle (about 1, s.d. 0.3); steerable engine
    [auto: per optics group]."""
    max_shift_A: Annotated[float | None, arg(name="max-shift-a")] = None
    """Largest shift considered; half of it is the prior's s.d. [default: a fifth of the box]."""
    shift_prior_px: float | None = None
    """S.d. of the shift prior in prepared pixels; set alone, it puts no limit on the shift [default: half of the largest
    shift]."""


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained."""

    epochs: int | None = None
    """Passes over the particles [default: until the held-out ELBO has settled, at most --max-epochs; an epoch is then a pass, or, of more than
    200 batches of particles, a half to a quarter of one, each time the next]."""
    max_epochs: int = 500
    """Hard limit when --epochs is not given."""
    patience: int | None = None
    """Without --epochs: stop when the held-out ELBO has not risen for this many epochs [default: 5, coordinate engine 10]."""
    init_poses: bool = False
    """Start from the poses in the file (rlnAnglePsi and rlnOrigin, alignments2D) instead of searching everywhere."""
    hold_still: Path | None = None
    """Mask (.mrc, the box of consensus.mrc) on the part of the particle that all poses shall refer to, say one domain of a hinge
    [default: the whole particle]. The mask lies on the consensus of an earlier run: give its poses with --init-poses, or use
    `emsvae export RUN --hold-still`, which needs no training."""
    batch_size: int | None = None
    """Particles per optimiser step [default: 256, coordinate engine 100]."""
    learning_rate: float = 1e-3
    """Of Adam."""
    draws: int | None = None
    """Latents drawn for each particle in a step (steerable engine): more give a tighter bound where one image says little about z
    [default: 4, or 16 where a particle stands out of the noise by less than 6 nats]."""
    kl_warmup_steps: int | None = None
    """Optimiser steps (at most ten epochs) over which the weight of the KL terms rises from 0 to 1, so that they do not close
    pose and z before there is something to see [default: 0, coordinate engine 1000]."""
    z_delay: int | None = None
    """Epochs during which z is held at zero, so that the consensus is aligned first [default: 1, coordinate engine 2]."""
    cooling: bool = True
    """Lower the learning rate tenfold towards the end: over the last third of --epochs, or once more after the ELBO has settled."""
    augment_rotation: bool = True
    """Turn the encoder's input by a random angle and take it out of the predicted pose."""
    infer_turns: int = 8
    """At inference the encoder looks at each particle turned by this many angles and the best pose is kept."""
    anchors: int | None = None
    """Search templates: references that every particle is compared with in the global pose search [default: 8 for one latent
    coordinate, 16 for more]."""
    train_particles: int = 200_000
    """The model learns from at most so many particles, chosen by chance; z and pose are inferred for all. More seldom show more, and take longer."""
    holdout: float = 0.1
    """Fraction of these held out to watch the ELBO."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; auto takes bfloat16 where the processor multiplies it fast."""
    checkpoint_minutes: float = 3.0
    """A killed run loses at most this much."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Parts of a batch that are worked on side by side on a CPU; training has the same numbers however many [default: as many as cores are idle,
    counted when training begins and again between epochs]."""
    seed: int = 0
    """Same seed, same numbers (on a CPU)."""


@dataclass(frozen=True)
class RunConfig:
    """All that defines a run: what ``config.json`` holds and what ``emsvae train`` takes."""

    input: InputConfig
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    poses: Poses = "auto"
    """auto: write rlnAnglePsi and rlnOrigin, but never over the poses of a 3-D refinement; overwrite: always; keep: never,
    write emsvae columns instead."""


@dataclass(frozen=True)
class SimulateConfig:
    """A stack with known truth."""

    kind: Positional[Literal["hinge", "hinge-b", "two-hinges", "views", "symmetric", "pseudo-symmetric", "noise"]]
    """hinge: two rigid domains, one angle between them; hinge-b: another one, a ring with a clubbed arm; two-hinges: two arms
    that turn independently; views: a rigid object in space, tilted; symmetric: a two-fold dimer whose arms bend together;
    pseudo-symmetric: the same with a few atoms more on one side; noise: nothing but noise."""
    out: Path
    """Folder for particles.mrcs, particles.star and truth.star."""
    particles: int = 20_000
    """How many."""
    box: int = 40
    """Pixels along an edge."""
    snr: float = 0.1
    """Variance of the signal over variance of the noise, over all pixels: of the clean particles before the CTF, without junk,
    and of the noise of the first optics group."""
    shift_px: float = 2.0
    """S.d. of the shift along each axis, in pixels."""
    span_deg: float | None = None
    """The hinge moves, or the object tilts, over this range [default: 90 for hinges, 60 for views and symmetric]."""
    ctf: bool = False
    """Multiply every particle by a CTF of its own: 300 kV, Cs 2.7 mm, amplitude contrast 0.1. It acts within the box: what it
    spreads over one edge comes in at the opposite one."""
    defocus_min_A: Annotated[float, arg(name="defocus-min-a")] = 10_000.0
    """Smallest defocus, the mean of u and v, in angstrom."""
    defocus_max_A: Annotated[float, arg(name="defocus-max-a")] = 30_000.0
    """Largest defocus, in angstrom."""
    astigmatism_A: Annotated[float, arg(name="astigmatism-a")] = 500.0
    """Defocus u minus v, in angstrom, at a random angle."""
    noise_colour: Literal["white", "coloured"] = "white"
    """white, or coloured: strong at low frequencies, weak at high ones, with the same variance of a pixel."""
    junk: float = 0.0
    """Fraction of the particles that are junk: empty, edges of ice or carbon, aggregates; with --map empty, neighbours of an empty
    place, aggregates."""
    map: Path | None = None
    """Cubic 3-D map (.mrc) whose projections are the particles; with `views` and --views all."""
    views: Literal["tilt", "all"] = "tilt"
    """tilt: the built-in object, tilted about one axis; all: the map of --map from all directions, evenly."""
    map_pixel_size_A: Annotated[float | None, arg(name="map-pixel-size-a")] = None
    """Voxel size of the map in angstrom [default: what its header says; where that is 0 or 1, which is to say unknown,
    --pixel-size-a]."""
    crowding: float = 0.0
    """Neighbours beside the particle, other views of the map: the share of the surroundings that they cover, on average. With
    --map only."""
    snr_after_ctf: bool = False
    """Measure --snr on the clean particles after the CTF, not before. With --map only."""
    optics_groups: int = 1
    """2: half of the particles come from another microscope, with 200 kV, noise 1.4 times as strong and of another colour."""
    pixel_size_A: Annotated[float, arg(name="pixel-size-a")] = 4.0
    """Written into the STAR file."""
    seed: int = 1
    """Same seed, same bytes."""
    force: bool = False
    """Replace what is there."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Bepler et al. 2019, section 4.4 and the appendix: negative-stain EM (antibody, CODH/ACS).
    "paper": {
        "prepare": {"ctf": "none", "hot_pixel_sd": 0.0},
        "model": {
            "engine": "coordinate",
            "z_dim": 20,
            "hidden": 1000,
            "layers": 2,
            "encoder_hidden": 1000,
            "encoder_layers": 2,
            "z_view": "image",
            "activation": "tanh",
            "noise": "unit",
            "whole_image": True,
            "theta_kl": "no-mean",
            "pose_start_sd": None,
            "start_detail": 1.0,
            "shift_prior_px": 4.0,
        },
        "train": {
            "epochs": 500,
            "batch_size": 100,
            "learning_rate": 1e-4,
            "kl_warmup_steps": 0,
            "cooling": False,
            "z_delay": 2,
            "augment_rotation": True,
            "infer_turns": 1,
        },
    }
}


def with_preset(config: RunConfig, name: str) -> RunConfig:
    """The configuration with a preset's settings put in (flags that the user gives come after and win)."""
    if name not in PRESETS:
        raise EmsvaeError(f"there is no preset {name!r}; expected one of: {', '.join(PRESETS)}")
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in PRESETS[name].items()}
    return dataclasses.replace(config, **parts)


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with every default that depends on the engine filled in."""
    engine = config.model.engine
    decoder = config.model.decoder
    if decoder == "auto":
        decoder = "coefficients" if engine == "steerable" else "spatial"
    scale = config.model.scale
    if scale == "auto":
        scale = "group" if engine == "steerable" else "none"
    z_dim = config.model.z_dim
    if z_dim is None and engine == "coordinate":
        z_dim = 2
    model = dataclasses.replace(config.model, decoder=decoder, scale=scale, z_dim=z_dim)
    return dataclasses.replace(config, model=model, train=train_for(config.train, engine))


def train_for(train: TrainConfig, engine: Engine) -> TrainConfig:
    """Training settings with the engine's defaults."""
    own = {"batch_size": 256, "z_delay": 1, "patience": 5, "kl_warmup_steps": 0}
    if engine == "coordinate":
        own = {"batch_size": 100, "z_delay": 2, "patience": 10, "kl_warmup_steps": 1000}
    return dataclasses.replace(train, **{key: value for key, value in own.items() if getattr(train, key) is None})


def _check_hold_still(config: RunConfig) -> None:
    if config.train.hold_still is None:
        return
    if config.model.engine == "coordinate":
        raise EmsvaeError("--hold-still belongs to the steerable engine; leave --engine coordinate or it out")
    if not config.train.init_poses:
        raise EmsvaeError(
            "--hold-still: the mask lies on the consensus of an earlier run, and a new run finds a frame of its own; start from "
            "that run's STAR file with --init-poses, or use `emsvae export RUN --hold-still`"
        )


def _check_poses_fixed(config: RunConfig) -> None:
    m = config.model
    if not m.poses_fixed:
        return
    if m.engine == "coordinate":
        raise EmsvaeError("--poses-fixed belongs to the steerable engine; leave --engine coordinate or it out")
    against = {
        "--no-rotate": not m.rotate,
        "--no-translate": not m.translate,
        "--hold-still": config.train.hold_still is not None,
    }
    for flag, asked in against.items():
        if asked:
            raise EmsvaeError(
                f"--poses-fixed takes theta and shift as they are in the file, {flag} changes them; leave one of them out"
            )


def _check_engine(m: ModelConfig) -> None:
    """Refuse settings that belong to the other engine."""
    only_coordinate = {
        f"--noise {m.noise}": m.noise != "unit",
        "--decoder vanilla": m.decoder == "vanilla",
        "--whole-image": m.whole_image,
        "--non-negative": m.non_negative,
        f"--theta-kl {m.theta_kl}": m.theta_kl != "no-mean",
        f"--theta-prior-rad {m.theta_prior_rad}": m.theta_prior_rad != ModelConfig.theta_prior_rad,
    }
    wrong = [flag for flag, asked in only_coordinate.items() if asked]
    if m.engine == "steerable" and wrong:
        raise EmsvaeError(f"{wrong[0]} belongs to the coordinate engine; add --engine coordinate or leave it out")
    if m.engine == "coordinate" and m.scale not in ("auto", "none"):
        raise EmsvaeError(f"--scale {m.scale} belongs to the steerable engine; leave --engine coordinate or it out")
    if m.engine == "coordinate" and m.decoder == "coefficients":
        raise EmsvaeError("--decoder coefficients belongs to the steerable engine; leave --engine coordinate or it out")


def check(config: RunConfig) -> RunConfig:
    """Refuse settings that cannot work, before anything is read; returns the configuration unchanged."""
    m, t, p = config.model, config.train, config.prepare
    _check_engine(m)
    _check_poses_fixed(config)
    _check_hold_still(config)
    positive = {
        "--z-dim": m.z_dim,
        "--hidden": m.hidden,
        "--layers": m.layers,
        "--encoder-hidden": m.encoder_hidden,
        "--encoder-layers": m.encoder_layers,
        "--batch-size": t.batch_size,
        "--learning-rate": t.learning_rate,
        "--epochs": t.epochs,
        "--max-epochs": t.max_epochs,
        "--threads": t.threads,
        "--train-particles": t.train_particles,
        "--patience": t.patience,
        "--infer-turns": t.infer_turns,
        "--limit": config.input.limit,
        "--pixel-size-a": config.input.pixel_size_A,
        "--particle-diameter-a": p.particle_diameter_A,
        "--highpass-a": p.highpass_A,
        "--max-shift-a": m.max_shift_A,
        "--shift-prior-px": m.shift_prior_px,
        "--theta-prior-rad": m.theta_prior_rad,
        "--pose-start-sd": m.pose_start_sd,
        "--start-detail": m.start_detail,
        "--anchors": t.anchors,
        "--draws": t.draws,
    }
    for flag, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise EmsvaeError(f"{flag} is {value}; expected a number above 0")
    not_negative = {
        "--hot-pixel-sd": p.hot_pixel_sd,
        "--z-delay": t.z_delay,
        "--checkpoint-minutes": t.checkpoint_minutes,
        "--kl-warmup-steps": t.kl_warmup_steps,
        "--seed": t.seed,
    }
    for flag, value in not_negative.items():
        if value is not None and not value >= 0:
            raise EmsvaeError(f"{flag} is {value}; expected 0 or more")
    size_A = config.input.pixel_size_A
    if size_A is not None and not SMALLEST_PIXEL_A <= size_A <= LARGEST_PIXEL_A:
        raise EmsvaeError(
            f"--pixel-size-a is {size_A:g}; expected {SMALLEST_PIXEL_A:g} to {LARGEST_PIXEL_A:g}, in angstrom: 1e-10 m is 1"
        )
    if p.box is not None and p.box < 16:
        raise EmsvaeError(f"--box is {p.box}; expected at least 16 pixels")
    if not 0 <= t.holdout < 1:
        raise EmsvaeError(f"--holdout is {t.holdout}; expected a fraction from 0 to below 1")
    if m.decoder == "vanilla" and (m.squared_coordinates or m.bilinear):
        raise EmsvaeError("--decoder vanilla has no coordinates; leave --squared-coordinates and --bilinear out")
    return config
