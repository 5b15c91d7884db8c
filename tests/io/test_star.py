"""STAR files: cells as they are written, files given back byte for byte with ours added."""

import sys

import numpy as np
import pandas as pd
import pytest

from emspatialvae.errors import OutputExistsError, ParticleFileError
from emspatialvae.io import star_text
from emspatialvae.io.star import StarFile, write_new, write_with_columns

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
           1 opticsGroup1     1.350000
 

"""  # noqa: W293 (RELION's own blank line holds a space)
PARTICLES = """# version 30001

data_particles

loop_ 
_rlnImageName #1 
_rlnMicrographName #2 
_rlnAnglePsi #3 
  000001@Extract/a#1.mrcs "my micrograph 1.mrc"   12.123456789012 
  000002@Extract/a#1.mrcs          001  -0.000
2@b.mrcs\tx\t1e-3\t
 

"""  # noqa: W291, W293
CELLS = {
    "rlnImageName": ["000001@Extract/a#1.mrcs", "000002@Extract/a#1.mrcs", "2@b.mrcs"],
    "rlnMicrographName": ["my micrograph 1.mrc", "001", "x"],
    "rlnAnglePsi": ["12.123456789012", "-0.000", "1e-3"],
}
ROW = "1@a.mrcs m1 2.0\n"
HEAD = "data_\n\nloop_\n_rlnImageName\n_rlnMicrographName\n_rlnAnglePsi\n"
VARIANTS = {
    "optics first": OPTICS + PARTICLES,
    "particles first": PARTICLES + OPTICS,
    "windows": (OPTICS + PARTICLES).replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + PARTICLES,
    "3.0": HEAD + ROW * 3 + "\n",
    "no final newline": HEAD + ROW + ROW.strip(),
    "no final newline, windows": (HEAD + ROW + ROW.strip()).replace("\n", "\r\n"),
    "many blank lines": "\n\n" + HEAD + "\n\n" + ROW * 2 + "\n" * 5,
    "blank lines of spaces": HEAD.replace("\n\n", "\n \t \n") + ROW + "  \n\t\n",
    "next block without a blank line": "data_optics\nloop_\n_rlnOpticsGroup #1\n_rlnVoltage #2\n1 300\n2 300\n"
    + HEAD
    + ROW,
    "comments": f"# data_wrong\n{HEAD}# data_wrong\n{ROW}# loop_ in the rows\n   # and again\n{ROW}\n# data_x\n#",
    "comments in rows": HEAD + "1@a.mrcs m1 2.0 # note\n2@a.mrcs 'm 1' 2.0# # note\n1@a.mrcs \"it's\" 5 #",
    "quotes": HEAD + '1@a.mrcs "a"b c" \'\'\n1@a.mrcs it\'s "x\n1@a.mrcs \'"\' ""  \n',
    "labels with comments": HEAD.replace("_rlnImageName\n", "  _rlnImageName   #1  # the image\n") + ROW,
    "block name with comment": HEAD.replace("data_\n", "data_images # written by hand\n") + ROW,
    "not utf-8": (HEAD + ROW).replace("m1", "\udce4\udcff"),
    "odd spaces": HEAD + "1@a.mrcs\u00a0x m\x1f1 2.0\n",
}


def save(path, text):
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def particles(star):
    return next(block for block in star.blocks if "rlnImageName" in block.labels)


def stripped(raw, labels, n_old, cells):
    """Take away what was added, knowing only what it looks like, and check that it was there once per row."""
    for number, label in enumerate(labels, n_old + 1):
        line = f"_{label} #{number}\n".encode()
        assert raw.count(line) == 1
        raw = raw.replace(line, b"")
    for row in zip(*cells, strict=True):
        piece = " ".join(["", *row]).encode()
        assert raw.count(piece) == 1
        raw = raw.replace(piece, b"")
    return raw


def assert_lossless(path, out):
    """The proof: columns added and taken away again, then a column replaced and put back, give the original bytes."""
    original = path.read_bytes().replace(b"\r\n", b"\n")
    star = StarFile.read(path)
    block = particles(star)
    labels = ["emsvaeZ1", "emsvaeZStd1"]
    cells = [[f"{row}.{k}25QZ" for row in range(block.n_rows)] for k in (1, 2)]
    write_with_columns(star, block.name, dict(zip(labels, cells, strict=True)), out)
    assert stripped(out.read_bytes(), labels, len(block.labels), cells) == original
    again = StarFile.read(out)
    assert (again.crlf, again.version, len(again.blocks)) == (False, star.version, len(star.blocks))
    assert again.block(block.name).columns(*labels) == dict(zip(labels, cells, strict=True))
    assert again.block(block.name).columns(*block.labels) == block.columns(*block.labels)
    replaced = {label: [f"@{label}{row}@" for row in range(block.n_rows)] for label in block.labels}
    write_with_columns(star, block.name, replaced, out, overwrite=True)
    raw = out.read_bytes()
    lines = [line for chunk in star_text.line_chunks(path, block.rows_start, block.rows_end) for line in chunk]
    rows = [line for line in lines if star_text.words(line)]
    for row, line in enumerate(rows):
        for label, (start, end) in zip(block.labels, star_text.spans(line), strict=True):
            raw = raw.replace(f"@{label}{row}@".encode(), line[start:end])
    assert raw == original


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS)
def test_nothing_is_lost(tmp_path, text):
    assert_lossless(save(tmp_path / "in.star", text), tmp_path / "out.star")


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS)
def test_nothing_is_lost_when_the_file_comes_in_small_pieces(tmp_path, text, monkeypatch):
    monkeypatch.setattr(star_text, "_CHUNK_BYTES", 7)
    assert_lossless(save(tmp_path / "in.star", text), tmp_path / "out.star")


@pytest.mark.real
def test_nothing_is_lost_of_real_files(real_data, tmp_path):
    paths = sorted(real_data.rglob("*.star"))
    assert len(paths) >= 13
    for path in paths:
        assert_lossless(path, tmp_path / path.name)


@pytest.mark.parametrize("name", ["optics first", "particles first", "windows"])
def test_cells_are_read_as_they_are_written(tmp_path, name):
    star = StarFile.read(save(tmp_path / "in.star", VARIANTS[name]))
    assert star.version == 30001
    assert star.crlf == (name == "windows")
    assert {block.name for block in star.blocks} == {"optics", "particles"}
    block = star.block("particles")
    assert block.is_loop
    assert block.labels == tuple(CELLS)
    assert block.columns(*CELLS) == CELLS
    assert star.block("optics").columns("rlnImagePixelSize") == {"rlnImagePixelSize": ["1.350000"]}


def test_quotes_and_comments_follow_relion(tmp_path):
    def cells(name):
        block = particles(StarFile.read(save(tmp_path / "in.star", VARIANTS[name])))
        return list(zip(*block.columns(*CELLS).values(), strict=True))

    assert cells("quotes") == [("1@a.mrcs", 'a"b c', ""), ("1@a.mrcs", "it's", '"x'), ("1@a.mrcs", '"', "")]
    assert cells("comments in rows") == [
        ("1@a.mrcs", "m1", "2.0"),
        ("2@a.mrcs", "m 1", "2.0#"),
        ("1@a.mrcs", "it's", "5"),
    ]
    assert cells("comments") == [("1@a.mrcs", "m1", "2.0")] * 2
    assert cells("odd spaces") == [("1@a.mrcs\u00a0x", "m\x1f1", "2.0")]


def test_a_block_of_one_row_of_pairs(tmp_path):
    pairs = "# version 30001\n\ndata_general\n\n_rlnFinalResolution   3.5 # A\n\n_rlnNote 'two words'"
    for text in (pairs, pairs + "\n\ndata_\nloop_\n_rlnA\n1\n"):
        star = StarFile.read(save(tmp_path / "in.star", text))
        block = star.block("general")
        assert (block.is_loop, block.n_rows, block.labels) == (False, 1, ("rlnFinalResolution", "rlnNote"))
        assert block.columns("rlnNote", "rlnFinalResolution") == {
            "rlnNote": ["two words"],
            "rlnFinalResolution": ["3.5"],
        }
        write_with_columns(
            star, "general", {"rlnFinalResolution": ["4"], "emsvaeA": ["a b"]}, tmp_path / "out.star", overwrite=True
        )
        expected = text.replace("3.5", "4").replace("'two words'", "'two words'\n_emsvaeA \"a b\"")
        assert (tmp_path / "out.star").read_text().rstrip("\n") == expected.rstrip("\n")


def test_a_table_without_rows(tmp_path):
    for text in (HEAD, HEAD + "\n", HEAD.strip()):
        star = StarFile.read(save(tmp_path / "in.star", text))
        assert particles(star).columns("rlnImageName") == {"rlnImageName": []}
        write_with_columns(star, "", {"emsvaeZ1": []}, tmp_path / "out.star", overwrite=True)
        assert (tmp_path / "out.star").read_text().rstrip() == HEAD + "_emsvaeZ1 #4"


def test_writing_again_replaces_our_columns(tmp_path):
    path, out = save(tmp_path / "in.star", PARTICLES), tmp_path / "out.star"
    first = {"emsvaeZ1": ["0.1", "0.2", "0.3"], "rlnAnglePsi": ["1", "2", "3"]}
    write_with_columns(StarFile.read(path), "particles", first, out)
    once = out.read_bytes()
    write_with_columns(StarFile.read(out), "particles", first, out, overwrite=True)
    assert out.read_bytes() == once
    second = {"emsvaeZ1": ["10.5", "x y", "7"]}
    write_with_columns(StarFile.read(out), "particles", second, out, overwrite=True)
    assert StarFile.read(out).block("particles").labels == (*CELLS, "emsvaeZ1")
    assert StarFile.read(out).block("particles").columns("emsvaeZ1") == second
    write_with_columns(StarFile.read(out), "particles", first, out, overwrite=True)
    assert out.read_bytes().replace(b'"x y"', b"0.2") == once.replace(b'"x y"', b"0.2")


def test_values_that_need_quotes_come_back(tmp_path):
    star = StarFile.read(save(tmp_path / "in.star", PARTICLES))
    values = ["two words", "", "#1", '"', "'", 'a "b" c', "it's here", "tab\there", "a#b", "a'b\"c", "_x", "é"]
    for start in range(0, len(values), 3):
        write_with_columns(star, "particles", {"x": values[start : start + 3]}, tmp_path / "out.star", overwrite=True)
        assert StarFile.read(tmp_path / "out.star").block("particles").columns("x")["x"] == values[start : start + 3]


@pytest.mark.parametrize(
    "value", ["nan", "NaN", "NAN", "-nan", "inf", "-Inf", "+INF", "Infinity", "a\nb", "a\r", "a' b\" c"]
)
def test_values_that_must_not_be_written(tmp_path, value):
    star = StarFile.read(save(tmp_path / "in.star", PARTICLES))
    with pytest.raises(ValueError, match="emsvaeZ1"):
        write_with_columns(star, "particles", {"emsvaeZ1": ["1", value, "2"]}, tmp_path / "out.star")
    assert not (tmp_path / "out.star").exists()


def test_misuse_is_told_apart_from_bad_files(tmp_path):
    star = StarFile.read(save(tmp_path / "in.star", PARTICLES))
    out = tmp_path / "out.star"
    with pytest.raises(ValueError, match="2 values for 3 rows"):
        write_with_columns(star, "particles", {"emsvaeZ1": ["1", "2"]}, out)
    for label in ("_emsvaeZ1", "two words", "a#b", ""):
        with pytest.raises(ValueError, match="label"):
            write_with_columns(star, "particles", {label: ["1", "2", "3"]}, out)
    with pytest.raises(KeyError, match="emsvaeZ9"):
        star.block("particles").columns("rlnImageName", "emsvaeZ9")
    with pytest.raises(KeyError, match="data_optics"):
        star.block("optics")
    with pytest.raises(OutputExistsError):
        write_with_columns(star, "particles", {"emsvaeZ1": ["1", "2", "3"]}, star.path)
    assert [path.name for path in tmp_path.iterdir()] == ["in.star"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("\x7fELF\0\0", "binary"),
        ("data_\n\n", "no data_ block with labels"),
        ("# only a comment\n", "no data_ block"),
        ("uid,path\n1,a\n", "line 1: a STAR file starts with data_, found 'uid,path'"),
        (HEAD + ROW + "\n" + ROW, "line 9: .*blank line"),
        (HEAD + "_rlnAnglePsi #4\n" + ROW, "line 7: .*twice"),
        ("data_\n_rlnA 1\n_rlnA 2\n", "line 3: .*twice"),
        ("data_\nrow row\n", "line 2: 'row' does not belong"),
        ("data_\nloop_\nrow row\n", "line 3: 'row' does not belong"),
        ("data_\n_rlnA 1 2\n", "line 2: '_rlnA' does not belong"),
        (HEAD + ROW + "\n" + HEAD + ROW, "two blocks data_"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ParticleFileError, match=message) as caught:
        StarFile.read(save(tmp_path / "in.star", text))
    assert "\n" not in str(caught.value)
    assert "in.star" in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path):
    for path, message in ((tmp_path / "none.star", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ParticleFileError, match=message):
            StarFile.read(path)


@pytest.mark.parametrize(("row", "found"), [("1@a m1\n", 2), ("1@a m1 2 3\n", 4), ("1@a 'm 1' # 2\n", 2)])
def test_a_wrong_number_of_columns_names_line_and_counts(tmp_path, row, found):
    star = StarFile.read(save(tmp_path / "in.star", HEAD + ROW + "# a comment\n" + row + ROW))
    message = rf"in\.star, line 9: {found} columns found, .* 3;"
    with pytest.raises(ParticleFileError, match=message):
        particles(star).columns("rlnImageName")
    with pytest.raises(ParticleFileError, match=message):
        write_with_columns(star, "", {"emsvaeZ1": ["1"] * 3}, tmp_path / "out.star")
    assert not (tmp_path / "out.star").exists()


def test_a_file_that_changes_in_between_is_noticed(tmp_path):
    star = StarFile.read(save(tmp_path / "in.star", HEAD + ROW * 3))
    save(star.path, HEAD + ROW * 2)
    with pytest.raises(ParticleFileError, match="changed"):
        particles(star).columns("rlnImageName")
    with pytest.raises(ParticleFileError, match="changed"):
        write_with_columns(star, "", {"emsvaeZ1": ["1"] * 3}, tmp_path / "out.star")


def test_a_one_column_table_may_hold_names_that_start_like_a_block(tmp_path):
    star = StarFile.read(
        save(tmp_path / "in.star", "data_micrographs\nloop_\n_rlnMicrographName #1\na.mrc\ndata_1.mrc\n")
    )
    assert star.block("micrographs").columns("rlnMicrographName")["rlnMicrographName"] == ["a.mrc", "data_1.mrc"]


def test_new_files_keep_every_digit(tmp_path):
    rng = np.random.default_rng(0)
    single = rng.normal(size=50).astype(np.float32)
    double = rng.normal(size=50) * 10.0 ** rng.integers(-12, 12, 50)
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["optics group 1"], "rlnImagePixelSize": [0.1]})
    table = pd.DataFrame(
        {
            "rlnImageName": [f"{i:06d}@a b/c.mrcs" for i in range(50)],
            "emsvaeZ1": single,
            "rlnDefocusU": double,
            "rlnClassNumber": np.arange(50),
            "emsvaeJunk": np.arange(50) % 2 == 0,
        }
    )
    write_new(tmp_path / "new.star", {"optics": optics, "particles": table})
    star = StarFile.read(tmp_path / "new.star")
    assert star.version == 30001
    assert [block.name for block in star.blocks] == ["optics", "particles"]
    cells = star.block("particles").columns(*table.columns)
    assert cells["rlnImageName"] == table["rlnImageName"].tolist()
    np.testing.assert_array_equal(np.array(cells["emsvaeZ1"], dtype=np.float32), single)
    np.testing.assert_array_equal(np.array(cells["rlnDefocusU"], dtype=np.float64), double)
    assert cells["rlnClassNumber"][:3] == ["0", "1", "2"]
    assert cells["emsvaeJunk"][:2] == ["1", "0"]
    assert star.block("optics").columns("rlnOpticsGroupName", "rlnImagePixelSize") == {
        "rlnOpticsGroupName": ["optics group 1"],
        "rlnImagePixelSize": ["0.1"],
    }
    assert b"\n_rlnImageName #1\n" in star.path.read_bytes()
    with pytest.raises(OutputExistsError):
        write_new(tmp_path / "new.star", {"": table})
    write_new(tmp_path / "new.star", {"": table[["rlnImageName"]]}, overwrite=True)
    assert StarFile.read(tmp_path / "new.star").version is None


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_new_files_hold_no_missing_values(tmp_path, value):
    with pytest.raises(ValueError, match="emsvaeZ1"):
        write_new(tmp_path / "new.star", {"particles": pd.DataFrame({"emsvaeZ1": [1.0, value]})})
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_pandas(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "starfile", None)
    star = StarFile.read(save(tmp_path / "in.star", PARTICLES))
    write_with_columns(star, "particles", {"emsvaeZ1": ["1", "2", "3"]}, tmp_path / "out.star")
    assert StarFile.read(tmp_path / "out.star").block("particles").columns("emsvaeZ1") == {"emsvaeZ1": ["1", "2", "3"]}
