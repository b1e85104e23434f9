"""Intervals hold the truth as often as they say; rates of an imperfect judge are corrected."""

import numpy as np
import pytest

from cartouche.config import CartoucheError
from cartouche.metrics import intervals
from cartouche.metrics.intervals import Tally


def test_wilson_is_that_of_scipy_at_every_share():
    from scipy.stats import binomtest

    for right, n in ((0, 7), (7, 7), (50, 100), (3, 2212)):
        wanted = binomtest(right, n).proportion_ci(0.95, "wilson")
        assert intervals.wilson(right, n) == pytest.approx((right / n, wanted.low, wanted.high), abs=1e-12)
    for right, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(CartoucheError, match="n above 0"):
            intervals.wilson(right, n)
    with pytest.raises(CartoucheError, match="level=95"):
        intervals.wilson(1, 2, 95)


def test_pictures_that_go_together_count_as_one():
    together = [True] * 4 + [False] * 4
    assert intervals.effective_size(together * 20, [i // 4 for i in range(160)]) == pytest.approx(40, rel=0.03)
    apart = np.random.default_rng(0).random(4000) < 0.3
    assert intervals.effective_size(list(apart), [i // 4 for i in range(4000)]) == pytest.approx(4000, rel=0.1)
    assert intervals.effective_size([True] * 40, [i // 4 for i in range(40)]) == 10
    assert intervals.effective_size([True, False, True], [1, 2, 3]) == 3


def test_the_bootstrap_of_a_mean_is_nearly_the_normal_interval_and_the_same_twice():
    values = np.random.default_rng(0).normal(3, 1, 400)
    value, low, high = intervals.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert value == values.mean()
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.02)
    assert intervals.bootstrap(values) == (value, low, high)


def test_a_perfect_judges_rate_is_left_alone_and_a_coins_is_not_corrected():
    perfect = Tally(10_000, 10_000)
    assert intervals.rogan_gladen(Tally(30, 100), perfect, perfect).value == pytest.approx(0.3)
    coin = Tally(100, 200)
    assert intervals.rogan_gladen(Tally(30, 100), coin, coin) is None
    assert intervals.youden(Tally(90, 100), Tally(80, 100)).value == pytest.approx(0.7)


def test_the_corrected_rate_has_its_closed_form():
    # true 0.5, judged by one that is right in 0.9 of the good and 0.7 of the bad: it sees 0.5 0.9 + 0.5 0.3 = 0.6
    found = intervals.rogan_gladen(Tally(600, 1000), Tally(90, 100), Tally(70, 100))
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


def covered(rng, true, sensitivity, specificity, known, n):
    """Whether the corrected interval of one experiment holds the true rate."""
    good = rng.binomial(n, true)
    seen = rng.binomial(good, sensitivity) + rng.binomial(n - good, 1 - specificity)
    told = Tally(rng.binomial(known, sensitivity), known), Tally(rng.binomial(known, specificity), known)
    found = intervals.rogan_gladen(Tally(seen, n), *told)
    return found is not None and found.low <= true <= found.high


@pytest.mark.parametrize("judge", [(0.95, 0.9), (0.8, 0.85), (0.7, 0.98), (0.99, 0.995)])
def test_the_corrected_interval_covers_planted_rates_from_a_tenth_to_nine_tenths(judge):
    for true in np.arange(0.1, 0.95, 0.1):
        rng = np.random.default_rng(int(1000 * true))
        share = np.mean([covered(rng, true, *judge, known=200, n=240) for _ in range(1200)])
        assert share >= 0.93, (true, share)


def test_a_judge_made_a_fifth_worse_gives_the_same_corrected_rate():
    rng = np.random.default_rng(5)
    for true in (0.2, 0.5, 0.8):
        for flips in (0.0, 0.2):  # of the verdicts, on true scenes and drawings alike
            se, sp = (0.95 * (1 - flips) + 0.05 * flips,) * 2
            seen = rng.binomial(2000, true * se + (1 - true) * (1 - sp))
            told = Tally(round(1000 * se), 1000), Tally(round(1000 * sp), 1000)
            found = intervals.rogan_gladen(Tally(seen, 2000), *told)
            assert found.low <= true <= found.high


def test_auroc_is_that_of_scikit_learn_ties_included():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)
    scores, positive = rng.integers(0, 12, 300), rng.random(300) < 0.4
    assert intervals.auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert intervals.auroc([1, 2, 3], [False, False, True]) == 1
    with pytest.raises(CartoucheError, match="some of each kind"):
        intervals.auroc([1, 2], [True, True])
