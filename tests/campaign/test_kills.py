"""A few kills of each plan; `make campaign` does them all."""

from dataclasses import replace

import pytest

from tests.campaign import rivals
from tests.campaign.kills import PLANS, survive


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_run_survives_kills_at_random_moments(plan, tmp_path):
    kills = survive(replace(plan, num_kills=3), tmp_path, seed=1)
    assert len(kills) == 3


@pytest.mark.slow
def test_a_run_survives_jobs_that_start_at_once_on_its_directory(tmp_path):
    assert rivals.survive(tmp_path, num_rounds=3, seed=1) >= 3
