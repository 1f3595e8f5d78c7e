"""Half-widths by closed forms and by hand."""

import warnings

import numpy as np
import pytest
from scipy import stats

from emergence_train.analysis.intervals import jackknife_error, mean_reach95, reach95, welch_p, welch_reach95

VALUES = np.array([2.0, 4.0, 9.0])  # mean 5, variance 13


def test_the_mean_of_three_by_hand():
    """The table of Student's t has 4.3027 for two degrees of freedom, 2.2281 for ten."""
    assert mean_reach95(VALUES) == pytest.approx(4.3027 * (13 / 3) ** 0.5, rel=1e-4)
    assert reach95(0.5, 10) == pytest.approx(2.2281 / 2, rel=1e-4)
    assert mean_reach95(np.array([3.0, 3.0])) == 0


def test_the_jackknife_of_a_mean_is_its_standard_error():
    without = np.array([np.delete(VALUES, k).mean() for k in range(3)])
    assert jackknife_error(without, VALUES.mean()) == pytest.approx((13 / 3) ** 0.5)


def test_about_the_whole_a_jackknife_has_the_bias_too():
    """Of the mean's square the leave-one-out mean differs from the whole: squares about it are larger by n times that squared."""
    without = np.array([np.delete(VALUES, k).mean() ** 2 for k in range(3)])
    whole = VALUES.mean() ** 2
    apart = jackknife_error(without, whole) ** 2 - jackknife_error(without, without.mean()) ** 2
    assert apart == pytest.approx(2 / 3 * 3 * (without.mean() - whole) ** 2) and apart > 0


def test_welch_of_equal_groups_is_students_test():
    """Equal sizes and spreads: t = 2 / sqrt(2/3) at 4 degrees of freedom, p from its closed distribution function."""
    first = np.array([1.0, 2.0, 3.0])
    t = 2 / (2 / 3) ** 0.5
    cosine = 1 / (1 + t**2 / 4) ** 0.5
    sine = (1 - cosine**2) ** 0.5
    assert welch_p(first, first + 2) == pytest.approx(1 - sine * (1 + cosine**2 / 2))


@pytest.mark.parametrize("second", [[1.0, 1.5, 7.0, 2.0], [2.1, 2.1, 2.1]])
def test_welch_is_that_of_scipy(second):
    """Also where one group does not vary, without a warning; scipy has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reach, p = welch_reach95(VALUES, np.array(second)), welch_p(VALUES, np.array(second))
        warnings.simplefilter("ignore")
        known = stats.ttest_ind(VALUES, second, equal_var=False)
    ends = known.confidence_interval(0.95)
    assert reach == pytest.approx((ends.high - ends.low) / 2) and p == pytest.approx(known.pvalue)


def test_copies_have_no_interval_of_their_difference():
    """0.1 three times has a mean that is not 0.1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(welch_reach95(np.full(3, 0.1), np.full(4, 2.1)))
        assert np.isnan(welch_p(np.full(3, 0.1), np.full(4, 2.1)))
