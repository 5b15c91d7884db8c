"""Whatever stands in a file that a user gives, or in a condition that a user types, the answer is a result or an `EmsvaeError`.

Hypothesis makes such files: good ones that were spoiled, and ones built of the words of the format. The usual run takes a minute in
all and tries the same examples each time. By hand, for hours and with new examples each time::

    EMSVAE_FUZZ_SECONDS=7200 pytest tests/fuzz                 # all targets, a share of the time each
    EMSVAE_FUZZ_SECONDS=7200 pytest tests/fuzz -k star         # one of them, for its share

An example that fails is shrunk and printed; it goes into the tests of the module that failed, with the right answer.
Files that were read are also written again: what was read once must read the same the second time.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import strategies as st

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.io import mrc
from emspatialvae.io.cs import join_passthrough, write_cs
from emspatialvae.io.star import StarFile, write_rows, write_with_columns
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.query import parse
from emspatialvae.particles.read_star import particle_block
from emspatialvae.particles.table import CsTable, ParticleTable, open_table
from emspatialvae.results.latents import read_csv
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows import info
from tests.tools.fuzzing import fuzz, spoiled

SHARES = {"star": 0.25, "cs": 0.15, "group": 0.05, "mrc": 0.1, "query": 0.1, "config": 0.2, "latents": 0.15}
"""Of the time, for each target."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with mrc.StackWriter(tmp_path / "s.mrcs", 4, 8, 2.0) as stack:
        stack.append(np.random.default_rng(0).normal(size=(4, 8, 8)))
    return tmp_path


def look_at(path: Path) -> ParticleTable:
    """What commands do with a particle file before they begin to work, and with all of its columns."""
    info.particles_text(InputConfig(path), PrepareConfig())
    table = open_table(path)
    is_text = table.is_text if isinstance(table, CsTable) else (lambda name: name == "rlnImageName")
    table.read(tuple(filter(is_text, table.names)), tuple(name for name in table.names if not is_text(name)))
    table.image_names()
    table.coordinates()
    return table


# ---------------------------------------------------------------------------------------------------------- STAR files

STAR_30 = b"""
data_images

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnCoordinateX #3
_rlnCoordinateY #4
_rlnDetectorPixelSize #5
_rlnMagnification #6
_rlnVoltage #7
_rlnDefocusU #8
_rlnSphericalAberration #9
_rlnAmplitudeContrast #10
_rlnAnglePsi #11
_rlnOriginX #12
_rlnOriginY #13
000001@s.mrcs mic/1.mrc 10.5 20 14 70000 300 12000 2.7 0.1 30 1 -1
000002@s.mrcs "mic/b c.mrc" 11.5 21 14 70000 300 13000 2.7 0.1 -170 0 0.5 # by hand
000004@s.mrcs mic/1.mrc 12.5 22 14 70000 300 14000 2.7 0.1 0 0 0

"""
STAR_31 = b"""
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
_rlnImageSize #4
_rlnVoltage #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
1 opticsGroup1 2.0 8 300 2.7 0.1
2 opticsGroup2 2.1 8 200 2.7 0.1


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnAnglePsi #6
_rlnOriginXAngst #7
_rlnOriginYAngst #8
_rlnAngleRot #9
1@s.mrcs 1 12000 11000 30 10 1 2 0
3@s.mrcs 2 12000 11000 30 10 1 2 5

data_job
_rlnJobIsTomo 0
_rlnName 'a b'
"""
STAR_WORDS = [
    *(
        b"data_",
        b"data_particles",
        b"data_optics",
        b"loop_",
        b"_rlnImageName",
        b"_rlnImageName #1",
        b"#",
        b" # ",
        b"\n",
        b"\n\n",
        b"\r\n",
        b"\r",
    ),
    *(
        b'"',
        b"'",
        b'""',
        b" ",
        b"\t",
        b"nan",
        b"inf",
        b"-1e999",
        b"<NA>",
        b"None",
        b"0",
        b"-1",
        b"1e400",
        b"1_0",
        b"99999999999999999999",
    ),
    *(
        b"@",
        b"0@s.mrcs",
        b"5@s.mrcs",
        b"-1@s.mrcs",
        b"1@",
        b"1@/",
        b"\xff",
        b"\xe4.mrcs",
        b"\0",
        b"\xef\xbb\xbf",
        b"_",
        b"_rlnOpticsGroup #2",
    ),
    *(
        "\u0661@s.mrcs".encode(),
        b"\x1f\x8b",
        b"\x0b",
        b"\x0c",
        b"\xc2\xa0",
        b"\x1c",
        b"\x85",
        b"1@s.mrcs\x00",
        b"1@" + b"x" * 300,
    ),
]
LABELS = [
    "rlnImageName",
    "rlnOpticsGroup",
    "rlnImagePixelSize",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnAnglePsi",
    "rlnOriginX",
    "rlnOriginXAngst",
    "rlnVoltage",
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnOpticsGroupName",
    "rlnMicrographName",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnCtfDataArePhaseFlipped",
    "mine",
]
CELLS = st.one_of(
    st.sampled_from(
        [
            "1@s.mrcs",
            "4@s.mrcs",
            "9@s.mrcs",
            "s.mrcs",
            "0",
            "1",
            "2",
            "-999",
            "nan",
            "inf",
            "1e5",
            "300",
            '"a b"',
            "''",
            "#",
            "a#b",
            "None",
        ]
    ),
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1, max_size=6),
    st.floats().map(str),
)


