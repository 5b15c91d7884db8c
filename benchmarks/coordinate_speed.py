"""Training speed of the coordinate model against a plain matrix product of the same shapes, and against the authors' code.

    python benchmarks/coordinate_speed.py [--hidden 500] [--authors PATH]

PATH is a checkout of https://github.com/tbepler/spatial-VAE; its own ``train_epoch`` is then run in the same process on the same
images. Products of a training step: forward, gradient of the input, gradient of the weights, over the pixels within the mask.
"""

import argparse
import importlib
import io
import sys
import tempfile
import time
import types
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from emspatialvae.model import device
from emspatialvae.model.coordinate.vae import SpatialVAE
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.manifest import Manifest
from emspatialvae.results.run_folder import RunDir
from emspatialvae.training.coordinate import AmortisedObjective
from emspatialvae.training.trainer import Trainer

BOX, BATCH = 40, 100


def rate(step: Callable[[], object], per_step: int, seconds: float) -> float:
    """Median over five spans of ``per_step`` things per second."""
    step()
    found = []
    for _ in range(5):
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 5:
            step()
            steps += 1
        found.append(per_step * steps / (time.perf_counter() - began))
    return float(np.median(found))


def plain_product(rows: int, hidden: int, dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of ``[rows, hidden] @ [hidden, hidden]`` into a buffer that is there already."""
    a, b = torch.randn(rows, hidden).to(dtype), torch.randn(hidden, hidden).to(dtype)
    out = torch.empty(rows, hidden, dtype=dtype)
    return rate(lambda: torch.mm(a, b, out=out), 1, seconds) * 2 * rows * hidden * hidden / 1e9


def ours(
    hidden: int, mask_radius_px: float, precision: Literal["auto", "float32"], seconds: float
) -> tuple[float, float, float]:
    """Particles/s of `Trainer` steps, GFLOP/s of their decoder's products, and GFLOP/s of the plain product beside them."""
    pixels = np.random.default_rng(0).normal(size=(BATCH, BOX, BOX)).astype(np.float32)
    images = PreparedImages(pixels, np.ones(BATCH, dtype=bool), np.zeros(BATCH, np.int32))
    spec = ImageSpec(BOX, mask_radius_px, 4.0, float("inf"))
    model = ModelConfig(z_dim=2, hidden=hidden, encoder_hidden=hidden)
    config = TrainConfig(
        batch_size=BATCH, learning_rate=1e-4, holdout=0.0, precision=precision, device="cpu", z_delay=0
    )
    preparation = Preparation(BOX, 1.0, mask_radius_px, False, "none", 0.0, True)
    with tempfile.TemporaryDirectory() as folder:
        whole = RunConfig(InputConfig(Path("none.star")), model=model, train=config)
        run = RunDir.create(Path(folder) / "run", Manifest(whole, preparation, spec, BATCH, ()))
        network = SpatialVAE(model, spec)
        trainer = Trainer(network, images, np.arange(BATCH), config, run)
        particles = rate(lambda: trainer.step(np.arange(BATCH)), BATCH, seconds)
    points = int(network.mask.sum())
    objective = trainer.objective
    assert isinstance(objective, AmortisedObjective)
    flop = 3 * 2 * points * (2 * hidden + hidden * hidden + hidden)
    return (
        particles,
        particles * flop / 1e9,
        plain_product(objective.part(BATCH) * points, hidden, objective.dtype, seconds / 4),
    )


def authors(path: Path, hidden: int, seconds: float) -> float:
    """Images/s of the authors' ``train_epoch`` at the same settings (``--augment-rotation``, no mask, float32)."""
    sys.path.insert(0, str(path))
    # It imports torchvision without using it.
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    script, models = importlib.import_module("train_particles"), importlib.import_module("spatial_vae.models")
    axis = np.linspace(-1, 1, BOX)
    x0, x1 = np.meshgrid(axis, axis[::-1])
    points = torch.from_numpy(np.stack([x0.ravel(), x1.ravel()], 1)).float()
    p_net = models.SpatialGenerator(2, hidden, num_layers=2)
    q_net = models.InferenceNetwork(BOX * BOX, 5, hidden, num_layers=2)
    optim = torch.optim.Adam([*p_net.parameters(), *q_net.parameters()], lr=1e-4)
    batch = [(torch.randn(BATCH, BOX * BOX),)]

    def step() -> None:
        with redirect_stderr(io.StringIO()):
            script.train_epoch(batch, points, None, p_net, q_net, optim, augment_rotation=True, N=BATCH)

    return rate(step, BATCH, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--authors", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{BOX} px, batch {BATCH}, 2 x {given.hidden} tanh, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| what | particles/s | GFLOP/s | plain product | ratio |\n|---|---|---|---|---|")
    theirs = None
    if given.authors:
        # First, before memory is kept: their code as they ship it.
        theirs = authors(given.authors, given.hidden, given.seconds)
        print(f"| authors' code, as shipped | {theirs:.1f} | | | |")
    device.keep_freed_memory()
    if given.authors:
        print(
            f"| authors' code, with our allocator settings | {authors(given.authors, given.hidden, given.seconds):.1f} | | | |"
        )
    cases: list[tuple[str, float, Literal["auto", "float32"]]] = [
        ("float32, all pixels", BOX, "float32"),
        ("float32, mask", 0.45 * BOX, "float32"),
        ("default precision, all pixels", BOX, "auto"),
        ("default precision, mask (the default)", 0.45 * BOX, "auto"),
    ]
    for label, radius, precision in cases:
        particles, done, plain = ours(given.hidden, radius, precision, given.seconds)
        against = f" ({particles / theirs:.1f} x the authors')" if theirs else ""
        print(f"| {label} | {particles:.1f}{against} | {done:.0f} | {plain:.0f} | {done / plain:.2f} |")


if __name__ == "__main__":
    main()
