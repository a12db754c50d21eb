import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixeldefend.defences import reject

# Few different values, so that many are tied; of few shapes, to compile once.
TIED = hnp.arrays(np.float32, (2, 9), elements=st.integers(-3, 3))
RATES = st.sampled_from([0.0, 0.1, 0.12, 1 / 3, 0.5, 0.9, 1.0])
K = 10


def _bars(scores, rate):
    return np.asarray(reject.thresholds(scores, false_positive_rate=rate))


def _any_above(scores, bars):
    """Image for image and detector for detector."""
    return [
        any(s > bar for s, bar in zip(column, bars, strict=True)) for column in scores.T
    ]


def _searched(scores, rate):
    """Of all k the largest whose k-th highest scores reject few enough."""
    for k in range(scores.shape[1], -1, -1):
        bars = [-np.inf if k == len(own) else np.sort(own)[::-1][k] for own in scores]
        if np.mean(_any_above(scores, bars)) <= rate + 1e-9:
            return bars
    raise AssertionError("without a threshold nothing is rejected")


@st.composite
def _untied(draw):
    """Scores `[D, N]`, no two alike."""
    shape = draw(st.sampled_from([(1, 9), (2, 9), (3, 10)]))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).permuted(
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape), axis=1
    )


@settings(deadline=None, max_examples=60)
@given(_untied(), RATES)
def test_thresholds_are_those_of_a_search_over_all(scores, rate):
    np.testing.assert_array_equal(_bars(scores, rate), _searched(scores, rate))


@settings(deadline=None, max_examples=60)
@given(TIED, RATES)
def test_ties_change_nothing(scores, rate):
    np.testing.assert_array_equal(_bars(scores, rate), _searched(scores, rate))


@settings(deadline=None, max_examples=60)
@given(TIED, RATES)
def test_no_more_than_the_rate_are_rejected(scores, rate):
    found = np.asarray(reject.rejected(scores, _bars(scores, rate)))
    assert found.mean() <= rate + 1e-9


@settings(deadline=None, max_examples=40)
@given(_untied(), RATES)
def test_without_ties_one_rank_more_would_be_too_many(scores, rate):
    bars = _bars(scores, rate)
    if np.isinf(bars).any():
        assert rate == 1 and np.isinf(bars).all()
        return
    ranks = [(own > bar).sum() for own, bar in zip(scores, bars, strict=True)]
    assert len(set(ranks)) == 1  # all detectors reject the same share
    falling = np.sort(scores, 1)[:, ::-1]
    lower = np.append(falling, np.full((len(falling), 1), -np.inf), 1)[:, ranks[0] + 1]
    assert np.mean(_any_above(scores, lower)) > rate


def test_one_detector_alone_rejects_just_the_rate():
    scores = np.random.default_rng(0).permutation(100).astype(np.float32)[None]
    for percent in range(101):  # 0.29 * 100 is less than 29
        bars = _bars(scores, percent / 100)
        assert np.asarray(reject.rejected(scores, bars)).sum() == percent


def test_detectors_that_agree_reject_what_one_does_and_others_share_the_rate():
    scores = np.arange(20, dtype=np.float32)
    alike, opposed = np.stack([scores, 2 * scores]), np.stack([scores, -scores])
    np.testing.assert_array_equal(_bars(alike, 0.2), [15, 30])
    np.testing.assert_array_equal(_bars(opposed, 0.2), [17, -2])


@settings(deadline=None, max_examples=40)
@given(TIED)
def test_a_rate_of_nothing_rejects_none_and_one_of_all_rejects_all(scores):
    assert not np.asarray(reject.rejected(scores, _bars(scores, 0.0))).any()
    np.testing.assert_array_equal(_bars(scores, 0.0), scores.max(1))
    assert np.asarray(reject.rejected(scores, _bars(scores, 1.0))).all()
    np.testing.assert_array_equal(_bars(scores, 1.0), -np.inf)


