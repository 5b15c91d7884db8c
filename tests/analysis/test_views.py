"""Views told apart: what is measured is zero for the truth, and bad for an estimator that says nothing or anything."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from emspatialvae.analysis.accuracy.run_views import evaluate_views, has_views, joined_rows
from emspatialvae.analysis.accuracy.views import (
    angles_deg,
    best_to_class_mean_deg,
    mean_rotation,
    nearest_view,
    neighbours_deg,
    rotations_left,
    to_class_mean_deg,
    view_centres,
    view_scores,
)
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.geometry import view_rotations
from emspatialvae.io import star
from emspatialvae.simulation.crowd import draw_views

N = 3000


@pytest.fixture(scope="module")
def views():
    return draw_views(N, np.random.default_rng(0))


@pytest.fixture(scope="module")
def classes(views):
    """The true views in twenty classes."""
    direction = views.rotations[:, 2]
    return nearest_view(direction, view_centres(direction, 20))


def best_turns(views, classes):
    """In-plane angles that bring the particles of a class as near to each other as can be."""
    rotations = view_rotations(views.rot_rad, views.tilt_rad, 0.0)
    theta = np.zeros(N)
    for number in range(20):
        rows = np.flatnonzero(classes == number)
        b = rotations[rows] @ rotations[rows[0]].T
        theta[rows] = np.arctan2(b[:, 0, 1] - b[:, 1, 0], b[:, 0, 0] + b[:, 1, 1])
    return theta


def left(views, reported_rad):
    return rotations_left(views.rot_rad, views.tilt_rad, views.theta_rad, reported_rad)


# ------------------------------------------------------------------------------------------------------------- rotations


def test_rotations_are_relions_euler_angles():
    """The matrix of RELION's ``Euler_angles2matrix``, written out; psi = -theta."""
    rot, tilt, theta = np.radians([[30.0, -100.0], [50.0, 170.0], [20.0, 77.0]])
    a, b, g = rot, tilt, -theta
    ca, cb, cg, sa, sb, sg = np.cos(a), np.cos(b), np.cos(g), np.sin(a), np.sin(b), np.sin(g)
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    np.testing.assert_allclose(view_rotations(rot, tilt, theta), np.moveaxis(np.array(rows), -1, 0), atol=1e-12)


def test_particles_of_one_view_are_equal_once_they_are_turned_back():
    theta = np.random.default_rng(1).uniform(-np.pi, np.pi, 50)
    rot, tilt = np.full(50, 0.7), np.full(50, 1.1)
    found = rotations_left(rot, tilt, theta, theta - 0.4)  # the frame of a class is anybody's choice
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-12)
    with_wrong_sign = rotations_left(rot, tilt, theta, -theta)
    assert np.median(angles_deg(with_wrong_sign, with_wrong_sign[0])) > 45


def test_angles_and_means_are_those_of_scipy():
    some = Rotation.random(200, rng=np.random.default_rng(2))
    first, second = some[:100], some[100:]
    theirs = np.degrees((first * second.inv()).magnitude())
    np.testing.assert_allclose(angles_deg(first.as_matrix(), second.as_matrix()), theirs, atol=1e-9)
    tiny = Rotation.from_rotvec([1e-9, 0, 0])
    assert angles_deg(tiny.as_matrix(), np.eye(3)) == pytest.approx(np.degrees(1e-9), rel=1e-3)
    near = Rotation.from_rotvec(0.3 * np.random.default_rng(3).standard_normal((40, 3))) * first[0]
    np.testing.assert_allclose(mean_rotation(near.as_matrix()), near.mean().as_matrix(), atol=1e-9)
    assert np.linalg.det(mean_rotation(some.as_matrix())) == pytest.approx(1.0)


# ----------------------------------------------------------------------------------------------------------------- scores


def test_true_classes_at_the_best_angles_are_as_good_as_can_be(views, classes):
    theta = best_turns(views, classes)
    scores = view_scores(left(views, views.theta_rad - theta), classes)
    assert scores.k == 20
    assert scores.view_class_median_deg == pytest.approx(scores.view_best_median_deg, rel=0.03)
    assert scores.view_class_within_30 > 0.97 and scores.view_best_within_30 > 0.97
    # A class is about a cap with a twentieth of the sphere; half of it lies within the cap of half that area.
    assert scores.view_best_median_deg == pytest.approx(np.degrees(np.arccos(1 - 1 / 20)), rel=0.08)


