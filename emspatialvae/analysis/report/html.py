"""A web page in one file: no network, no fonts or scripts from elsewhere, opens from a file share and in ten years' time.

Text is escaped where it enters a tag; only what `tag` and its relatives returned (`Html`) passes as it is. So a file name
that holds ``<script>`` is shown as one. The page also tells the browser to run and load nothing but its own script and style.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

VOID = {"img", "meta", "br"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | int | bool | None) -> Html:
    """An element; children and attribute values that are not `Html` are escaped.

    ``class_`` is the attribute class, ``data_sort`` is data-sort; None and False leave an attribute out, True has no value.
    """
    said = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        said += " " + key.rstrip("_").replace("_", "-")
        said += "" if value is True else f'="{html.escape(str(value))}"'
    opened = f"<{name}{said}>"
    return Html(opened if name in VOID else f"{opened}{joined(*children)}</{name}>")


def joined(*parts: str) -> Html:
    """Parts one after the other, escaped unless they are `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def data_url(png: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image(png: bytes, alt: str, size_px: tuple[int, int], **attributes: str | int | bool | None) -> Html:
    """A picture inside the page; ``alt`` says it in words, ``size_px`` (width, height) keeps its place free while it loads."""
    return tag("img", src=data_url(png), alt=alt, width=size_px[0], height=size_px[1], **attributes)


def figure(
    png: bytes, size_px: tuple[int, int], caption: str, alt: str, *, name: str | None = None, more: str | None = None
) -> Html:
    """A picture with a caption; on a narrow screen a wide one scrolls sideways instead of shrinking beyond reading.

    ``name`` makes it a place to link to, ``#figure-NAME``; ``more`` is the address of a page that tells more about it.
    """
    wide = size_px[0] > 1.5 * size_px[1]
    frame = tag(
        "div",
        image(png, alt, size_px),
        class_="frame wide" if wide else "frame",
        tabindex=0 if wide else None,
        role="group" if wide else None,
        aria_label=f"{alt}; scrolls sideways" if wide else None,
    )
    said = [caption] if more is None else [caption, " ", tag("a", "How to read this figure", href=more)]
    place = None if name is None else f"figure-{name}"
    return tag("figure", frame, tag("figcaption", *said), id=place, class_="broad" if wide else None)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown and, where that does not sort by itself, the number to sort by."""

    shown: str
    number: float | None = None


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False) -> Html:
    """A table whose first column names its rows; with ``sortable`` a click on a head sorts, where scripts may run."""
    heads = [tag("th", text, scope="col") for text in head]
    lines = []
    for row in rows:
        cells = [
            tag(
                "td" if at else "th",
                cell.shown,
                scope=None if at else "row",
                class_=None if cell.number is None else "number",
                data_sort=None if cell.number is None else f"{cell.number:.9g}",
            )
            for at, cell in enumerate(row)
        ]
        lines.append(tag("tr", *cells))
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *lines),
        class_="sortable" if sortable else None,
    )
    return tag("div", whole, class_="frame", tabindex=0, role="region", aria_label=caption)


def key_numbers(numbers: Sequence[tuple[str, str, str]]) -> Html:
    """The row at the top: (name, value, remark) each."""
    cells = [
        tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", remark, class_="remark"))
        for name, value, remark in numbers
    ]
    return tag("dl", *cells, class_="numbers")


def command(words: str, purpose: str) -> Html:
    """A command to copy, with what it is good for."""
    return tag("div", tag("p", purpose), tag("pre", tag("code", words), tabindex=0), class_="command")


def bullets(items: Sequence[str]) -> Html:
    """A plain list."""
    return tag("ul", *[tag("li", item) for item in items])


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own; ``anchor`` is one plain word."""

    anchor: str
    title: str
    parts: tuple[Html, ...]


def page(title: str, lead: str, top: Html, sections: Sequence[Section], foot: str) -> str:
    """The whole file: title, what it is about, the most important at the top, the sections with a list of them."""
    style, script = (_own(f"page.{ending}") for ending in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections]
    bodies = [
        tag(
            "section",
            tag("h2", section.title, id=f"{section.anchor}-title"),
            *section.parts,
            id=section.anchor,
            aria_labelledby=f"{section.anchor}-title",
        )
        for section in sections
    ]
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag("header", tag("h1", title), tag("p", lead)),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", top, *bodies, id="results"),
        tag("footer", foot),
        tag("script", Html(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _own(name: str) -> str:
    """A text that lies beside this file."""
    return (
        resources.files(__package__ or "emspatialvae.analysis.report.run_figures")
        .joinpath(name)
        .read_text(encoding="utf-8")
    )


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
