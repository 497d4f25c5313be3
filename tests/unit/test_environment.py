"""The launcher's environment, and what else a run reads of it."""

import re

import pytest

from recipes.command import check_environment
from recipes.config.settings import SettingsError

LAUNCHED = {
    "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("RANK", "2", "must be less than WORLD_SIZE (2)"),
        ("LOCAL_RANK", "1", "must be less than LOCAL_WORLD_SIZE (1)"),
        ("LOCAL_WORLD_SIZE", "0", "must be less than LOCAL_WORLD_SIZE (0)"),
        ("MASTER_PORT", "65536", "must be from 1 to 65535"),
        ("MASTER_PORT", "0", "must be from 1 to 65535"),
        ("WORLD_SIZE", "", "does not go with RANK (1)"),
        ("LOCAL_RANK", "first", "does not go with RANK (1)"),
        ("LOG_RANK", "0, 1", "must be ranks separated by commas"),
        ("SLURM_RESTART_COUNT", "once", "must be a number"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(name, value, rule):
    with pytest.raises(SettingsError, match=f"^environment variable .*{re.escape(rule)}.*unset"):
        check_environment({**LAUNCHED, name: value})


def test_what_torchrun_sets_passes_and_so_does_nothing():
    check_environment({**LAUNCHED, "LOG_RANK": "0,1", "SLURM_RESTART_COUNT": "2"})
    check_environment({"LOG_RANK": "0", "SLURM_RESTART_COUNT": ""})
