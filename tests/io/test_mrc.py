"""MRC stacks: every oddity that real headers have, and stacks written as a stream."""

import gzip
import io
import os
from contextlib import redirect_stdout

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from emspatialvae.errors import EmsvaeError, OutputExistsError, ParticleFileError
from emspatialvae.io.mrc import StackWriter, read_header, read_images

DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def write_mrc(path, images, mode=2, order="<", extended=b"", stamp=True, machine_stamp=True, extra=b"", **fields):
    """An MRC file by hand, so that every oddity can be made; ``fields`` go into the header last."""
    images = np.asarray(images)
    shape = images.shape if images.ndim == 3 else (1, *images.shape)
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order)).view(np.recarray)
    header.nz, header.ny, header.nx = shape
    header.mz, header.my, header.mx = shape
    header.mode, header.ispg, header.nsymbt = mode, 0, len(extended)
    header.cella.x, header.cella.y = shape[2] * 1.5, shape[1] * 1.5
    if stamp:
        header.map = b"MAP "
    if machine_stamp:
        header.machst = [0x44, 0x44, 0, 0] if order == "<" else [0x11, 0x11, 0, 0]
    for name, value in fields.items():
        part, _, axis = name.partition("_")
        if axis:
            header[part][axis] = value
        else:
            header[name] = value
    path.write_bytes(header.tobytes() + extended + images.astype(order + DTYPES.get(mode, "f4")).tobytes() + extra)
    return path


@pytest.fixture
def images():
    return np.arange(4 * 3 * 5).reshape(4, 3, 5)


@pytest.mark.parametrize("stamps", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", list(DTYPES))
def test_every_mode_in_both_byte_orders_with_and_without_stamps(tmp_path, images, mode, order, stamps):
    path = write_mrc(tmp_path / "a.mrcs", images, mode, order, b"E" * 77, *stamps)
    header = read_header(path)
    assert (header.n_images, header.height, header.width) == (4, 3, 5)
    assert header.dtype == np.dtype(order + DTYPES[mode])
    assert header.offset_bytes == 1024 + 77
    assert header.pixel_size_A == pytest.approx(1.5)
    read = read_images(header, range(4))
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, images)


def test_signed_bytes(tmp_path):
    path = write_mrc(tmp_path / "a.mrcs", np.full((1, 2, 2), -3), mode=0)
    assert (read_images(read_header(path), [0]) == -3).all()


def stamped(path, flags, order="<"):
    """The same file with IMOD's stamp and flags."""
    whole = bytearray(path.read_bytes())
    whole[152:160] = np.array([1146047817, flags], order + "i4").tobytes()
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("flags", "value"), [(0, 253), (4, 253), (1, -3), (5, -3)])
def test_imods_flag_says_whether_bytes_are_signed(tmp_path, order, flags, value):
    path = stamped(write_mrc(tmp_path / "a.mrcs", np.full((1, 2, 2), -3), mode=0, order=order), flags, order)
    header = read_header(path)
    assert header.notes == ()
    assert (read_images(header, [0]) == value).all()


def test_imods_flag_is_about_bytes_only(tmp_path, images):
    header = read_header(stamped(write_mrc(tmp_path / "a.mrcs", images - 30, mode=1), 0))
    np.testing.assert_array_equal(read_images(header, range(4)), images - 30)


def test_bytes_without_a_stamp_are_noted(tmp_path):
    path = write_mrc(tmp_path / "a.mrcs", np.full((1, 2, 2), -3), mode=0, dmin=0, dmax=253)
    (note,) = read_header(path).notes
    assert "signed" in note and "0 as the least and 253 as the greatest" in note


def test_a_stale_extended_header_in_a_whole_file_is_said_and_left_out(tmp_path, images):
    header = read_header(write_mrc(tmp_path / "a.mrcs", images, nsymbt=4096))
    (note,) = header.notes
    assert "extended header of 4,096 bytes" in note and "nsymbt to 0" in note
    np.testing.assert_array_equal(read_images(header, range(4)), images)


def test_images_in_any_order_with_repeats(tmp_path, images):
    header = read_header(write_mrc(tmp_path / "a.mrcs", images))
    for indices in ([3, 0, 3, 1], np.array([2], dtype=np.uint32), [], range(4)):
        wanted = np.asarray(indices, dtype=int)
        np.testing.assert_array_equal(read_images(header, indices), images[wanted])


@pytest.mark.parametrize("index", [4, -1])
def test_an_index_outside_names_file_index_and_number(tmp_path, images, index):
    header = read_header(write_mrc(tmp_path / "a.mrcs", images))
    with pytest.raises(ParticleFileError, match=rf"image {index + 1} .*a\.mrcs.* 4"):
        read_images(header, [0, index])


def test_a_file_that_shrank_after_its_header_was_read(tmp_path, images):
    header = read_header(write_mrc(tmp_path / "a.mrcs", images))
    os.truncate(header.path, 1100)
    with pytest.raises(ParticleFileError, match=r"a\.mrcs"):
        read_images(header, [3])


def test_space_group_1_and_bytes_behind_the_images_do_no_harm(tmp_path, images):
    header = read_header(write_mrc(tmp_path / "a.mrc", images, ispg=1, extra=b"tail"))
    assert (header.n_images, header.ispg) == (4, 1)
    (note,) = header.notes
    assert note.startswith("the file is 4 bytes longer")


def test_a_stack_of_one_image_is_a_stack(tmp_path, images):
    mrcfile.write(tmp_path / "one.mrcs", images[0].astype(np.float32))
    header = read_header(tmp_path / "one.mrcs")
    assert header.n_images == 1
    np.testing.assert_array_equal(read_images(header, [0]), images[:1])


