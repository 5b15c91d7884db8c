"""The plan of the house: imports point downwards only, and the front door opens at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a room may import from rooms on lower floors only, not from its neighbours.
FLOORS: list[tuple[str, ...]] = [
    ("errors", "io.processes", "io.fingerprint", "streams"),
    ("config", "dataclass_json", "geometry", "ctf", "interruption", "labels", "io.leftovers"),
    ("background",),
    (
        "imaging",
        "preprocess.particle_size",
        "shears",
        "simulation.phantom",
        "simulation.microscope",
        "simulation.junk",
        "simulation.projection",
        "simulation.crowd",
    ),
    ("io.atomic", "io.star_text", "simulation.bounds", "simulation.kinds", "steerable"),
    ("steerable_pca", "io.mrc", "io.cs", "io.star_scan", "io.pictures", "io.lock"),
    ("io.switch", "io.star", "io.images", "simulation.density"),
    ("particles", "own_files", "simulation.truth", "lookup", "analysis.column_names"),
    ("sources", "pictures", "identity", "simulation.files", "simulation.map_stack"),
    ("loading", "tables"),
    ("joining", "analysis.query", "analysis.duplicates"),
    ("prepare", "compute", "model.networks", "model.posterior", "model.batch", "model.groups"),
    ("decide", "model.decoder", "model.likelihood", "model.encoder", "model.interface", "model.noise"),
    ("model.observation",),
    ("model.spatial_vae", "model.canonical", "model.pose_search"),
    ("model.gauge", "model.modes", "model.latent_posterior"),
    ("model.inference",),
    ("model.steerable_vae",),
    ("model.engines", "model.start", "model.template_start"),
    ("simulation.stack", "run", "progress", "objective", "analysis.junk"),
    ("simulation.oracle", "train", "infer"),
    ("analysis.regression", "analysis.restore", "analysis.clusters", "analysis.calibration", "analysis.image_classes"),
    ("analysis.views", "analysis.junk_score"),
    ("analysis.evaluation", "analysis.averages", "analysis.pose_errors", "analysis.manifold", "analysis.scales"),
    ("export", "analysis.metrics", "analysis.figures", "analysis.summary", "analysis.rendering", "analysis.paths"),
    (
        "analysis.atlas",
        "analysis.film",
        "analysis.embedding",
        "analysis.histograms",
        "analysis.html",
        "analysis.scatter",
    ),
    ("analysis.galleries", "analysis.cloud", "analysis.run_columns"),
    ("analysis.report", "view_judge"),
    ("workflow", "results", "judge", "describe", "selection", "relion_job"),
    ("demo", "walk", "classify", "commands.parsing"),
    ("analysis.exhibits",),
    ("analysis.page",),
    ("analyze",),
    tuple(
        f"commands.{name}" for name in ("train", "infer", "export", "select", "info", "simulate", "evaluate", "demo")
    ),
    (
        "commands.classes",
        "commands.relion_job",
        "commands.path",
        "commands.manifold",
        "commands.analyze",
        "commands.view",
    ),
    ("cli",),
    ("__main__", "jobs"),
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FREE_OF = {"model": ("io", "particles", "sources", "loading", "prepare", "run")}


def rooms() -> dict[str, Path]:
    package = ROOT / "emspatialvae"
    return {
        ".".join(file.relative_to(package).with_suffix("").parts): file
        for file in package.rglob("*.py")
        if file.name != "__init__.py"
    }


def imports(file: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it (imports within functions and for types count too)."""
    known, found = set(rooms()), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "emspatialvae":
            inside = node.module.removeprefix("emspatialvae").lstrip(".")
            names = [f"{inside}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if name in known else inside for name in names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("emspatialvae.")
                for alias in node.names
                if alias.name.startswith("emspatialvae.")
            }
    return found - {""}


def test_every_room_has_a_floor():
    assert set(rooms()) == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_point_down(room):
    upward = {other for other in imports(rooms()[room]) if FLOOR[other] >= FLOOR[room]}
    assert not upward, f"{room} imports {sorted(upward)}, which do not lie below it"


@pytest.mark.parametrize("room", [room for room in sorted(FLOOR) if room.startswith("model.")])
def test_the_model_knows_no_files(room):
    forbidden = {other for other in imports(rooms()[room]) if other.split(".")[0] in FREE_OF["model"]}
    assert not forbidden


def test_signs_have_one_owner():
    """RELION's words for poses occur where files are read and written, and in geometry, nowhere else."""
    allowed = {"geometry", "sources", "export", "workflow", "config", "simulation.stack"}
    for room, file in rooms().items():
        words = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        if room not in allowed and not room.startswith("io."):
            assert not {word for word in words if word.startswith(("psi", "origin"))}, room


def test_command_and_plugin_do_not_know_each_other():
    plugin = [file.read_text() for file in (ROOT / "napari_plugin").rglob("*.py")]
    assert not any("emspatialvae.cli" in text for text in plugin)
    assert "napari_emsvae" not in (ROOT / "emspatialvae" / "cli.py").read_text()


def test_help_imports_neither_torch_nor_pandas():
    heavy = ("torch", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "tyro")
    code = f"import sys; from emspatialvae.cli import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
