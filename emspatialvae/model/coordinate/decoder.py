"""Generators: what the object looks like at given points, for given latent z."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from emspatialvae.model.layers import ACTIVATIONS, Activation, hidden_layers


class Decoder(nn.Module, ABC):
    """(points in the object's frame, z) to the likelihood's parameters at each point."""

    @abstractmethod
    def forward(self, points: Tensor, z: Tensor) -> Tensor:
        """Evaluate the object.

        Parameters
        ----------
        points
            Shape [n, p, 2]; (x, y) in the object's frame, in units of half the box, so that the disk is the unit disk.
        z
            Shape [n, z_dim].

        Returns
        -------
        Shape [n, p, outputs].
        """


class SpatialDecoder(Decoder):
    """``f(x, y, z)``: an MLP on coordinates and content, the paper's spatial generator (section 3.1).

    ``h = act(A u + B z [+ z^T C u]);  h = act(W h + b), ...;  output = V h + c`` with ``u = (x, y)`` or, with squared
    coordinates, ``(x, y, x^2, y^2, xy)``. A, C and the first bias begin ``start_detail`` times as large as usual.
    """

    def __init__(
        self,
        z_dim: int,
        outputs: int,
        *,
        hidden: int,
        layers: int,
        activation: Activation = "tanh",
        residual: bool = False,
        squared_coordinates: bool = False,
        bilinear: bool = False,
        start_detail: float = 1.0,
    ) -> None:
        super().__init__()
        self.squared_coordinates = squared_coordinates
        features = 5 if squared_coordinates else 2
        self.from_points = nn.Linear(features, hidden)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.from_products = nn.Linear(z_dim, features * hidden, bias=False) if bilinear else None
        self.activation = ACTIVATIONS[activation]()
        self.hidden = nn.Sequential(*hidden_layers(hidden, layers - 1, activation, residual))
        self.output = nn.Linear(hidden, outputs)
        of_points = [*self.from_points.parameters(), *(self.from_products.parameters() if self.from_products else ())]
        with torch.no_grad():
            for weights in of_points:
                weights *= start_detail

    def forward(self, points: Tensor, z: Tensor) -> Tensor:
        """See `Decoder.forward`."""
        # Coordinates keep full precision whatever the rest runs in: bfloat16 would place them on a grid of a tenth of a pixel.
        with torch.autocast(points.device.type, enabled=False):
            first = self._first_layer(points, z)
        return self.output(self.hidden(self.activation(first)))

    def _first_layer(self, points: Tensor, z: Tensor) -> Tensor:
        if self.squared_coordinates:
            x, y = points.unbind(-1)
            points = torch.cat([points, points**2, (x * y)[..., None]], -1)
        weight = self.from_points.weight.T.expand(len(z), -1, -1)
        if self.from_products is not None:
            # z^T C u is linear in u: for each particle it only changes the matrix that multiplies u.
            weight = weight + self.from_products(z).view(len(z), points.shape[-1], -1)
        offset = (self.from_z(z) + self.from_points.bias)[:, None, :]
        return torch.baddbmm(offset, points, weight)


class VanillaDecoder(Decoder):
    """z to every pixel of one fixed image grid: the standard VAE, the baseline that cannot turn what it draws."""

    def __init__(
        self,
        z_dim: int,
        outputs: int,
        *,
        pixels: int,
        hidden: int,
        layers: int,
        activation: Activation = "tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.layers = nn.Sequential(
            nn.Linear(z_dim, hidden),
            ACTIVATIONS[activation](),
            *hidden_layers(hidden, layers - 1, activation, residual),
            nn.Linear(hidden, pixels * outputs),
        )

    def forward(self, points: Tensor, z: Tensor) -> Tensor:
        """See `Decoder.forward`; only the number of points is looked at, which must be that of the grid."""
        out = self.layers(z).view(len(z), -1, self.outputs)
        if out.shape[1] != points.shape[1]:
            raise ValueError(f"a vanilla decoder draws its own {out.shape[1]} pixels, not {points.shape[1]} points")
        return out
