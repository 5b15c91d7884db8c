"""What a model is given to look at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Particles as the model sees them."""

    images: Tensor
    """[n, channels, box, box]; with `ctf_power`, multiplied by their CTF."""
    group: Tensor
    """[n], whole numbers: which optics group each particle belongs to."""
    ctf_power: Tensor | None = None
    """[n, box // 2 + 1], mean of CTF^2 over each ring of the Fourier plane. None: the images are taken as they are."""

    @classmethod
    def of(cls, images: NDArray[Any], group: NDArray[Any], ctf_power: NDArray[Any] | None = None) -> "Batch":
        """A batch of prepared images, [n, box, box] or [n, channels, box, box]; the other arrays as in the fields."""
        power = None if ctf_power is None else torch.from_numpy(np.asarray(ctf_power, dtype=np.float32))
        pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels
        return cls(pixels, torch.from_numpy(np.asarray(group, dtype=np.int64)), power)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Batch":
        power = None if self.ctf_power is None else self.ctf_power[rows]
        return Batch(self.images[rows], self.group[rows], power)

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        power = None if self.ctf_power is None else self.ctf_power.to(device)
        return Batch(self.images.to(device), self.group.to(device), power)
