"""Small parts that encoder and decoder share."""

from typing import Literal

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