@st.composite
def star_of_words(draw: st.DrawFn) -> bytes:
    """Blocks with names, labels and cells that matter, mostly of the right number."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        lines += ["", f"data_{draw(st.sampled_from(['', 'particles', 'images', 'optics', 'other']))}", ""]
        labels = draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=6, unique=draw(st.integers(0, 9)) > 0))
        if draw(st.integers(0, 4)) == 0:
            lines += [f"_{label} {draw(CELLS)}" for label in labels]
            continue
        lines += ["loop_", *(f"_{label} #{k}" for k, label in enumerate(labels, 1))]
        for _ in range(draw(st.integers(0, 4))):
            count = len(labels) + draw(st.sampled_from([0] * 18 + [-1, 1]))
            cells = [
                draw(
                    st.sampled_from(["1@s.mrcs", "2@s.mrcs"])
                    if label == "rlnImageName"
                    else st.sampled_from(["1", "2", "1.5"])
                )
                if draw(st.integers(0, 5))
                else draw(CELLS)
                for label in [*labels, "mine"][:count]
            ]
            lines.append(draw(st.sampled_from([" ", "\t"])).join(cells))
    return "\n".join([*lines, ""]).encode()


def check_star(content: bytes) -> None:
    path = Path("p.star")
    path.write_bytes(content)
    star = StarFile.read(path)
    before = {block.name: block.columns(*block.labels) for block in star.blocks}
    for block in star.blocks:
        new = {"emsvaeZ1": ["0.5"] * block.n_rows, "emsvaeName": ["a b"] * block.n_rows}
        write_with_columns(star, block.name, new, Path("out.star"), overwrite=True)
        after = {other.name: other.columns(*other.labels) for other in StarFile.read(Path("out.star")).blocks}
        assert after == {name: columns | (new if name == block.name else {}) for name, columns in before.items()}
        if block.is_loop and block.n_rows > 1:
            keep = np.arange(block.n_rows) % 2 == 0
            with Path("some.star").open("wb") as out:
                write_rows(star, block.name, keep, out)
            written = StarFile.read(Path("some.star")).block(block.name)
            assert written.columns(*written.labels) == {
                label: cells[::2] for label, cells in before[block.name].items()
            }
    assert look_at(path).names[: len(particle_block(star).labels)] == particle_block(star).labels


def test_star():
    fuzz(st.one_of(spoiled([STAR_30, STAR_31], STAR_WORDS), star_of_words()), check_star, SHARES["star"])


# ------------------------------------------------------------------------------------------------------------ .cs files

FIELDS = {
    "uid": "u8",
    "blob/path": "S12",
    "blob/idx": "u4",
    "blob/psize_A": "f4",
    "blob/shape": ("u4", (2,)),
    "ctf/df1_A": "f4",
    "ctf/df2_A": "f4",
    "ctf/accel_kv": "f4",
    "ctf/cs_mm": "f4",
    "ctf/amp_contrast": "f4",
    "alignments2D/pose": "f4",
    "alignments2D/shift": ("f4", (2,)),
    "alignments2D/psize_A": "f4",
    "location/micrograph_path": "S12",
    "location/center_x_frac": "f4",
    "location/center_y_frac": "f4",
    "location/micrograph_shape": ("u4", (2,)),
    "mine/matrix": ("f4", (2, 2)),
}
OTHER_TYPES = ["f8", "i4", "u1", "S3", "U4", "?", "c8", ">f4", ("f4", (3,)), ("S4", (2,)), "M8[s]", "V3", [("a", "f4")]]


@st.composite
def cs_tables(draw: st.DrawFn) -> np.ndarray:
    """Tables with fields that matter, most of them of the usual type and with usual values."""
    names = draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=10, unique=True))
    if draw(st.integers(0, 3)):
        names = list(dict.fromkeys(["blob/path", "blob/idx", "blob/psize_A", *names]))
    types: list[Any] = [
        FIELDS[name] if draw(st.integers(0, 9)) else draw(st.sampled_from(OTHER_TYPES)) for name in names
    ]
    n = draw(st.integers(0, 4))
    table = np.zeros(
        n, [(name, *(kind if isinstance(kind, tuple) else (kind,))) for name, kind in zip(names, types, strict=True)]
    )
    for name in names:
        if draw(st.integers(0, 5)) == 0:  # whatever bytes
            shape, size = table[name].shape, table[name].dtype.itemsize * table[name].size
            raw = draw(st.binary(min_size=size, max_size=size))
            if size and table.dtype[name].base.kind not in "OU":
                table[name] = np.frombuffer(raw, table.dtype[name].base).reshape(shape)
        elif name == "blob/path" and table[name].dtype.kind == "S":
            table[name] = draw(st.sampled_from([b"s.mrcs", b">s.mrcs", b"", b">", b"no.mrcs", b"\xff"]))
        elif table[name].dtype.kind in "fiu":
            table[name] = draw(st.sampled_from([0, 1, 2, 100]))
    return table


def check_cs(table: np.ndarray | bytes) -> None:
    path = Path("p.cs")
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        write_cs(path, table, overwrite=True)
        join_passthrough(table, table[::-1])
    assert len(look_at(path)) == len(load_particles(InputConfig(path), open_stacks=False))


def whole_cs() -> bytes:
    table = np.zeros(3, [(name, *(kind if isinstance(kind, tuple) else (kind,))) for name, kind in FIELDS.items()])
    table["uid"], table["blob/path"], table["blob/psize_A"], table["blob/idx"] = range(3), b">s.mrcs", 2, range(3)
    write_cs(Path("whole.cs"), table)
    return Path("whole.cs").read_bytes()


def test_cs():
    words = [
        b"<f4",
        b">u4",
        b"|O",
        b"(2,)",
        b"()",
        b"'",
        b"{",
        b"}",
        b"\0",
        b"True",
        b"None",
        b"(3,)",
        b"(-1,)",
        b"9" * 20,
        b"\x02\x00",
        b"\x03",
    ]
    fuzz(st.one_of(cs_tables(), spoiled([whole_cs()], words)), check_cs, SHARES["cs"])


GROUP = b"""created: 2024-05-01 12:00:00.123456
group:
  description: 'All particles: those that were selected'
  type: particle