def test_rejected_is_what_any_detector_finds_too_suspicious():
    scores = jnp.array([[0, 1, 2, 3, 0, jnp.nan, jnp.inf], [5, 0, 0, 9, 6, 0, 0]])
    found = reject.rejected(scores, jnp.array([1.0, 5.0]))
    wanted = [False, False, True, True, True, True, True]  # as high is not above
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == bool


def test_an_image_without_a_score_is_rejected_by_any_threshold():
    scores = jnp.full((1, 1), jnp.nan)
    for bar in (-jnp.inf, 0.0, jnp.inf):
        assert np.asarray(reject.rejected(scores, jnp.array([bar]))).all()


# Found, true, and what each counts as.
TABLE = [
    (3, 3, "right"),
    (0, 0, "right"),
    (4, 3, "wrong"),
    (0, 9, "wrong"),
    (9, 0, "wrong"),
    (K, 3, "rejected"),
    (K, 9, "rejected"),
    (K, 0, "rejected"),
]
FOUND, TRUE, COUNTS = (np.array(column) for column in zip(*TABLE, strict=True))


def test_the_label_of_attacked_stands_beside_the_classes():
    classes = jnp.array([3, 0, 9])
    out = jnp.array([False, True, False])
    found = reject.with_rejection(classes, out, label=K)
    np.testing.assert_array_equal(found, [3, K, 9])
    assert found.dtype == classes.dtype


@pytest.mark.parametrize("attacked", [False, True])
def test_rejecting_is_right_of_attacked_images_only(attacked):
    found = reject.correct(FOUND, TRUE, label=K, attacked=attacked)
    wanted = np.isin(COUNTS, ["right", "rejected"] if attacked else ["right"])
    np.testing.assert_array_equal(found, wanted)


def test_shares_are_those_of_the_table_of_all_cases():
    found = reject.shares(jnp.asarray(FOUND), jnp.asarray(TRUE), label=K)
    assert {name: float(share) for name, share in found.items()} == {
        name: np.mean(COUNTS == name) for name in ("right", "wrong", "rejected")
    }


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.int32, (2, 7), elements=st.integers(0, 3)))
def test_shares_make_up_the_whole_and_give_the_thesis_s_accuracies(pair):
    found, labels = pair[0], np.minimum(pair[1], 2)
    shares = reject.shares(found, labels, label=3)
    assert sum(map(float, shares.values())) == pytest.approx(1)
    whole = np.mean(reject.correct(found, labels, label=3, attacked=True))
    clean = np.mean(reject.correct(found, labels, label=3, attacked=False))
    assert whole == pytest.approx(float(shares["right"] + shares["rejected"]))
    assert clean == pytest.approx(float(shares["right"]))


def test_all_of_it_is_one_program(rng):
    scores = jnp.asarray(rng.normal(size=(2, 40)), jnp.float32)
    classes, labels = jnp.asarray(rng.integers(0, 3, (2, 40)), jnp.int32)

    def judged(scores, classes, labels):
        bars = reject.thresholds(scores, false_positive_rate=0.2)
        out = reject.rejected(scores, bars)
        found = reject.with_rejection(classes, out, label=3)
        right = reject.correct(found, labels, label=3, attacked=True)
        return bars, out, right, reject.shares(found, labels, label=3)

    found = jax.jit(judged)(scores, classes, labels)
    jax.tree.map(np.testing.assert_array_equal, found, judged(scores, classes, labels))
    assert 0 < np.sum(found[1]) <= 8


def test_mistakes_are_named():
    thresholds = functools.partial(reject.thresholds, false_positive_rate=0.1)
    for shape in ((3,), (2, 0), (0, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match="scores must be"):
            thresholds(jnp.zeros(shape))
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="false_positive_rate"):
            reject.thresholds(jnp.zeros((1, 3)), false_positive_rate=rate)
