import numpy as np
import pytest
from scipy import stats

from pixeldefend import evaluate


@pytest.mark.parametrize("correct, count", [(0, 5), (5, 5), (1, 3), (9218, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
    found = evaluate.wilson(correct, count)
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-6)


def test_outcomes_become_an_accuracy_and_a_line_of_a_table():
    figures = evaluate.accuracy(np.array([True, False, True, True]))
    assert figures["n"] == 4 and figures["correct"] == 3
    assert figures["low"] < figures["accuracy"] == 0.75 < figures["high"]
    assert "75.00%" in evaluate.accuracy_table({"clean": figures})
