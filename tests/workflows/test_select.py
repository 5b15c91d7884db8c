"""``emsvae select``: the rows that were asked for, as they were, and nothing on bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from emspatialvae.errors import EmsvaeError, NothingSelectedError, OutputExistsError
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.star import StarFile, write_new, write_with_columns
from emspatialvae.particles.columns import is_result
from emspatialvae.particles.table import open_table
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.select import write_selection

TEXT = """# made by hand

# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnImagePixelSize #4
2 'group two' 200.0 1.5
1 one 300.0 1.5

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnCoordinateX #3
_rlnCoordinateY #4
_rlnOpticsGroup #5
_rlnClassNumber #6
_emsvaeJunk #7
000003@Extract/a.mrcs  mic1.mrc   100.000000 200.000000 1 007  0.10
  000001@Extract/a.mrcs\t"my mic.mrc" 1e2 200.000000 2 1 0.90   # a note
# between rows
000002@Extract/a.mrcs  mic1.mrc   104.000000 203.000000 1 4 0.05
000009@Extract/b#1.mrcs  mic1.mrc   500.5 203.000000 1 4 0.30

# more after it
data_other

_key value
"""
LINE = 1 + TEXT.splitlines().index("000002@Extract/a.mrcs  mic1.mrc   104.000000 203.000000 1 4 0.05")
ROWS = [line for line in TEXT.splitlines(keepends=True) if "@Extract" in line]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with ``p.star`` of four particles in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.star").write_text(TEXT)
    return tmp_path


@pytest.fixture
def run(tiny_run, here):
    """A copy of a run, in the current folder."""
    return shutil.copytree(tiny_run, here / "run")


def without(*rows):
    return "".join(line for line in TEXT.splitlines(keepends=True) if line not in [ROWS[row] for row in rows])


def cells(file, label="rlnImageName"):
    return open_table(file).read(texts=(label,))[0][label].tolist()


# ------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("where", "left_out"),
    [
        ("rlnClassNumber in (4, 7)", [1]),
        ("junk < 0.5 and rlnCoordinateX < 200", [1, 3]),
        ("voltage == 200", [0, 2, 3]),
        ("rlnOpticsGroupName != 'group two'", [1]),
        ("'my mic' in rlnMicrographName", [0, 2, 3]),
        ("rlnImageName in ('000009@Extract/b#1.mrcs', '000003@Extract/a.mrcs')", [1, 2]),
        ("class > 0", []),
    ],
)
def test_every_byte_of_what_stays_stays(here, emsvae, where, left_out):
    said = emsvae.done("select", "p.star", "--where", where, "--out", "out/s.star", "--excluded", "rest.star").out
    assert (here / "out" / "s.star").read_text() == without(*left_out)
    stayed = [row for row in range(4) if row not in left_out]
    assert f"{len(stayed)} of 4 particles ({25 * len(stayed):.1f} %): out/s.star" in said
    if left_out:
        assert (here / "rest.star").read_text() == without(*stayed)
    else:
        assert "no particle is left over" in said
        assert not (here / "rest.star").exists()


HEAD = "data_\n\nloop_\n_rlnImageName #1\n_rlnClassNumber #2\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "1@a 1\n2@a 2\n3@a 2", HEAD + "2@a 2\n3@a 2"),
        (HEAD + "1@a 2\n2@a 1\n3@a 1", HEAD + "1@a 2\n"),
        (HEAD + "1@a 1\n# a\n2@a 2\n# b\n3@a 1\n# c\n\n# d", HEAD + "# a\n2@a 2\n# b\n# c\n\n# d"),
        (HEAD + "1@a 1\n2@a 2\ndata_x\n_a b\n", HEAD + "2@a 2\ndata_x\n_a b\n"),
        ("data_\n_rlnImageName 1@a\n_rlnClassNumber 2\n", "data_\n_rlnImageName 1@a\n_rlnClassNumber 2\n"),
        (HEAD + "'1@a b' 2\n2@\udce4 2\n3@a 1\n", HEAD + "'1@a b' 2\n2@\udce4 2\n"),
    ],
)
def test_other_files(here, emsvae, text, expected):
    (here / "p.star").write_bytes(text.encode(errors="surrogateescape"))
    emsvae.done("select", "p.star", "--where", "class == 2", "--out", "s.star")
    assert (here / "s.star").read_bytes() == expected.encode(errors="surrogateescape")


def test_windows_lines_become_what_relion_reads(here, emsvae):
    (here / "p.star").write_bytes(TEXT.replace("\n", "\r\n").encode())
    emsvae.done("select", "p.star", "--where", "class == 4", "--out", "s.star")
    assert (here / "s.star").read_bytes() == without(0, 1).encode()


def test_force_replaces(here, emsvae):
    for where in ("class == 4", "class == 1"):
        emsvae.done("select", "p.star", "--where", where, "--out", "s.star", "--force")
    assert (here / "s.star").read_text() == without(0, 2, 3)


def test_a_run_and_its_file_are_one(run, here, emsvae):
    names = cells(run / "particles.star")
    z = np.array(cells(run / "particles.star", "emsvaeZ1"), float)
    where = f"z1 > {float(np.median(z))!r}"
    for n, source in enumerate((run, run / "particles.star")):
        emsvae.done("select", source, "--where", where, "--out", f"{n}.star")
    assert (here / "0.star").read_bytes() == (here / "1.star").read_bytes()
    assert cells(here / "0.star") == [name for name, value in zip(names, z, strict=True) if value > np.median(z)]


def test_every_column_a_run_adds_is_known_as_a_result(run, easy_stack):
    added = set(open_table(run / "particles.star").names) - set(open_table(easy_stack / "particles.star").names)
    assert len(added) > 8
    assert all(map(is_result, added))
    assert not any(map(is_result, open_table(easy_stack / "particles.star").names))


def test_rows_without_results_meet_no_condition_on_results(here, emsvae):
    star = StarFile.read(here / "p.star")
    write_with_columns(star, "particles", {"emsvaeUsed": ["1", "1", "0", "1"]}, here / "u.star")
    said = emsvae.done("select", "u.star", "--where", "junk < 0.2", "--out", "s.star").out
    assert cells(here / "s.star") == ["000003@Extract/a.mrcs"]
    assert "left out, as the run did not use them (emsvaeUsed is 0): 1" in said
    emsvae.done("select", "u.star", "--where", "junk < 0.2 and used in (0, 1)", "--out", "t.star")
    assert len(cells(here / "t.star")) == 2
    said = emsvae.done("select", "u.star", "--where", "voltage == 300", "--out", "v.star").out
    assert len(cells(here / "v.star")) == 3
    assert "left out" not in said


# --------------------------------------------------------------------------------------------------------- cryoSPARC


def cs_table(n=6):
    """A table with padding between its fields, which no copy may lose."""
    dtype = np.dtype(
        {
            "names": ["uid", "blob/path", "blob/idx", "emsvae/z", "alignments2D/class"],
            "formats": ["<u8", "S12", "<u4", ("<f4", (2,)), "<u4"],
            "offsets": [0, 8, 20, 28, 40],
            "itemsize": 48,
        }
    )
    table = np.zeros(n, dtype)
    table.view(np.uint8)[:] = 77
    table["uid"] = 2**63 + np.arange(n, dtype=np.uint64) * 3
    table["blob/path"], table["blob/idx"] = b">J1/a.mrcs", np.arange(n)[::-1]
    table["emsvae/z"] = np.linspace(-1, 1, 2 * n).reshape(n, 2)
    table["alignments2D/class"] = np.arange(n) % 3
    return table


def test_cs_rows_keep_their_bytes(here, emsvae):
    write_cs(here / "p.cs", cs_table())
    where = "alignments2D/class in (0, 2) and z1 > -1 and blob/path == 'J1/a.mrcs'"
    said = emsvae.done("select", "p.cs", "--where", where, "--out", "s.cs", "--excluded", "rest.cs").out
    assert "3 of 6 particles (50.0 %): s.cs" in said
    whole, kept, rest = (read_cs(here / name) for name in ("p.cs", "s.cs", "rest.cs"))
    raw = whole.view(np.uint8).reshape(6, 48)
    assert kept.dtype == rest.dtype == whole.dtype
    assert kept.tobytes() == raw[[2, 3, 5]].tobytes()
    assert rest.tobytes() == raw[[0, 1, 4]].tobytes()


def test_a_run_on_cryosparc_particles_writes_both_kinds(run, here, emsvae):
    n = len(open_table(run / "particles.star"))
    write_cs(run / "particles.cs", cs_table(n))
    z = np.array(cells(run / "particles.star", "emsvaeZ1"), float)
    where = f"emsvaeZ1 > {float(np.median(z))!r}"
    emsvae.done("select", run, "--where", where, "--out", "s.cs")
    emsvae.done("select", run, "--where", where, "--out", "s.star")
    assert read_cs(here / "s.cs")["uid"].tolist() == cs_table(n)["uid"][z > np.median(z)].tolist()
    assert len(cells(here / "s.star")) == len(read_cs(here / "s.cs"))
    # Joined on uid, which only the run's .cs has.
    shuffled = cs_table(n)[np.random.default_rng(0).permutation(n)]
    write_cs(here / "unbinned.cs", shuffled)
    said = emsvae.done("select", run, "--where", where, "--from", "unbinned.cs", "--out", "t.cs").out
    assert f"joined by uid: {n // 2} of {n // 2} selected particles are in unbinned.cs" in said
    wanted = np.isin(shuffled["uid"], read_cs(here / "s.cs")["uid"])
    assert read_cs(here / "t.cs")["uid"].tolist() == shuffled["uid"][wanted].tolist()
    # A column that only the .cs file has, as spelled there.
    emsvae.done("select", run, "--where", f"uid in {tuple(cs_table(n)['uid'][:3].tolist())}", "--out", "v.cs")
    assert read_cs(here / "v.cs")["uid"].tolist() == cs_table(n)["uid"][:3].tolist()
    # With --limit the .cs file goes on behind the run's particles.
    write_cs(run / "particles.cs", cs_table(n + 2), overwrite=True)
    emsvae.done("select", run, "--where", where, "--out", "w.cs", "--excluded", "x.cs")
    assert read_cs(here / "w.cs")["uid"].tolist() == read_cs(here / "s.cs")["uid"].tolist()
    assert len(read_cs(here / "x.cs")) == n + 2 - n // 2
    write_cs(run / "particles.cs", cs_table(n - 1), overwrite=True)
    assert "export it again" in emsvae.refused("select", run, "--where", where, "--out", "u.cs")


def test_vector_fields_without_a_number_and_wrong_kinds(here, emsvae):
    write_cs(here / "p.cs", cs_table())
    assert "the nearest is emsvae/z[" in emsvae.refused("select", "p.cs", "--where", "emsvae/z > 1", "--out", "s.cs")
    assert "holds text" in emsvae.refused("select", "p.cs", "--where", "blob/path > 1", "--out", "s.cs")
    assert "holds numbers" in emsvae.refused("select", "p.cs", "--where", "uid == '1'", "--out", "s.cs")


# ------------------------------------------------------------------------------------------------------ another file


def unbinned(here, extra=0, places=(3, 0, 1, 2)):
    """The four particles in another order and under other names, unbinned, with others between them."""
    picks = open_table(here / "p.star").coordinates()
    assert picks is not None
    rows = [*places, *range(4, 4 + extra)]
    micrographs = [picks.micrographs[m] for m in picks.micrograph_of] + ["other.mrc"] * extra
    xy = np.concatenate([picks.xy_px, np.zeros((extra, 2))]) + 0.004
    table = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1}@Unbinned/{row}.mrcs" for i, row in enumerate(rows)],
            "rlnMicrographName": [micrographs[row] for row in rows],
            "rlnCoordinateX": xy[rows, 0],
            "rlnCoordinateY": xy[rows, 1],
            "rlnOpticsGroup": 1,
        }
    )
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnImagePixelSize": [0.75]})
    write_new(here / "unbinned.star", {"optics": optics, "particles": table}, overwrite=True)


def test_the_unbinned_rows_of_the_same_particles(here, emsvae):
    unbinned(here, extra=2)
    words = ("select", "p.star", "--where", "junk < 0.2", "--from", "unbinned.star", "--out", "s.star")
    said = emsvae.done(*words, "--excluded", "rest.star").out
    assert "joined by micrograph and coordinates: 2 of 2 selected particles are in unbinned.star" in said
    assert "2 of 6 particles (33.3 %): s.star" in said
    assert cells(here / "s.star") == ["2@Unbinned/0.mrcs", "4@Unbinned/2.mrcs"]
    whole, kept, rest = ((here / name).read_text() for name in ("unbinned.star", "s.star", "rest.star"))
    assert set(kept.splitlines()) | set(rest.splitlines()) == set(whole.splitlines())


def test_all_particles_may_be_looked_up(here, emsvae):
    unbinned(here, extra=2)
    emsvae.done("select", "p.star", "--from", "unbinned.star", "--out", "s.star")
    assert len(cells(here / "s.star")) == 4


def test_image_names_with_other_zeros(here, emsvae):
    other = without(0).replace("00000", "").replace("_rlnCoordinateX", "_rlnOther")
    (here / "o.star").write_text(other)
    said = emsvae.done("select", "p.star", "--where", "junk > 0.2", "--from", "o.star", "--out", "s.star").out
    assert "joined by image name: 2 of 2" in said
    assert cells(here / "s.star") == ["1@Extract/a.mrcs", "9@Extract/b#1.mrcs"]


def test_missing_ones(here, emsvae):
    unbinned(here, places=(0, 1))
    words = ("select", "p.star", "--where", "junk < 0.2", "--from", "unbinned.star", "--out", "s.star")
    assert "1 of 2 selected particles are in unbinned.star" in emsvae.refused(*words)
    assert "--allow-missing" in emsvae.refused(*words)
    emsvae.done(*words, "--allow-missing")
    assert cells(here / "s.star") == ["1@Unbinned/0.mrcs"]


def test_files_that_cannot_be_joined(here, emsvae):
    unbinned(here, places=(0, 0, 1, 2))
    words = ("select", "p.star", "--where", "junk < 0.2", "--from", "unbinned.star", "--out", "s.star")
    said = emsvae.refused(*words)
    assert "uid (not in both), image name (0 of 2 found), micrograph and coordinates (fits several rows: 1)" in said
    lines = (here / "unbinned.star").read_text().replace("mic", "mac")
    (here / "unbinned.star").write_text(lines)
    assert "coordinates (0 of 2 found)" in emsvae.refused(*words, "--allow-missing")


def test_results_go_along(run, here, easy_stack, emsvae):
    input_star = easy_stack / "particles.star"
    words = ("select", run, "--where", "emsvaeUsed == 1 and z1 > -9", "--from", input_star)
    emsvae.done(*words, "--with-results", "--out", "s.star")
    emsvae.done("select", run, "--where", "emsvaeUsed == 1 and z1 > -9", "--out", "t.star")
    assert (here / "s.star").read_bytes() == (here / "t.star").read_bytes()
    # Another order, and poses of a 3-D refinement that are somebody else's.
    table = StarFile.read(input_star).block("particles")
    columns = {label: cells[::-1] for label, cells in table.columns(*table.labels).items()}
    columns |= {"rlnAngleTilt": ["30.0"] * 48, "rlnAnglePsi": ["5.25"] * 48}
    write_with_columns(StarFile.read(input_star), "particles", columns, here / "refined.star")
    emsvae.done("select", run, "--where", "z1 > -9", "--from", "refined.star", "--with-results", "--out", "u.star")
    assert cells(here / "u.star") == cells(run / "particles.star")[::-1]
    assert cells(here / "u.star", "emsvaeAnglePsi") == cells(run / "particles.star", "rlnAnglePsi")[::-1]
    assert cells(here / "u.star", "emsvaeZ1") == cells(run / "particles.star", "emsvaeZ1")[::-1]
    assert set(cells(here / "u.star", "rlnAnglePsi")) == {"5.25"}


def test_classes_go_along_when_they_are_the_runs(run, here, easy_stack, emsvae):
    ours = ["2"] * 24 + ["5"] * 24
    for added in ({"rlnClassNumber": ours}, {"emsvaeClassPosterior": ["0.5"] * 48}):
        star = StarFile.read(run / "particles.star")
        write_with_columns(star, "particles", added, run / "particles.star", overwrite=True)
        words = ("select", run, "--where", "class > 2", "--from", easy_stack / "particles.star", "--with-results")
        emsvae.done(*words, "--out", "s.star", "--force")
        assert ("rlnClassNumber" in open_table(here / "s.star").names) == ("emsvaeClassPosterior" in added)
    assert set(cells(here / "s.star", "rlnClassNumber")) == {"5"}


def test_results_of_nobody(here, run, emsvae):
    said = emsvae.refused("select", "p.star", "--from", "run/particles.star", "--with-results", "--out", "s.star")
    assert "cannot be joined" in said
    unbinned(here)
    said = emsvae.refused("select", "p.star", "--from", "unbinned.star", "--with-results", "--out", "s.star")
    assert "holds no results" in said
    assert "--from" in emsvae.refused("select", "p.star", "--where", "class == 4", "--with-results", "--out", "s.star")


# --------------------------------------------------------------------------------------------------------- duplicates


def test_duplicates_among_the_selected(here, emsvae):
    said = emsvae.done("select", "p.star", "--drop-duplicates-a", "7.5", "--out", "s.star").out
    assert (here / "s.star").read_text() == without(0)  # 7.5 A from the third, which is less likely junk
    assert "duplicates within 7.5 A left out: 1; kept: the lower emsvaeJunk" in said
    assert "1.5 A (that of the particle images" in said
    emsvae.done("select", "p.star", "--drop-duplicates-a", "7.49", "--out", "t.star")
    assert (here / "t.star").read_text() == TEXT
    # What --where leaves out takes nothing away.
    words = ("--where", "junk > 0.06", "--drop-duplicates-a", "7.5")
    emsvae.done("select", "p.star", *words, "--out", "u.star")
    assert (here / "u.star").read_text() == without(2)
    words = ("--drop-duplicates-a", "7.5", "--micrograph-pixel-size-a", "1")
    emsvae.done("select", "p.star", *words, "--out", "v.star", "--excluded", "w.star")
    assert (here / "w.star").read_text() == without(1, 2, 3)


# ------------------------------------------------------------------------------------------------------ for the plugin


def test_by_mask(here, run):
    keep = np.array([True, False, False, True])
    write_selection(here / "p.star", keep, here / "s.star", excluded=here / "rest.star")
    assert (here / "s.star").read_text() == without(1, 2)
    assert (here / "rest.star").read_text() == without(0, 3)
    with pytest.raises(OutputExistsError):
        write_selection(here / "p.star", keep, here / "new.star", excluded=here / "rest.star")
    assert not (here / "new.star").exists()
    write_selection(here / "p.star", ~keep, here / "s.star", force=True)
    assert (here / "s.star").read_text() == without(0, 3)
    with pytest.raises(NothingSelectedError, match="nothing was written"):
        write_selection(here / "p.star", np.zeros(4, bool), here / "new.star")
    with pytest.raises(EmsvaeError, match="4 rows, 3 were expected"):
        write_selection(here / "p.star", keep[:3], here / "new.star")
    rows = np.arange(48) % 5 == 2
    write_selection(RunDir(run), rows, here / "run.star")
    names = cells(run / "particles.star")
    assert cells(here / "run.star") == [name for name, kept in zip(names, rows, strict=True) if kept]


def test_both_files_or_neither(here, monkeypatch):
    monkeypatch.setattr("emspatialvae.particles.table.StarTable.write", _second_write_fails())
    with pytest.raises(ZeroDivisionError):
        write_selection(here / "p.star", np.arange(4) < 2, here / "s.star", excluded=here / "rest.star")
    assert [path.name for path in here.iterdir()] == ["p.star"]


def _second_write_fails():
    calls = []

    def write(table, keep, out):
        calls.append(out.write(b"something"))
        if len(calls) == 2:
            raise ZeroDivisionError

    return write


# ---------------------------------------------------------------------------------------------------------- bad input


def test_nothing_selected_is_exit_code_3(here, emsvae):
    for words in (
        ["--where", "junk > 2"],
        ["--where", "junk > 2", "--drop-duplicates-a", "5", "--excluded", "rest.star"],
    ):
        answer = emsvae("select", "p.star", *words, "--out", "s.star")
        assert answer.code == 3
        assert answer.err == "emsvae: none of the 4 particles of p.star meets --where 'junk > 2'; nothing was written\n"
    assert [path.name for path in here.iterdir()] == ["p.star"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "rlnClasNumber == 1"], "the nearest is rlnClassNumber"),
        (["--where", "__import__('os')"], "there are no functions"),
        (["--where", "class == 1 and"], "was expected"),
        (["--where", "rlnMicrographName > 4"], "column rlnMicrographName of data_particles holds text ('mic1.mrc')"),
        ([], "nothing to select by"),
        (["--drop-duplicates-a", "0"], "expected a distance"),
        (["--drop-duplicates-a", "nan"], "expected a distance"),
        (["--drop-duplicates-a", "inf"], "expected a distance"),
        (["--where", "class == 1", "--allow-missing"], "give it with --from"),
        (["--where", "class == 1", "--excluded", "rest.cs"], "must end in .star"),
        (["--where", "class == 1", "--excluded", "s.star"], "name two files"),
        (["--where", "class == 1", "--excluded", "p.star", "--force"], "is what is read"),
        (["--from", "none.star"], "none.star cannot be read"),
        (["--from", "p.mrcs"], "expected a name ending in .star or .cs"),
    ],
)
def test_refused(here, emsvae, words, said):
    assert said in emsvae.refused("select", "p.star", *words, "--out", "s.star")


def test_outputs_that_are_refused(here, emsvae):
    words = ("select", "p.star", "--where", "class == 4", "--out")
    (here / "there.star").write_text("mine")
    (here / "folder.star").mkdir()
    assert "--force" in emsvae.refused(*words, "there.star")
    assert "is a folder" in emsvae.refused(*words, "folder.star", "--force")
    assert "make a .star file" in emsvae.refused(*words, "s.csv")
    assert "make a .star file" in emsvae.refused(*words, "s.cs")
    unbinned(here)
    words = ("select", "p.star", "--where", "class == 4", "--from", "unbinned.star", "--force", "--out")
    assert "rows of unbinned.star make a .star file" in emsvae.refused(*words, "s.cs")
    assert "is what is read" in emsvae.refused(*words, "unbinned.star")
    words = ("select", "p.star", "--where", "class == 4", "--out")
    assert "is what is read" in emsvae.refused(*words, "./p.star", "--force")
    assert "--force" in emsvae.refused(*words, "new.star", "--excluded", "there.star")


def test_sources_that_are_refused(here, run, emsvae):
    words = ("--where", "z1 > 0", "--out", "s.star")
    assert "not a run folder" in emsvae.refused("select", ".", *words)
    assert "cannot be read" in emsvae.refused("select", "none.star", *words)
    assert "expected a name ending in" in emsvae.refused("select", "none", *words)
    assert "is what is read" in emsvae.refused("select", run, *words[:3], run / "particles.star", "--force")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "format": 1000}))
    assert "update it" in emsvae.refused("select", run, *words)
    (run / "config.json").write_text(json.dumps(config))
    (run / "particles.star").unlink()
    assert "--resume" in emsvae.refused("select", run, *words)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            ROWS[2],
            ROWS[2].replace("0.05", "0.05 9"),
            f"line {LINE}: 8 columns found, the labels of data_particles say 7",
        ),
        (ROWS[2], ROWS[2].replace("0.05", ""), f"line {LINE}: 6 columns found"),
        (ROWS[2], ROWS[2].replace("203.000000 1 4", "203.000000 5 4"), "optics group 5, data_optics has [1, 2]"),
        ("_rlnImageName", "_rlnImage", "no block of particles"),
    ],
)
def test_damaged_files(here, emsvae, old, new, said):
    (here / "p.star").write_text(TEXT.replace(old, new))
    assert said in emsvae.refused("select", "p.star", "--where", "voltage == 300", "--out", "s.star")


def test_a_wrong_row_stops_the_writing_too(here):
    (here / "p.star").write_text(TEXT.replace(ROWS[2], ROWS[2].replace("0.05", "")))
    with pytest.raises(EmsvaeError, match=f"line {LINE}: 6 columns found"):
        write_selection(here / "p.star", np.arange(4) == 0, here / "s.star")
    assert [path.name for path in here.iterdir()] == ["p.star"]
