"""The optimizer leaves the projector alone before nitp.start_step, and has its state by then."""

import pytest
import torch
from torch import nn
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from nitp.start import HiddenGradients, init_moments

ADAMW = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5}


def build(implementation: str = "fused") -> tuple[nn.ModuleDict, OptimizersContainer]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": nn.Linear(3, 3), "projector": nn.Linear(3, 3)})
    group = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs=ADAMW)
    config = OptimizersContainer.Config(param_groups=[group], implementation=implementation)
    return model, config.build(model_parts=[model])


def copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("gradient", ["none", "zero"])
def test_a_hidden_gradient_leaves_values_moments_and_count(gradient):
    """None after zero_grad(set_to_none=True), zero where CUDA graphs keep the memory."""
    model, optimizers = build()
    initial = copy(model["projector"])
    hidden = HiddenGradients(model["projector"].parameters())
    if gradient == "zero":
        for parameter in model["projector"].parameters():
            parameter.grad = torch.zeros_like(parameter)
    else:
        init_moments(optimizers)
    before = [parameter.grad for parameter in model["projector"].parameters()]
    for _ in range(3):
        for parameter in model["backbone"].parameters():
            parameter.grad = torch.ones_like(parameter)
        hidden.hide()
        optimizers.step()
        hidden.show()
    for parameter, grad in zip(model["projector"].parameters(), before, strict=True):
        assert parameter.grad is grad, "a graph writes into the memory it was captured with"
    for name, value in copy(model["projector"]).items():
        assert torch.equal(value, initial[name]), name
    (optimizer,) = optimizers
    for parameter in model["backbone"].parameters():
        assert optimizer.state[parameter]["step"] == 3
    if gradient == "none":
        for parameter in model["projector"].parameters():
            assert all((value == 0).all() for value in optimizer.state[parameter].values())


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_moments_made_beforehand_are_those_of_a_first_step(implementation):
    """The step after it gives what it gives an optimizer without state, to the last bit."""
    results = []
    for makes_moments in (False, True):
        model, optimizers = build(implementation)
        if makes_moments:
            initial = copy(model)
            init_moments(optimizers)
            assert all(torch.equal(value, initial[name]) for name, value in copy(model).items())
        for scale in (1.0, -0.3):
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, scale * (index + 1))
            optimizers.step()
        results.append({**copy(model), **optimizers.state_dict()})
    first, second = results
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same, name


def test_moments_that_are_there_stay():
    model, optimizers = build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    before = {name: torch.clone(torch.as_tensor(v)) for name, v in optimizers.state_dict().items()
              if torch.is_tensor(v)}  # fmt: skip
    init_moments(optimizers)
    after = optimizers.state_dict()
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())
