"""``rlnClassNumber in (1, 4) and emsvaeZ1 > 0.5``: conditions on columns, parsed by the grammar below and never evaluated as code.

    condition  = all { "or" all }            all   = one { "and" one }
    one        = "not" one | comparison      value = column | number | "text" | ( condition )
    comparison = value { ("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in") value }
    after in   = ( constant, constant, ... ) or [ ... ]; `"text" in column` looks for a part of a text

A column is a name as `find_column` knows it; names that are not plain words stand in backticks.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.particles.find_column import find_column

Columns = Mapping[str, NDArray[Any]]
Condition = Callable[[Columns, Columns], Mask]
"""Columns as text, columns as numbers -> which rows meet it."""

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<name>`[^`]+`|[A-Za-z_][\w/]*(?:\[\d+\])?)
    | (?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)""",
    re.VERBOSE,
)
_DEEPEST = 50


def _both(one: Mask, other: Mask) -> Mask:
    return one & other


def _either(one: Mask, other: Mask) -> Mask:
    return one | other


_WORDS = ("and", "or", "not", "in")
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


# ---------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Query:
    """A condition on the columns of a table.

    Attributes
    ----------
    texts, numbers
        The columns it reads, as text and as numbers; one that is compared with both is in both.
    """

    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    _mask: Condition

    def matches(self, texts: Columns, numbers: Columns) -> Mask:
        """Which rows meet the condition, [n], given the columns it names, [n] each; NaN meets no comparison but ``!=``."""
        return self._mask(texts, numbers)


def parse(text: str, *files: Sequence[str]) -> Query:
    """Parse a condition on columns of these files; see `find_column`.

    Raises
    ------
    EmsvaeError
        Anything but such a condition; the message says what stands where.
    """
    return _Parser(text, files).query()


@dataclass(frozen=True)
class _Value:
    """A column, a constant, or several constants in brackets."""

    what: Any
    """Name of the column, the constant, or a tuple of constants."""
    is_column: bool
    at: int

    @property
    def is_text(self) -> bool:
        return not self.is_column and any(isinstance(constant, str) for constant in self.constants)

    @property
    def constants(self) -> tuple[Any, ...]:
        what = self.what
        return cast(tuple[Any, ...], what) if isinstance(what, tuple) else (what,)


