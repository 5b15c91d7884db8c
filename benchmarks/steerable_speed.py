"""Speed and memory of the steerable engine: training with searched shifts at 40 px, inference at 64 px.

    python benchmarks/steerable_speed.py [--particles 8000] [--components 128]

Trains for a few epochs on simulated hinges (SNR 0.1, shifts of 2 px) and prints particles per second of optimiser steps alone and of
whole epochs with the searches over everything that fall into them; then infers a stack of 64 px. Medians over epochs.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from emspatialvae.config import Device, InputConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.inference.infer import infer, load_model
from emspatialvae.model.device import keep_freed_memory
from emspatialvae.preprocess.preparation import Portion
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.training.trainer import Trainer
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.run_images import open_images
from emspatialvae.workflows.train import model_to_train


def train(folder: Path, box: int, particles: int, epochs: int, device: Device) -> tuple[float, float, Path]:
    """Particles/s of steps (median over epochs) and of all that training does, and the run."""
    stack = folder / f"sim{box}"
    simulate_stack(SimulateConfig("hinge", stack, particles=particles, box=box))
    config = RunConfig(
        InputConfig(stack / "particles.star"),
        model=ModelConfig(z_dim=1),
        train=TrainConfig(epochs=epochs, device=device),
    )
    run, particles_in = start_run(config, folder / f"run{box}", say=lambda _: None)
    images = open_images(run, particles_in)
    settings = run.manifest.config.train
    model = model_to_train(run, images, settings, say=lambda _: None)
    trainer = Trainer(model, images, particles_in.names, settings, run)
    spans: list[list[float]] = [[] for _ in range(epochs)]

    def show(epoch: int, count: int, means: list[float]) -> None:
        spans[epoch].append(time.perf_counter())

    trainer.show = show
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    trainer.fix_gauge()
    per_step = trainer.batch_size
    rates = [per_step * (len(s) - 1) / (s[-1] - s[0]) for s in spans if len(s) > 2]
    return float(np.median(rates)), epochs * len(trainer.train_rows) / seconds, run.path


def infer_rate(run_path: Path, device: Device) -> float:
    """Particles/s of `emspatialvae.inference.infer.infer` from nothing: search everywhere, settle, posterior means."""
    run = RunDir(run_path)
    model = load_model(run)
    pixels = np.load(next((run.path / "cache").glob("images_*.npy")), mmap_mode="r")[:4096].astype(np.float32)
    n = len(pixels)
    whole = Portion(np.arange(n), pixels, np.ones(n, dtype=bool), np.zeros(n, dtype=np.int32), None)
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        infer(model, [whole], np.arange(n), 1.0, TrainConfig(device=device))
        rates.append(n / (time.perf_counter() - began))
    return float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu")
    asked = parser.parse_args()
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, {asked.device}")
    with tempfile.TemporaryDirectory() as folder:
        steps, whole, _ = train(Path(folder), 40, asked.particles, asked.epochs, asked.device)
        print(f"| training, 40 px, shifts searched, steps alone | {steps:,.0f} particles/s |")
        print(f"| the same with consensus and searches over everything | {whole:,.0f} particles/s |")
        steps, whole, run = train(Path(folder), 64, asked.particles // 2, asked.epochs, asked.device)
        print(f"| training, 64 px, steps alone; all | {steps:,.0f}; {whole:,.0f} particles/s |")
        print(f"| inference, 64 px | {infer_rate(run, asked.device):,.0f} particles/s |")
    print(f"| peak memory of all this | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB |")


if __name__ == "__main__":
    main()
