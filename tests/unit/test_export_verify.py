"""What of two sets of logits is compared, and what a near-tie of the router leaves out."""

import math

import torch

from recipes.export.verify import NEAR_TIE, Comparison

OURS_LV = torch.zeros(4, 3)
CLEAR_L = torch.full((4,), float("inf"))


def test_the_largest_difference_of_all_rows_is_kept():
    comparison = Comparison(depth=1)
    for difference in (1e-6, 3e-5, 2e-6):
        theirs_LV = OURS_LV.clone()
        theirs_LV[2, 1] = -difference
        assert comparison.add(OURS_LV, theirs_LV, CLEAR_L) == 4
    assert math.isclose(comparison.max_difference, 3e-5, rel_tol=1e-6)
    assert (comparison.num_positions, comparison.num_left_out) == (12, 0)


def test_not_a_number_is_no_agreement():
    comparison = Comparison(depth=1)
    comparison.add(OURS_LV, torch.full((4, 3), float("nan")), CLEAR_L)
    comparison.add(OURS_LV, OURS_LV, CLEAR_L)
    assert math.isnan(comparison.max_difference)


def test_a_near_tie_leaves_out_its_position_and_those_after_it():
    gap_L = torch.tensor([1.0, 2 * NEAR_TIE, NEAR_TIE / 2, 1.0])
    theirs_LV = OURS_LV.clone()
    theirs_LV[2:] = 7.0
    comparison = Comparison(depth=1)
    assert comparison.add(OURS_LV, theirs_LV, gap_L) == 2
    assert (comparison.max_difference, comparison.num_left_out) == (0.0, 2)
    assert comparison.add(OURS_LV, theirs_LV, torch.zeros(4)) == 0
