"""One particle, all ways round: as recorded, low-passed, upright, as the model draws it, what is left over, and in words."""

import numpy as np

from napari_emsvae.explorer.pictures.picture import Picture, limits_of, low_passed
from napari_emsvae.explorer.run_data import RunData


def pictures_of(data: RunData, row: int, low_pass_A: float) -> list[Picture]:
    """Raw, low-passed, aligned, reconstruction and residual of a particle, in this order.

    The last three are of the prepared image (Fourier-cropped, normalised, particles bright), in the common frame; of a particle that
    the run could not use there are only the first two. Where the CTF is part of the model, the prepared image has been multiplied by
    it; the reconstruction is shown without, the residual is what is left when it acts on both.
    """
    from emspatialvae.imaging import alignment
    from emspatialvae.model.render import by_ring, canonical

    pixel_size_A = float(data.stack.pixel_size_A[row])
    raw = np.nan_to_num(data.stack.images([row])[0], posinf=0, neginf=0)
    smooth = low_passed(raw, low_pass_A / pixel_size_A)
    pictures = [
        Picture("raw", raw, pixel_size_A, limits_of(raw)),
        Picture(
            "low-passed", smooth, pixel_size_A, limits_of(smooth), f"low-passed to {low_pass_A:.3g} \N{ANGSTROM SIGN}"
        ),
    ]
    if not data.latents.used[row]:
        return pictures
    rows = np.array([row])
    portion = data.images.portion(rows)
    aligned = alignment.align(portion.images, data.latents.pose[rows])[0]
    drawn = canonical(data.model, data.latents.z[rows])
    residual = aligned - amplitude(data, row) * by_ring(drawn, portion.ctf_power)[0]
    limits = limits_of(aligned)
    multiplied = portion.ctf_power is not None
    return [
        *pictures,
        Picture(
            "aligned", aligned, data.pixel_size_A, limits, "aligned \N{MULTIPLICATION SIGN} CTF" if multiplied else ""
        ),
        Picture("reconstruction", drawn[0], data.pixel_size_A, limits_of(drawn[0]), smooth=True),
        Picture("residual", residual, data.pixel_size_A, limits),
    ]


def amplitude(data: RunData, row: int) -> float:
    """By how much the particle is brighter than what the model draws, where the model knows (``--scale``)."""
    from emspatialvae.model.steerable.vae import SteerableVAE

    if data.latents.scale is not None:
        return float(data.latents.scale[row])
    model = data.model
    if isinstance(model, SteerableVAE) and model.scale != "none":
        return float(model.group_scale[data.stack.optics_of[row]])
    return 1.0


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
    angstrom = "\N{ANGSTROM SIGN}"
    said.append(("shift x, y", f"{shift[0]:+.1f} {pm} {sd[0]:.1f}, {shift[1]:+.1f} {pm} {sd[1]:.1f} {angstrom}"))
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
