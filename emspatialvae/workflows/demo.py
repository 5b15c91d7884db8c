"""``emsvae demo``: the main job on a simulated stack, in about a minute on a laptop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.results.run_folder import RunDir
from emspatialvae.simulation.stack import simulate_stack
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.evaluate import evaluate_run
from emspatialvae.workflows.train import train_run

STACK = SimulateConfig("hinge", Path(), particles=4000, box=40, snr=0.2, shift_px=1.5)
MODEL = ModelConfig(z_dim=1)
TRAIN = TrainConfig(epochs=25)


def demo(out: Path, *, force: bool = False, say: Callable[[str], None] = print) -> bool:
    """Simulate, train, write and judge; False when the user interrupted the training."""
    if force:
        RunDir.check_free(out / "run", force=True)
    say(
        f"1. simulating {STACK.particles:,} hinged particles, {STACK.box} px, SNR {STACK.snr:g}, any rotation, "
        f"shifts of {STACK.shift_px:g} px s.d.  (emsvae simulate)"
    )
    simulate_stack(replace(STACK, out=out, force=force), beside=("run",))
    say("2. training  (emsvae train)")
    config = RunConfig(InputConfig(out / "particles.star"), model=MODEL, train=TRAIN)
    run, stack = start_run(config, out / "run", say=say)
    finished = train_run(run, stack, TRAIN, say=say)
    say("3. against the truth  (emsvae evaluate)")
    judged = evaluate_run(run.path, out / "truth.star", oracle_particles=200)
    say(judged.table())
    say(f"STAR file for RELION: {run.star}")
    say(f"figures: {run.figures}")
    return finished
