"""The commands that a run prints at its end are ones that do what they say."""

from types import SimpleNamespace
from typing import Any

import pytest

from recipes.run.job import _describe_next, _saves


def make_config(total_steps: int | None = None, **checkpoint: bool) -> Any:
    return SimpleNamespace(
        lr_scheduler=SimpleNamespace(total_steps=total_steps),
        checkpoint=SimpleNamespace(**{"enable": True, "load_only": False} | checkpoint),
    )


@pytest.mark.parametrize(
    ("total_steps", "expected"),
    [(None, "--training.steps 80"), (100, "--training.steps 80"), (60, "--training.steps 60")],
)
def test_training_on_doubles_the_steps_within_the_schedule(total_steps, expected):
    line = _describe_next(make_config(total_steps), "python -m recipes.train", 40)
    assert line == f"To train on: python -m recipes.train {expected}"


def test_a_schedule_that_has_ended_offers_no_command_that_would_be_refused():
    line = _describe_next(make_config(40), "python -m recipes.train", 40)
    assert "--training.steps" not in line and "lr_scheduler.total_steps = 40" in line
    assert "checkpoint.initial_load_path" in line


@pytest.mark.parametrize(
    ("checkpoint", "saves"), [({}, True), ({"enable": False}, False), ({"load_only": True}, False)]
)
def test_a_run_that_saves_nothing_is_known_from_its_start(checkpoint, saves):
    assert _saves(make_config(**checkpoint)) == saves
