"""Conditions on columns: what they mean, and that nothing else is accepted."""

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError
from emspatialvae.particles.find_column import find_column
from emspatialvae.particles.query import parse

NUMBERS = {
    "rlnClassNumber": np.array([1.0, 2, 3, 4, 4]),
    "emsvaeZ1": np.array([-1.0, 0.5, 0.75, 2, np.nan]),
    "rlnVoltage": np.array([300.0, 300, 200, 200, 300]),
    "alignments2D/class": np.array([0, 1, 2, 3, 3], np.uint32),
    "emsvae/z[0]": np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32),
    "uid": np.array([2**63 + 1, 2**63 + 2, 5, 6, 7], np.uint64),
}
TEXTS = {
    "rlnMicrographName": np.array(["mic_01.mrc", "mic_02.mrc", "mic_02.mrc", "x y", "a and b"], object),
    "rlnClassNumber": np.array(["001", "2", "3", "4", "4"], object),
}
NAMES = list(dict.fromkeys([*NUMBERS, *TEXTS]))


def rows(text):
    query = parse(text, NAMES)
    texts, numbers = (
        {name: columns[name] for name in wanted} for columns, wanted in ((TEXTS, query.texts), (NUMBERS, query.numbers))
    )
    found = query.matches(texts, numbers)
    assert found.dtype == bool
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rlnClassNumber in (1, 4) and emsvaeZ1 > 0.5", [3]),
        ("rlnClassNumber in [1, 4]", [0, 3, 4]),
        ("rlnClassNumber in (4,)", [3, 4]),
        ("rlnClassNumber not in (1, 4)", [1, 2]),
        ("not rlnClassNumber in (1, 4)", [1, 2]),
        ("rlnClassNumber == 1 or rlnClassNumber == 2 and emsvaeZ1 > 9", [0]),
        ("(rlnClassNumber == 1 or rlnClassNumber == 2) and emsvaeZ1 > 0", [1]),
        ("not rlnClassNumber == 1 and emsvaeZ1 < 1", [1, 2]),
        ("not (rlnClassNumber == 1 or emsvaeZ1 < 1)", [3, 4]),
        ("not not rlnClassNumber <= 2", [0, 1]),
        ("-1 <= emsvaeZ1 < 0.75", [0, 1]),
        ("0.5 < emsvaeZ1", [2, 3]),
        ("emsvaeZ1 >= -1e0 and emsvaeZ1 <= .5", [0, 1]),
        ("(emsvaeZ1) > (0.5)", [2, 3]),
        ("emsvaeZ1 != 2", [0, 1, 2, 4]),
        ("emsvaeZ1 < rlnClassNumber < 4", [0, 1, 2]),
        ("rlnMicrographName == 'mic_01.mrc'", [0]),
        ('rlnMicrographName in ("mic_01.mrc", "x y")', [0, 3]),
        ('rlnMicrographName not in ("mic_01.mrc", "x y")', [1, 2, 4]),
        ('rlnMicrographName != "a and b"', [0, 1, 2, 3]),
        ('"mic_" in rlnMicrographName', [0, 1, 2]),
        ('"mic_" not in rlnMicrographName and rlnClassNumber == 4', [3, 4]),
        ("rlnClassNumber == '001' and rlnClassNumber == 1", [0]),
        ("alignments2D/class == 3", [3, 4]),
        ("`alignments2D/class`==3", [3, 4]),
        ("alignments2D/class > -1", [0, 1, 2, 3, 4]),
        ("emsvae/z[0] in (0.1, 0.5)", [0, 4]),  # as float32: 0.1 is what the file calls 0.1
        (f"uid == {2**63 + 1}", [0]),  # beyond what a float tells apart
        (f"uid in ({2**63 + 2}, 7)", [1, 4]),
        ("RLNCLASSNUMBER IN (1, 2) AND NOT _rlnVoltage == 200", [0, 1]),
        (" voltage\n==\t200 ", [2, 3]),
        ("class_number == 3", [2]),
        ("emsvaeZ1 > 100", []),
    ],
)  # fmt: skip
def test_meaning(text, expected):
    assert rows(text) == expected


