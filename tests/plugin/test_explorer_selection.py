"""Selections: combining, undoing, naming, keeping."""

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError
from napari_emsvae.explorer.selection import SelectionModel

N = 20
NAMES = np.array([f"{k:06d}@stack.mrcs" for k in range(N)], dtype=object)


def mask(*rows):
    out = np.zeros(N, dtype=bool)
    out[list(rows)] = True
    return out


@pytest.fixture
def model():
    """Of 20 particles the last could not be used."""
    return SelectionModel(~mask(N - 1))


@pytest.mark.parametrize(
    ("how", "expected"),
    [("replace", [2, 3]), ("add", [1, 2, 3]), ("subtract", [1]), ("intersect", [2])],
)
def test_a_selection_is_combined_with_the_one_before(model, how, expected):
    model.apply(mask(1, 2))
    model.apply(mask(2, 3), how)
    np.testing.assert_array_equal(model.rows, expected)
    assert model.count == len(expected)


def test_particles_that_were_not_used_are_never_selected(model):
    model.apply(mask(0, N - 1))
    assert model.rows.tolist() == [0]
    model.invert()
    assert model.count == N - 2 and not model.mask[N - 1]


def test_a_selection_does_not_change_with_what_it_was_made_from(model):
    lasso = mask(4)
    model.apply(lasso)
    lasso[:] = True
    assert model.rows.tolist() == [4]


def test_undo_and_redo_walk_through_masks_and_regions(model):
    model.apply(mask(1, 2))
    model.name_region("left")
    model.clear()
    assert model.undo() and model.rows.tolist() == [1, 2]
    assert model.undo() and model.regions == () and model.count == 2
    assert model.undo() and model.count == 0
    assert not model.undo()
    assert model.redo() and model.redo() and [region.name for region in model.regions] == ["left"]
    model.apply(mask(5))
    assert not model.redo()


def test_regions_keep_their_numbers_and_free_ones_are_used_again(model):
    for name, rows in (("a", (0, 1)), ("b", (1, 2)), ("c", (3,))):
        model.apply(mask(*rows))
        model.name_region(name)
    model.remove_region(2)
    model.apply(mask(7))
    assert model.name_region("d").number == 2
    model.apply(mask(8, 9))
    assert model.name_region("a").number == 1 and model.region(1).count == 2
    np.testing.assert_array_equal(np.unique(model.region_codes()), [0, 1, 2, 3])
    model.rename_region(3, "junk")
    assert [region.name for region in model.regions] == ["a", "d", "junk"]


def test_a_region_needs_particles_and_a_name(model):
    with pytest.raises(EmsvaeError, match="nothing is selected"):
        model.name_region("x")
    model.apply(mask(1))
    with pytest.raises(EmsvaeError, match="needs a name"):
        model.name_region("  ")


def test_every_change_is_told(model):
    told = []
    model.changed = lambda: told.append(model.count)
    model.apply(mask(1, 2))
    model.invert()
    model.undo()
    assert told == [2, N - 3, 2]


def test_what_is_saved_comes_back(model, tmp_path):
    model.apply(mask(1, 5))
    model.name_region("good ones, \N{GREEK SMALL LETTER ALPHA}")
    model.apply(mask(3))
    model.save(tmp_path / "selections.npz", NAMES)
    again = SelectionModel(model.selectable)
    again.load(tmp_path / "selections.npz", NAMES)
    np.testing.assert_array_equal(again.mask, model.mask)
    assert again.regions[0].name == model.regions[0].name
    np.testing.assert_array_equal(again.regions[0].mask, mask(1, 5))
    assert not again.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["selections.npz"]


def test_selections_of_other_particles_are_refused(model, tmp_path):
    model.save(tmp_path / "selections.npz", NAMES)
    with pytest.raises(EmsvaeError, match="other particles"):
        model.load(tmp_path / "selections.npz", NAMES[::-1])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not a zip file at all"])
def test_a_damaged_file_is_told(model, tmp_path, content):
    (tmp_path / "selections.npz").write_bytes(content)
    model.apply(mask(1))
    with pytest.raises(EmsvaeError, match="damaged"):
        model.load(tmp_path / "selections.npz", NAMES)
    assert model.rows.tolist() == [1]


def test_it_says_how_many(model):
    model.apply(mask(1))
    assert model.described() == "1 of 20 particles selected (5 %)"
