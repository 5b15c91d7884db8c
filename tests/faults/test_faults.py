"""A sharp part of the campaign of faults (`campaign.py` runs all of it): kills, full disks, two commands at once."""

from collections.abc import Iterator

import pytest

from tests.faults import harness

pytestmark = [
    pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="children are forked"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Iterator[tuple]:
    """The server, the cases, and a folder to try them in."""
    scratch = tmp_path_factory.mktemp("faults")
    with harness.Server() as server:
        yield server, harness.cases(server, scratch), scratch


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("train", 0.9),
        ("train", 0.1),
        ("resume", 0.9),
        ("resume", 0.97),
        ("force", 0.4),
        ("classes", 0.75),
        ("classes", 0.93),
        ("analyze", 0.9),
        ("export", 0.5),
        ("select", 0.9),
    ],
)
def test_a_kill_loses_nothing(campaign, name, where):
    server, cases, scratch = campaign
    case = cases[name]
    assert harness.killed(server, case, max(1, round(where * case.events)), scratch) == []


@pytest.mark.parametrize(
    ("name", "largest_file"),
    [("train", 20_000), pytest.param("resume", 30_000), ("classes", 20_000)],
)
def test_a_full_disk_loses_nothing(campaign, name, largest_file):
    server, cases, scratch = campaign
    assert harness.full(server, cases[name], largest_file, scratch) == []


@pytest.mark.parametrize(
    ("name", "where", "other"),
    [
        ("train", 0.7, "train"),
        ("resume", 0.5, "resume"),
        ("force", 0.7, "force"),
        ("classes", 0.93, "classes"),
    ],
)
def test_two_commands_at_once_lose_nothing(campaign, name, where, other):
    server, cases, scratch = campaign
    case = cases[name]
    assert harness.beside(server, case, max(1, round(where * case.events)), cases[other].words, scratch) == []
