"""Background and scale of images, ``float32 [n, box, box]``, and images and pixels that cannot be used."""

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from emspatialvae.imaging.arrays import Images
from emspatialvae.imaging.background import LEAST_PIXELS, fit_background
from emspatialvae.imaging.masks import circular_mask

LARGEST = 1e9
"""Of the values of an image; a detector counts electrons, so none comes near."""


def brightness(images: Images) -> Images:
    """Images [n, box, box] as they are, those with channels [n, c, box, box] as the mean of these; [n, box, box]."""
    return images if images.ndim == 3 else images.mean(1)


def background(images: Images, radius_px: float) -> tuple[Images, Images]:
    """Mean and s.d. of each image outside a circle; two arrays of shape [n]."""
    outside = images[:, ~circular_mask(images.shape[-1], radius_px)]
    return outside.mean(1), outside.std(1)


def moderate(images: Images) -> Images:
    """Images [n, b, b] of absurdly large or small values (beyond 1e9, below 1e-9) times a power of two each, the others as they are.

    Squares of such values leave the range of float32; what is normalised afterwards has lost its scale anyway.
    """
    largest = np.abs(images).max((1, 2))
    absurd = np.isfinite(largest) & ((largest > LARGEST) | ((largest < 1 / LARGEST) & (largest > 0)))
    if not absurd.any():
        return images
    out = images.copy()
    out[absurd] = np.ldexp(images[absurd], -np.frexp(largest[absurd])[1][:, None, None])
    return out


def normalise(images: Images, radius_px: float) -> Images:
    """Background level and slope 0, noise of s.d. 1 outside the circle (RELION's rule, ``relion_preprocess --norm --bg_radius``).

    Neighbours do not count; see `emspatialvae.imaging.background`. Where the circle leaves fewer than 50 pixels, plain mean and s.d. of these
    are taken. A noise-free background (s.d. below a thousandth of the image's own) would be blown up beyond all bounds; such an image
    is scaled by its own s.d. instead.
    """
    if np.count_nonzero(~circular_mask(images.shape[-1], radius_px)) < LEAST_PIXELS:
        mean, sd = background(images, radius_px)
        flat = np.subtract(images, mean[:, None, None], dtype=np.float32)
    else:
        plane, sd = fit_background(images, radius_px)
        flat = np.subtract(images, plane, out=plane)
    whole_sd = flat.std((1, 2))
    # What rounding leaves of a plane is no noise either.
    enough = (sd > 1e-3 * whole_sd) & (sd > 1e-6 * np.abs(images).max((1, 2)))
    scale = np.where(enough, sd, whole_sd)
    flat /= np.where(scale > 0, scale, np.float32(1))[:, None, None]
    return flat


def highpass(images: Images, period_px: float) -> Images:
    """Take out of images [n, box, box] what is coarser than a period; half of the amplitude is left at the period itself.

    The transfer is ``1 - 2^(-(k period)^2)`` at the frequency k: a Gaussian edge, so nothing rings. The transform is that of the
    image continued by its mirror image (the cosine transform), so a slope makes no step at the edges of the box.
    """
    k = np.arange(images.shape[-1], dtype=np.float32) / (2 * images.shape[-1])
    transfer = 1 - np.exp2(-(period_px**2) * (k[:, None] ** 2 + k**2))
    transform = fft.dctn(images, axes=(1, 2), norm="ortho")
    return np.asarray(fft.idctn(transform * transfer, axes=(1, 2), norm="ortho"), dtype=np.float32)


def unusable(images: Images) -> NDArray[np.bool_]:
    """True for images that are constant or hold NaN or infinity; shape [n]."""
    with np.errstate(invalid="ignore", over="ignore"):
        spread = images.max((1, 2)) - images.min((1, 2))
    return ~np.isfinite(spread) | (spread == 0)


def replace_hot_pixels(images: Images, sd: float) -> tuple[Images, NDArray[np.int64]]:
    """Replace lone pixels that leave both the image and their neighbourhood by more than ``sd`` s.d. of the image.

    A bright particle stands out together with its neighbours and stays; a hot or dead pixel or an X-ray hit does not.

    Returns
    -------
    The images (copied only where something changed) and the number of pixels replaced in each, shape [n].
    """
    mean, spread = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
    candidates = np.argwhere(np.abs(images - mean) > sd * spread)
    replaced = np.zeros(len(images), dtype=np.int64)
    out = images
    for n, row, column in candidates:
        patch = images[n, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        # The pixel itself is in the patch; with 4 to 9 values its weight in the median is that of one neighbour.
        neighbours = float(np.median(patch))
        if abs(float(images[n, row, column]) - neighbours) > sd * float(spread[n, 0, 0]):
            out = images.copy() if out is images else out
            out[n, row, column] = neighbours
            replaced[n] += 1
    return out, replaced


def brightness_of_centre(images: Images, radius_px: float) -> tuple[float, float]:
    """By how much the inner half of the mask is brighter than the background, and the standard error of that.

    Averaged over the images, in their own units (background s.d. after `normalise`); negative means dark particles.
    """
    mean, _ = background(images, radius_px)
    difference = images[:, circular_mask(images.shape[-1], radius_px / 2)].mean(1) - mean
    # Without a second image to compare with, one image can say nothing about its own scatter.
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return float(difference.mean()), float(error)
