"""Rates on a GPU at 64 and 128 px, beside the authors' code on the same GPU, and agreement with the result of a CPU.

    python benchmarks/gpu.py [--authors PATH] [--device cuda] [--particles 16000] [--json FILE]

PATH is a checkout of https://github.com/tbepler/spatial-VAE; its own ``train_epoch`` runs in the same process on images of the same size
(hidden layers of 500, as in the paper), and does no search over poses. Rates are medians.
"""

import argparse
import importlib
import io
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch

from emspatialvae.config import Device, InputConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.inference.infer import infer, load_model
from emspatialvae.preprocess.preparation import Portion
from emspatialvae.results.read_run import read_latents
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.training.trainer import Trainer
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.run_images import open_images
from emspatialvae.workflows.train import model_to_train

BATCHES = (256, 2048, 8192)
COMPARED = 4000
"""Particles of the run that is made on both devices."""


def rate(step: Callable[[], object], per_step: int, seconds: float = 5.0) -> float:
    """Median over five spans of things per second, the device waited for."""
    step()
    found = []
    for _ in range(5):
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 5:
            step()
            steps += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(per_step * steps / (time.perf_counter() - began))
    return float(np.median(found))


def training(stack: Path, folder: Path, device: Device, batch_size: int) -> tuple[float, float, Path]:
    """Particles/s of steps and of whole epochs with their searches, and the run."""
    epochs = 6
    config = RunConfig(
        InputConfig(stack / "particles.star"),
        model=ModelConfig(z_dim=2),
        train=TrainConfig(epochs=epochs, device=device, batch_size=batch_size),
    )
    run, particles = start_run(config, folder, say=lambda _: None)
    images = open_images(run, particles)
    settings = run.manifest.config.train
    trainer = Trainer(
        model_to_train(run, images, settings, say=lambda _: None),
        images,
        particles.names,
        settings,
        run,
        learn_shift_prior=True,
    )
    began = time.perf_counter()
    trainer.fit()
    whole = epochs * len(trainer.train_rows) / (time.perf_counter() - began)
    rows = iter(np.resize(np.concatenate([trainer.train_rows] * 50), (10_000, batch_size)))
    steps = rate(lambda: trainer.step(next(rows)), batch_size)
    trainer.fix_gauge()
    trainer.save()
    return steps, whole, run.path


def inference(path: Path, device: Device) -> float:
    """Particles/s from nothing: global search, refinement, posterior means."""
    run = RunDir(path)
    model = load_model(run)
    pixels = np.load(next((path / "cache").glob("images_*.npy")), mmap_mode="r").astype(np.float32)
    n = len(pixels)
    parts = [
        Portion(rows, pixels[rows], np.ones(len(rows), bool), np.zeros(len(rows), np.int32), None)
        for rows in np.array_split(np.arange(n), max(1, n // 4096))
    ]
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        infer(model, parts, np.arange(n), 1.0, TrainConfig(device=device))
        rates.append(n / (time.perf_counter() - began))
    return max(rates)  # the first one warms up


def authors(path: Path, box: int, device: Device, batch: int = 100) -> float:
    """Images/s of the authors' ``train_epoch`` (``--augment-rotation``, hidden layers of 500, float32)."""
    sys.path.insert(0, str(path))
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))  # imported without being used
    script, models = importlib.import_module("train_particles"), importlib.import_module("spatial_vae.models")
    axis = np.linspace(-1, 1, box)
    x0, x1 = np.meshgrid(axis, axis[::-1])
    points = torch.from_numpy(np.stack([x0.ravel(), x1.ravel()], 1)).float().to(device)
    p_net = models.SpatialGenerator(2, 500, num_layers=2).to(device)
    q_net = models.InferenceNetwork(box * box, 5, 500, num_layers=2).to(device)
    optim = torch.optim.Adam([*p_net.parameters(), *q_net.parameters()], lr=1e-4)
    data = [(torch.randn(batch, box * box),)]

    def step() -> None:
        with redirect_stderr(io.StringIO()):
            script.train_epoch(
                data, points, None, p_net, q_net, optim, augment_rotation=True, N=batch, use_cuda=device != "cpu"
            )

    return rate(step, batch)


def agreement(folder: Path, device: Device) -> dict[str, float]:
    """The same command on the CPU and on the device: how far the results lie apart, in units of what is known."""
    stack = simulate_stack(
        SimulateConfig("hinge", folder / "compared", particles=COMPARED, box=40, snr=0.1, shift_px=2.0)
    )
    runs = {"on_cpu": "cpu", "on_device": device}
    for run, name in runs.items():
        words = [
            "train",
            stack / "particles.star",
            "--out",
            folder / run,
            "--device",
            name,
            "--epochs",
            12,
            "--z-dim",
            1,
        ]
        subprocess.run([sys.executable, "-m", "emspatialvae", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    one, other = (read_latents(folder / run)[1] for run in runs)
    turn = np.angle(np.exp(1j * (one.pose.theta_rad - other.pose.theta_rad)))
    turn = np.angle(np.exp(1j * (turn - np.angle(np.exp(1j * turn).mean()))))  # each run has a frame of its own
    return {
        "correlation of z, CPU and GPU": float(abs(np.corrcoef(one.z[:, 0], other.z[:, 0])[0, 1])),
        "difference of theta over its s.d., median": float(np.median(np.abs(turn) / one.theta_sd_rad)),
    }


def main() -> None:
    """Print a table row by row, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description="Rates on a GPU.")
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], default="cuda")
    parser.add_argument("--particles", type=int, default=16_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    found: dict[str, float | str] = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(found, flush=True)

    def tell(what: str, value: float) -> None:
        found[what] = value
        print(f"| {what} | {value:,.4g} |", flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place), Path()
        for box in (64, 128):
            stack = folder / f"sim{box}"
            simulate_stack(
                SimulateConfig("hinge", stack, particles=given.particles * 64 // box, box=box, snr=0.1, shift_px=2.0)
            )
            for batch in BATCHES:
                steps, whole, run = training(stack, folder / f"run{box}_{batch}", given.device, batch)
                tell(f"{box} px, batch {batch}: training steps, particles/s", steps)
                tell(f"{box} px, batch {batch}: epochs with their searches, particles/s", whole)
            tell(f"{box} px: inference, particles/s", inference(run, given.device))
            if given.authors:
                for batch in (100, 1000) if box == 64 else (100,):  # more does not fit
                    tell(
                        f"{box} px, batch {batch}: authors' code, images/s",
                        authors(given.authors, box, given.device, batch),
                    )
        for what, value in agreement(folder, given.device).items():
            tell(what, value)


if __name__ == "__main__":
    main()
