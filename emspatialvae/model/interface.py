"""What both engines share: what goes into a model of particles and what comes out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from emspatialvae.model.batch import Batch
from emspatialvae.model.distributions import LatentAndPose
from emspatialvae.model.image_spec import ImageSpec


@dataclass(frozen=True)
class Elbo:
    """A lower bound of ``log p(y)``, in nats, and the KL divergences that were subtracted in it; each of shape [n].

    The steerable engine sums the pose out, so its KL is no term of its own; with several samples of z for each particle its bound is
    tighter than a mean log-likelihood minus ``kl_z``, which then only tells how much z says. It gives the logarithm of a likelihood
    *ratio*, against noise alone: above 0 the model says more of the image than noise does.
    """

    bound: Tensor
    kl_z: Tensor
    kl_theta: Tensor
    kl_shift: Tensor

    def weighted(self, kl_weight: float) -> Tensor:
        """The bound with the KL terms taken ``kl_weight`` times; shape [n]."""
        return self.bound + (1 - kl_weight) * (self.kl_z + self.kl_theta + self.kl_shift)


@dataclass(frozen=True)
class Estimate:
    """What was inferred of n particles."""

    mean: LatentAndPose
    """Posterior means."""
    sd: LatentAndPose
    """Posterior standard deviations."""
    log_likelihood: Tensor
    """log p(y | posterior means) in nats, or of the steerable engine log p(y) - log p(y | noise alone); shape [n]."""
    peak_weight: Tensor | None = None
    """Probability that the reported pose lies in the right mode of the posterior, 0 to 1; shape [n], None where unknown."""
    misfit: Tensor | None = None
    """What the image leaves unexplained beyond noise, in s.d. of the latter: about 0 for a particle, high for junk; shape [n]."""
    scale: Tensor | None = None
    """Amplitude of each particle, 1 on average; shape [n], None where it was not asked for."""


class ParticleVAE(nn.Module, ABC):
    """A generative model of particle images with latent z and in-plane pose."""

    images: ImageSpec
    half_precision: bool = True
    """Whether its matrix products may run in bfloat16."""
    against_noise: bool = False
    """Whether its log-likelihoods are those over noise alone."""
    draws_disk_only: bool = False
    """Whether its images are zero wherever no pixel was seen in training; else they hold anything there."""

    @property
    @abstractmethod
    def z_dim(self) -> int:
        """Number of latent coordinates."""

    @property
    @abstractmethod
    def floats_per_particle(self) -> int:
        """Size of the widest hidden layer for one particle."""

    @abstractmethod
    def infer(self, batch: Batch, turns: int = 1) -> Estimate:
        """Posterior means and s.d. of z and pose."""

    @abstractmethod
    def render(self, content: LatentAndPose, box: int | None = None) -> Tensor:
        """Draw particles at any pose, without CTF; shape [n, channels, box, box].

        ``box`` pixels cover the field of view of the training images [default: their own box].
        """

    def common_image(self) -> Tensor | None:
        """The image [box, box] that all poses refer to; None of a model that has registered its images on none."""
        return None
