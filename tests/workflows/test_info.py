"""``emsvae info``: which kind of thing a path is."""

import numpy as np
from PIL import Image


def test_a_folder_of_pictures_is_described(emsvae, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((16, 16), 40 * number, np.uint8)).save(tmp_path / f"a{number}.png")
    said = emsvae.done("info", tmp_path).out
    assert said.startswith(f"{tmp_path}: pictures") and "3 particles" in said and "read images of 16 px" in said


def test_a_run_is_described(emsvae, tiny_run):
    assert emsvae.done("info", tiny_run).out.startswith(f"{tiny_run}: a run on")


def test_a_folder_that_is_neither_says_what_could_be_in_it(emsvae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ".png" in emsvae.refused("info", tmp_path)
