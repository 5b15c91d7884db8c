"""``emsvae demo``: the main job on a simulated stack, in about a minute on a laptop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from emspatialvae.config import InputConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from emspatialvae.judge import evaluate_run
from emspatialvae.simulate import simulate_stack
from emspatialvae.workflow import start_run, train_run

STACK = SimulateConfig("hinge", Path(), particles=3000, box=32, snr=1.0, shift_px=1.0)
MODEL = ModelConfig(z_dim=1, hidden=128, max_shift_A=4 * STACK.shift_px * STACK.pixel_size_A)
TRAIN = TrainConfig(epochs=30)


def demo(out: Path, *, force: bool = False, say: Callable[[str], None] = print) -> bool:
    """Simulate, train, write and judge; False when the user interrupted the training."""
    say(
        f"1. simulating {STACK.particles:,} hinged particles, {STACK.box} px, SNR {STACK.snr:g}, any rotation, "
        f"shifts of {STACK.shift_px:g} px s.d.  (emsvae simulate)"
    )
    simulate_stack(replace(STACK, out=out, force=force))
    say("2. training  (emsvae train)")
    config = RunConfig(InputConfig(out / "particles.star"), model=MODEL, train=TRAIN)
    run, stack = start_run(config, out / "run", say=say)
    finished = train_run(run, stack, TRAIN, say=say)
    say("3. against the truth  (emsvae evaluate)")
    judged = evaluate_run(run.path, out / "truth.star", oracle_particles=0)
    say(judged.evaluation.table(cramer_rao=judged.cramer_rao))
    say(f"STAR file for RELION: {run.star}")
    say(f"figures: {run.figures}")
    return finished
