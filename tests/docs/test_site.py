"""The site: generated pages agree with the command line, quoted messages are the program's, and it builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emspatialvae.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def reference():
    spec = importlib.util.spec_from_file_location("emsvae_reference", DOCS / "_ext" / "emsvae_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_has_the_options_that_help_has(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", _options(capsys.readouterr().out))) - {"--help"}
    module = reference()
    written = {flag for row in module.settings(module.command_class(command)) for flag in row.flags if flag[0] == "-"}
    assert shown == written


def _options(text: str) -> str:
    """The first column of help's boxes, where an option begins its line."""
    return "\n".join(
        line.split("  ")[0] for line in (row.strip("\u2502 ") for row in text.splitlines()) if line[:1] == "-"
    )


def test_messages_that_the_page_of_questions_quotes_are_the_programs():
    source = "\n".join(file.read_text() for file in (ROOT / "emspatialvae").rglob("*.py"))
    quoted = re.findall(r"^## `(.*)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 8
    assert [message for message in quoted if message not in source] == []


@pytest.mark.slow
@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "search" in (tmp_path / "site" / "searchindex.js").read_text()[:2000].lower()
    for page in (tmp_path / "site").glob("*.html"):
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page.name


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
