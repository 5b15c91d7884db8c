"""Results of a run in which there is something to draw."""

from emspatialvae.errors import EmsvaeError
from emspatialvae.results import export
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir


def results_of(run: RunDir) -> Latents:
    """The run's results, without a look at its particles' files.

    Raises
    ------
    EmsvaeError
        There are none yet, they are not those of the model, or no particle could be used.
    """
    latents = export.results_of(run)
    run.check_results_belong()
    if not latents.used.any():
        raise EmsvaeError(f"{run.path}: none of its particles could be used, so there is no content to draw")
    return latents
