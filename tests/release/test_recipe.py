"""The conda recipe and pyproject.toml name the same packages with the same bounds; a release names its repository."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def test_the_recipe_has_the_dependencies_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = (ROOT / "recipe" / "meta.yaml").read_text().partition("  run:\n")[2].partition("\ntest:")[0]
    pairs = (line.strip("- ").split(" ") for line in run.splitlines() if line.strip())
    recipe = {CONDA.get(name, name) + bound for name, bound in pairs}
    assert recipe == {*project["dependencies"], f"python{project['requires-python']}"}
    assert re.search(r"emsvae = (\S+)", (ROOT / "recipe" / "meta.yaml").read_text())[1] == project["scripts"]["emsvae"]


def test_citation_and_recipe_name_the_coming_release():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r'"v([\d.]+)"', (ROOT / "recipe" / "meta.yaml").read_text())[1] == version


def test_a_release_gets_the_address_of_its_repository(tmp_path):
    """The line of the workflow that writes it, run as it stands there."""
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    line = re.search(r"^ +(printf .* >> pyproject\.toml)$", workflow, re.M)[1]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=os.environ | {"HERE": "https://git.example/em/tool"}, check=True
    )
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert urls.pop("Spatial-VAE paper").startswith("https://arxiv.org/")
    assert urls == {
        "Source": "https://git.example/em/tool",
        "Issues": "https://git.example/em/tool/issues",
        "Changelog": "https://git.example/em/tool/blob/HEAD/CHANGELOG.md",
    }
