"""What a model is given to look at."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.imaging.geometry import Pose2D


@dataclass(frozen=True)
class Batch:
    """Particles as the model sees them."""

    images: Tensor
    """[n, channels, box, box]; with `ctf_power`, multiplied by their CTF."""
    group: Tensor
    """[n], whole numbers: which optics group each particle belongs to."""
    ctf_power: Tensor | None = None
    """[n, box // 2 + 1], mean of CTF^2 over each ring of the Fourier plane. None: the images are taken as they are."""
    theta_rad: Tensor | None = None
    """[n], of the poses that are known beforehand (``--poses-fixed``)."""
    shift_px: Tensor | None = None
    """[n, 2], as ``theta_rad``."""

    @classmethod
    def of(cls, images: NDArray[Any], group: NDArray[Any], ctf_power: NDArray[Any] | None = None) -> "Batch":
        """A batch of prepared images, [n, box, box] or [n, channels, box, box]; the other arrays as in the fields."""
        power = None if ctf_power is None else torch.from_numpy(np.asarray(ctf_power, dtype=np.float32))
        pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels
        return cls(pixels, torch.from_numpy(np.asarray(group, dtype=np.int64)), power)

    def __len__(self) -> int:
        return len(self.images)

    def at(self, pose: Pose2D) -> "Batch":
        """The same with poses that are known, shifts in prepared pixels."""
        theta, shift = (
            torch.from_numpy(np.asarray(values)).to(self.images) for values in (pose.theta_rad, pose.shift_px)
        )
        return replace(self, theta_rad=theta, shift_px=shift)

    def __getitem__(self, rows: Any) -> "Batch":
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device | str, *, waits: bool = True) -> "Batch":
        """The same on another device; without ``waits`` the copy from pinned memory goes on while the program does."""
        return self._each(lambda values: values.to(device, non_blocking=not waits))

    def pinned(self) -> "Batch":
        """The same in memory that a GPU can read by itself."""
        return self._each(lambda values: values.pin_memory())

    def _each(self, done: Callable[[Tensor], Tensor]) -> "Batch":
        fields: dict[str, Any] = {name: None if values is None else done(values) for name, values in vars(self).items()}
        return Batch(**fields)
