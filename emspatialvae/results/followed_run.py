"""A run folder as the ranks see it that do not write into it."""

from typing import Any

from emspatialvae.results.identity import Identity
from emspatialvae.results.run_folder import RunDir


class FollowedRun(RunDir):
    """Reads like a `RunDir`; the first rank writes what these methods would write."""

    def log(self, message: str) -> None:
        """Nothing."""

    def record_z_dim(self, z_dim: int) -> None:
        """Nothing."""

    def save_profiles(self, columns: dict[str, list[float]]) -> None:
        """Nothing."""

    def save_identity(self, identity: Identity) -> None:
        """Nothing."""

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def forget_metrics_after(self, epoch: int) -> None:
        """Nothing."""

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Nothing."""