@pytest.mark.parametrize(
    "fields", [{"cella_x": 0}, {"cella_x": 5}, {"mx": 0}, {"cella_x": np.nan}, {"cella_x": np.inf}, {"cella_x": -7}]
)
def test_pixel_sizes_that_mean_unknown(tmp_path, images, fields):
    assert read_header(write_mrc(tmp_path / "a.mrcs", images, **fields)).pixel_size_A is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nz": 9}, r"a\.mrcs.* 9 images .*holds 4"),
        ({"nsymbt": 60, "nz": 5}, "5 images .*holds 3"),
        ({"nsymbt": 10**9, "nz": 5}, "5 images .*holds 0"),
        ({"mode": 4}, "complex"),
        ({"mode": 3}, "complex"),
        ({"mode": 101}, "mode 101"),
        ({"nx": 0}, "0 x 3 x 4"),
        ({"nz": -2}, "-2"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, images, change, message):
    path = write_mrc(tmp_path / "a.mrcs", images, **change)
    with pytest.raises(ParticleFileError, match=message) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_mrc_files(tmp_path, images):
    (tmp_path / "text.mrcs").write_text("data_particles\nloop_\n" + "_rlnImageName #1\n" * 200)
    (tmp_path / "short.mrcs").write_bytes(b"x" * 100)
    (tmp_path / "empty.mrcs").touch()
    (tmp_path / "zeros.mrcs").write_bytes(bytes(5000))
    whole = gzip.compress(write_mrc(tmp_path / "a.mrcs", images).read_bytes())
    (tmp_path / "cut.mrcs.gz").write_bytes(whole[:-20])
    (tmp_path / "half.mrcs.gz").write_bytes(gzip.compress((tmp_path / "a.mrcs").read_bytes()[:1100]))
    expected = {
        "text.mrcs": "not an MRC file",
        "short.mrcs": "100 bytes",
        "empty.mrcs": "0 bytes",
        "zeros.mrcs": "not an MRC file",
        "cut.mrcs.gz": "damaged or cut short",
        "half.mrcs.gz": "promises 4 images .*holds 1",
        "none.mrcs": "No such file",
        ".": "directory",
    }
    for name, message in expected.items():
        with pytest.raises(ParticleFileError, match=message):
            read_header(tmp_path / name)


def write_stack(path, images, pixel_size_A=1.7, **options):
    with StackWriter(path, len(images), images.shape[-1], pixel_size_A, **options) as writer:
        for start in range(0, len(images), 3):
            writer.append(images[start : start + 3])


def test_a_written_stack_is_valid_and_reads_back(tmp_path):
    images = np.random.default_rng(0).normal(1000, 1, (7, 16, 16))
    write_stack(tmp_path / "out.mrcs", images)
    with redirect_stdout(io.StringIO()) as said:
        assert mrcfile.validate(str(tmp_path / "out.mrcs")), said.getvalue()
    header = read_header(tmp_path / "out.mrcs")
    assert (header.n_images, header.dtype, header.ispg) == (7, np.dtype("<f4"), 0)
    assert header.pixel_size_A == pytest.approx(1.7)
    np.testing.assert_array_equal(read_images(header, range(7)), images.astype(np.float32))
    with mrcfile.open(tmp_path / "out.mrcs") as mrc:
        assert mrc.is_image_stack()
        assert float(mrc.header.dmin) == pytest.approx(images.min())
        assert float(mrc.header.dmax) == pytest.approx(images.max())
        assert float(mrc.header.dmean) == pytest.approx(images.mean(), rel=1e-7)
        assert float(mrc.header.rms) == pytest.approx(images.std(), rel=1e-4)


def test_an_unknown_pixel_size_is_written_as_unknown(tmp_path):
    write_stack(tmp_path / "out.mrcs", np.ones((1, 5, 5)), None)
    assert read_header(tmp_path / "out.mrcs").pixel_size_A is None


def test_a_stack_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "out.mrcs"
    with pytest.raises(ValueError, match="3 images announced, 1 written"), StackWriter(path, 3, 4, 1.0) as writer:
        writer.append(np.zeros((1, 4, 4)))
    for wrong in (np.zeros((4, 4, 4)), np.zeros((1, 4, 5)), np.zeros((4, 4)), np.full((1, 4, 4), np.nan)):
        with pytest.raises(ValueError), StackWriter(path, 3, 4, 1.0) as writer:
            writer.append(wrong)
    with pytest.raises(RuntimeError), StackWriter(path, 3, 4, 1.0):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_stack_replaces_another_only_when_told(tmp_path):
    path = tmp_path / "out.mrcs"
    write_stack(path, np.zeros((1, 4, 4)))
    with pytest.raises(OutputExistsError):
        write_stack(path, np.ones((2, 4, 4)))
    write_stack(path, np.ones((2, 4, 4)), overwrite=True)
    assert read_header(path).n_images == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    writer = StackWriter(tmp_path / "out.mrcs", 1, 64, 1.0)
    with pytest.raises(EmsvaeError, match="disk is full"), writer, open("/dev/full", "wb") as full:  # noqa: PTH123
        monkeypatch.setattr(writer, "_stream", full)
        writer.append(np.ones((1, 64, 64)))
        full.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_real_stacks_read_as_mrcfile_reads_them(real_data):
    paths = sorted(real_data.rglob("*.mrc*"))
    assert len(paths) >= 10
    for path in paths:
        header = read_header(path)
        with mrcfile.open(path, permissive=True) as mrc:
            size = float(mrc.voxel_size.x)  # most of them say 0 or 1, which means nothing
            assert header.pixel_size_A == (None if size in (0, 1) else pytest.approx(size))
            np.testing.assert_array_equal(
                read_images(header, range(header.n_images)), mrc.data.reshape(-1, *mrc.data.shape[-2:])
            )
