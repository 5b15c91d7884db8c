"""What a particle file or a run holds, in words: ``emsvae info``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.io.star import StarFile
from emspatialvae.loading import load_particles, open_stacks_of
from emspatialvae.particles import ParticleStack
from emspatialvae.prepare import decide
from emspatialvae.run import RunDir


def particles_text(source: InputConfig, prepare: PrepareConfig) -> str:
    """Contents, oddities, and what training would do; a stack that cannot be used as it is says so in the last part."""
    table = load_particles(source, open_stacks=False)
    lines = [f"{table.source}: {_kind(table)}", *(f"  {line}" for line in _contents(table))]
    lines += ["odd:", *(f"  {note}" for note in table.notes)] if table.notes else ["odd: nothing"]
    lines.append("train would:")
    try:
        stack = open_stacks_of(table, source)
        _, said = decide(stack, prepare, engine="steerable")
        lines += [f"  {line}" for line in (f"read images of {', '.join(map(str, stack.boxes))} px", *said)]
    except EmsvaeError as error:
        lines.append(f"  stop: {error}")
    return "\n".join(lines)


def _kind(table: ParticleStack) -> str:
    if table.kind == "star":
        assert isinstance(table.metadata, StarFile)
        optics = any(block.name == "optics" for block in table.metadata.blocks)
        return "RELION 3.1 or later (optics and particles)" if optics else "RELION, one table without optics"
    return {"cs": "cryoSPARC particles", "mrc": "a bare image stack"}[table.kind]


def _contents(table: ParticleStack) -> Iterator[str]:
    yield f"{len(table):,} particles in {len(table.paths):,} stack(s)"
    counts = Counter(table.optics_of.tolist())
    for number, group in enumerate(table.optics):
        done = ", phase-flipped" if group.phase_flipped else ", CTF-multiplied" if group.ctf_premultiplied else ""
        size = "pixel size unknown" if np.isnan(group.pixel_size_A) else f"{group.pixel_size_A:.4g} A per pixel"
        yield f"optics group {group.name}: {counts[number]:,} particles, {size}{done}"
    if table.ctf is None:
        yield "no CTF parameters"
    else:
        known = table.ctf.known
        defocus = (table.ctf.defocus_u_A + table.ctf.defocus_v_A)[known] / 2
        spread = f", mean defocus {defocus.min():.0f} to {defocus.max():.0f} A" if len(defocus) else ""
        yield f"CTF parameters for {int(known.sum()):,} particles{spread}"
    if table.pose is None:
        yield "no poses"
    else:
        kind = "of a 3-D refinement" if table.has_3d_pose else "in the plane"
        rms_px = np.sqrt((table.pose.shift_px**2).mean())
        # Offsets in angstrom are no pixels until the pixel size is known.
        yield f"poses {kind}" + (f"; shifts {rms_px:.2f} px rms per axis" if np.isfinite(rms_px) else "")


def run_text(path: Path) -> str:
    """Settings, state and results of a run folder."""
    run = RunDir(path)
    manifest, metrics = run.manifest, run.metrics()
    lines = [f"{path}: a run on {manifest.config.input.particles}, {manifest.n_particles:,} particles"]
    lines += [f"  {sentence}" for sentence in manifest.assumed]
    lines.append(
        f"  z-dim {manifest.config.model.z_dim}, decoder {manifest.config.model.decoder}, noise {manifest.config.model.noise}"
    )
    if metrics:
        last = metrics[-1]
        held_out = f", held-out {last['test_elbo']:.2f}" if np.isfinite(last["test_elbo"]) else ""
        lines.append(f"  {len(metrics)} epochs, ELBO {last['train_elbo']:.2f}{held_out} nats per particle")
    state = "results written" if run.latents.is_file() and run.star.is_file() else "no results yet: go on with --resume"
    return "\n".join([*lines, f"  {state}"])
