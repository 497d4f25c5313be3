"""Numbers out of range are errors, of every option that is a number."""

from copy import deepcopy
from dataclasses import replace
from math import inf, nan
from typing import get_args

import pytest

from recipes.config.rules import check_settings
from recipes.config.schema import load_schema
from recipes.config.settings import SettingsError, resolve_settings

# Options of other modes, and tables that are arrays, have their own tests.
TABLES = [table for table in load_schema() if "." not in table]
MOE = ["--model.flavor=debug_moe", "--activation_checkpoint.mode=memory_budget"]

NUMBERS = {
    f"{table}.{key}": float if float in (option.type, *get_args(option.type)) else int
    for table in TABLES
    for key, option in load_schema()[table].items()
    if {int, float} & {option.type, *get_args(option.type)} and key != "betas"
}
ANY_SIZE = {"training.max_norm"}
"""Infinite means something: no clipping."""

BAD = [
    *((name, -7) for name in NUMBERS),
    *((name, x) for name, kind in NUMBERS.items() if kind is float for x in (nan, inf)),
    *((f"parallelism.{key}_parallel_degree", 0) for key in ("tensor", "context", "pipeline")),
    *(("optimizer.betas", [0.9, beta]) for beta in (-0.1, 1.0, nan)),
    ("comm.train_timeout_seconds", 10**17),
    ("debug.seed", 2**63),
]


def test_the_options_that_are_numbers_are_known():
    assert len(NUMBERS) > 50 and NUMBERS["optimizer.lr"] is float


@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_number_out_of_range_is_an_error_that_names_it(option, value):
    if value == inf and option in ANY_SIZE:
        return
    settings = resolve_settings(None, MOE)
    values = deepcopy(settings.values)
    table, _, key = option.partition(".")
    values[table][key] = value
    with pytest.raises(SettingsError, match=rf"^{option} \(.*\) must "):
        check_settings(replace(settings, values=values))


def test_what_is_in_range_passes():
    check_settings(resolve_settings(None, [*MOE, "--training.max_norm=inf", "--optimizer.eps=0"]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--metrics.log_freq=0", "metrics.log_freq (0) must be at least 1. The default is 10."),
        ("--model.init_std=0", "model.init_std (0.0) must be finite and greater than 0. Leave it "
         "out for the flavor's."),
    ],
)  # fmt: skip
def test_the_message_names_value_rule_and_remedy(argument, message):
    with pytest.raises(SettingsError) as caught:
        check_settings(resolve_settings(None, [*MOE, argument]))
    assert str(caught.value) == f"command line: {message}"
