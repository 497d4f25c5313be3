"""A checkpoint gives moments and step counts; hyperparameters are the configuration's."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)

from recipes.run.lr_schedule import RunLRSchedulers
from recipes.run.optimizer_state import OptimizerState, apply_learning_rates

FIRST = {"lr": 0.5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SECOND = {"lr": 0.125, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.7}


def build(
    kwargs: dict, name: str, implementation: str, *, has_groups: bool, num_parts: int, **schedule
) -> tuple[nn.ModuleList, OptimizersContainer, LRSchedulersContainer]:
    """Two layers, as one part or as two pipeline stages; biases may have a group of their own."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 2)})
    parts = nn.ModuleList([layers])
    if num_parts == 2:
        parts = nn.ModuleList([nn.ModuleDict({key: layer}) for key, layer in layers.items()])
    patterns = {"bias$": 0.0, ".*": kwargs["weight_decay"]} if has_groups else {".*": None}
    groups = [
        ParamGroupConfig(
            pattern=pattern,
            optimizer_name=name,
            optimizer_kwargs=kwargs if decay is None else kwargs | {"weight_decay": decay},
        )
        for pattern, decay in patterns.items()
    ]
    config = OptimizersContainer.Config(param_groups=groups, implementation=implementation)
    optimizers = config.build(model_parts=[*parts])
    schedulers = RunLRSchedulers.Config(**{"warmup_steps": 2, **schedule}).build(
        optimizers=optimizers, training_steps=4
    )
    return parts, optimizers, schedulers


def train(parts, optimizers, schedulers, num_steps: int) -> None:
    for _ in range(num_steps):
        for parameter in parts.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
        optimizers.step()
        schedulers.step()
    optimizers.zero_grad()


def save(parts, optimizers, schedulers, folder) -> None:
    dcp.save(
        {"optimizer": optimizers, "lr_scheduler": schedulers}, checkpoint_id=folder, no_dist=True
    )


def load(parts, optimizers, schedulers, folder) -> None:
    state = {"optimizer": OptimizerState(optimizers), "lr_scheduler": schedulers}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    apply_learning_rates(schedulers)


def moments(optimizers: OptimizersContainer) -> dict[str, torch.Tensor]:
    state = optimizers.state_dict()
    return {key: value for key, value in state.items() if key.startswith("state.")}


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("has_groups", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("AdamW", "fused"), ("AdamW", "fused")),
        (("AdamW", "fused"), ("Adam", "for-loop")),
        (("Adam", "for-loop"), ("AdamW", "foreach")),
        (("AdamW", "foreach"), ("AdamW", "fused")),
    ],
)
def test_what_was_configured_is_used_whatever_the_checkpoint_was_trained_with(
    tmp_path, first, second, has_groups, num_parts
):
    old = build(FIRST, *first, has_groups=False, num_parts=1)
    train(*old, 3)
    save(*old, tmp_path)
    new = build(SECOND, *second, has_groups=has_groups, num_parts=num_parts, total_steps=6)
    configured = [[dict(group) for group in optimizer.param_groups] for optimizer in new[1]]
    load(*new, tmp_path)
    for optimizer, groups in zip(new[1], configured, strict=True):
        for group, expected in zip(optimizer.param_groups, groups, strict=True):
            # After three steps of a schedule of six: the plateau's one step, and a quarter down.
            assert group == expected | {"lr": 0.125 * 0.75}
    assert {value for key, value in new[2].get_metrics().items()} == {0.125 * 0.75}
    loaded, saved = moments(new[1]), moments(old[1])
    assert loaded.keys() == saved.keys() and len(saved) == 12
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_a_resumed_optimizer_goes_on_with_the_same_bits(tmp_path, implementation):
    """At the last of four steps."""
    whole, parts, again = (
        build(SECOND, "AdamW", implementation, has_groups=True, num_parts=1) for _ in range(3)
    )
    train(*whole, 4)
    train(*parts, 3)
    save(*parts, tmp_path)
    again[0].load_state_dict(parts[0].state_dict())
    load(*again, tmp_path)
    train(*again, 1)
    for one, other in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole[1].state_dict().keys() == again[1].state_dict().keys()
    assert all(map(torch.equal, moments(whole[1]).values(), moments(again[1]).values()))


def test_moments_left_out_begin_anew_at_the_rate_of_the_loaded_step(tmp_path):
    old = build(FIRST, "AdamW", "fused", has_groups=True, num_parts=1)
    train(*old, 3)
    save(*old, tmp_path)
    _, optimizers, schedulers = build(SECOND, "AdamW", "fused", has_groups=True, num_parts=1)
    dcp.load({"lr_scheduler": schedulers}, checkpoint_id=tmp_path, no_dist=True)
    apply_learning_rates(schedulers)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == [0.0625, 0.0625]
    assert not any(optimizer.state for optimizer in optimizers)
