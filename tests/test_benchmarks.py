"""The one command for all benchmarks knows every script, and keeps what they print."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BY_HAND = {
    "gpu.py": "needs a GPU",
    "explorer_times.py": "needs a run and a display",
    "star_readers.py": "needs packages that the project does not depend on",
    "run.py": "runs the others",
}


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


def test_every_script_is_known(run):
    known = {benchmark.script for benchmark in run.BENCHMARKS.values()}
    there = {file.name for file in FOLDER.glob("*.py")}
    assert known | BY_HAND.keys() == there


def test_tables_are_kept_by_their_heads(run):
    printed = "2 cores\n\n| what | s |\n|---|---|\n| a | 1.5 |\n| b | 2 |\n\nthe end\n| x |\n|---|\n| 3 |\n"
    tables, lines = run.parsed(printed)
    assert tables == [[{"what": "a", "s": "1.5"}, {"what": "b", "s": "2"}], [{"x": "3"}]]
    assert lines == ["2 cores", "the end"]


def test_a_result_has_machine_commit_and_command(run, tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text("import sys\nprint('| n |')\nprint('|---|')\nprint(f'| {sys.argv[1]} |')\n")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "BENCHMARKS", {"one": run.Benchmark("one.py"), "bad": run.Benchmark("bad.py")})
    assert run.measure("one", ["7"]) is None
    found = json.loads((tmp_path / "results" / "one.json").read_text())
    assert found["tables"] == [[{"n": "7"}]] and found["command"] == "python benchmarks/one.py 7"
    assert {"cpu", "cores", "python", "torch"} <= found["machine"].keys() and found["commit"] and found["date"]
    assert "ended with code 3" in run.measure("bad", [])
    assert not (tmp_path / "results" / "bad.json").exists()
