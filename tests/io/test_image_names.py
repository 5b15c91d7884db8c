"""Image names taken apart and put together again."""

import pytest

from emspatialvae.io.image_names import ImageName, image_name, parse_image_name, plain_image_name

NAMES = {
    "000123@Extract/job007/stack.mrcs": ImageName(123, "Extract/job007/stack.mrcs"),
    "1@s.mrcs": ImageName(1, "s.mrcs"),
    "0@s.mrcs": ImageName(0, "s.mrcs"),
    "12@odd@name.mrcs": ImageName(12, "odd@name.mrcs"),
    "007.mrc": ImageName(None, "007.mrc"),
    "@s.mrcs": ImageName(None, "@s.mrcs"),
    "1e3@s.mrcs": ImageName(None, "1e3@s.mrcs"),
    "-1@s.mrcs": ImageName(None, "-1@s.mrcs"),
    "9" * 5000 + "@s.mrcs": ImageName(None, "9" * 5000 + "@s.mrcs"),
    "3@": ImageName(3, ""),
    "": ImageName(None, ""),
}


@pytest.mark.parametrize(("name", "parts"), NAMES.items(), ids=[name[:20] or "empty" for name in NAMES])
def test_a_name_is_taken_apart(name, parts):
    assert parse_image_name(name) == parts


def test_zeros_before_the_number_do_not_matter_and_those_of_a_file_do():
    assert plain_image_name("000120@007.mrcs") == plain_image_name("120@007.mrcs") == "120@007.mrcs"
    assert plain_image_name("007.mrc") == "007.mrc"


@pytest.mark.parametrize("index", [0, 1, 999_999, 1_000_000])
def test_a_name_leads_back_to_its_index(index):
    image = parse_image_name(image_name(index, "a/b.mrcs"))
    assert (image.place, image.path) == (index, "a/b.mrcs")
    assert parse_image_name("picture.mrc").place == 0
