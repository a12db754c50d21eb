import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from pixeldefend import detection

# Few different values, so that many are tied; of one length, to compile once.
SCORES = st.lists(st.integers(-3, 3), min_size=9, max_size=9)


def _floats(values):
    return np.asarray(values, np.float32)


def _points(curve):
    rates = (np.round(np.asarray(rate, float), 5).tolist() for rate in curve[:2])
    return set(zip(*rates, strict=True))


@settings(deadline=None, max_examples=50)
@given(SCORES, SCORES)
def test_the_area_is_scikit_learns(negatives, positives):
    labels = [0] * len(negatives) + [1] * len(positives)
    scores = -_floats(negatives + positives)
    expected = metrics.roc_auc_score(labels, scores)
    found = detection.auc(_floats(negatives), _floats(positives))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(SCORES, SCORES)
def test_the_curve_is_scikit_learns(negatives, positives):
    labels = [0] * len(negatives) + [1] * len(positives)
    scores = -_floats(negatives + positives)
    wanted = metrics.roc_curve(labels, scores, drop_intermediate=False)
    found = detection.roc(_floats(negatives), _floats(positives))
    assert _points(found) == _points(wanted)
    false, true, thresholds = (np.asarray(a) for a in found)
    for curve in (false, true, thresholds[1:]):
        assert np.all(np.diff(curve) >= 0)
    assert false[0] == true[0] == 0 and false[-1] == true[-1] == 1
    area = np.trapezoid(true, false)
    expected = detection.auc(_floats(negatives), _floats(positives))
    np.testing.assert_allclose(area, expected, atol=1e-5)


def test_training_images_have_uniform_p_values(rng):
    """Drawn from the same law as the reference, which is exact for a rank."""
    values = rng.normal(size=4000).astype(np.float32)
    reference = jnp.sort(jnp.asarray(values[:2000]))
    p = detection.p_values(jnp.asarray(values[2000:]), reference)
    assert detection.distance_from_uniform(p) < 0.05
    two = detection.two_sided_p_values(jnp.asarray(values[2000:]), reference)
    assert detection.distance_from_uniform(two) < 0.05
    assert abs(detection.auc(reference, jnp.asarray(values[2000:])) - 0.5) < 0.03


@settings(deadline=None, max_examples=50)
@given(SCORES, st.lists(st.integers(-4, 4), min_size=5, max_size=5))
def test_two_sided_values_count_both_tails_with_their_ties(reference, values):
    found = detection.two_sided_p_values(_floats(values), jnp.sort(_floats(reference)))
    for value, p in zip(values, np.asarray(found), strict=True):
        low = (1 + sum(r <= value for r in reference)) / (len(reference) + 1)
        high = (1 + sum(r >= value for r in reference)) / (len(reference) + 1)
        assert p == pytest.approx(min(1, 2 * min(low, high)))


def test_an_image_without_a_score_has_no_p_value():
    reference = jnp.arange(4.0)
    found = detection.two_sided_p_values(jnp.array([jnp.nan, 1.0]), reference)
    assert np.isnan(found[0]) and not np.isnan(found[1])


@settings(deadline=None, max_examples=50)
@given(SCORES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_no_higher_threshold_keeps_the_false_positive_rate(scores, rate):
    scores = _floats(scores)
    found = float(detection.threshold_for(scores, false_positive_rate=rate))
    assert np.mean(scores < found) <= rate + 1e-9
    higher = np.nextafter(np.float32(found), np.float32(np.inf))
    assert np.isinf(found) or np.mean(scores < higher) > rate - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=20, max_size=20))
def test_the_distance_from_uniform_is_scipys(values):
    expected = stats.kstest(values, "uniform").statistic
    found = detection.distance_from_uniform(_floats(values))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_reference_that_is_not_sorted_is_refused():
    for function in (detection.p_values, detection.two_sided_p_values):
        with pytest.raises(ValueError, match=r"must be sorted.*np.sort\(reference\)"):
            function(np.array([1.0, 2.0]), np.array([1.0, 3.0, 2.0]))


def test_scores_that_are_no_numbers_count_as_attacks():
    negatives = np.array([1.0, 2.0, 3.0, 4.0])
    found = detection.auc(negatives, np.array([np.nan, np.nan]))
    assert found == 1
    assert detection.auc(np.append(negatives, np.nan), np.array([2.5])) == 0.4


def _others(values):
    """The same numbers in kinds that are not JAX's own."""
    values = np.asarray(values, np.float32)
    return [values.tolist(), values.astype(">f4"), values.astype(">f8")]


def test_lists_and_arrays_of_another_byte_order_are_scores_too():
    innocent, attacked = np.array([0.5, 1.0, 2.0]), np.array([0.25, 1.0])
    for low, high in zip(_others(attacked), _others(innocent), strict=True):
        np.testing.assert_array_equal(detection.p_values(low, high), [0.25, 0.75])
        two_sided = detection.two_sided_p_values(low, high)
        np.testing.assert_array_equal(two_sided, [0.5, 1.0])
        assert float(detection.auc(high, low)) == pytest.approx(4.5 / 6)
        assert float(detection.roc(high, low)[1][1]) == 0.5
        assert float(detection.threshold_for(high, false_positive_rate=0.4)) == 1.0
        assert detection.distance_from_uniform(low) == pytest.approx(0.5)


@pytest.mark.parametrize("scores", [[], 1.0, [[1.0]]])
def test_what_is_no_row_of_scores_is_refused(scores):
    some = np.arange(3.0)
    for call in (
        lambda: detection.p_values(some, scores),
        lambda: detection.two_sided_p_values(some, scores),
        lambda: detection.auc(scores, some),
        lambda: detection.auc(some, scores),
        lambda: detection.roc(scores, some),
        lambda: detection.roc(some, scores),
        lambda: detection.threshold_for(scores, false_positive_rate=0.1),
        lambda: detection.distance_from_uniform(scores),
    ):
        with pytest.raises(ValueError, match="at least one"):
            call()


def test_what_is_no_number_is_rejected_first_by_every_rule():
    """As by `auc`: a score that cannot be computed is the least innocent one."""
    innocent, attacked = np.arange(1.0, 5.0), np.array([np.nan, 2.5])
    false, true, thresholds = detection.roc(innocent, attacked)
    # Rejected already where no innocent image is.
    assert thresholds[0] == -np.inf and true[0] == 0.5 and false[0] == 0
    area = np.trapezoid(np.r_[true, 1], np.r_[false, 1])
    assert area == pytest.approx(float(detection.auc(innocent, attacked)))
    with_none = np.r_[innocent, np.nan]
    kept = detection.threshold_for(with_none, false_positive_rate=0.4)
    assert kept == 2.0  # NaN and 1.0 are below, two of five
    with pytest.raises(ValueError, match="without NaN"):
        detection.p_values(innocent, with_none)


@pytest.mark.parametrize("rate", [-0.1, 1.1, np.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="from 0 to 1"):
        detection.threshold_for(np.arange(3.0), false_positive_rate=rate)
