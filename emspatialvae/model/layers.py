"""Small parts that encoder and decoder share."""

from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


class ResidualLayer(nn.Module):
    """``act(W x + b + x)``, shape [..., hidden] to the same."""

    def __init__(self, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.activation(self.linear(x) + x)


def hidden_layers(hidden: int, count: int, activation: Activation, residual: bool) -> list[nn.Module]:
    """``count`` layers from ``hidden`` to ``hidden`` units, each with its activation."""
    if residual:
        return [ResidualLayer(hidden, activation) for _ in range(count)]
    return [module for _ in range(count) for module in (nn.Linear(hidden, hidden), ACTIVATIONS[activation]())]


NEW_INPUT_SD = 0.1
"""Of the weights by which a network listens to an input that it did not have so far."""


def resized_latents(z: Tensor, z_dim: int) -> Tensor:
    """Latents [n, any number of coordinates] with ``z_dim`` coordinates, [n, z_dim]: surplus ones are left out, new ones are 0."""
    shared = min(z_dim, z.shape[1])
    out = z.new_zeros(len(z), z_dim)
    out[:, :shared] = z[:, :shared]
    return out


@torch.no_grad()
def copy_shared(old: nn.Module, new: nn.Module, generator: torch.Generator | None) -> None:
    """Give ``new`` the weights of ``old``, a network of the same kind with more or fewer inputs.

    Weights of inputs that ``old`` does not have are drawn from ``generator``, small ones. Inputs that ``new`` does not have are as if they were 0.
    """
    theirs = dict(old.named_parameters())
    for name, weight in new.named_parameters():
        shared = tuple(slice(0, min(a, b)) for a, b in zip(weight.shape, theirs[name].shape, strict=True))
        if weight.shape != theirs[name].shape:
            weight.copy_(NEW_INPUT_SD * torch.randn(weight.shape, generator=generator))
        weight[shared] = theirs[name][shared]