results:
  alignments2D:
    metafile: '>p_passthrough.cs'
    type: particle.alignments2D
  blob:
    metafile: '>p.cs'
    num_items: 3
    type: particle.blob
"""


def test_group():
    words = [
        b"metafile:",
        b"    metafile: '>p.cs'",
        b">",
        b"'",
        b'"',
        b"\n",
        b"..",
        b"/",
        b"p.cs",
        b"\0",
        b"\xff",
        b"x" * 300,
        b"blob:",
        b"  ",
    ]
    Path("p.cs").write_bytes(whole_cs())
    shutil.copy("p.cs", "p_passthrough.cs")

    def check(content: bytes) -> None:
        Path("p.csg").write_bytes(content)
        assert len(load_particles(InputConfig(Path("p.csg")))) == 3

    fuzz(spoiled([GROUP], words), check, SHARES["group"])


# ---------------------------------------------------------------------------------------------------------- MRC headers

WHOLE_NUMBERS = [0, 1, -1, 2, 4, 6, 8, 12, 101, 255, 256, 1 << 16, (1 << 31) - 1, -(1 << 31), 1146047817]
MRC_WORDS = [
    *(np.array(number, order + "i4").tobytes() for number in WHOLE_NUMBERS for order in "<>"),
    *(np.array(number, "<f4").tobytes() for number in (np.nan, np.inf, -1.0, 1e38, 1e-45)),
    *(b"MAP ", b"\x44\x44\0\0", b"\x11\x11\0\0", b"\x1f\x8b", b"BZh9", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"),
]


@st.composite
def mrc_files(draw: st.DrawFn) -> bytes:
    """A good stack with words of its header overwritten, at places that mean something or anywhere, and cut or lengthened."""
    data = bytearray(Path("s.mrcs").read_bytes())
    for _ in range(draw(st.integers(0, 5))):
        place = 4 * draw(st.one_of(st.sampled_from([0, 1, 2, 3, 7, 10, 22, 23, 38, 39, 52, 53]), st.integers(0, 255)))
        word = draw(st.sampled_from(MRC_WORDS))
        data[place : place + len(word)] = word
    end = draw(st.sampled_from([len(data), len(data), len(data) - 1, 1024, 1023, 0, 3]))
    return bytes(data[:end]) + draw(st.binary(max_size=3))


def check_mrc(content: bytes) -> None:
    path = Path("fuzzed.mrcs")
    path.write_bytes(content)
    header = mrc.read_header(path)
    images = mrc.read_images(header, [header.n_images - 1, 0])
    assert images.shape == (2, header.height, header.width)
    stack = load_particles(InputConfig(path, pixel_size_A=2.0))
    assert len(stack) == header.n_images and len(stack.images([0])) == 1
    info.particles_text(InputConfig(path, pixel_size_A=2.0), PrepareConfig())


def test_mrc():
    fuzz(mrc_files(), check_mrc, SHARES["mrc"])


# ----------------------------------------------------------------------------------------------------------- conditions

COLUMNS = {
    "rlnClassNumber": np.array([1.0, 2, 3, 4]),
    "emsvaeZ1": np.array([-1.0, 0.5, 2, np.nan]),
    "uid": np.array([2**63 + 1, 5, 6, 7], np.uint64),
    "alignments2D/class": np.array([0, 1, 2, 255], np.uint8),
    "emsvae/z[0]": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    "mine/flag": np.array([True, False, True, False]),
}
QUERY_WORDS = [
    *COLUMNS,
    *(
        "z1",
        "class",
        "`emsvae/z[0]`",
        "rlnMicrographName",
        "nothing",
        "and",
        "or",
        "not",
        "in",
        "not in",
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "(",
        ")",
        "[",
        "]",
    ),
    *(
        ",",
        "1",
        "-1",
        "0.5",
        "1e999",
        "300",
        "99999999999999999999999",
        "-18446744073709551616",
        '"a"',
        "'b c'",
        '"',
        "`",
        "=",
        "&",
        "\0",
        "\u0661",
        "rln",
        "_",
        "1.",
        ".5e-3",
    ),
    *(
        "(1, 2)",
        "['a', 'b']",
        "z1 > 0.5",
        "rlnClassNumber in (1, 4)",
        '"mic" in rlnMicrographName',
        "9" * 4301,
        "(" * 60,
    ),
]
CONDITIONS = st.one_of(st.lists(st.sampled_from(QUERY_WORDS), max_size=12).map(" ".join), st.text(max_size=20))


def check_query(text: str) -> None:
    texts = {name: np.array(values.astype(str), object) for name, values in COLUMNS.items()}
    texts["rlnMicrographName"] = np.array(["mic_1.mrc", "a", "b c", ""], object)
    query = parse(text, list(texts))
    if not set(query.numbers) <= set(COLUMNS):
        raise EmsvaeError("a table says of its column of texts that numbers were expected")
    found = query.matches({name: texts[name] for name in query.texts}, {name: COLUMNS[name] for name in query.numbers})
    assert found.shape == (4,) and found.dtype == bool


def test_query():
    fuzz(CONDITIONS, check_query, SHARES["query"])


# ----------------------------------------------------------------------------------------------------------- run folders

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(
            [
                0,
                1,
                -1,
                2,
                3,
                1 << 40,
                10**400,
                0.5,
                -0.5,
                1e308,
                "",
                "steerable",
                "coordinate",
                "cpu",
                "none",
                "\0",
                "\ud800",
                "a" * 5000,
            ]
        ),
        st.floats(),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["config", "model", "z_dim", "x"]), inner, max_size=2),
    ),
    max_leaves=4,
)


@st.composite
def json_texts(draw: st.DrawFn, whole: str) -> bytes:
    """The settings of a run with up to three values replaced or removed, anywhere in the tree."""
    content = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        at, path = content, []
        while isinstance(at, dict | list) and at and (not path or draw(st.integers(0, 4))):
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            path.append((at, key))
            at = at[key]
        if not path:
            break
        parent, key = path[-1]
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = draw(JSON)
    return json.dumps(content).encode("utf-8", "surrogatepass")


JSON_WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"null",
    b"true",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"9" * 4301,
    b"[" * 2000,
]


def test_config(tiny_run):
    run = shutil.copytree(tiny_run, Path("run"))
    whole = (run / "config.json").read_bytes()

    def check(content: bytes) -> None:
        (run / "config.json").write_bytes(content)
        assert RunDir(run).manifest.n_particles >= 0
        info.run_text(run)

    fuzz(st.one_of(json_texts(whole.decode()), spoiled([whole], JSON_WORDS)), check, SHARES["config"])


def test_latents(tiny_run):
    run = shutil.copytree(tiny_run, Path("run"))
    whole = (run / "latents.csv").read_bytes()
    words = [
        b",",
        b"\n",
        b'"',
        b"nan",
        b"inf",
        b"",
        b"1e999",
        b"z1",
        b"z1_sd",
        b"image_name",
        b"used",
        b"-1",
        b"True",
        b"\0",
        b"\xff",
        b"\r",
        b"9" * 400,
        b"class_number",
    ]

    def check(content: bytes) -> None:
        (run / "latents.csv").write_bytes(content)
        latents = read_csv(run / "latents.csv", None, 2.0)
        assert np.isfinite(latents.z).all() and len(latents.z) == len(latents)
        info.run_text(run)

    # A short table, so that what is spoiled matters.
    short = b"".join(whole.splitlines(keepends=True)[:4])
    fuzz(spoiled([whole, short], words), check, SHARES["latents"])
