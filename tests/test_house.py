"""The plan of the package: imports point to lower floors only, no circles, a module per command, and the front door opens at once."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "emspatialvae"

FLOORS: list[tuple[str, ...]] = [
    ("errors",),
    ("imaging",),
    ("io", "config"),
    ("particles", "model", "simulation"),
    ("preprocess",),
    ("results",),
    ("jobs",),
    ("training", "inference"),
    ("analysis",),
    ("workflows",),
    ("cli", "api"),
    ("__main__",),
]
"""From the ground up. A folder (or a module beside the folders) may import from lower floors only, not from its neighbours."""
FLOOR = {folder: level for level, folders in enumerate(FLOORS) for folder in folders}
FILE_NAMES_OF_POSES = (
    "imaging.geometry",
    "particles.",
    "results.",
    "workflows.begin_run",
    "config",
    "simulation.stack",
    "io.",
)
"""Where RELION's words for poses may occur: where files are read and written, and in the one module that owns the signs."""
NO_COMMANDS = ("main", "parsing", "background", "streams")


def modules() -> dict[str, Path]:
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it (imports within functions and for types count too)."""
    known, found = set(modules()), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            if node.module and node.module.split(".")[0] == "emspatialvae":
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


def folder_of(module: str, depth: int = 1) -> str:
    """The folder of a module, from the package down to ``depth``; a module beside the folders is its own."""
    parts = module.split(".")
    return ".".join(parts[: max(1, min(depth, len(parts) - 1))])


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_every_folder_has_a_floor():
    assert {folder_of(module) for module in modules()} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    own = folder_of(module)
    upward = {
        other
        for other in imports(modules()[module])
        if folder_of(other) != own and FLOOR[folder_of(other)] >= FLOOR[own]
    }
    assert not upward, f"{module} imports {sorted(upward)}, which do not lie below it"


def test_no_circle_of_modules():
    assert_no_circle({module: imports(file) for module, file in modules().items()})


def test_no_circle_of_folders():
    """Folders within folders, too: what analysis/report needs of analysis/figures does not need it in turn."""
    graph: dict[str, set[str]] = {}
    for module, file in modules().items():
        mine = folder_of(module, 2)
        others = {folder_of(other, 2) for other in imports(file)} - {mine}
        # What two folders share stands in the folder around them.
        graph.setdefault(mine, set()).update(other for other in others if not mine.startswith(f"{other}."))
    for folder, others in graph.items():
        graph[folder] = {other for other in others if not other.startswith(f"{folder}.")}
    assert_no_circle(graph)


def test_every_command_has_its_flags_and_its_work():
    from emspatialvae.cli.main import COMMANDS

    verbs = {command.replace("-", "_") for command in COMMANDS}
    flags = {file.stem for file in (PACKAGE / "cli").glob("*.py")} - {"__init__", *NO_COMMANDS}
    assert flags == verbs
    assert verbs <= {file.stem for file in (PACKAGE / "workflows").glob("*.py")}


def test_signs_have_one_owner():
    """RELION's words for poses occur where files are read and written, and in geometry, nowhere else."""
    for module, file in modules().items():
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        if not module.startswith(FILE_NAMES_OF_POSES):
            assert not {name for name in names if name.startswith(("psi", "origin"))}, module


def test_command_and_plugin_do_not_know_each_other():
    plugin = [file.read_text() for file in (ROOT / "napari_plugin").rglob("*.py")]
    assert not any("emspatialvae.cli" in text for text in plugin)
    assert not any("napari_emsvae" in file.read_text() for file in (PACKAGE / "cli").glob("*.py"))


def test_help_imports_neither_torch_nor_pandas():
    heavy = ("torch", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "tyro")
    code = f"import sys; from emspatialvae.cli.main import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
