"""How an image scatters about what the decoder says: p(y | decoder output)."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """Turns decoder outputs [n, p, outputs] into log-probabilities of pixels [n, p, channels]."""

    outputs: int
    """Numbers that the decoder must give per point."""

    @abstractmethod
    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Sum over pixels and channels of log p(y | output), in nats; shape [n]."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """The image that the decoder means; shape [n, p, channels]."""


class UnitGaussian(Likelihood):
    """``y ~ N(mean, 1)``: for images normalised to background s.d. 1."""

    def __init__(self, channels: int, non_negative: bool = False) -> None:
        super().__init__()
        self.outputs, self.non_negative = channels, non_negative

    def mean(self, output: Tensor) -> Tensor:
        """The decoder's output, through a softplus if it must not be negative."""
        return F.softplus(output) if self.non_negative else output

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """``-1/2 sum (y - mean)^2 - p c / 2 log(2 pi)``."""
        error = (y - self.mean(_full(output))).flatten(1)
        return -0.5 * (error**2).sum(1) - 0.5 * math.log(2 * math.pi) * error.shape[1]


class FittedGaussian(Likelihood):
    """``y ~ N(mean, exp(log_variance))``, both given by the decoder per pixel and channel.

    The outputs of one point are ``channels`` means, then ``channels`` log-variances. (The authors' ``--fit-noise`` flattens points
    and outputs before it splits them, which takes every other pixel's mean for a log-variance.)
    """

    def __init__(self, channels: int, non_negative: bool = False) -> None:
        super().__init__()
        self.channels, self.outputs, self.non_negative = channels, 2 * channels, non_negative

    def mean(self, output: Tensor) -> Tensor:
        """The first half of the outputs of each point."""
        mean = output[..., : self.channels]
        return F.softplus(mean) if self.non_negative else mean

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """``-1/2 sum [(y - mean)^2 / variance + log variance + log(2 pi)]``."""
        output = _full(output)
        log_variance = output[..., self.channels :]
        per_pixel = (y - self.mean(output)) ** 2 * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        return -0.5 * per_pixel.flatten(1).sum(1)


class Bernoulli(Likelihood):
    """``y ~ Bernoulli(sigmoid(output))``: for images in [0, 1], such as digits or photographs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = channels

    def mean(self, output: Tensor) -> Tensor:
        """The probability of each pixel."""
        return output.sigmoid()

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """``sum y log p + (1 - y) log(1 - p)``."""
        return -F.binary_cross_entropy_with_logits(_full(output), y, reduction="none").flatten(1).sum(1)


def _full(output: Tensor) -> Tensor:
    """Half-precision outputs as float32: sums over a thousand pixels need it."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def build_likelihood(noise: str, channels: int, non_negative: bool) -> Likelihood:
    """The likelihood that ``ModelConfig.noise`` names."""
    if noise == "bernoulli":
        return Bernoulli(channels)
    return {"unit": UnitGaussian, "fitted": FittedGaussian}[noise](channels, non_negative)
