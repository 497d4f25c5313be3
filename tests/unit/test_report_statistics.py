"""Mean, spread, Student's interval, windows of steps and the phases of a loss."""

import math
from statistics import fmean

import numpy as np
import pytest

from recipes.report.phases import Phases, describe_phases, find_phases
from recipes.report.statistics import (
    Estimate,
    average_windows,
    combine_curves,
    compute_spread,
    estimate_mean,
    student_t_95,
)
from tests.report_runs import NITP_CURVE


@pytest.mark.parametrize(
    ("degrees_of_freedom", "t"),
    # Printed tables of Student's t at 0.975.
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (6, 2.4469), (7, 2.3646),
     (9, 2.2622), (10, 2.2281), (29, 2.0452), (30, 2.0423), (120, 1.9799)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(degrees_of_freedom, t):
    assert student_t_95(degrees_of_freedom) == pytest.approx(t, abs=5.1e-5)


def test_the_interval_of_three_differences():
    """Mean 2, variance ((-1)^2 + 0 + 1) / 2 = 1, half width 4.3027 / sqrt 3."""
    estimate = estimate_mean([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.num) == (2.0, 3)
    assert estimate.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert not estimate.excludes_zero and estimate_mean([11.0, 12.0, 13.0]).excludes_zero


def test_the_spread_is_numpys_sample_deviation():
    values = [*np.random.default_rng(0).normal(5, 2, 7)]
    assert compute_spread(values) == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_nine_of_ten_intervals_would_be_too_few():
    """Of 4000 samples of five normal values, 95 % of the intervals hold the true mean."""
    samples = np.random.default_rng(1).normal(3.0, 0.7, (4000, 5))
    estimates = [estimate_mean(list(sample)) for sample in samples]
    held = fmean(abs(e.mean - 3.0) <= (e.half_width or 0) for e in estimates)
    assert abs(held - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_value_has_no_spread_and_no_interval():
    assert compute_spread([4.0]) is None
    assert estimate_mean([4.0]) == Estimate(4.0, None, 1)
    assert not estimate_mean([4.0]).excludes_zero


def test_a_mean_curve_ends_where_the_first_of_its_curves_does():
    curves = [{1: 1.0, 2: 2.0, 4: 4.0}, {1: 3.0, 2: 6.0, 3: 9.0}]
    assert combine_curves(curves, fmean) == {1: 2.0, 2: 4.0}
    assert combine_curves(curves[:1], compute_spread) == {}
    assert combine_curves([], fmean) == {}


def test_late_steps_are_averaged_over_tenths_of_a_decade():
    """10^0.1 = 1.2589: the last window reaches down to 1000 / 1.2589 = 794.3."""
    curve = {1: 1.0, 2: 2.0, 700: 4.0, 790: 8.0, 800: 1.0, 900: 2.0, 1000: 6.0}
    assert average_windows(curve) == {1: 1.0, 2: 2.0, 790: 6.0, 1000: 3.0}


def test_the_hump_is_between_the_largest_rise():
    assert find_phases(NITP_CURVE) == Phases(trough=4, hump=6)
    assert describe_phases(NITP_CURVE) == "0.100 at step 4, 0.300 at step 6"


def test_a_loss_that_only_falls_has_no_hump():
    curve = {1: 0.9, 2: 0.5, 3: 0.25}
    assert find_phases(curve) is None
    assert describe_phases(curve) == "0.250 at step 3, no hump"


def test_a_rise_of_less_than_half_is_noise():
    assert find_phases({1: 0.9, 2: 0.2, 3: 0.29, 4: 0.1}) is None
    assert find_phases({1: 0.9, 2: 0.2, 3: 0.31, 4: 0.1}) == Phases(2, 3)


def test_no_loss_has_no_phases():
    assert find_phases({}) is None and describe_phases({}) == "-"
