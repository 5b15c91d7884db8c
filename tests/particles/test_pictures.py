"""Pictures as particles: .npy stacks and folders of png, jpg and tif, from the first look to the results."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emspatialvae.config import InputConfig, PrepareConfig
from emspatialvae.io import pictures
from emspatialvae.particles.load import load_particles
from emspatialvae.preprocess.cache import prepared_images
from emspatialvae.preprocess.plan import decide
from emspatialvae.preprocess.preparation import prepare

BERNOULLI = ("--engine", "coordinate", "--noise", "bernoulli")


def dots(n: int = 24, box: int = 16, channels: int = 0) -> np.ndarray:
    """One bright pixel each, at a place (and in a channel) of its own; uint8."""
    rng = np.random.default_rng(3)
    images = np.zeros((n, box, box, channels or 1), np.uint8)
    images[np.arange(n), rng.integers(4, 12, n), rng.integers(4, 12, n), np.arange(n) % (channels or 1)] = 255
    images[:, 0, 0] = np.arange(n)[:, None]  # a number to know each by
    return images if channels else images[..., 0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("dtype", "full"), [("u1", 255), (">u2", 65535), ("<u2", 65535), ("f4", 1), ("f8", 1), ("i2", 1)]
)
def test_values_of_every_kind(here, dtype, full, order):
    images = np.asarray((dots() // 255).astype(int) * full, dtype=dtype, order=order)
    np.save("x.npy", images)
    stack = load_particles(InputConfig(here / "x.npy"))
    assert len(stack) == 24
    assert stack.names[4] == "000005@x.npy"
    np.testing.assert_allclose(stack.images([4, 0, 4]), images[[4, 0, 4]].astype(float) / full)


@pytest.mark.parametrize("axes", ["n h w c", "n c h w"])
def test_colour_in_either_order(here, axes):
    images = dots(channels=3)
    np.save("x.npy", images if axes == "n h w c" else np.moveaxis(images, -1, 1))
    stack = load_particles(InputConfig(here / "x.npy"))
    assert stack.channels == 3
    found = stack.channel_images([7, 2])
    np.testing.assert_allclose(found, np.moveaxis(images, -1, 1)[[7, 2]] / 255)
    np.testing.assert_allclose(stack.images([7, 2]), found.mean(1))


@pytest.mark.parametrize("shape", [(3, 16, 16, 1), (3, 1, 16, 16), (3, 16, 16)])
def test_one_channel_has_three_spellings(here, shape):
    np.save("x.npy", np.random.default_rng(0).random(shape))
    assert load_particles(InputConfig(here / "x.npy")).images([0, 1, 2]).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "png"), ("RGB", "png"), ("L", "tif"), ("I;16", "png"), ("RGBA", "png"), ("RGB", "jpg")]
)
def test_a_folder_is_read_in_the_order_of_names(here, mode, ending):
    folder = here / "pics"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture either")
    colour, images = mode in ("RGB", "RGBA"), {}
    for name in ("b", "c10", "c2", "a b"):
        pixels = (
            np.random.default_rng(len(images)).integers(0, 255, (16, 16, 3) if colour else (16, 16)).astype(np.uint8)
        )
        if ending == "jpg":
            pixels[:] = 40 * len(images)  # survives compression
        images[name] = np.moveaxis(pixels, -1, 0) if colour else pixels[None]
        image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
        (image.convert("RGBA") if mode == "RGBA" else image).save(folder / f"{name}.{ending}")
    stack = load_particles(InputConfig(folder))
    assert [name.rpartition(".")[0] for name in stack.names] == ["a b", "b", "c10", "c2"]
    assert stack.channels == (3 if colour else 1)
    wanted = np.stack([images[name] for name in ("a b", "b", "c10", "c2")]) / 255
    np.testing.assert_allclose(stack.channel_images(slice(None)), wanted, atol=1e-6 if ending != "jpg" else 0.01)
    np.testing.assert_array_equal(stack.channel_images([3, 1]), stack.channel_images(slice(None))[[3, 1]])
    said = " ".join(stack.notes)
    assert "1 other files in the folder are left out" in said
    assert ("transparency" in said) == (mode == "RGBA")


# ----------------------------------------------------------------------------------------------------------- preparing


def test_pictures_are_taken_as_they_are(here):
    """Nothing is turned, scaled, cropped or repaired, and what is assumed is said."""
    images = dots(channels=3)
    images[3, 8, 8, 2] = 255
    np.save("x.npy", images)
    stack = load_particles(InputConfig(here / "x.npy"))
    preparation, said, _ = decide(stack, PrepareConfig(), bernoulli=True)
    assert any("values from 0 to 1 taken as they are" in sentence for sentence in said)
    assert "contrast kept" in said
    prepared = prepared_images(stack, preparation, here / "cache", "float32")
    assert prepared.pixels.shape == (24, 3, 16, 16)
    np.testing.assert_allclose(
        prepared.portion(np.arange(24)).images, np.moveaxis(images, -1, 1) / np.float32(255), atol=1e-7
    )


def test_a_channel_may_be_empty_but_not_all_of_them(here):
    images = np.zeros((3, 16, 16, 3), np.float32)
    images[0, 5, 5, 0] = 1
    images[1] = 0.5
    images[2, 5, 5, 1] = np.nan
    np.save("x.npy", images)
    stack = load_particles(InputConfig(here / "x.npy"))
    preparation, _, _ = decide(stack, PrepareConfig(), bernoulli=True)
    (portion,) = prepare(stack, preparation)
    assert portion.usable.tolist() == [True, False, False]
    assert not portion.images[1:].any()


def test_normalised_where_asked_and_where_the_steerable_engine_needs_it(here):
    np.save("x.npy", np.random.default_rng(0).random((30, 20, 20)) + 5)
    stack = load_particles(InputConfig(here / "x.npy"))
    for asked, engine in (("yes", "coordinate"), ("auto", "steerable")):
        preparation, said, _ = decide(stack, PrepareConfig(normalise=asked), engine=engine)
        assert preparation.normalise
        assert not preparation.invert
        assert any("background brought to mean 0" in sentence for sentence in said)
    assert not decide(stack, PrepareConfig(), engine="coordinate")[0].normalise


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(emsvae, *words) -> str:
    return emsvae.refused("train", *words, *BERNOULLI, *emsvae.TINY, "--out", "run")


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((16, 16)), r"shape \[16, 16\].*expected pictures as \[n, h, w\]"),
        (np.zeros((2, 3, 4, 16, 16)), "expected pictures as"),
        (np.zeros((5, 16, 20)), "not square"),
        (np.zeros((5, 16, 20, 3)), "not square"),
        (np.zeros((5, 16, 16, 16)), "may be"),
        (np.zeros((0, 16, 16)), "no picture"),
        (np.zeros((5, 16, 16), complex), "complex128"),
        (np.full((5, 16, 16), "a"), "expected real numbers"),
        (np.array([None, {}] * 5, dtype=object), "not a .npy file of plain numbers"),
        (np.full((30, 16, 16), np.nan), "every image is constant or holds NaN"),
        (np.linspace(-1, 2, 30 * 256).reshape(30, 16, 16), "pictures must lie between 0 and 1, found -1 to 2"),
    ],
)
def test_bad_arrays_are_one_line(here, emsvae, array, why):
    np.save("x.npy", array, allow_pickle=True)
    line = refused(emsvae, "x.npy")
    assert "x.npy" in line or "pictures must lie" in line
    assert re.search(why, line), line


@pytest.mark.parametrize("content", [b"", b"not numpy at all", b"\x93NUMPY\x01\x00"])
def test_damaged_arrays_are_one_line(here, emsvae, content):
    (here / "x.npy").write_bytes(content)
    assert "not a .npy file" in refused(emsvae, "x.npy")


def test_a_cut_array_is_one_line(here, emsvae):
    np.save("x.npy", dots())
    whole = (here / "x.npy").read_bytes()
    (here / "x.npy").write_bytes(whole[:-100])
    assert "not a .npy file" in refused(emsvae, "x.npy")


def test_bad_folders_are_one_line(here, emsvae):
    folder = here / "pics"
    folder.mkdir()
    assert "without pictures" in refused(emsvae, "pics")
    Image.new("L", (16, 16)).save(folder / "a.png")
    for name, picture, why in (
        ("b.png", Image.new("L", (18, 18)), "b.png is 18 px"),
        ("b.png", Image.new("RGB", (16, 16)), "3 channels"),
        ("b.png", Image.new("L", (16, 17)), "expected square"),
    ):
        picture.save(folder / name)
        assert why in refused(emsvae, "pics")
        (folder / name).unlink()
    (folder / "b.png").write_text("not a picture")
    assert "cannot be read" in refused(emsvae, "pics")
    (folder / "b.png").unlink()
    frames = [Image.new("L", (16, 16)) for _ in range(3)]
    frames[0].save(folder / "b.tif", save_all=True, append_images=frames[1:])
    assert "holds 3 pictures" in refused(emsvae, "pics")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--engine", "steerable"), "the steerable engine sees one"),
        (("--engine", "coordinate", "--ctf", "phase-flip"), "have no CTF"),
        ((*BERNOULLI, "--normalise", "yes"), "needs values from 0 to 1"),
    ],
)
def test_what_colour_cannot_have(here, emsvae, words, why):
    np.save("x.npy", dots(channels=3))
    assert why in emsvae.refused("train", "x.npy", *words, "--out", "run")


def test_normalise_no_belongs_to_the_coordinate_engine(here, emsvae):
    np.save("x.npy", dots())
    assert "use --engine coordinate" in emsvae.refused("train", "x.npy", "--normalise", "no", "--out", "run")


# ---------------------------------------------------------------------------------------------------- from end to end


@pytest.mark.parametrize("channels", [0, 3])
def test_from_pictures_to_results_and_back(here, emsvae, channels):
    """Train, export, infer others, select some, and train on these: without a STAR file to begin with."""
    images = dots(40, channels=channels)
    images[5] = 9
    np.save("x.npy", images)
    said = emsvae.done("train", "x.npy", "--out", "run", *BERNOULLI, *emsvae.TINY).out
    for what in (
        "8-bit values over 255",
        "1 A per pixel",
        "RELION reads no pictures",
        "left out of training: 000006@x.npy",
    ):
        assert what in said
    assert json.loads((here / "run" / "config.json").read_text())["images"]["channels"] == (channels or 1)
    table = pd.read_csv("run/latents.csv")
    assert table["image_name"].tolist() == [f"{n + 1:06d}@x.npy" for n in range(40)]
    assert table["used"].tolist() == [int(n != 5) for n in range(40)]
    emsvae.done("export", "run", "--aligned", "aligned.npy", "--csv", "out.csv")
    aligned = np.load("aligned.npy")
    assert aligned.shape == images.shape
    np.testing.assert_allclose(aligned[5], images[5] / 255)  # the one that could not be used, as it was
    np.save("y.npy", images[:3])
    emsvae.done("infer", "run", "y.npy", "--out", "y.csv")
    assert len(pd.read_csv("y.csv")) == 3
    emsvae.done("select", "run", "--where", "z1 > -100", "--out", "some.star")
    assert len(load_particles(InputConfig(here / "some.star"))) == 39
    emsvae.done("train", "some.star", "--out", "again", *BERNOULLI, *emsvae.TINY)


def test_colour_does_not_go_into_mrc(here, emsvae):
    np.save("x.npy", dots(channels=3))
    emsvae.done("train", "x.npy", "--out", "run", *BERNOULLI, *emsvae.TINY)
    assert "end the name in .npy" in emsvae.refused("export", "run", "--aligned", "aligned.mrcs")
    np.save("y.npy", dots())
    assert "trained on 3" in emsvae.refused("infer", "run", "y.npy", "--out", "y.csv")


def test_a_folder_from_end_to_end(here, emsvae):
    (here / "pics").mkdir()
    for n, image in enumerate(dots(30)):
        Image.fromarray(image).save(here / "pics" / f"digit {n:03d}.png")
    emsvae.done("train", "pics", *BERNOULLI, *emsvae.TINY)
    table = pd.read_csv("pics_emsvae/latents.csv")
    assert table["image_name"].tolist() == [f"digit {n:03d}.png" for n in range(30)]
    emsvae.done("export", "pics_emsvae", "--aligned", "aligned.npy")
    assert np.load("aligned.npy").shape == (30, 16, 16)
    assert len(load_particles(InputConfig(here / "pics_emsvae" / "particles.star"))) == 30


def test_a_stream_of_pictures_is_what_was_written(here):
    images = np.random.default_rng(0).random((7, 3, 16, 16)).astype(np.float32)
    with pictures.npy_writer(here / "x.npy", 7, "n h w c", 3, 16, overwrite=False) as append:
        append(images[:4])
        append(images[4:])
    np.testing.assert_array_equal(np.load("x.npy"), np.moveaxis(images, 1, -1))
    with (
        pytest.raises(ValueError, match="announced"),
        pictures.npy_writer(here / "y.npy", 7, "n c h w", 3, 16, overwrite=False) as append,
    ):
        append(images[:4])
    assert not (here / "y.npy").exists()
