"""Names of single images in particle files, ``N@stack.mrcs`` with N counted from 1: taken apart and put together.

As in RELION (``FileName::decompose`` of its ``filename.cpp``), the first ``@`` divides number and path.
"""

from typing import NamedTuple

MAX_DIGITS = 18
"""More of them are no number of an image; so many fit 64 bits."""


class ImageName(NamedTuple):
    """A name taken apart.

    Attributes
    ----------
    number
        Of the image in its stack, counted from 1; None if the name has no number, so that it names a whole file.
    path
        Of the stack, as it is spelled; the whole name if it has no number.
    """

    number: int | None
    path: str

    @property
    def place(self) -> int:
        """Of the image in its stack, counted from 0; a file without a number is one image."""
        return (self.number or 1) - 1

    def __str__(self) -> str:
        """The name without zeros before N, so that two spellings of one number are equal."""
        return self.path if self.number is None else f"{self.number}@{self.path}"


def parse_image_name(name: str) -> ImageName:
    """Take a name apart.

    >>> parse_image_name("000123@Extract/job007/stack.mrcs")
    ImageName(number=123, path='Extract/job007/stack.mrcs')
    >>> parse_image_name("picture.mrc")
    ImageName(number=None, path='picture.mrc')
    """
    number, at, path = name.partition("@")
    if not (at and number.isdecimal() and len(number) <= MAX_DIGITS):
        return ImageName(None, name)
    return ImageName(int(number), path)


def image_name(index: int, path: object) -> str:
    """The name of the image at ``index``, counted from 0, with the six digits that RELION writes.

    >>> image_name(122, "stack.mrcs")
    '000123@stack.mrcs'
    """
    return f"{index + 1:06d}@{path}"


def plain_image_name(name: str) -> str:
    """``N@path`` without the zeros before N, so that two spellings of one number are equal; any other name as it is.

    >>> plain_image_name("000123@stack.mrcs"), plain_image_name("007.mrc")
    ('123@stack.mrcs', '007.mrc')
    """
    return str(parse_image_name(name))
