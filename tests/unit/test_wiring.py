"""What a component needs comes to its constructor, or in one call that it asks for by name."""

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims

from nitp.loss import NITPLoss
from nitp.metrics import NITPMetricsProcessor
from recipes.run.metrics import RunMetricsProcessor
from recipes.run.validate import RunValidator


class Recorder:
    """Takes the place of TensorBoard."""

    metrics: dict[str, float] = {}

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics = metrics


def build(processor: type[NITPMetricsProcessor]) -> Any:
    dims = ParallelDims.from_config(ParallelismConfig(), 1)
    built: Any = processor.Config(disable_color_printing=True).build(parallel_dims=dims)
    built.logger = Recorder()
    built.num_flops_per_token = 1
    built.data_loading_times = [0.1]
    return built


def log(metrics: NITPMetricsProcessor) -> None:
    metrics.log(3, 2.5, 2.75, 1.0, {"lr/all": 1e-3})


def attach_progress(metrics: RunMetricsProcessor) -> None:
    loader: Any = SimpleNamespace(num_tokens={"books": 640}, skips_bad=False)
    metrics.attach_progress(loader=loader, total_steps=5, has_loss=True)


def console(caplog) -> list[str]:
    """TorchTitan's lines and ours about a step."""
    lines = [record.getMessage() for record in caplog.records if record.name == "root"]
    return [line for line in lines if "step" in line]


def test_a_loss_that_is_not_attached_says_so():
    loss = NITPLoss.Config().build()
    with pytest.raises(RuntimeError, match=re.escape("call NITPLoss.attach before")):
        loss.sums.zero_()


def test_metrics_that_are_not_attached_say_so():
    metrics = build(NITPMetricsProcessor)
    for log_something in (log, lambda metrics: metrics.log_validation(2.5, 3)):
        with pytest.raises(RuntimeError, match=re.escape("call NITPMetricsProcessor.attach befo")):
            log_something(metrics)
    metrics.attach(loss=NITPLoss.Config().build(), max_norm=1.0)
    with pytest.raises(RuntimeError, match=re.escape("call NITPMetricsProcessor.start_step befo")):
        log(metrics)


def test_a_runs_metrics_that_are_not_attached_say_so():
    metrics = build(RunMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0)
    with pytest.raises(RuntimeError, match=re.escape("RunMetricsProcessor.attach_progress befo")):
        log(metrics)


def test_nitps_metrics_are_tags_and_leave_torchtitans_console_alone(caplog):
    caplog.set_level(logging.INFO)
    metrics = build(NITPMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0)
    log(metrics)
    assert metrics.logger.metrics["loss_metrics/ntp_loss"] == 2.5
    metrics.log_validation(2.25, 3)
    assert [line.split("loss:")[0].strip() for line in console(caplog)] == [
        "step:  3",
        "validate step:  3",
    ]


def test_a_run_prints_one_line_of_its_own_and_adds_the_datas_figures(caplog):
    caplog.set_level(logging.INFO)
    metrics = build(RunMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0)
    attach_progress(metrics)
    log(metrics)
    assert metrics.logger.metrics["data/tokens_books"] == 640
    assert metrics.logger.metrics["lr/all"] == 1e-3
    assert metrics.last_ntp_loss == 2.5
    metrics.log_validation(2.25, 3)
    training, validation = console(caplog)
    assert training.startswith("step      3  loss   2.5000  grad_norm   1.000  lr 1.00e-03")
    assert validation == "validation  step      3  ntp  2.2500"


@pytest.mark.parametrize(
    ("steps", "global_batch_size", "num_batches"),
    [(3, 24, 18), (3, -1, 3), (-1, 24, -1)],
)
def test_a_validation_step_is_a_global_batch(steps, global_batch_size, num_batches):
    """24 rows on 2 ranks, 2 rows a batch: 6 batches of each rank, so 18 for 3 steps."""
    config = RunValidator.Config(steps=steps, global_batch_size=global_batch_size)
    validator: Any = config.build(
        dp_world_size=2, local_batch_size=2,
        **dict.fromkeys(
            ("parallelism", "dp_rank", "tokenizer", "parallel_dims", "loss_fn",
             "validation_context", "metrics_processor", "seq_len")
        ),
    )  # fmt: skip
    assert validator.config.steps == num_batches
