"""The report's page: safe, whole, readable without scripts and without sight."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from emspatialvae.analysis.figures.scatter import Plane
from emspatialvae.analysis.report import html
from emspatialvae.analysis.report.cloud import LIMIT, cloud
from emspatialvae.analysis.report.exhibits import compact
from emspatialvae.analysis.report.html import Cell, Html, Section, tag

EVIL = "</script><script>alert('x')</script>\"' & <b>"


class Reader(HTMLParser):
    """Elements in order, and whether every one of them is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in html.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == name]


def png() -> tuple[bytes, tuple[int, int]]:
    return compact(np.arange(64, dtype=np.uint8).reshape(8, 8))


def whole_page() -> str:
    picture, size = png()
    rows = [[Cell("1", 1.0), Cell(EVIL)], [Cell("2", 2.0), Cell("plain")]]
    parts = (
        html.figure(picture, size, EVIL, EVIL),
        html.table(EVIL, ["Class", EVIL], rows, sortable=True),
        html.command(f"emsvae select '{EVIL}'", EVIL),
        html.bullets([EVIL]),
    )
    numbers = html.key_numbers([(EVIL, EVIL, EVIL)])
    return html.page(EVIL, EVIL, numbers, [Section("one", EVIL, parts), Section("two", "Two", ())], EVIL)


def test_text_is_escaped_and_elements_are_not():
    inner = tag("b", "1 < 2")
    assert tag("p", inner, " & so on", class_="x", data_sort=3, hidden=True, title=None) == (
        '<p class="x" data-sort="3" hidden><b>1 &lt; 2</b> &amp; so on</p>'
    )
    assert isinstance(html.joined("a", inner), Html)
    assert tag("img", alt='"<') == '<img alt="&quot;&lt;">'


def test_a_name_with_a_script_in_it_is_text_everywhere():
    reader = Reader(whole_page())
    scripts = reader.all("script")
    assert len(scripts) == 1  # the page's own
    assert not reader.all("b")


def test_the_page_asks_for_nothing_outside_itself():
    text = whole_page()
    reader = Reader(text)
    for name, attributes in reader.found:
        assert name not in ("link", "iframe", "object", "embed", "form")
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (name, value)
        assert not any(key.startswith("on") for key in attributes)
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_lets_the_pages_own_script_and_style_run():
    import hashlib

    text = whole_page()
    policy = next(a["content"] for a in Reader(text).all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for name in ("style", "script"):
        (inside,) = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_it_can_be_read_without_sight():
    reader = Reader(whole_page())
    assert reader.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in reader.all("img"))
    assert all(head["scope"] in ("col", "row") for head in reader.all("th"))
    assert len(reader.all("h1")) == 1
    assert len(reader.all("caption")) == 1
    ids = {attributes["id"] for _, attributes in reader.found if "id" in attributes}
    for _, attributes in reader.found:
        assert attributes.get("aria-labelledby") in ids | {None}
        link = attributes.get("href") or ""
        assert not link.startswith("#") or link[1:] in ids


def test_numbers_to_sort_by_are_exact():
    text = html.table("", ["Particles"], [[Cell("1,234,567", 1234567.0)], [Cell("none")]])
    assert 'data-sort="1234567"' in text
    assert text.count("data-sort") == 1


def test_pictures_get_smaller_not_other():
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    packed, size = compact(grey, 32)
    assert size == (32, 32)
    with Image.open(BytesIO(packed)) as back:
        assert np.abs(np.asarray(back.convert("L")).astype(int) - grey).max() <= 4


# ------------------------------------------------------------------------------------------------------------- cloud


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


def content(made: Html) -> dict:
    import json

    (inside,) = re.findall(r'<script type="application/json">(.*?)</script>', made, re.DOTALL)
    return json.loads(inside)


def test_the_cloud_knows_every_name_class_and_place():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 2)) * [3, 0.1]
    names = np.array([f"{i:03d}@{EVIL}/{i % 3}.mrcs" for i in range(49)] + ["no number"], dtype=object)
    of = rng.integers(1, 70, 50)
    made = cloud(Plane(points, ("z1", "z2")), names, of)
    assert made is not None
    Reader(made)
    data = content(made)
    places = np.stack([unpacked(data[axis]) for axis in "xy"], 1) / 65535 * data["span"] + data["low"]
    np.testing.assert_allclose(places, points, atol=np.ptp(points, axis=0).max() / 65535)
    np.testing.assert_array_equal(unpacked(data["group"]), of)
    numbers, paths = data["numbers"].split("\n"), data["paths"]
    found = [f"{n}@{paths[p]}" if n else paths[p] for n, p in zip(numbers, unpacked(data["path"]), strict=True)]
    assert found == names.tolist()


def test_the_cloud_stays_small():
    n = 3 * LIMIT
    points = np.random.default_rng(0).normal(size=(n, 2))
    names = np.array([f"{i:06d}@Extract/job012/Movies/stack_{i % 300:04d}.mrcs" for i in range(n)], dtype=object)
    made = cloud(Plane(points, ("z1", "z2")), names, np.ones(n, int))
    assert made is not None
    assert len(content(made)["numbers"].split("\n")) == LIMIT
    assert len(made) < 500_000


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.ones((1, 2))])
def test_particles_in_one_place_are_no_trouble(points):
    made = cloud(Plane(points, ("z1", "z2")), np.array([f"{i}@a" for i in range(len(points))], dtype=object), None)
    assert made is not None
    assert content(made)["group"] is None


def test_there_is_no_cloud_on_a_line():
    assert cloud(Plane(np.zeros((5, 1)), ("z1",)), np.array(["a"] * 5, dtype=object), None) is None
