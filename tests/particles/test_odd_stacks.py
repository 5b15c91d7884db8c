"""Stacks that are read, though something about them is odd: `emsvae info` says what, under "odd"."""

import bz2
import gzip
import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.io import compressed
from emspatialvae.io.cs import write_cs
from emspatialvae.io.mrc import StackWriter
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.table import open_table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blobs(n: int = 6, box: int = 24) -> np.ndarray:
    """Bright discs on a dark, noisy ground, one in another place in each image; float32."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:box, :box]
    centres = rng.uniform(8, box - 8, size=(n, 2))
    discs = [np.hypot(x - cx, y - cy) < 5 for cx, cy in centres]
    return (40 * np.array(discs) + rng.normal(0, 5, size=(n, box, box))).astype(np.float32)


def write_stack(path: Path, images: np.ndarray) -> Path:
    with StackWriter(path, len(images), images.shape[-1], 4.0) as stack:
        stack.append(images)
    return path


def as_bytes(path: Path, pixels: np.ndarray, *, imod_flags: int | None) -> Path:
    """A stack in mode 0 with these bytes; with IMOD's stamp where there are flags."""
    write_stack(path, pixels)
    head = bytearray(path.read_bytes()[:1024])
    head[12:16] = bytes(4)
    if imod_flags is not None:
        head[152:160] = np.array([1146047817, imod_flags], "<i4").tobytes()
    path.write_bytes(bytes(head) + pixels.astype(np.uint8).tobytes())
    return path


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_unsigned_bytes_of_imod_keep_their_contrast(emsvae):
    wanted = blobs()
    as_bytes(Path("s.mrcs"), (wanted + 100).clip(0, 255).round(), imod_flags=0)
    images = load_particles(InputConfig(Path("s.mrcs"))).images(slice(None))
    assert correlation(images, wanted) > 0.99
    assert "odd: nothing" in emsvae.done("info", "s.mrcs").out


def test_bytes_of_unknown_sign_are_odd(emsvae):
    as_bytes(Path("s.mrcs"), (blobs() + 100).clip(0, 255).round(), imod_flags=None)
    said = emsvae.done("info", "s.mrcs").out
    odd = said[said.index("odd:") : said.index("train would:")]
    assert "s.mrcs: bytes (mode 0) without IMOD's stamp are read as signed" in odd


def test_an_oddity_of_many_stacks_is_one_sentence(emsvae):
    names = [f"{k}.mrcs" for k in range(5)]
    for name in names:
        as_bytes(Path(name), blobs(1) + 100, imod_flags=None)
    Path("p.star").write_text("data_\n\nloop_\n_rlnImageName #1\n" + "".join(f"1@{name}\n" for name in names) + "\n")
    said = emsvae.done("info", "p.star", "--pixel-size-a", "4").out
    assert said.count("bytes (mode 0)") == 1
    assert "0.mrcs and 4 other stack(s): bytes" in said


def test_a_stale_extended_header_is_odd_and_the_images_are_right(emsvae):
    wanted = blobs()
    path = write_stack(Path("s.mrcs"), wanted)
    whole = bytearray(path.read_bytes())
    whole[92:96] = np.array(8192, "<i4").tobytes()
    path.write_bytes(whole)
    np.testing.assert_array_equal(load_particles(InputConfig(path)).images(slice(None)), wanted)
    assert "extended header of 8,192 bytes (nsymbt)" in emsvae.done("info", path).out


# --------------------------------------------------------------------------------------------------- compressed stacks


def zstd_compress(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="zstandard is not installed").ZstdCompressor().compress(data)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd_compress}


