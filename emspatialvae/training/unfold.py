"""New coordinates for what a decoder draws: laid out by how its images are related, not by the latents that it drew them from.

Latents that were found one after the other map particles in folds: images that look alike lie far apart in z, like
the turns of a snake that fills a plane. The images themselves know better. The steps from each to those most like it make a graph, and
the distances along it lay them out on the surface that they form (Isomap: Tenenbaum, de Silva and Langford, Science 290, 2319 (2000)). What the
decoder draws has no noise, so what is near in this graph is near.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial.distance import cdist

from emspatialvae.model.classical_scaling import classical_scaling

NEIGHBOURS = 8
SAME = 1e-9
"""Of the longest distance: images that are the same are so far apart, for in a graph 0 is no link (nor, in a dense one, is 1e-8)."""


def unfolded(images: NDArray[np.floating], z_dim: int) -> NDArray[np.float64]:
    """Places [n, z_dim] of images [n, m] on the surface that they form, along its longest extent first.

    Each coordinate has mean 0, the first one variance 1, as the prior of z has, and the others less in proportion to the extent of the images along
    them: what they do not need starts small.

    Examples
    --------
    A spiral is a line:

    >>> t = np.linspace(1, 3, 200)
    >>> z = unfolded(np.stack([t * np.cos(5 * t), t * np.sin(5 * t)], 1), 1)[:, 0]
    >>> bool((np.diff(z) > 0).all() or (np.diff(z) < 0).all())
    True
    """
    pixels = np.asarray(images, np.float64)
    apart = cdist(pixels, pixels)
    if not apart.any():
        return np.zeros((len(images), z_dim))
    apart = np.maximum(apart, SAME * apart.max())
    np.fill_diagonal(apart, 0)
    near = np.argsort(apart, 1, kind="stable")[:, 1 : NEIGHBOURS + 1]
    # Groups of images that have nothing in common are joined by their closest members.
    links = minimum_spanning_tree(csr_array(apart)).toarray()
    np.put_along_axis(links, near, np.take_along_axis(apart, near, 1), 1)
    places, _ = classical_scaling(shortest_path(csr_array(links), directed=False), z_dim)
    return places / places[:, 0].std()
