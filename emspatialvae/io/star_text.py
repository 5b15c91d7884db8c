"""The words, lines and cells of STAR text: the small bytes-in, bytes-out pieces under `emspatialvae.io.star`.

A ``#`` starts a comment only at the start of a word, so it may stand inside names; a quote closes only before white
space, so ``"a"b"`` is one word. Both are RELION's rules (``nextTokenInSTAR``).
"""

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CHUNK_BYTES = 1 << 23
_WORD = re.compile(rb"\S+")
# The character first, then a look at the one before it, which is several times faster than the other way round.
_SPECIAL_WORD = re.compile(rb"""["'#](?<!\S.)""")
_WORD_OR_QUOTED = re.compile(
    rb"""(?P<comment>\#.*) | "(?P<double>(?:[^"]|"(?=\S))*)"(?=\s|$) | '(?P<single>(?:[^']|'(?=\S))*)'(?=\s|$) | \S+""",
    re.VERBOSE | re.DOTALL,
)
_NEEDS_QUOTES = re.compile(r"""[\s"'#]""")
_NOT_FINITE = frozenset(
    sign + word
    for sign in ("", "+", "-")
    for name in ("nan", "inf", "infinity")
    for word in (name, name.upper(), name.title(), "NaN")
)


def words(line: bytes) -> list[bytes]:
    """Cells of one line, quotes stripped, comment left out."""
    if _is_special(line):
        return [m[m.lastgroup] if m.lastgroup else m[0] for m in _matches(line)]
    return line.split()


def spans(line: bytes) -> list[tuple[int, int]]:
    """Where the cells of one line start and end, quotes included, comment left out."""
    if _is_special(line):
        return [m.span() for m in _matches(line)]
    return [m.span() for m in _WORD.finditer(line)]


def _is_special(line: bytes) -> bool:
    """Whether a quoted word or a comment starts in the line; nearly all rows are told by three fast byte searches."""
    return (b"#" in line or b'"' in line or b"'" in line) and _SPECIAL_WORD.search(line) is not None


def _matches(line: bytes) -> Iterator[re.Match[bytes]]:
    return itertools.takewhile(lambda m: m.lastgroup != "comment", _WORD_OR_QUOTED.finditer(line))


def line_chunks(path: Path, start: int, end: int | None) -> Iterator[list[bytes]]:
    """Yield whole lines between two line starts (byte positions; None: the end), some megabytes at a time."""
    with path.open("rb") as stream:
        stream.seek(start)
        at = start
        while (end is None or at < end) and (
            chunk := stream.read(_CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - at))
        ):
            if not chunk.endswith(b"\n"):
                chunk += stream.readline()
            at += len(chunk)
            yield io.BytesIO(chunk).readlines()


def without_cr(line: bytes) -> bytes:
    """The line with LF instead of CRLF at its end."""
    return line[:-2] + b"\n" if line.endswith(b"\r\n") else line


def extended(line: bytes, new: bytes, replaced: Mapping[int, bytes]) -> bytes:
    """One row with cells replaced where they stand and new ones added after the last.

    Parameters
    ----------
    line
        The row with its line end, if it has one.
    new
        The cells to add, in STAR form, joined by spaces; may be empty.
    replaced
        Cell number (from 0) -> new cell in STAR form.
    """
    body = line.rstrip(b"\r\n")
    tail = line[len(body) :]
    if not replaced and not _is_special(body):
        return body + b" " + new + tail
    where = spans(body)
    if new:
        # Before a comment at the end of the row, but behind mere spaces.
        at = where[-1][1] if body[where[-1][1] :].strip() else len(body)
        body = body[:at] + b" " + new + body[at:]
    for cell in sorted(replaced, reverse=True):
        start, end = where[cell]
        body = body[:start] + replaced[cell] + body[end:]
    return body + tail


def as_cells(label: str, values: Sequence[str]) -> Sequence[str]:
    """The values as they stand in a STAR file: in quotes where they need them.

    Raises
    ------
    ValueError
        NaN or infinity, which RELION silently reads as numbers; a line end; both kinds of quotes.
    """
    not_finite = _NOT_FINITE.intersection(values)
    if not_finite:
        raise ValueError(f"{label}: {next(iter(not_finite))!r} must not be written, RELION would read it as a number")
    # One search over the whole column: hardly ever is there anything to quote.
    if "" not in values and not _NEEDS_QUOTES.search("\0".join(values)):
        return values
    return [_quoted(label, value) for value in values]


def _quoted(label: str, value: str) -> str:
    if value and not _NEEDS_QUOTES.search(value):
        return value
    if "\n" in value or "\r" in value:
        raise ValueError(f"{label}: {value!r} has a line end, which no STAR cell can hold")
    if value and value[0] not in "\"'#" and not re.search(r"\s", value):
        return value
    for mark in ('"', "'"):
        if not re.search(mark + r"\s", value) and not value.endswith(mark):
            return mark + value + mark
    raise ValueError(f"{label}: {value!r} has both kinds of quotes before spaces, which no STAR cell can hold")
