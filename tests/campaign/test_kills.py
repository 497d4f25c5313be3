"""A few kills of each plan; `make campaign` does them all."""

from dataclasses import replace

import pytest

from tests.campaign.kills import PLANS, survive


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_run_survives_kills_at_random_moments(plan, tmp_path):
    kills = survive(replace(plan, num_kills=3), tmp_path, seed=1)
    assert len(kills) == 3
