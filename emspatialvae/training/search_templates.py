"""Search templates: the few latents whose images are compared with every particle where poses are searched everywhere."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

FEWEST_TEMPLATES, MOST_TEMPLATES = 8, 128
"""At least and at most, where nobody says how many."""
LOSS_NATS, LOSS_SHARE = 1.0, 0.15
"""What half of the particles may lose by the nearest template, in nats and as a share of what they look like."""


def search_templates(z: Tensor, drawn: Tensor, limit: int | None, seed: int) -> Tensor:
    """Latents [J, z_dim] such that what each particle looks like is close to one of them.

    Their number is doubled until the loss in log-likelihood by taking the nearest one instead of a particle's own z is small.

    Parameters
    ----------
    z
        Latents of n particles; [n, z_dim].
    drawn
        What the decoder draws for them, in units of the noise; [n, m].
    limit
        So many templates, if there are particles enough; None: as many as are needed.
    seed
        Of the k-means that finds them.
    """
    images = drawn.cpu().double().numpy()
    most = max(1, min(limit or MOST_TEMPLATES, len(z) // 4))
    count = most if limit else min(FEWEST_TEMPLATES, most)
    own = 0.5 * (images**2).sum(1)
    while True:
        centres, of = kmeans2(images, count, minit="++", rng=seed, missing="warn")
        lost = 0.5 * ((images - centres[of]) ** 2).sum(1)
        if count >= most or np.median(lost) <= max(LOSS_NATS, LOSS_SHARE * np.median(own)):
            break
        count = min(2 * count, most)
    nearest = [np.flatnonzero(of == k)[lost[of == k].argmin()] for k in np.unique(of)]
    return z[torch.from_numpy(np.array(nearest))].clone()
