"""The search for grades, against all that there are."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from pixeldefend.defences import graded
from pixeldefend.experiment import grading
from pixeldefend.experiment.grid import CLEAN, Adversary, Pipeline

SEEDS = range(40)


def _case(seed):
    """A few images and candidates; bits that equal a start, and many ties."""
    rng = np.random.default_rng(seed)
    count, candidates, places = rng.integers([1, 1, 0], [12, 5, 6])
    starts = np.sort(rng.choice(np.arange(1, 9), places, replace=False)) / 2
    bits = rng.integers(0, 10, count).astype(np.float32) / 2
    right = rng.random((candidates, count)) < 0.6
    return bits, right, rng.integers(0, 4, count), starts


def _places(bits, grades):
    """The candidate of each image."""
    starts = np.array([start for start, _ in grades[1:]])
    grade = np.sum(~(bits[:, None] < starts), 1)
    return np.array([candidate for _, candidate in grades])[grade]


def _judged(bits, right, weights, grades):
    """Score, grades, roughness: the higher, fewer, lower the better."""
    places = _places(bits, grades)
    score = weights[right[places, np.arange(len(bits))]].sum()
    return int(score), -len(grades), -int(places.sum())


def _every(candidates, starts, most):
    for count in range(min(most, len(starts) + 1)):
        for begun in itertools.combinations(starts, count):
            for chosen in itertools.product(range(candidates), repeat=count + 1):
                yield list(zip((0.0, *begun), chosen, strict=True))


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_grades_are_better(seed, most):
    bits, right, weights, starts = _case(seed)
    found = grading.search(bits, right, weights, starts, most=most)
    assert len(found) <= most and found[0][0] == 0
    judged = _judged(bits, right, weights, found)
    every = _every(len(right), starts, most)
    assert judged == max(_judged(bits, right, weights, one) for one in every)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_grades_are_never_worse_and_one_is_the_best_candidate(seed):
    bits, right, weights, starts = _case(seed)
    scores = [
        _judged(bits, right, weights, grading.search(*_case(seed), most=most))[0]
        for most in range(1, 6)
    ]
    assert scores == sorted(scores)
    assert scores[0] == (right * weights).sum(1).max()
    everywhere = (right.any(0) * weights).sum()
    assert scores[-1] <= everywhere


def test_of_equal_candidates_it_is_the_gentlest_and_one_grade():
    bits = np.linspace(1, 5, 20)
    right = np.ones((3, 20), bool)
    found = grading.search(bits, right, np.ones(20, int), np.arange(1.0, 5.0), most=3)
    assert found == [(0.0, 0)]
    none = grading.search(bits, ~right, np.ones(20, int), np.arange(1.0, 5.0), most=3)
    assert none == [(0.0, 0)]


def test_a_grade_begins_where_gentler_ones_are_right_as_long_as_they_are():
    bits = np.array([1.0, 2.0, 3.0, 4.0])
    gentle, harsh = [True, True, True, False], [False, False, True, True]
    right = np.array([gentle, harsh])
    found = grading.search(bits, right, np.ones(4, int), bits, most=3)
    assert found == [(0.0, 0), (4.0, 1)]  # and not from 3.0 on


def test_an_image_at_a_start_is_in_the_grade_above_as_in_the_defence():
    """Also where the start is no number of float32."""
    bits = np.array([4.1, np.nextafter(np.float32(4.1), np.float32(0))], np.float32)
    right = np.array([[False, True], [True, False]])
    found = grading.search(bits, right, np.ones(2, int), np.array([4.1]), most=2)
    assert found == [(0.0, 0), (4.1, 1)]
    which = np.array([place for _, place in found])
    places = graded.graded_eps(bits, thresholds=np.array([4.1]), eps=which)
    np.testing.assert_array_equal(places, [1, 0])


def test_what_is_no_number_is_in_the_last_grade():
    bits = np.array([1.0, np.nan])
    right = np.array([[True, False], [False, True]])
    found = grading.search(bits, right, np.ones(2, int), np.array([2.0]), most=2)
    assert found == [(0.0, 0), (2.0, 1)]


def _set(attack, bits, candidates, classifier="a"):
    candidates = np.array(candidates, bool)
    none = np.zeros(len(bits), bool)
    row, adversary = Pipeline(classifier), Adversary(attack)
    return grading.Measured(
        row, adversary, np.array(bits, np.float32), none, none, candidates
    )


@pytest.fixture
def sets():
    """The first candidate for clean images, the last for attacked ones, which have
    higher bits/dim but for one; and a set of fewer images."""
    clean = _set(CLEAN, [2.0, 2.5, 3.0, 3.5], [[1, 1, 1, 1], [0, 1, 1, 0]])
    bim = _set("bim", [3.2, 4.0, 4.5, 5.0], [[0, 0, 0, 0], [1, 1, 1, 1]])
    fgsm = _set("fgsm", [4.2, 4.3], [[0, 1], [1, 0]])
    return [clean, bim, fgsm]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_the_shares_of_all_sets_are_one(sets, share):
    found = grading.shares([*sets, _set(CLEAN, [1.0], [[1], [1]], "b")], share)
    assert sum(found) == 1
    assert found[0] == found[3] == Fraction(round(1000 * share), 2000)
    assert found[1] == found[2]


def test_grades_are_those_of_the_highest_weighted_mean(sets):
    def mean(grades):
        right = [grading.graded_right(one, grades) for one in sets]
        return grading.weighted(right, sets, 0.5)

    found = grading.chosen(sets, 0.5, 2)
    # The clean one of 3.5 bits/dim is worth 1/8, the attacked one of 3.2 1/16.
    assert [place for _, place in found] == [0, 1] and 3.5 < found[1][0] <= 4.0
    assert mean(found) == 0.5 * 1 + 0.25 * 3 / 4 + 0.25 / 2
    assert round(found[1][0], 2) == found[1][0]
    assert mean(found) > max(mean([(0.0, 0)]), mean([(0.0, 1)]))
    assert grading.chosen(sets, 0.0, 2) == [(0.0, 1)]
    assert grading.chosen(sets, 1.0, 2) == [(0.0, 0)]
    assert grading.chosen(sets, 0.5, 2) == found


def test_chosen_grades_are_never_worse_than_a_candidate_by_itself():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 30, 3)
        sets = [
            _set(attack, rng.normal(4, 1, size), rng.random((4, size)) < 0.6)
            for attack, size in zip((CLEAN, "bim", "fgsm"), sizes, strict=True)
        ]
        means = []
        for most in (1, 2, 3):
            choice = grading.chosen(sets, 0.4, most)
            right = [grading.graded_right(one, choice) for one in sets]
            means.append(grading.weighted(right, sets, 0.4))
        each = [[one.candidates[place] for one in sets] for place in range(4)]
        assert means[0] == max(grading.weighted(one, sets, 0.4) for one in each)
        assert means == sorted(means)


def test_candidates_are_in_order_and_grades_as_a_config_has_them():
    candidates = grading.gentlest_first((16, 8), (50, 0, 100))
    assert candidates == [(8, 0), (8, 100), (8, 50), (16, 0), (16, 100), (16, 50)]
    found = grading.in_config([(0.0, 1), (4.5, 3), (5.25, 5)], candidates)
    assert str(found) == "((0.0, 8, 100), (4.5, 16), (5.25, 16, 50))"
    read = graded.read_grades(found)
    np.testing.assert_array_equal(read["quality"], [100, 0, 50])
    assert str(grading.in_config([(0.0, 0)], candidates)) == "((0.0, 8),)"


def test_the_table_has_every_set_and_the_mean(sets):
    outcomes = {"gentle": [one.candidates[0] for one in sets]}
    header, lines = grading.table(sets, outcomes, 0.5)
    assert header == ["accuracy", "n", "gentle"]
    assert lines[0] == ["clean, on a", "4", "100.0%"]
    assert [line[2] for line in lines[1:]] == ["0.0%", "50.0%", "62.5%"]
    assert lines[-1][0] == "mean, clean 50%"