@pytest.mark.parametrize("wrong", ["random classes", "random angles", "one class", "no turns"])
def test_an_estimator_that_says_nothing_is_far_off(views, classes, wrong):
    rng = np.random.default_rng(4)
    theta = views.theta_rad - best_turns(views, classes)
    if wrong == "random classes":
        classes = rng.permutation(classes)
    elif wrong == "one class":
        classes = np.zeros(N)
    else:
        theta = rng.uniform(-np.pi, np.pi, N) if wrong == "random angles" else np.zeros(N)
    scores = view_scores(left(views, theta), classes, peak_weight=np.ones(N))
    assert scores.view_class_median_deg > 60
    assert scores.view_class_within_30 < 0.3
    assert scores.view_sure_wrong == pytest.approx(1 - scores.view_class_within_30)


def test_more_classes_are_tighter_and_the_frame_of_the_truth_does_not_matter(views):
    direction = views.rotations[:, 2]
    medians = [np.median(best_to_class_mean_deg(direction, k)) for k in (5, 20, 80)]
    assert medians[0] > 1.6 * medians[1] > 2.5 * medians[2]
    turned = direction @ Rotation.random(rng=np.random.default_rng(5)).as_matrix()
    assert np.median(best_to_class_mean_deg(turned, 20)) == pytest.approx(medians[1], rel=0.03)


def test_a_class_of_one_is_its_own_mean(views):
    assert to_class_mean_deg(views.rotations[:30], np.arange(30)).max() < 1e-5


def test_neighbours_in_z(views):
    some = replace(views, rot_rad=views.rot_rad % 1.0, tilt_rad=0.5 + views.tilt_rad % 1.0)  # a patch without poles
    rotations = left(some, some.theta_rad)
    z = np.stack([some.rot_rad, some.tilt_rad], -1)
    good = view_scores(rotations, z=z, peak_weight=np.full(N, 0.995))
    assert good.view_neighbour_median_deg < 2
    assert (good.view_neighbours_off, good.view_sure, good.view_sure_wrong) == (0, 1, 0)
    assert good.k is None and good.view_class_median_deg is None
    whole = left(views, views.theta_rad + np.random.default_rng(6).uniform(-np.pi, np.pi, N))
    for useless in (np.random.default_rng(7).standard_normal((N, 2)), np.zeros((N, 2))):
        bad = view_scores(whole, z=useless, peak_weight=np.full(N, 0.995))
        assert bad.view_neighbour_median_deg > 90
        assert bad.view_neighbours_off > 0.97
        assert bad.view_sure_wrong == bad.view_neighbours_off


def test_nobody_is_a_neighbour_of_its_own():
    rotations = Rotation.from_rotvec(np.radians([[0, 0, 0], [0, 0, 10], [0, 0, 40], [0, 0, 90]])).as_matrix()
    found = neighbours_deg(rotations, np.array([[0.0], [1.0], [2.5], [10.0]]))
    np.testing.assert_allclose(found, [[10, 40, 90], [10, 30, 80], [30, 40, 50], [50, 80, 90]], atol=1e-6)
    equal = neighbours_deg(np.broadcast_to(rotations[:1], (30, 3, 3)), np.zeros((30, 1)))
    assert equal.shape == (30, 10)


def test_only_the_sure_count_among_the_sure(views):
    rotations = views.rotations[:100]
    weight = np.where(np.arange(100) < 30, 0.995, 0.9)
    assert view_scores(rotations, np.arange(100), peak_weight=weight).view_sure == pytest.approx(0.3)
    assert view_scores(rotations, np.arange(100), peak_weight=weight).view_sure_wrong == 0
    assert view_scores(rotations, np.arange(100), peak_weight=np.zeros(100)).view_sure_wrong is None


# ------------------------------------------------------------------------------------------------------------- the files