def compress(path: Path, ending: str) -> Path:
    """The file compressed, and gone under its own name."""
    packed = Path(f"{path}{ending}")
    packed.write_bytes(COMPRESS[ending](path.read_bytes()))
    path.unlink()
    return packed


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_stacks_are_read(ending):
    wanted = blobs()
    packed = compress(write_stack(Path("s.mrcs"), wanted), ending)
    bare = load_particles(InputConfig(packed))
    np.testing.assert_array_equal(bare.images([5, 0, 0, 3]), wanted[[5, 0, 0, 3]])
    Path("p.star").write_text(f"data_\n\nloop_\n_rlnImageName #1\n3@{packed}\n1@{packed}\n\n")
    named = load_particles(InputConfig(Path("p.star"), pixel_size_A=4.0))
    np.testing.assert_array_equal(named.images(slice(None)), wanted[[2, 0]])


def test_compressed_stacks_are_odd_for_relion(emsvae):
    said = emsvae.done("info", compress(write_stack(Path("s.mrcs"), blobs()), ".gz")).out
    assert "s.mrcs.gz: compressed (gzip): every command unpacks" in said and "RELION does not read it" in said


def test_many_compressed_stacks_keep_few_files_open(monkeypatch):
    monkeypatch.setattr(compressed, "_KEPT_FILES", 2)
    monkeypatch.setattr(compressed, "_kept", type(compressed._kept)())
    wanted = blobs()
    names = [str(compress(write_stack(Path(f"{k}.mrcs"), image[None]), ".gz")) for k, image in enumerate(wanted)]
    Path("p.star").write_text("data_\n\nloop_\n_rlnImageName #1\n" + "".join(f"1@{name}\n" for name in names) + "\n")
    stack = load_particles(InputConfig(Path("p.star"), pixel_size_A=4.0))
    np.testing.assert_array_equal(stack.images([4, 1, 5, 1]), wanted[[4, 1, 5, 1]])
    assert len(compressed._kept) == 2
    for file in compressed._kept.values():
        file.close()


def test_a_compressed_stack_that_is_replaced_is_read_again():
    first, second = blobs(), blobs()[::-1]
    packed = compress(write_stack(Path("s.mrcs"), first), ".gz")
    assert (load_particles(InputConfig(packed)).images([0]) == first[0]).all()
    packed = compress(write_stack(Path("s.mrcs"), second), ".bz2").rename(packed)
    assert (load_particles(InputConfig(packed)).images([0]) == second[0]).all()


def test_nothing_is_left_of_what_was_unpacked(monkeypatch, here):
    (here / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "scratch"))
    stack = load_particles(InputConfig(compress(write_stack(Path("s.mrcs"), blobs()), ".gz")))
    assert stack.images([0]).any()
    assert not any((here / "scratch").iterdir())


def test_training_and_export_of_a_compressed_stack(emsvae, here):
    packed = compress(write_stack(Path("s.mrcs"), blobs(40)), ".gz")
    emsvae.done("train", packed, "--out", "run", *emsvae.TINY, "--z-dim", "1")
    emsvae.done("export", "run", "--star", "out.star", "--aligned", "out.mrcs")
    assert f"000001@{here / packed}\t" in Path("out.star").read_text()


