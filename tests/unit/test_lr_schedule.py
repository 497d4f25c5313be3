"""The learning rate at every step of a short run, against values worked out by hand."""

import pytest
import torch
from torch import nn
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)

from recipes.config.rules import check_settings
from recipes.config.settings import SettingsError, resolve_settings
from recipes.run.lr_schedule import RunLRSchedulers

PEAK, NUM_STEPS = 0.5, 20
WARM_UP = [0.25, 0.5, 0.75, 1.0]
PLATEAU = [1.0] * 12
# The decay's 5 steps: the last four of the run, and where it would go on.
DECAYS = {
    ("linear", 0.0): [0.8, 0.6, 0.4, 0.2, 0.0],
    ("linear", 0.1): [0.82, 0.64, 0.46, 0.28, 0.1],
    ("cosine", 0.0): [0.9045084972, 0.6545084972, 0.3454915028, 0.0954915028, 0.0],
    ("sqrt", 0.0): [0.5527864045, 0.3675444680, 0.2254033308, 0.1055728090, 0.0],
    ("sqrt", 0.1): [0.5975077641, 0.4307900212, 0.3028629977, 0.1950155281, 0.1],
    ("exponential", 0.1): [0.6309573445, 0.3981071706, 0.2511886432, 0.1584893192, 0.1],
    ("exponential", 0.5): [0.8705505633, 0.7578582833, 0.6597539554, 0.5743491775, 0.5],
}


def build(**options) -> tuple[OptimizersContainer, LRSchedulersContainer]:
    """Two groups, of which the second has half of the first one's rate."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    groups = [
        ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs={"lr": lr})
        for pattern, lr in (("a", PEAK), ("b", PEAK / 2))
    ]
    optimizers = OptimizersContainer.Config(param_groups=groups).build(model_parts=[model])
    config = RunLRSchedulers.Config(**{"warmup_steps": 4, "decay_ratio": 0.25, **options})
    return optimizers, config.build(optimizers=optimizers, training_steps=NUM_STEPS)


def rates(
    optimizers: OptimizersContainer, schedulers: LRSchedulersContainer, num_steps: int
) -> list[list[float]]:
    """What the optimizer steps with, per step and group."""
    found = []
    for _ in range(num_steps):
        for parameter in (p for group in optimizers.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        (adamw,) = optimizers
        found.append([group["lr"] for group in adamw.param_groups])
        optimizers.step()
        schedulers.step()
    return found


@pytest.mark.parametrize(("decay", "lowest"), DECAYS)
def test_warm_up_plateau_and_decay_have_the_values_of_their_closed_forms(decay, lowest):
    container = build(decay_type=decay, min_lr_factor=lowest)
    factors = [*WARM_UP, *PLATEAU, *DECAYS[decay, lowest]]
    found = rates(*container, len(factors))
    for number, (first, second) in enumerate(found):
        assert first == pytest.approx(PEAK * factors[number], abs=1e-10), number
        assert second == first / 2
        assert first >= 0.0


@pytest.mark.parametrize(("decay", "lowest"), DECAYS)
def test_without_a_plateau_decay_begins_after_warm_up(decay, lowest):
    """15 steps of decay, of which every third one is one of the 5 above."""
    container = build(decay_type=decay, min_lr_factor=lowest, decay_ratio=None, warmup_steps=5)
    found = [first / PEAK for first, _ in rates(*container, 21)]
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert found[8::3] == pytest.approx(DECAYS[decay, lowest], abs=1e-10)


def test_an_exponential_schedule_that_is_warm_up_only_stays_one():
    container = build(decay_type="exponential", min_lr_factor=0.1, warmup_steps=30)
    found = [first / PEAK for first, _ in rates(*container, NUM_STEPS)]
    assert found == pytest.approx([step / 20 for step in range(1, 21)])


@pytest.mark.parametrize("step", [2, 10, 17])
@pytest.mark.parametrize(("decay", "lowest"), DECAYS)
def test_a_resumed_schedule_goes_on_with_the_same_bits(decay, lowest, step):
    options = {"decay_type": decay, "min_lr_factor": lowest}
    whole = rates(*build(**options), NUM_STEPS)
    optimizers, schedulers = build(**options)
    rates(optimizers, schedulers, step)
    again, resumed = build(**options)
    again.load_state_dict(optimizers.state_dict())
    resumed.load_state_dict(schedulers.state_dict())
    assert resumed.get_metrics() == schedulers.get_metrics()
    assert rates(again, resumed, NUM_STEPS - step) == whole[step:]


def test_an_exponential_decay_to_zero_is_refused_by_name():
    settings = resolve_settings(
        "train_configs/debug.toml", ["--lr_scheduler.decay_type=exponential"]
    )
    with pytest.raises(SettingsError, match=r"^lr_scheduler\.min_lr_factor \(0\.0\) must be gre"):
        check_settings(settings)
