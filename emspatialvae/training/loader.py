"""Particles as the model sees them, on the model's device, before they are needed.

On a GPU the copy of a batch took longer than the step on it. Where the prepared images fit into its memory they lie there from the start; where
they do not, the next batch is read and sent while the present one is worked on.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emspatialvae.model.batch import Batch
from emspatialvae.preprocess.cache import PreparedImages

SHARE_OF_MEMORY = 1 / 3
"""The part of a GPU's free memory that prepared images may take."""
COPIED_ROWS = 4096
"""Images that are copied to the device at a time."""

Rows = NDArray[np.int64]


def room_bytes(device: torch.device) -> int:
    """How many bytes of prepared images may lie on a device; 0 where that is not known, or would gain nothing."""
    return int(torch.cuda.mem_get_info(device)[0] * SHARE_OF_MEMORY) if device.type == "cuda" else 0


class Loader:
    """Loads batches of prepared images [n, ...] by their rows."""

    def __init__(self, images: PreparedImages, device: torch.device) -> None:
        self.images, self.device = images, device
        self._resident: Batch | None = None
        self._ahead: dict[bytes, Future[Batch]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if device.type == "cpu":
            return
        if images.pixels.nbytes <= room_bytes(device):
            self._resident = self._all_there()
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="emsvae-loader")

    def load(self, rows: Rows) -> Batch:
        """The particles of some rows, on the device; float32."""
        if self._resident is not None:
            index = torch.from_numpy(rows).to(self.device)
            some = self._resident[index]
            pixels = some.images.float()
            return Batch(pixels if pixels.dim() == 4 else pixels[:, None], some.group, some.ctf_power)
        coming = self._ahead.pop(rows.tobytes(), None)
        batch = self._read(rows) if coming is None else coming.result()
        return batch.to(self.device, waits=False)

    def expect(self, rows: Rows) -> None:
        """Say which rows will be asked for next."""
        if self._pool is not None:
            self._ahead = {rows.tobytes(): self._pool.submit(self._read, rows)}

    def _read(self, rows: Rows) -> Batch:
        some = self.images.portion(rows)
        batch = Batch.of(some.images, some.group, some.ctf_power)
        return batch.pinned() if self.device.type == "cuda" else batch

    def _all_there(self) -> Batch:
        images = self.images

        def there(values: NDArray[np.generic]) -> Tensor:
            parts = range(0, len(values), COPIED_ROWS)
            return torch.cat([torch.from_numpy(np.array(values[k : k + COPIED_ROWS])).to(self.device) for k in parts])

        power = None if images.ctf_power is None else there(images.ctf_power)
        return Batch(there(images.pixels), there(images.group.astype(np.int64)), power)
