"""One particle, all ways round: as recorded, low-passed, upright, as the model draws it, what is left over, and in words."""

import numpy as np

from emspatialvae.imaging.contrast import contrast_limits
from napari_emsvae.explorer.pictures.picture import Picture, low_passed
from napari_emsvae.explorer.pictures.upright import upright
from napari_emsvae.explorer.run_data import RunData


def pictures_of(data: RunData, row: int, low_pass_A: float) -> list[Picture]:
    """Raw, low-passed, aligned, reconstruction and residual of a particle, in this order.

    The last three are of the prepared image (Fourier-cropped, normalised, particles bright), in the common frame; of a particle that
    the run could not use there are only the first two. Where the CTF is part of the model, the prepared image has been multiplied by
    it; the reconstruction is shown without, the residual is what is left when it acts on both.
    """
    from emspatialvae.model.render import by_ring, canonical

    pictures = _as_recorded(data, row, low_pass_A) if data.has_stack else []
    if not data.latents.used[row]:
        return pictures
    rows = np.array([row])
    stack, portion = upright(data, rows)
    aligned = stack[0]
    drawn = canonical(data.model, data.latents.z[rows])
    limits, pixel = contrast_limits(aligned), data.pixel_size_A
    multiplied = portion.ctf_power is not None
    pictures += [
        Picture(
            *("aligned", aligned, pixel, limits, "aligned \N{MULTIPLICATION SIGN} CTF" if multiplied else ""),
            unit=data.unit,
        ),
        Picture(
            "reconstruction", drawn[0], pixel, contrast_limits(drawn[0]), "as the model draws it", True, unit=data.unit
        ),
    ]
    bright = amplitude(data, row)
    if bright is None:
        return pictures
    residual = aligned - bright * by_ring(drawn, portion.ctf_power)[0]
    return [*pictures, Picture("residual", residual, pixel, limits, "what is left over", unit=data.unit)]


def _as_recorded(data: RunData, row: int, low_pass_A: float) -> list[Picture]:
    """The raw image, and the same without its fine detail."""
    pixel_size_A = float(data.stack.pixel_size_A[row])
    raw = np.nan_to_num(data.stack.images([row])[0], posinf=0, neginf=0)
    smooth = low_passed(raw, low_pass_A / pixel_size_A)
    colour = ", mean of the colours" if data.stack.channels > 1 else ""
    return [
        Picture("raw", raw, pixel_size_A, contrast_limits(raw), f"as recorded{colour}", unit=data.unit),
        Picture(
            *("low-passed", smooth, pixel_size_A, contrast_limits(smooth)),
            f"low-passed to {low_pass_A:.3g}\N{NO-BREAK SPACE}{data.unit_sign}",
            unit=data.unit,
        ),
    ]


def amplitude(data: RunData, row: int) -> float | None:
    """By how much the particle is brighter than what the model draws, where the model knows; None where that needs the stack."""
    from emspatialvae.model.steerable.vae import SteerableVAE

    if data.latents.scale is not None:
        return float(data.latents.scale[row])
    model = data.model
    if isinstance(model, SteerableVAE) and model.scale != "none":
        return float(model.group_scale[data.stack.optics_of[row]]) if data.has_stack else None
    return 1.0


MEANT = {
    "not used": "Nothing was learned from this particle and nothing is known of it",
    "theta": "In-plane rotation, and its standard deviation; positive turns from +x to +y (downwards)",
    "shift x, y": "How far the particle lies from the centre of its image, with the standard deviation",
    "pose probability": (
        "Probability of the best pose against all others that were tried, 0 to 1;\n"
        "low: the image fits several poses about as well (rlnMaxValueProbDistribution)"
    ),
    "class": "Number of the class, as in rlnClassNumber, and the probability that the particle belongs to it",
    "junk": "Probability that the image is no particle: 0 to 1 (emsvaeJunk)",
    "misfit": (
        "How much worse the model explains the image than images that the model itself would make,\n"
        "in standard deviations: far above the others means that something is in it which the model does not know"
    ),
    "log-likelihood": (
        "How well the model explains the image, in nats (natural logarithms; 1 nat = 1.44 bit),\n"
        "compared with noise alone: higher is better (rlnLogLikeliContribution)"
    ),
}
"""What the words about a particle mean."""


def described(data: RunData, row: int) -> list[tuple[str, str]]:
    """What is known of a particle: (what, value and uncertainty), in the order in which one asks."""
    latents, said = (
        data.latents,
        [("particle", f"{row + 1:,} of {len(data):,}"), ("name", str(data.latents.names[row]))],
    )
    if not latents.used[row]:
        return [*said, ("not used", "the image is constant or holds NaN, or lies beyond --limit")]
    pm = "\N{PLUS-MINUS SIGN}"
    for k in range(data.z_dim):
        said.append((f"z{k + 1}", f"{latents.z[row, k]:+.2f} {pm} {latents.z_sd[row, k]:.2f}"))
    theta, theta_sd = np.degrees([latents.pose.theta_rad[row], latents.theta_sd_rad[row]])
    said.append(("theta", f"{theta:+.1f} {pm} {theta_sd:.1f}\N{DEGREE SIGN}"))
    shift, sd = (values[row] * latents.pixel_size_A for values in (latents.pose.shift_px, latents.shift_sd_px))
    unit = data.unit_sign
    said.append(("shift x, y", f"{shift[0]:+.1f} {pm} {sd[0]:.1f}, {shift[1]:+.1f} {pm} {sd[1]:.1f} {unit}"))
    if latents.peak_weight is not None:
        said.append(("pose probability", f"{latents.peak_weight[row]:.3f}"))
    if latents.class_number is not None:
        share = "" if latents.class_posterior is None else f" (probability {latents.class_posterior[row]:.2f})"
        said.append(("class", f"{latents.class_number[row]}{share}"))
    if latents.junk is not None:
        said.append(("junk", f"probability {latents.junk[row]:.2f}"))
    if latents.misfit is not None:
        said.append(("misfit", f"{latents.misfit[row]:+.1f} s.d."))
    said.append(("log-likelihood", f"{latents.log_likelihood[row]:.1f} nats"))
    return said