def test_zstd_without_its_package_says_what_to_install(emsvae, monkeypatch):
    Path("s.mrcs.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install "emspatialvae[zstd]"' in emsvae.refused("info", "s.mrcs.zst")


def test_no_room_to_unpack_names_the_folder(emsvae, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    packed = compress(write_stack(Path("s.mrcs"), blobs()), ".gz")
    monkeypatch.setattr("shutil.copyfileobj", full)
    said = emsvae.refused("info", packed)
    assert tempfile.gettempdir() in said and "TMPDIR" in said


# ----------------------------------------------------------------------- columns of another kind (found by tests/fuzz)


@pytest.mark.parametrize("number", ["nan", "1.5", "inf", "1e12"])
@pytest.mark.parametrize("where", ["data_optics", "data_particles"])
def test_numbers_of_optics_groups_are_whole(emsvae, number, where):
    optics, particles = (number, 1) if where == "data_optics" else (1, number)
    table = f"data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n{optics} 4\n\n"
    table += f"data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n1@s.mrcs {particles}\n\n"
    Path("p.star").write_text(table)
    said = emsvae.refused("info", "p.star")
    missing = where == "data_particles" and number in ("nan", "inf")
    wanted = (
        "rlnOpticsGroup holds no number"
        if missing
        else f"rlnOpticsGroup is {float(number):g} in row 1 of {where}; expected whole"
    )
    assert wanted in said


def test_a_name_too_long_for_any_file_is_not_found(emsvae):
    Path("p.star").write_text(f"data_\n\nloop_\n_rlnImageName #1\n1@{'x' * 300}.mrcs\n\n")
    assert ".mrcs not found; tried" in emsvae.refused("train", "p.star", "--pixel-size-a", "4")


CS_FIELDS = {"uid": "u8", "blob/path": "S9", "blob/idx": "u4", "blob/psize_A": "f4", "alignments2D/pose": "f4"}
CS_FIELDS |= {"alignments2D/shift": "(2,)f4", "alignments2D/psize_A": "f4"}


@pytest.mark.parametrize(
    ("field", "kind", "expected"),
    [
        ("blob/path", "f4", "text"),
        ("blob/idx", "f4", "whole numbers"),
        ("blob/idx", "(2,)u4", "whole numbers"),
        ("blob/psize_A", "S3", "numbers"),
        ("blob/psize_A", "(2,)f4", "numbers"),
        ("alignments2D/shift", "f4", r"numbers of shape (2,)"),
        ("alignments2D/pose", "?", "numbers"),
    ],
)
def test_fields_of_another_kind_are_named(emsvae, field, kind, expected):
    types = CS_FIELDS | {field: kind}
    write_cs(Path("p.cs"), np.zeros(3, list(types.items())))
    said = emsvae.refused("info", "p.cs")
    assert f"p.cs: field {field} holds" in said and f"expected {expected};" in said


# ------------------------------------------------------------------------------------- tables that look like something else


@pytest.mark.parametrize("name", ["p.star.gz", "p.cs.bz2"])
def test_compressed_tables_are_refused_as_such(emsvae, name):
    Path(name).write_bytes(gzip.compress(b"data_\n"))
    assert "is compressed; only stacks (.mrcs.gz and the like) are read so" in emsvae.refused("info", name)


@pytest.mark.parametrize("name", ["p.star", "p.cs"])
def test_compressed_tables_under_a_plain_name_too(emsvae, name):
    Path(name).write_bytes(gzip.compress(b"data_\n" * 100))
    assert f"{name} is compressed (gzip)" in emsvae.refused("info", name)


def test_line_ends_of_old_macintoshes_are_named(emsvae):
    write_stack(Path("s.mrcs"), blobs())
    table = "data_\n\nloop_\n_rlnImageName #1\n1@s.mrcs\n2@s.mrcs\n\n"
    Path("p.star").write_bytes(table.replace("\n", "\r").encode())
    said = emsvae.refused("info", "p.star")
    assert "0x0D" in said and "tr '\\r' '\\n'" in said
    # What it says to do helps.
    Path("p.star").write_bytes(Path("p.star").read_bytes().replace(b"\r", b"\n"))
    assert "2 particles" in emsvae.done("info", "p.star", "--pixel-size-a", "4").out


def test_spaces_without_quotes_in_every_row_are_named_once_with_all_rows(emsvae):
    table = "data_\n\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n"
    Path("p.star").write_text(table + "".join(f"{k}@my stack.mrcs 10000\n" for k in range(1, 41)) + "\n")
    said = emsvae.refused("info", "p.star")
    assert "line 6: 3 columns found" in said
    assert "in all rows, lines 6 to 45" in said
    assert "needs quotes round it: '1@my stack.mrcs'" in said


def test_spaces_without_quotes_in_some_rows_name_these(emsvae):
    table = "data_\n\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n"
    rows = [f"{k}@{'my stack' if k in (2, 3, 7) else 'stack'}.mrcs 10000\n" for k in range(1, 9)]
    Path("p.star").write_text(table + "".join(rows) + "\n")
    assert "in 3 of 8 rows, lines 7 to 8, 12; a name with spaces" in emsvae.refused("info", "p.star")


def test_a_label_too_few_is_named_as_such(emsvae):
    Path("p.star").write_text("data_\n\nloop_\n_rlnImageName #1\n1@s.mrcs 10000\n2@s.mrcs 10000\n\n")
    said = emsvae.refused("info", "p.star")
    assert "in all rows, lines 5 to 6; a label is missing or too many" in said


# ------------------------------------------------------------------------------------------------------------ the y axis


def test_star_and_cs_are_read_without_a_flip_and_info_says_so(emsvae):
    """The same particles as both programs write them: a bright spot high in the image (small y) is where both say it is."""
    images = np.zeros((2, 24, 24), np.float32)
    images[0, 3, 12] = images[1, 20, 7] = 1
    write_stack(Path("s.mrcs"), images)
    Path("p.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 4\n\ndata_particles\n\nloop_\n_rlnImageName #1\n"
        "_rlnOpticsGroup #2\n_rlnMicrographName #3\n_rlnCoordinateX #4\n_rlnCoordinateY #5\n_rlnAnglePsi #6\n_rlnOriginXAngst #7\n"
        "_rlnOriginYAngst #8\n_rlnDefocusU #9\n_rlnDefocusV #10\n_rlnDefocusAngle #11\n_rlnVoltage #12\n_rlnSphericalAberration #13\n"
        "1@s.mrcs 1 m.mrc 100 30 40 4 -8 12000 11000 25 300 2.7\n2@s.mrcs 1 m.mrc 300 170 -90 0 12 12000 11000 25 300 2.7\n\n"
    )
    fields = CS_FIELDS | {"location/micrograph_path": "S9", "location/micrograph_shape": "(2,)u4"}
    fields |= dict.fromkeys(("location/center_x_frac", "location/center_y_frac"), "f4")
    fields |= {f"ctf/{name}": "f4" for name in ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm")}
    table = np.zeros(2, list(fields.items()))
    table["uid"], table["blob/path"], table["blob/idx"], table["blob/psize_A"] = [5, 6], b"s.mrcs", [0, 1], 4
    table["location/micrograph_path"], table["location/micrograph_shape"] = b"m.mrc", (200, 400)
    table["location/center_x_frac"], table["location/center_y_frac"] = [0.25, 0.75], [0.15, 0.85]
    table["alignments2D/pose"], table["alignments2D/psize_A"] = np.radians([40, -90]), 4
    table["alignments2D/shift"] = [(1, -2), (0, 3)]
    table["ctf/df1_A"], table["ctf/df2_A"], table["ctf/df_angle_rad"] = 12000, 11000, np.radians(25)
    table["ctf/accel_kv"], table["ctf/cs_mm"] = 300, 2.7
    write_cs(Path("p.cs"), table)

    star, cs = (load_particles(InputConfig(Path(name))) for name in ("p.star", "p.cs"))
    np.testing.assert_array_equal(star.images(slice(None)), images)
    np.testing.assert_array_equal(cs.images(slice(None)), images)
    assert star.pose is not None and cs.pose is not None and star.ctf is not None and cs.ctf is not None
    np.testing.assert_allclose(cs.pose.theta_rad, star.pose.theta_rad, atol=1e-6)
    np.testing.assert_allclose(cs.pose.shift_px, star.pose.shift_px, atol=1e-6)
    np.testing.assert_allclose(cs.ctf.astigmatism_rad, star.ctf.astigmatism_rad, atol=1e-6)
    places = [open_table(Path(name)).coordinates() for name in ("p.star", "p.cs")]
    assert places[0] is not None and places[1] is not None
    np.testing.assert_allclose(places[0].xy_px, [(100, 30), (300, 170)])
    np.testing.assert_allclose(places[1].xy_px, places[0].xy_px, atol=1e-4)
    for name in ("p.star", "p.cs"):
        assert "y axis: taken as stored" in emsvae.done("info", name).out
    assert "y axis" not in emsvae.done("info", "s.mrcs").out
