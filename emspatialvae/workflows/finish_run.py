"""What a trained run leaves: results, figures, and sentences about them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae import config as configuration
from emspatialvae.errors import EmsvaeError
from emspatialvae.io import leftovers, switch
from emspatialvae.jobs import ranks
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.preprocess.preparation import Portion, file_poses
from emspatialvae.results import export
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.export import said_of_names
from emspatialvae.workflows.progress import Say

if TYPE_CHECKING:
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.results.latents import Latents


def finish_run(
    run: RunDir,
    stack: ParticleStack,
    images: PreparedImages,
    device: configuration.Device,
    stack_of_file: ParticleStack | None = None,
    order: NDArray[np.int64] | None = None,
    *,
    figures: bool = True,
    say: Say = print,
) -> None:
    """Results and figures of a trained run: ``latents.csv``, ``particles.star`` (and ``.cs``), ``figures/``; all of them, or none.

    ``stack`` and ``images`` are in the order that the run was trained in; where its file has another one by now, ``stack_of_file`` is
    that, and ``order`` says where the particles stand in it.
    """
    from emspatialvae.inference.infer import infer, load_model
    from emspatialvae.results import summary
    from emspatialvae.workflows.progress import bar

    team = ranks.present()
    team.exchanged(None)  # the first rank has written the checkpoint by now
    model = load_model(run)
    run.record_z_dim(model.z_dim)
    manifest = run.manifest
    chunks = np.array_split(np.arange(len(stack)), max(1, len(stack) // 1024))
    with bar(len(stack), "inferring poses", say) as progress:

        def portions() -> Iterator[Portion]:
            for rows in team.share(chunks):
                yield images.portion(rows)
                progress(len(rows) * team.count)

        # A resumed run may go on elsewhere than where it began.
        settings = dataclasses.replace(manifest.config.train, device=device)
        fixed = manifest.config.model.poses_fixed
        given = file_poses(stack, manifest.preparation, "--poses-fixed") if fixed else None
        latents = infer(model, portions(), stack.names, manifest.preparation.pixel_size_A, settings, given, team)
    lost = int((images.usable & ~latents.used).sum())
    if lost == int(images.usable.sum()):
        raise EmsvaeError(
            "what the model says of every particle is not a number; train again with a lower --learning-rate; no results were written"
        )
    if not team.first:
        return
    if lost:
        say(f"of {lost:,} particles the model says nothing that is a number: they count as unusable")
    with switch.switching(run.path) as parts:
        stale = run.derived
        parts.remove += [folder.name for folder in stale]
        ours = latents if order is None else latents[np.argsort(order)]
        written = export.write_run(ours, stack_of_file or stack, run, parts.folder)
        run.save_state_of_results(parts.folder)
        latents = written if order is None else written[order]
        failure = _draw(run, model, images, latents, parts.folder) if figures else None
    if stale:
        made = " and ".join(map(str, stale))
        say(f"removed {made}, made from older results: make them again with emsvae classes and analyze")
    if failure is not None:
        say(f"results without figures: {run.latents}, {run.star}")
        raise failure
    for line in summary.sureness(latents, manifest.config.model):
        say(line)
    table = f", {run.star.with_suffix('.cs')}" if stack.kind == "cs" else ""
    own = " (for emsvae's own commands: RELION reads no pictures)" if stack.of_pictures else ""
    drawn = f", figures in {run.figures}" if figures else ""
    say(f"results: {run.latents}, {run.star}{own}{table}{drawn}")
    if stack.kind == "cs" and (sentence := said_of_names(stack, run.path)):
        say(sentence)


def _draw(
    run: RunDir, model: "ParticleVAE", images: PreparedImages, latents: "Latents", folder: Path
) -> BaseException | None:
    """Draw the figures into a folder; an error that comes up is given back, with nothing drawn: it must not cost the results."""
    from emspatialvae.analysis.report import run_figures

    try:
        run_figures.draw(run, model, images, latents, folder)
    except BaseException as error:
        leftovers.remove(folder / "figures")
        leftovers.remove(folder / "consensus.mrc")
        return error
    return None
