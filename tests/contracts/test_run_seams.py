"""What the run's lifecycle relies on in TorchTitan and PyTorch, frozen as in test_upstream.py."""

import inspect
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components import metrics
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.base import BaseCheckpointManager, purge_thread
from torchtitan.trainer import Trainer

from recipes.run.checkpoint import RunCheckpointManager
from recipes.run.tensorboard import CurvesMetricsProcessor
from recipes.run.trainer import RunTrainer


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def in_order(source: str, *parts: str) -> bool:
    positions = [source.find(part) for part in parts]
    return -1 not in positions and positions == sorted(positions)


def test_the_loop_asks_trains_saves_and_validates_in_this_order():
    assert in_order(
        inspect.getsource(Trainer.train),
        "self.checkpointer.load(",
        "while self.should_continue_training():",
        "self.step += 1",
        "self.train_step(data_iterator)",
        "except DataloaderExhaustedError:",
        "break",
        "self.checkpointer.save(",
        "self.validator.validate(",
    )


def test_a_step_backpropagates_clips_and_updates_in_this_order():
    source = inspect.getsource(Trainer.train_step)
    assert in_order(
        source,
        "for _ in range(self.gradient_accumulation_steps):",
        "loss = self.forward_backward_step(",
        "clip_grad_norm_(",
        "self.optimizers.step()",
        "self.lr_schedulers.step()",
        "if not math.isfinite(global_avg_loss):",
        "self.metrics_processor.log(",
    )


def test_what_is_overridden_exists_with_the_same_parameters():
    pairs = [
        (RunTrainer, Trainer, ["train", "train_step", "init_distributed", "state_dict",
                               "load_state_dict", "should_continue_training"]),
        (RunCheckpointManager, CheckpointManager,
         ["_load", "_save", "_should_save", "_wait_for_saving", "_find_load_step", "dcp_load",
          "_purge_stale_checkpoints", "_states_to_load"]),
    ]  # fmt: skip
    for own, upstream, names in pairs:
        for name in names:
            theirs = getattr(upstream, name)
            assert parameters(getattr(own, name)) == parameters(theirs), name
    assert parameters(CheckpointManager.dcp_save)[:4] == [
        "self", "state_dict", "checkpoint_id", "async_mode",
    ]  # fmt: skip
    for method, hook in (("save", "_save"), ("load", "_load"), ("close", "_close")):
        assert f"self.{hook}(" in inspect.getsource(getattr(BaseCheckpointManager, method))


def test_a_fused_optimizer_skips_its_step_when_found_inf_is_one():
    """What training.on_nonfinite = "skip" rests on; the state's step counter stays as well."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for found, moved in ((0.0, True), (1.0, False)):
        before = weight.detach().clone()
        weight.grad = torch.full((4,), float("nan") if found else 1.0)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert torch.equal(weight, before) != moved
    assert optimizer.state[weight]["step"] == 1
    assert optimizer.state[weight]["exp_avg"].isfinite().all()


def test_metadata_tells_the_extent_of_every_file(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.zeros(9)}, checkpoint_id=tmp_path, no_dist=True)
    (entry,) = FileSystemReader(tmp_path).read_metadata().storage_data.values()
    assert entry.offset + entry.length <= Path(tmp_path, entry.relative_path).stat().st_size
    assert isinstance(CheckpointException("", {0: (ValueError("x"), None)}).failures[0], tuple)


def test_the_curves_are_named_where_they_can_be_named_otherwise():
    assert parameters(metrics._get_metrics_rank) == ["parallel_dims", "pp_schedule"]
    build = inspect.signature(metrics.MetricsProcessor._build_metric_logger).parameters
    own = inspect.signature(CurvesMetricsProcessor._build_metric_logger).parameters
    assert own.keys() - {"kwargs"} <= build.keys()
    assert all(own[name].default == build[name].default for name in own.keys() - {"kwargs"})
    assert parameters(metrics.TensorBoardLogger.__init__) == ["self", "log_dir", "tag"]


def test_old_checkpoints_are_deleted_by_a_function_that_is_given():
    assert parameters(purge_thread) == ["purge_queue", "remove_path"]
    source = inspect.getsource(CheckpointManager.__init__)
    assert in_order(source, "if self.keep_latest_k > 0:", "self.purge_thread.start()")


def test_tensorboard_can_be_flushed_through_torchtitans_loggers():
    container = metrics.LoggerContainer()
    container.add_logger(metrics.BaseLogger())
    assert container._loggers
    assert "self.writer = SummaryWriter(" in inspect.getsource(metrics.TensorBoardLogger)