class _Parser:
    """One method per rule of the grammar; each takes its words from the front."""

    def __init__(self, text: str, files: Sequence[Sequence[str]]) -> None:
        self.text, self.files = text, files
        self.texts: dict[str, None] = {}
        self.numbers: dict[str, None] = {}
        self.tokens = self._tokens()
        self.next = self.depth = 0

    def query(self) -> Query:
        condition = self._condition(self._any())
        if self._kind != "end":
            self._refuse("and, or, or the end was expected")
        return Query(tuple(self.texts), tuple(self.numbers), condition)

    # ------------------------------------------------------------------------------------------------------------ words

    def _tokens(self) -> list[tuple[str, str, int]]:
        """(kind, word, position) of every word; words of the language are signs."""
        tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            if found is None:
                self._refuse_at(at, self.text[at], _hint(self.text[at:]))
            kind, word = str(found.lastgroup), found[0]
            if kind == "name" and word.lower() in _WORDS:
                kind, word = "sign", word.lower()
            if kind != "space":
                tokens.append((kind, word, at))
            at = found.end()
        return [*tokens, ("end", "the end", len(self.text))]

    @property
    def _kind(self) -> str:
        return self.tokens[self.next][0]

    @property
    def _sign(self) -> str:
        """The next word where it is one of the language."""
        kind, word, _ = self.tokens[self.next]
        return word if kind == "sign" else ""

    def _take(self, *signs: str) -> bool:
        if self._sign not in signs or not self._sign:
            return False
        self.next += 1
        return True

    def _refuse(self, expected: str) -> NoReturn:
        _, word, at = self.tokens[self.next]
        self._refuse_at(at, word, expected)

    def _refuse_at(self, at: int, found: str, expected: str) -> NoReturn:
        start = max(0, at - 40)
        near = " ".join(self.text[start : at + 40].split())
        raise EmsvaeError(f"--where: {found!r} at character {at + 1}, in {near!r}: {expected}")

    # ------------------------------------------------------------------------------------------------------------ rules

    def _any(self) -> _Value | Condition:
        return self._joined("or", self._all, _either)

    def _all(self) -> _Value | Condition:
        return self._joined("and", self._one, _both)

    def _joined(self, word: str, part: Callable[[], Any], join: Callable[[Mask, Mask], Mask]) -> _Value | Condition:
        first = part()
        if self._sign != word:
            return first
        conditions = [self._condition(first)]
        while self._take(word):
            conditions.append(self._condition(part()))
        return lambda texts, numbers: reduce(join, (condition(texts, numbers) for condition in conditions))

    def _one(self) -> _Value | Condition:
        self.depth += 1
        if self.depth > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} brackets within each other")
        if self._take("not"):
            inner = self._condition(self._one())
            found: _Value | Condition = lambda texts, numbers: ~inner(texts, numbers)  # noqa: E731
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> _Value | Condition:
        chain: list[Any] = [self._value()]
        operators: list[tuple[str, int]] = []
        while (sign := self._operator()) is not None:
            operators.append(sign)
            chain.append(self._several() if sign[0].endswith("in") and self._sign in ("(", "[") else self._value())
        if not operators:
            return chain[0]
        for value in chain:
            if not isinstance(value, _Value):
                self._refuse_at(operators[0][1], operators[0][0], "two conditions are joined by and, or")
        parts = [
            self._compared(left, sign, right) for (left, right), sign in zip(pairwise(chain), operators, strict=True)
        ]
        return lambda texts, numbers: reduce(_both, (part(texts, numbers) for part in parts))

    def _operator(self) -> tuple[str, int] | None:
        at = self.tokens[self.next][2]
        if self._sign == "not" and self.tokens[self.next + 1][1] == "in":
            self.next += 2
            return "not in", at
        sign = self._sign
        return (sign, at) if self._take("==", "!=", *_ORDER, "in") else None

    def _value(self) -> _Value | Condition:
        kind, word, at = self.tokens[self.next]
        if self._take("("):
            inner = self._any()
            if not self._take(")"):
                self._refuse("a closing ) was expected")
            return inner
        if kind not in ("name", "number", "text"):
            self._refuse("a column, a number or a text in quotes was expected")
        self.next += 1
        if kind != "name":
            return _Value(_constant(kind, word), False, at)
        if self._sign == "(":
            self._refuse_at(
                at, f"{word}(", "there are no functions, only columns, numbers, texts, comparisons, and, or, not, in"
            )
        try:
            return _Value(find_column(word.strip("`"), *self.files), True, at)
        except EmsvaeError as error:
            raise EmsvaeError(f"--where: {error}") from None

    def _several(self) -> _Value:
        at = self.tokens[self.next][2]
        closing = ")" if self._sign == "(" else "]"
        self.next += 1
        constants: list[Any] = []
        while not constants or self._take(","):
            kind, word, _ = self.tokens[self.next]
            if constants and self._sign == closing:
                break
            if kind not in ("number", "text"):
                self._refuse("after in, numbers or texts in brackets were expected")
            constants.append(_constant(kind, word))
            self.next += 1
        if not self._take(closing):
            self._refuse(f"a comma or the closing {closing} was expected")
        if len({isinstance(constant, str) for constant in constants}) > 1:
            self._refuse_at(at, self.text[at : self.tokens[self.next - 1][2] + 1], "numbers and texts are mixed")
        return _Value(tuple(constants), False, at)

    # ---------------------------------------------------------------------------------------------------------- meaning

    def _condition(self, part: _Value | Condition) -> Condition:
        """Whatever must be a condition by now."""
        if isinstance(part, _Value):
            word = next(word for _, word, at in self.tokens if at == part.at)
            self._refuse_at(part.at, word, f"that alone is no condition; compare it, as in {word} > 0")
        return part

    def _compared(self, left: _Value, sign: tuple[str, int], right: _Value) -> Condition:
        word, at = sign
        if not (left.is_column or right.is_column):
            self._refuse_at(at, word, "one side of a comparison must be a column")
        if isinstance(left.what, tuple):
            self._refuse_at(
                at, word, "what stands in brackets after in ends a comparison; two conditions are joined by and, or"
            )
        within = word.endswith("in")
        if within and not isinstance(right.what, tuple) and not left.is_text:
            self._refuse_at(at, word, "after in, numbers or texts in brackets were expected")
        text = left.is_text or right.is_text
        if text and word in _ORDER:
            self._refuse_at(at, word, "texts are compared with ==, != or in only; a number stands without quotes")
        for value in (left, right):
            if value.is_column:
                (self.texts if text else self.numbers)[value.what] = None
        compare = _comparing(
            word.removeprefix("not ") if within else word, left, right, part=within and right.is_column
        )

        def mask(texts: Columns, numbers: Columns) -> Any:
            columns = texts if text else numbers
            found = compare(*(columns[value.what] if value.is_column else value.what for value in (left, right)))
            return ~found if word == "not in" else found

        return mask


def _comparing(word: str, left: _Value, right: _Value, *, part: bool) -> Callable[[Any, Any], Any]:
    """The comparison as a function of the two sides, at least one of which is a column [n]."""
    if part:
        return lambda wanted, column: np.fromiter((wanted in text for text in column), bool, len(column))
    if word == "in" and right.is_text:
        return lambda column, wanted: np.fromiter(map(frozenset(wanted).__contains__, column), bool, len(column))
    if word == "in":
        return lambda column, wanted: reduce(_either, (column == constant for constant in wanted))
    return {"==": operator.eq, "!=": operator.ne, **_ORDER}[word]


def _constant(kind: str, word: str) -> Any:
    if kind == "text":
        return word[1:-1]
    # Whole numbers stay exact as far as columns go (uid has 20 digits); Python refuses to read thousands of digits.
    return int(word) if re.fullmatch(r"[-+]?\d{1,40}", word) else float(word)


def _hint(rest: str) -> str:
    """What to say about characters that are no word of the language."""
    if rest[0] in "\"'`":
        return "the closing quote is missing"
    if rest.startswith(("=", "&", "|", "!")):
        return "write == for equal, and, or, not"
    return "columns, numbers, texts in quotes, comparisons, and, or, not, in are known"
