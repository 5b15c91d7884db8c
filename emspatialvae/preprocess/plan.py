"""Looks at a stack and settles how its images are prepared: box, mask, CTF, contrast; with a sentence for each."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import Engine, PrepareConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging.ctf import ctf_2d
from emspatialvae.particles.load import missing_ctf_columns, most_common_box
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.particle_size import ParticleSize, measure_particle
from emspatialvae.preprocess.preparation import CtfTreatment, Preparation, check_ctf, is_flipped, prepare, without_ctf

DEFAULT_BOX = 64
SAMPLE = 2000
"""Particles looked at to find size and contrast."""
BACKGROUND_MARGIN, BACKGROUND_GAP_PX = 1.1, 2.0
"""The background begins this much farther out than the particle ends, as a factor and at least in prepared pixels."""


class Decision(NamedTuple):
    """How a stack is prepared, a sentence for everything that was assumed or found, and what was seen of the particle."""

    preparation: Preparation
    sentences: list[str]
    particle: ParticleSize | None


def decide(
    stack: ParticleStack,
    config: PrepareConfig,
    *,
    bernoulli: bool = False,
    engine: Engine = "coordinate",
) -> Decision:
    """Settle how a stack is prepared for an engine.

    Raises
    ------
    ParticleFileError, EmsvaeError
        Mixed boxes or pixel sizes without ``--box``; a box, mask or CTF request that the stack cannot meet.
    """
    box, pixel_size_A, said = _decide_size(stack, config)
    given_A = config.particle_diameter_A
    radius = 0.45 * box if given_A is None else given_A / 2 / pixel_size_A
    if given_A is not None and (radius > box / 2 or radius < 4):
        raise EmsvaeError(
            f"a particle diameter of {given_A:.4g} A is {2 * radius:.1f} pixels in a box of {box} ({box * pixel_size_A:.4g} A); "
            f"choose --particle-diameter-a between 8 pixels ({8 * pixel_size_A:.4g} A) and the box"
        )
    if engine == "steerable" and stack.channels > 1:
        raise EmsvaeError(
            f"{stack.source}: images of {stack.channels} channels; the steerable engine sees one; use --engine coordinate"
        )
    treatment, sentence = _decide_ctf(stack, config, engine)
    said.append(sentence)
    normalise, sentences = _decide_values(stack, config, bernoulli, engine)
    said += sentences
    # Points of light are no defect of a picture.
    hot_pixel_sd = 0.0 if stack.of_pictures and not normalise else config.hot_pixel_sd
    preparation = Preparation(
        box, pixel_size_A, radius, False, treatment, hot_pixel_sd, normalise, skip_bad_ctf=config.skip_bad_ctf
    )
    said += _said_of_bad_ctf(stack, preparation)
    looked_at = None
    if normalise and not stack.of_pictures and (given_A is None or config.invert == "auto"):
        looked_at = look_at_particles(stack, preparation)
    preparation, sentence = _decide_particle(preparation, config, engine, looked_at)
    said.append(sentence)
    invert, sentence = _decide_contrast(config, looked_at)
    said.append(sentence)
    said += _decide_highpass(config, preparation)
    return Decision(replace(preparation, invert=invert, highpass_A=config.highpass_A), said, looked_at)


def _decide_size(stack: ParticleStack, config: PrepareConfig) -> tuple[int, float, list[str]]:
    """Box and pixel size after cropping: the same field of view for all, the smallest that occurs."""
    widths = np.array([file.width for file in stack.files])[stack.file_of]
    kinds = sorted({(int(w), round(float(p), 6)) for w, p in zip(widths, stack.pixel_size_A, strict=True)})
    field_A = min(w * p for w, p in kinds)
    largest = int(field_A / max(p for _, p in kinds) + 1e-3)
    if len(kinds) > 1 and config.box is None:
        listed = ", ".join(f"{w} px of {p:.4g} A" for w, p in kinds[:4])
        raise ParticleFileError(
            f"{stack.source}: images of different size ({listed}); expected one box and pixel size; "
            f"bring them to a common one with --box {min(DEFAULT_BOX, largest)}"
        )
    common = most_common_box(stack)
    box = config.box if config.box is not None else min(common, DEFAULT_BOX)
    pixel_size_A = field_A / box
    if box > largest:
        raise EmsvaeError(
            f"--box {box} would give pixels of {pixel_size_A:.4g} A, finer than the images' {max(p for _, p in kinds):.4g} A; "
            f"choose at most --box {largest}"
        )
    said = [f"pixel size {', '.join(f'{p:.4g}' for p in sorted({p for _, p in kinds}))} A"]
    if len(kinds) > 1 or box != common:
        said.append(
            f"Fourier-cropped from {', '.join(f'{w}' for w in stack.boxes)} to {box} px of {pixel_size_A:.4g} A"
        )
    else:
        said.append(f"box {box} px, used as it is")
    return box, pixel_size_A, said


def _decide_values(
    stack: ParticleStack, config: PrepareConfig, bernoulli: bool, engine: Engine
) -> tuple[bool, list[str]]:
    """Whether the background is brought to mean 0 and s.d. 1; said only where it is not a matter of course."""
    if bernoulli and config.normalise == "yes":
        raise EmsvaeError(
            "--noise bernoulli needs values from 0 to 1, --normalise yes takes them away; leave one of them out"
        )
    if engine == "steerable" and config.normalise == "no":
        raise EmsvaeError(
            "--normalise no: the steerable engine weighs images against noise of s.d. 1; use --engine coordinate"
        )
    if config.normalise != "auto":
        normalise = config.normalise == "yes"
    else:
        normalise = not bernoulli and (engine == "steerable" or not stack.of_pictures)
    if not (stack.of_pictures or config.normalise == "no"):
        return normalise, []
    if normalise:
        why = "--normalise yes" if config.normalise == "yes" else "as the steerable engine needs it"
        return True, [f"background brought to mean 0 and s.d. 1 ({why})"]
    left = "values from 0 to 1 taken as they are: no normalisation"
    return False, [left + (", hot pixels left alone" if stack.of_pictures else "")]


def _decide_highpass(config: PrepareConfig, preparation: Preparation) -> list[str]:
    """What is said of --highpass-a, where it is given. Size and contrast are found without it."""
    if config.highpass_A is None:
        return []
    box, pixel_size_A = preparation.box, preparation.pixel_size_A
    if not preparation.normalise:
        raise EmsvaeError(
            "--highpass-a takes the level of every image away, which --normalise no keeps; leave one of them out"
        )
    if not 2 * pixel_size_A < config.highpass_A < box * pixel_size_A:
        raise EmsvaeError(
            f"--highpass-a is {config.highpass_A:g}; expected more than two pixels of the prepared images ({2 * pixel_size_A:.4g} A) "
            f"and less than their box ({box * pixel_size_A:.4g} A)"
        )
    return [
        f"what is coarser than {config.highpass_A:g} A is taken out (--highpass-a; half of it is left at {config.highpass_A:g} A)"
    ]


def _said_of_bad_ctf(stack: ParticleStack, preparation: Preparation) -> list[str]:
    """What is said of particles without a CTF that can be used, where they are left out."""
    left_out = without_ctf(stack, preparation.ctf) if preparation.skip_bad_ctf else np.zeros(len(stack), bool)
    if not left_out.any():
        return []
    return [
        f"{int(left_out.sum()):,} of {len(stack):,} particles have no CTF or an impossible one and are left out (--skip-bad-ctf); the first "
        f"is {stack.names[left_out.argmax()]}"
    ]


def _decide_ctf(stack: ParticleStack, config: PrepareConfig, engine: Engine) -> tuple[CtfTreatment, str]:
    if config.ctf == "full" and engine == "coordinate":
        raise EmsvaeError(
            "--ctf full: the coordinate model has no CTF in its likelihood; use --ctf phase-flip or --engine steerable"
        )
    if config.ctf == "none":
        return "none", "CTF left alone (--ctf none)"
    if stack.channels > 1:
        if config.ctf != "auto":
            raise EmsvaeError(f"--ctf {config.ctf}: images of {stack.channels} channels have no CTF; use --ctf none")
        return "none", "CTF left alone: the images have several channels"
    if config.ctf == "auto" and (stack.ctf is None or not stack.ctf.known.any()):
        return "none", f"CTF left alone: {missing_ctf_columns(stack) or 'no parameters in the file'}"
    if config.ctf == "auto" and stack.ctf is not None and not np.nan_to_num(stack.ctf.defocus_u_A).any():
        return (
            "none",
            "CTF left alone: every defocus in the file is 0",
        )  # how simulations say that images are projections
    treatment = "multiply" if config.ctf == "full" or (config.ctf == "auto" and engine == "steerable") else "phase-flip"
    check_ctf(stack, treatment, skip=config.skip_bad_ctf)
    used = [stack.optics[group] for group in np.unique(stack.optics_of)]
    multiplied = all(group.ctf_premultiplied for group in used)
    # What was multiplied has the right phases, too.
    asked = [group for group in used if treatment == "phase-flip" or not group.ctf_premultiplied]
    done, left = ([group.name for group in asked if is_flipped(group) == is_done] for is_done in (True, False))
    if done and left:
        raise ParticleFileError(
            f"{stack.source}: some optics groups are phase-flipped ({', '.join(done)}) and some are not ({', '.join(left)}); "
            "take them apart, or use --ctf none"
        )
    if treatment == "multiply":
        how = "multiplied by it already" if multiplied else "multiplied by it"
        return treatment, f"CTF: images {how}, its square in the likelihood (--ctf full)"
    if left:
        return treatment, "CTF: phases flipped"
    already = "the images are multiplied by it" if multiplied else "phases were flipped"
    return treatment, f"CTF left alone: {already} already"


def look_at_particles(stack: ParticleStack, preparation: Preparation) -> ParticleSize:
    """Size and contrast of the particle, from some of the images, in prepared pixels.

    Raises
    ------
    ParticleFileError
        None of the images looked at can be used.
    """
    rows = np.unique(np.linspace(0, len(stack) - 1, min(len(stack), SAMPLE)).astype(int))
    # A multiplied image has hardly any mean left; with its phases flipped it is as bright as it is.
    seen = replace(preparation, ctf="phase-flip") if preparation.ctf == "multiply" else preparation
    some = stack.subset(rows)
    images = np.concatenate([portion.images[portion.usable] for portion in prepare(some, seen)])
    if not len(images):
        raise ParticleFileError(
            f"{stack.source}: every image looked at is constant or holds NaN; there is nothing to learn from"
        )
    return measure_particle(images, _mean_transfer(some, seen))


def _mean_transfer(stack: ParticleStack, preparation: Preparation) -> NDArray[np.float64] | None:
    """What acts on the density of phase-flipped (or multiplied) images, on average over a stack; None where it is not known."""
    if preparation.skip_bad_ctf and stack.ctf is not None:
        stack = stack.subset(np.flatnonzero(~without_ctf(stack, preparation.ctf)))
    if preparation.ctf == "none" or stack.ctf is None or not len(stack) or not stack.ctf.known.all():
        return None
    total = np.zeros((preparation.box, preparation.box // 2 + 1))
    for rows in np.array_split(np.arange(len(stack)), max(1, len(stack) // 200)):
        transfer = np.abs(ctf_2d(stack.ctf[rows], preparation.box, preparation.pixel_size_A))
        multiplied = np.array([group.ctf_premultiplied for group in stack.optics])[stack.optics_of[rows]]
        total += np.where(multiplied[:, None, None], transfer**2, transfer).sum(0)
    return total / len(stack)


def _decide_particle(
    preparation: Preparation, config: PrepareConfig, engine: Engine, looked_at: ParticleSize | None
) -> tuple[Preparation, str]:
    """The circle that holds the particle, and the one outside which the background is measured."""
    pixel_A, half = preparation.pixel_size_A, preparation.box / 2
    if config.particle_diameter_A is not None:
        radius = preparation.mask_radius_px
        told = f"particle diameter {config.particle_diameter_A:.4g} A ({2 * radius:.1f} px) (--particle-diameter-a)"
        return replace(preparation, particle_radius_px=radius), told
    if engine == "coordinate" or looked_at is None:
        return preparation, f"mask {1.8 * half * pixel_A:.4g} A across ({1.8 * half:.1f} px), assumed: 0.9 of the box"
    if not looked_at.found:
        return replace(preparation, particle_radius_px=0.9 * half), (
            f"particle diameter {1.8 * half * pixel_A:.4g} A ({1.8 * half:.1f} px), assumed: 0.9 of the box, because no edge of the "
            "particle was seen in the images; give it with --particle-diameter-a"
        )
    radius = looked_at.radius_px
    told = f"particle diameter {2 * radius * pixel_A:.4g} A ({2 * radius:.1f} px), found from the radial profiles of the images"
    background = min(max(radius + BACKGROUND_GAP_PX, BACKGROUND_MARGIN * radius), 0.9 * half)
    return replace(preparation, particle_radius_px=radius, mask_radius_px=max(background, radius)), told


def _decide_contrast(config: PrepareConfig, looked_at: ParticleSize | None) -> tuple[bool, str]:
    if config.invert != "auto":
        return (
            config.invert == "yes",
            f"contrast {'inverted' if config.invert == 'yes' else 'kept'} (--invert {config.invert})",
        )
    if looked_at is None:
        return False, "contrast kept"
    found = f"{looked_at.contrast_z:.0f} standard errors between the two signs of the average density"
    if not looked_at.sign:
        return False, f"contrast unclear ({found}): kept; say --invert yes if particles are dark"
    dark = looked_at.sign < 0
    return dark, f"particles are {'dark: inverted' if dark else 'bright: kept'} ({found})"
