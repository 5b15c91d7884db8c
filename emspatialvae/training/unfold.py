"""New coordinates for what a decoder draws: laid out by how its images are related, not by the latents that it drew them from.

Latents that were found one after the other, or from a poor start, map particles in folds and fans: images that look alike lie far apart in z, like
the turns of a snake that fills a plane. The images themselves know better. The steps from each to those most like it make a graph, and
the distances along it lay them out on the surface that they form (Isomap: Tenenbaum, de Silva and Langford, Science 290, 2319 (2000)). What the
decoder draws has no noise, so what is near in this graph is near.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 8


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
    from sklearn.manifold import Isomap

    layout = Isomap(n_neighbors=min(NEIGHBOURS, len(images) - 1), n_components=z_dim, eigen_solver="dense")
    with warnings.catch_warnings():
        # Where the images fall into groups, Isomap joins these by their closest members, as we want it to, and warns that it does.
        warnings.simplefilter("ignore")
        places = layout.fit_transform(np.asarray(images, np.float64))
    places -= places.mean(0)
    return places / max(places[:, 0].std(), 1e-12)
