import numpy as np
import pytest
from scipy import stats

from pixeldefend.experiment import summaries
from pixeldefend.experiment.rows import accuracy


@pytest.mark.parametrize("correct, count", [(0, 5), (5, 5), (1, 3), (9218, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, count):
    """The ends are the shares from which the outcome is 1.96 deviations away."""
    figures = accuracy(np.arange(count) < correct)
    share = correct / count
    for end in (figures["low"], figures["high"]):
        if end in (0, 1):
            assert share == end
            continue
        deviation = np.sqrt(end * (1 - end) / count)
        assert abs(share - end) / deviation == pytest.approx(1.96, rel=0.02)


def test_outcomes_become_an_accuracy_and_a_line_of_a_table():
    figures = accuracy(np.array([True, False, True, True]))
    assert figures["n"] == 4 and figures["correct"] == 3
    assert figures["low"] < figures["accuracy"] == 0.75 < figures["high"]
    assert "75.00%" in summaries.accuracy_table({"clean": figures})


def test_adaptive_accuracy_leaves_images_below_the_threshold_alone(rng):
    bits, thresholds = rng.uniform(1, 5, 40), np.array([0.0, 2.0, 3.5, 9.0])
    alone, purified = rng.random((2, 40)) < 0.5
    expected = [
        sum(a if b < t else p for b, a, p in zip(bits, alone, purified, strict=True))
        / 40
        for t in thresholds
    ]
    found = summaries.adaptive_accuracy(bits, alone, purified, thresholds)
    np.testing.assert_allclose(found, expected)
    assert found[0] == purified.mean() and found[-1] == alone.mean()


def test_the_threshold_is_the_last_before_any_strongest_accuracy_falls():
    thresholds = np.array([0.0, 1.0, 2.0, 3.0])
    rising = np.array([0.5, 0.6, 0.7, 0.7])
    dips = np.array([0.5, 0.5, 0.4, 0.9])
    assert summaries.highest_safe(thresholds, [rising]) == 3.0
    assert summaries.highest_safe(thresholds, [rising, dips]) == 1.0
    assert summaries.highest_safe(thresholds, [np.array([0.5, 0.4, 0.6, 0.6])]) == 0.0


def test_a_curve_is_shown_in_steps_with_the_chosen_threshold():
    thresholds = [round(0.05 * i, 2) for i in range(25)]
    curve = {"threshold": thresholds, "clean": {"8": thresholds}, "strongest": {}}
    curve["strongest"]["8"] = [0.5] * 25
    header, lines = summaries.threshold_lines(curve, 0.35)
    assert header == [
        "threshold, bits/dim",
        "clean (for eps 8)",
        "strongest attack, eps 8",
    ]
    assert [line[0] for line in lines] == ["0.00", "0.35 (chosen)", "0.50", "1.00"]
    assert lines[1] == ["0.35 (chosen)", "35.0%", "50.0%"]


def test_the_interval_of_an_area_has_hanley_and_mcneils_error():
    # Their example: 58 normal and 51 abnormal images, area 0.893, standard error 0.032.
    low, high = summaries.area_interval(0.893, 51, 58)
    assert (high - low) / 2 / 1.96 == pytest.approx(0.032, abs=0.002)
    assert high - 0.893 < 0.893 - low  # no further than 1
    # With an end at 0 or 1 the other end shrinks with the number, as a share's does.
    for n, far in ((10, 0.8), (100, 0.97)):
        low, high = summaries.area_interval(1.0, n, n)
        assert far - 0.1 < low < 1 and high == 1
        mirrored = summaries.area_interval(0.0, n, n)
        assert mirrored == pytest.approx((1 - high, 1 - low))


def test_the_interval_of_an_area_holds_the_true_one_mostly(rng):
    true = stats.norm.cdf(1.2 / 2**0.5)
    held = []
    for _ in range(400):
        negatives, positives = rng.normal(1.2, 1, 60), rng.normal(0, 1, 30)
        area = np.mean(positives[:, None] < negatives)
        low, high = summaries.area_interval(area, 30, 60)
        held.append(low <= true <= high)
    assert 0.92 < np.mean(held) < 0.985