def write_truth(path, names, views, junk=None):
    table = {
        "rlnImageName": names,
        "rlnAngleRot": np.degrees(views.rot_rad),
        "rlnAngleTilt": np.degrees(views.tilt_rad),
        "rlnAnglePsi": -np.degrees(views.theta_rad),
    }
    if junk is not None:
        table["emsvaeTrueJunk"] = junk.astype(int)
    star.write_new(path, {"particles": pd.DataFrame(table)}, overwrite=True)


@pytest.fixture
def files(tmp_path, views, classes):
    """truth.star, and found.star with true classes and angles, in another order, its stack in another folder."""
    n = 400
    some = views[:n]
    junk = np.arange(n) % 8 == 0
    write_truth(tmp_path / "truth.star", [f"{i + 1:06d}@particles.mrcs" for i in range(n)], some, junk)
    angle = -np.degrees(views.theta_rad - best_turns(views, classes))[:n]
    angle[junk] = 0
    table = {
        "rlnImageName": [f"{i + 1}@Extract/job007/particles.mrcs" for i in range(n)],
        "rlnAnglePsi": angle,
        "rlnClassNumber": classes[:n] + 1,
        "rlnMaxValueProbDistribution": np.where(np.arange(n) % 2, 1.0, 0.5),
    }
    order = np.random.default_rng(8).permutation(n)
    found = pd.DataFrame(table).iloc[order]
    star.write_new(tmp_path / "found.star", {"particles": found}, overwrite=True)
    return tmp_path, found


def test_a_star_file_of_any_program(files, emsvae):
    folder, found = files
    words = ["evaluate", folder / "found.star", "--truth", folder / "truth.star"]
    scores = json.loads(emsvae.done(*words, "--json").out)
    assert scores["n"] == 350 and scores["k"] == 20
    assert scores["view_class_within_30"] > 0.95
    assert scores["view_class_median_deg"] < 1.25 * scores["view_best_median_deg"]
    assert scores["view_sure_wrong"] < 0.05 and scores["view_neighbours_off"] is None
    said = emsvae.done(*words).out
    assert "350 particles in 20 classes" in said and "view in class [deg]" in said and "next in z" not in said

    mirrored = found.assign(rlnAnglePsi=-found["rlnAnglePsi"])
    star.write_new(folder / "mirrored.star", {"particles": mirrored}, overwrite=True)
    assert evaluate_views(folder / "mirrored.star", folder / "truth.star").views.view_class_median_deg > 45

    star.write_new(folder / "bare.star", {"particles": found[["rlnImageName", "rlnAnglePsi"]]}, overwrite=True)
    bare = evaluate_views(folder / "bare.star", folder / "truth.star")
    assert bare.views.k == 1 and "no classes" in bare.notes[0]


def test_relion_3_0_and_our_own_columns(files):
    folder, found = files
    scores = evaluate_views(folder / "found.star", folder / "truth.star").views
    text = (folder / "found.star").read_text().replace("data_particles", "data_")
    (folder / "old.star").write_text(text)
    assert evaluate_views(folder / "old.star", folder / "truth.star").views == scores

    truth = star.StarFile.read(folder / "truth.star").block("particles")
    row = [int(name.partition("@")[0]) - 1 for name in found["rlnImageName"]]
    rot, tilt = (truth.read(numbers=[label])[1][label][row] for label in ("rlnAngleRot", "rlnAngleTilt"))
    direction = view_rotations(np.radians(rot), np.radians(tilt), 0.0)[:, 2]
    junk = np.array(row) % 8 == 0
    ours = found.assign(
        emsvaeZ1=direction[:, 0],
        emsvaeZ2=direction[:, 1],
        emsvaeZ3=direction[:, 2],
        emsvaeZ4=1e-3 * np.arange(len(found)) % 0.01,  # says nothing
        emsvaeZStd1=0.1,
        emsvaeJunk=np.where(junk, 0.9, 0.1),
        emsvaeUsed=(np.arange(len(found)) > 9).astype(int),
    )
    star.write_new(folder / "ours.star", {"particles": ours}, overwrite=True)
    judged = evaluate_views(folder / "ours.star", folder / "truth.star")
    assert judged.views.n == np.count_nonzero(~junk[10:])
    assert judged.views.view_neighbour_median_deg is not None
    assert judged.junk is not None and (judged.junk.auc, judged.junk.found, judged.junk.lost) == (1.0, 1.0, 0.0)
    assert "junk score" in judged.table() and judged.as_dict()["junk"]["auc"] == 1.0


