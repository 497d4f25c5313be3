"""A trainer that goes past a point where NITP comes in is refused by name, before it updates."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torchtitan.components.checkpointer.base import MODEL

from nitp.checkpoint import NITPCheckpointManager
from nitp.loss import NITPLoss
from nitp.seams import (
    StepBatches,
    check_parts_are_used,
    hand_over_lm_head,
    refuse_updates_without,
)


def test_a_step_that_draws_more_batches_than_it_has_is_refused():
    batches = StepBatches([({}, torch.zeros(1))] * 2, "MyTrainer")
    assert [next(batches) for _ in range(2)] == [({}, torch.zeros(1))] * 2
    batches.check_all_drawn()
    with pytest.raises(ValueError, match="MyTrainer.train_step draws more than the 2 batches"):
        next(batches)


def test_a_step_that_leaves_batches_behind_is_refused():
    batches = StepBatches([({}, torch.zeros(1))] * 3, "MyTrainer")
    next(batches)
    with pytest.raises(ValueError, match="draws 1 of the 3 batches of a step .* Draw as many"):
        batches.check_all_drawn()


@pytest.mark.parametrize("is_reached", [True, False])
def test_no_weight_moves_in_a_step_that_has_not_come_by_the_loss(is_reached):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers: Any = [torch.optim.SGD([weight], lr=0.5) for weight in weights]
    loss: Any = SimpleNamespace(is_reached=is_reached)
    refuse_updates_without(loss, optimizers, "MyTrainer")
    for weight in weights:
        weight.grad = torch.ones(2)
    if is_reached:
        optimizers[0].step()
        assert torch.equal(weights[0], torch.full((2,), 0.5))
        loss.is_reached = False  # looked at once
        optimizers[1].step()
        return
    with pytest.raises(ValueError, match="MyTrainer updates weights without a call of its loss_fn"):
        optimizers[1].step()
    assert all(torch.equal(weight, torch.ones(2)) for weight in weights)


def test_the_unembedding_is_handed_over_once():
    loss = NITPLoss.Config().build()
    decoder: Any = SimpleNamespace(lm_head=nn.Linear(2, 3), _skip_lm_head=False)
    hand_over_lm_head(loss, decoder)
    assert loss.lm_head is decoder.lm_head and decoder._skip_lm_head
    other: Any = SimpleNamespace(lm_head=nn.Linear(2, 3), _skip_lm_head=False)
    hand_over_lm_head(loss, other)
    assert loss.lm_head is decoder.lm_head and not other._skip_lm_head


def test_a_trainer_that_builds_another_loss_is_refused():
    trainer: Any = SimpleNamespace(loss_fn=nn.MSELoss(), metrics_processor=None, model_parts=[None])
    message = (
        r"SimpleNamespace has MSELoss where .* NITPLoss \(loss\): .* Build it from config.loss"
    )
    with pytest.raises(ValueError, match=message):
        check_parts_are_used(trainer)


def test_a_loaders_state_by_itself_loads_into_a_run_with_a_projector(tmp_path):
    """As torchft's replicas save it, each its own."""
    loader: Any = {"dataloader": {"row": torch.tensor(7)}}
    dcp.save(loader, checkpoint_id=tmp_path, no_dist=True)
    manager: Any = object.__new__(NITPCheckpointManager)
    model = SimpleNamespace(
        state_dict=lambda: {"norm.weight": 0}, load_state_dict=lambda state: None
    )
    manager.states, manager._has_projector = {MODEL: model}, True
    manager._allow_projector_change = manager.enable = False
    found: Any = {"dataloader": {"row": torch.tensor(0)}}
    manager.dcp_load(found, str(tmp_path), False, False)
    assert found["dataloader"]["row"] == 7
    with pytest.raises(ValueError, match="it has no projector, which this run trains"):
        manager.dcp_load(found | {"norm.weight": torch.ones(1)}, str(tmp_path), False, False)