def test_only_named_columns_are_wanted_as_what_they_are_compared_with():
    query = parse(
        "'mic' in rlnMicrographName and z1 > 1 and not voltage == 300",
        ["rlnMicrographName", "emsvaeZ1", "rlnVoltage", "rlnX"],
    )
    assert (query.texts, query.numbers) == (("rlnMicrographName",), ("emsvaeZ1", "rlnVoltage"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'the end' at character 1"),
        ("   ", "expected"),
        ("__import__('os')", "there are no functions"),
        ("__import__('os').system('true')", "'.' at character 17"),
        ("emsvaeZ1.real > 1", "'.' at character 9"),
        ("emsvaeZ1 > 1; emsvaeZ1 < 2", "';' at character 13"),
        ("emsvaeZ1 + 1 > 2", "'+' at character 10"),
        ("emsvaeZ1 -1 > 2", "that alone is no condition"),
        ("-emsvaeZ1 > 2", "'-' at character 1"),
        ("emsvaeZ1 ** 9 > 2", "'*' at character 10"),
        ("emsvaeZ1 > 0x10", "at character 12"),
        ("emsvaeZ1 = 1", "write =="),
        ("emsvaeZ1 > 1 & emsvaeZ1 < 2", "write =="),
        ("emsvaeZ1 > 1 && emsvaeZ1 < 2", "write =="),
        ("emsvaeZ1", "compare it, as in emsvaeZ1 > 0"),
        ("emsvaeZ1 and rlnClassNumber == 1", "compare it"),
        ("not emsvaeZ1", "compare it"),
        ("1", "no condition"),
        ("1 < 2", "one side of a comparison must be a column"),
        ("emsvaeZ1 >", "'the end' at character 11"),
        ("emsvaeZ1 > and 2", "'and' at character 12"),
        ("emsvaeZ1 > 1 rlnClassNumber", "'rlnClassNumber' at character 14"),
        ("(emsvaeZ1 > 1", "a closing ) was expected"),
        ("emsvaeZ1 > 1)", "')' at character 13"),
        ("(emsvaeZ1 > 1) > 2", "joined by and, or"),
        ("rlnClassNumber in 1", "in brackets were expected"),
        ("rlnClassNumber in ()", "in brackets were expected"),
        ("rlnClassNumber in (1 2)", "a comma or the closing ) was expected"),
        ("rlnClassNumber in (1, 2]", "a comma or the closing ) was expected"),
        ("rlnClassNumber in (1, '2')", "numbers and texts are mixed"),
        ("rlnClassNumber in (1, emsvaeZ1)", "in brackets were expected"),
        ("rlnClassNumber == (1, 2)", "','"),
        ("rlnMicrographName > 'a'", "texts are compared with ==, != or in"),
        ("rlnMicrographName == 'a", "the closing quote is missing"),
        ("rlnClasNumber == 1", "there is no column rlnClasNumber; the nearest is rlnClassNumber"),
        ("emsvaeZ3 > 1", "the nearest is emsvaeZ1"),
        ("qwertyuiop > 1", "there is no column qwertyuiop; there are"),
        ("(" * 200 + "z1 > 1" + ")" * 200, "brackets within each other"),
        ("not " * 2000 + "rlnClassNumber == 1", "brackets within each other"),
        ("lambda: 1", "':'"),
        ("[z for z in y]", "was expected"),
        ("{1}", "'{'"),
        ("f'{1}' == rlnMicrographName", "there is no column f"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(text, said):
    with pytest.raises(EmsvaeError) as error:
        parse(text, NAMES)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--where: ")


def test_long_conditions_are_no_deep_ones():
    assert rows(" or ".join(f"rlnClassNumber == {k}" for k in range(3, 3000))) == [2, 3, 4]
    assert rows(" and ".join(["(not rlnClassNumber == 3)"] * 1000)) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        ("emsvaeJunk", ["emsvaeJunk", "rlnJunk"], "emsvaeJunk"),
        ("junk", ["emsvaeJunk"], "emsvaeJunk"),
        ("junk", ["emsvae/junk"], "emsvae/junk"),
        ("z1", ["emsvaeZ1", "emsvaeZStd1"], "emsvaeZ1"),
        ("z2", ["emsvae/z[0]", "emsvae/z[1]"], "emsvae/z[1]"),
        ("class_number", ["rlnClassNumber", "emsvaeClassPosterior"], "rlnClassNumber"),
        ("class", ["rlnClassNumber", "emsvaeClassPosterior"], "rlnClassNumber"),
        ("class", ["alignments2D/class", "alignments2D/class_posterior"], "alignments2D/class"),
        ("_rlnAnglePsi", ["rlnAnglePsi", "emsvaeAnglePsi"], "rlnAnglePsi"),
        ("rlnanglepsi", ["rlnAnglePsi", "emsvaeAnglePsi"], "rlnAnglePsi"),
        ("_odd", ["_odd", "odd"], "_odd"),
        # A short name that fits a column of the input and one of ours means ours.
        ("angle_psi", ["rlnAnglePsi", "emsvaeAnglePsi"], "emsvaeAnglePsi"),
        ("class", ["rlnClassNumber", "emsvaeClassNumber"], "emsvaeClassNumber"),
    ],
)  # fmt: skip
def test_names_as_people_type_them(wanted, names, expected):
    assert find_column(wanted, names) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("class", "rlnClassNumber"), ("alignments2D/class", "alignments2D/class"), ("uid", "uid")],
)
def test_the_second_file_has_what_the_first_has_not(wanted, expected):
    assert find_column(wanted, ["rlnClassNumber"], ["alignments2D/class", "uid"]) == expected


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("class", ["alignments2D/class", "alignments3D/class"]), ("z", ["a/z", "b/z"])],
)
def test_names_that_fit_several_are_refused(wanted, names):
    with pytest.raises(EmsvaeError, match=" or ".join(names)):
        find_column(wanted, names)


def test_a_number_of_thousands_of_digits_is_a_number():
    """Found by tests/fuzz: Python refuses to read it as a whole number."""
    assert rows(f"rlnClassNumber < {'9' * 5000}") == [0, 1, 2, 3, 4]
    assert rows(f"rlnClassNumber < -{'9' * 5000}") == []


@pytest.mark.parametrize("text", ["rlnClassNumber in (1, 4) == rlnClassNumber", "emsvaeZ1 not in (1, 2) < emsvaeZ1"])
def test_nothing_is_compared_with_what_follows_in(text):
    """Found by tests/fuzz."""
    with pytest.raises(EmsvaeError, match="ends a comparison"):
        parse(text, NAMES)