def test_a_run_folder(tiny_run, easy_stack, emsvae, tmp_path):
    """Two groups of views that lie apart in z."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    table = pd.read_csv(run / "latents.csv")
    n = len(table)
    rng = np.random.default_rng(9)
    group = np.arange(n) % 2
    views = replace(draw_views(n, rng), rot_rad=np.zeros(n), tilt_rad=0.3 + 1.5 * group)
    table["theta_rad"] = views.theta_rad + 0.5
    table["z1"], table["z2"] = group + 0.01 * rng.standard_normal((2, n))
    table["pose_probability"] = 1.0
    table.to_csv(run / "latents.csv", index=False)
    write_truth(tmp_path / "truth.star", table["image_name"].tolist(), views)
    words = ["evaluate", run, "--truth", tmp_path / "truth.star", "--json"]
    scores = json.loads(emsvae.done(*words).out)
    assert scores["view_neighbour_median_deg"] < 1e-4 and scores["view_neighbours_off"] == 0
    assert scores["view_sure_wrong"] == 0 and scores["k"] is None and "emsvae classes" in scores["notes"][0]

    table["z1"], table["z2"] = rng.standard_normal((2, n))
    table["class_number"], table["class_posterior"] = group + 1, 1.0
    table.to_csv(run / "latents.csv", index=False)
    scores = json.loads(emsvae.done(*words).out)
    assert scores["view_class_median_deg"] < 1e-4 and scores["view_class_within_30"] == 1 and scores["k"] == 2
    assert scores["view_neighbours_off"] > 0.1 and scores["view_sure_wrong"] == scores["view_neighbours_off"]


def test_particles_are_joined_by_name():
    def rows(names, known):
        return joined_rows(names, known, "found.star", "truth.star").tolist()

    assert rows(["2@a.mrcs", "0001@a.mrcs"], ["1@a.mrcs", "000002@a.mrcs"]) == [1, 0]
    assert rows(["1@x/b.mrcs", "1@y/a.mrcs"], ["1@a.mrcs", "1@b.mrcs"]) == [1, 0]
    assert rows(["1@x/a.mrcs"], ["1@y/a.mrcs", "1@x/a.mrcs"]) == [1]  # the whole name comes first
    with pytest.raises(ParticleFileError, match=r"truth\.star: several rows are image 1@y/a\.mrcs"):
        rows(["1@a.mrcs"], ["1@y/a.mrcs", "1@x/a.mrcs"])
    with pytest.raises(ParticleFileError, match=r"found\.star: several rows"):
        rows(["1@a.mrcs", "01@a.mrcs"], ["1@a.mrcs"])
    with pytest.raises(ParticleFileError, match=r"1 of 2 particles of found\.star are not in it, such as 3@a\.mrcs"):
        rows(["1@a.mrcs", "3@a.mrcs"], ["1@a.mrcs"])


def test_what_cannot_be_judged_is_refused(files, easy_stack, emsvae, monkeypatch):
    folder, found = files
    monkeypatch.chdir(folder)
    assert has_views(folder / "truth.star")
    assert not has_views(easy_stack / "truth.star")
    assert "holds no views" in emsvae.refused("evaluate", "found.star", "--truth", easy_stack / "truth.star")
    star.write_new("flat.star", {"particles": found.drop(columns="rlnAnglePsi")}, overwrite=True)
    assert "no column rlnAnglePsi" in emsvae.refused("evaluate", "flat.star", "--truth", "truth.star")
    write_truth(folder / "other.star", ["1@other.mrcs", "2@other.mrcs"], draw_views(2, np.random.default_rng(0)))
    assert "not in it" in emsvae.refused("evaluate", "found.star", "--truth", "other.star")
    assert "gone.star" in emsvae.refused("evaluate", "found.star", "--truth", "gone.star")
