"""What a component needs comes to its constructor, or in one call that it asks for by name."""

import logging
import math
import re
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims

from nitp.config import GeometryConfig
from nitp.geometry import Moments
from nitp.loss import NITPLoss
from nitp.meter import GeometryMeter, Reading
from nitp.metrics import NITPMetricsProcessor
from recipes.data.validation_sets import ValidationSet
from recipes.run.metrics import RunMetricsProcessor
from recipes.run.tensorboard import CurvesLogger
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


def attach_progress(metrics: RunMetricsProcessor, total_steps: int = 5) -> None:
    loader: Any = SimpleNamespace(num_tokens={"books": 640}, skips_bad=False)
    metrics.attach_progress(loader=loader, total_steps=total_steps, has_loss=True)


def console(caplog) -> list[str]:
    """TorchTitan's lines and ours about a step."""
    lines = [record.getMessage() for record in caplog.records if record.name == "root"]
    return [line for line in lines if "step" in line]


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "has_color"),
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False)],
)
def test_color_is_for_terminals_and_no_color_turns_it_off(
    monkeypatch, is_terminal, no_color, has_color
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    dims = ParallelDims.from_config(ParallelismConfig(), 1)
    metrics: Any = RunMetricsProcessor.Config().build(parallel_dims=dims)
    assert bool(metrics.color.red) == has_color


def test_curves_that_cannot_be_written_are_one_warning_and_no_failure(tmp_path, caplog):
    (tmp_path / "tb").write_text("a file where the folder would be")
    curves = CurvesLogger(tmp_path / "tb" / "start", None)
    for step in (3, 4):
        curves.log({"loss": 1.0}, step)
    curves.close()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("From step 3 on ") and "has no curves" in warning


def test_a_loss_that_is_not_attached_says_so():
    loss = NITPLoss.Config().build()
    with pytest.raises(RuntimeError, match=re.escape("call NITPLoss.attach before")):
        loss.sums.zero_()


def test_metrics_that_are_not_attached_say_so():
    metrics = build(NITPMetricsProcessor)
    for log_something in (log, lambda metrics: metrics.log_validation(2.5, 3)):
        with pytest.raises(RuntimeError, match=re.escape("call NITPMetricsProcessor.attach befo")):
            log_something(metrics)
    metrics.attach(loss=NITPLoss.Config().build(), max_norm=1.0, meter=None)
    with pytest.raises(RuntimeError, match=re.escape("call NITPMetricsProcessor.start_step befo")):
        log(metrics)


def test_a_runs_metrics_that_are_not_attached_say_so():
    metrics = build(RunMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0, meter=None)
    with pytest.raises(RuntimeError, match=re.escape("RunMetricsProcessor.attach_progress befo")):
        log(metrics)


def test_nitps_metrics_are_tags_and_leave_torchtitans_console_alone(caplog):
    caplog.set_level(logging.INFO)
    metrics = build(NITPMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0, meter=None)
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
    metrics.attach(loss=None, max_norm=1.0, meter=None)
    attach_progress(metrics)
    log(metrics)
    assert metrics.logger.metrics["data/tokens_books"] == 640
    assert metrics.logger.metrics["lr/all"] == 1e-3
    assert metrics.last_ntp_loss == 2.5
    metrics.log_validation(2.25, 3)
    training, validation = console(caplog)
    assert training.startswith("step      3  loss   2.5000  grad_norm   1.000  lr 1.00e-03")
    assert validation == "validation  step      3  ntp  2.2500"


def test_a_validation_names_its_sets_in_tags_and_console(caplog):
    """bits_per_byte by hand: 2 nats a label, 30 labels and 20 bytes are 3 nats a byte."""
    caplog.set_level(logging.INFO)
    metrics = build(RunMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0, meter=None)
    attach_progress(metrics)
    counts = {"rows_N3L": np.empty((0, 3, 1), np.int32), "num_documents": 3, "num_labels": 30}
    pile = ValidationSet(name="pile", num_bytes=20, **counts)
    ids = ValidationSet(name="ids", num_bytes=None, **counts)
    metrics.log_validation(2.25, 3, set_losses=[(pile, 2.0), (ids, 1.5)])
    by_set = re.compile("validation_metrics/(pile|ids)/")
    assert {k: v for k, v in metrics.logger.metrics.items() if by_set.match(k)} == {
        "validation_metrics/pile/loss": 2.0,
        "validation_metrics/pile/bits_per_byte": pytest.approx(3 / math.log(2)),
        "validation_metrics/ids/loss": 1.5,
    }
    assert metrics.logger.metrics["validation_metrics/loss"] == 2.25
    (line,) = console(caplog)
    assert line == (
        "validation  step      3  ntp  2.2500  pile 2.0000 (4.3281 bits/byte)  ids 1.5000"
    )


class Clock:
    """Takes the place of time.perf_counter: stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("num_ranks", "degrees", "num_dp_ranks"),
    [
        (1, {}, 1),
        (8, {"data_parallel_shard_degree": 4, "tensor_parallel_degree": 2}, 4),
        (16, {"data_parallel_replicate_degree": 2, "context_parallel_degree": 2,
              "pipeline_parallel_degree": 2}, 4),
    ],
)  # fmt: skip
def test_the_console_line_has_the_tokens_a_second_of_all_ranks_and_the_time_left(
    monkeypatch, caplog, num_ranks, degrees, num_dp_ranks
):
    """Each data-parallel rank counts the tokens it draws; the pace is that since the first line."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    metrics = build(RunMetricsProcessor)
    metrics.attach(loss=None, max_norm=1.0, meter=None)
    attach_progress(metrics, total_steps=4000)
    metrics.parallel_dims = ParallelDims.from_config(ParallelismConfig(**degrees), num_ranks)
    monkeypatch.setattr(metrics, "_from_last_stage", lambda loss: loss)  # takes a process group
    ends = []
    # Step, seconds since the line before, tokens of one data-parallel rank since then.
    for step, seconds, num_tokens in ((1, 50.0, 3000), (11, 20.0, 5000), (31, 60.0, 9000)):
        clock.now_s += seconds
        metrics.ntokens_since_last_log, metrics.data_loading_times = num_tokens, [0.1]
        metrics.log(step, 2.5, 2.75, 1.0, {"lr/all": 1e-3})
        ends.append(console(caplog)[-1].split("  tokens/s ")[1])
    assert ends == [
        f"{60 * num_dp_ranks:,}  left -",
        f"{250 * num_dp_ranks:,}  left 2:12:58",  # 2 s a step, 3989 steps
        f"{150 * num_dp_ranks:,}  left 2:56:24",  # 80 s for 30 steps, 3969 steps
    ]


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


# ------------------------------------------------------------------------ the geometry's figures


class Meter:
    """Takes the place of the states' sums: what a batch of targets that point to two corners gives,
    and moments of the states (2, 0), (0, 0), (1, 1), (1, -1)."""

    freq = 10
    is_due = GeometryMeter.is_due

    def __init__(self, average_cosine: float = 0.25, scatter: list[list[float]] | None = None):
        self.average_cosine = average_cosine
        self.scatter = scatter or [[2.0, 0.0], [0.0, 2.0]]

    def read(self) -> Reading:
        moments = Moments(torch.tensor(4.0), torch.tensor([1.0, 0.0]), torch.tensor(self.scatter))
        return Reading({"": self.average_cosine}, 0.5, {"": moments})


class StepRecorder(Recorder):
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append((step, dict(metrics)))

    def close(self) -> None:
        pass


def measured(meter: Any, processor: type[NITPMetricsProcessor] = NITPMetricsProcessor) -> Any:
    metrics = build(processor)
    metrics.logger = StepRecorder()
    metrics.attach(loss=None, max_norm=1.0, meter=meter)
    return metrics


class Eigenvalues:
    """Takes the place of `effective_rank`: known when the test says so."""

    def __init__(self, monkeypatch) -> None:
        self.may_end, self.calls = threading.Semaphore(0), 0
        monkeypatch.setattr(Moments, "effective_rank", lambda moments: self.compute())

    def compute(self) -> torch.Tensor:
        self.calls += 1
        self.may_end.acquire()
        return torch.tensor(float(self.calls))


def log_steps(metrics: Any, *steps: int) -> None:
    for step in steps:
        metrics.data_loading_times = [0.1]
        metrics.log(step, 2.5, 2.75, 1.0)


def ranks_logged(metrics: Any) -> list[tuple[int, float]]:
    tag = "geometry/effective_rank"
    return [(step, tags[tag]) for step, tags in metrics.logger.steps if tag in tags]


def test_training_goes_on_while_eigenvalues_are_computed_and_ranks_keep_their_step(monkeypatch):
    eigenvalues = Eigenvalues(monkeypatch)
    metrics = measured(Meter())
    log_steps(metrics, 10, 13, 17)
    assert [step for step, _ in metrics.logger.steps] == [10, 13, 17]
    assert ranks_logged(metrics) == []
    eigenvalues.may_end.release()
    metrics._pending[0].tags.result()
    log_steps(metrics, 18)
    assert ranks_logged(metrics) == [(10, 1.0)]
    metrics.close()


def test_a_measurement_waits_for_the_one_before_and_one_warning_names_the_option(monkeypatch):
    eigenvalues, warnings = Eigenvalues(monkeypatch), []

    def warn(text: str) -> None:
        warnings.append(text)
        eigenvalues.may_end.release(3)  # who warns is about to wait

    metrics = measured(Meter())
    monkeypatch.setattr(logging.getLogger(), "warning", warn)
    log_steps(metrics, 10, 20, 30)
    metrics.close()
    assert ranks_logged(metrics) == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert warnings == [
        "The eigenvalues of step 10 are not known at step 20, which measures again: training "
        "waits for them. Raise geometry.freq (10)."
    ]


def test_a_logger_that_drops_what_is_late_gets_every_rank_before_the_next_step():
    metrics = measured(Meter())
    metrics.config.enable_wandb = True
    log_steps(metrics, 10, 13, 20)
    metrics.log_validation(2.25, 20)
    metrics.close()
    found = [
        (step, tag, value)
        for step, tags in metrics.logger.steps
        for tag, value in tags.items()
        if "effective" in tag or "average" in tag
    ]
    assert found == [
        (10, "geometry/average_cosine", 0.25), (10, "geometry/effective_rank", pytest.approx(2)),
        # Step 13 is logged and not due.
        (20, "geometry/average_cosine", 0.25), (20, "geometry/effective_rank", pytest.approx(2)),
        (20, "validation_metrics/average_cosine", 0.25),
        (20, "validation_metrics/effective_rank", pytest.approx(2)),
    ]  # fmt: skip
    steps = [step for step, _ in metrics.logger.steps]
    assert steps == sorted(steps)


def test_a_flush_brings_the_ranks_of_the_last_step():
    metrics = measured(Meter(), RunMetricsProcessor)
    attach_progress(metrics)
    metrics.log(10, 2.5, 2.75, 1.0)
    metrics.flush()
    assert metrics.logger.steps[-1] == (10, {"geometry/effective_rank": pytest.approx(2)})


def test_a_figure_that_does_not_exist_is_left_out():
    metrics = measured(Meter(average_cosine=float("nan"), scatter=[[float("inf"), 0.0], [0.0, 1]]))
    log(metrics)
    metrics.log_validation(2.25, 3)
    metrics.close()
    tags = {tag for _, tags in metrics.logger.steps for tag in tags}
    assert not any(tag.endswith(("rank", "cosine")) for tag in tags)


def test_eigenvalues_that_do_not_converge_are_a_warning_and_no_failure(monkeypatch, caplog):
    def fail(moments: Moments) -> torch.Tensor:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(Moments, "effective_rank", fail)
    metrics = measured(Meter())
    metrics.log(10, 2.5, 2.75, 1.0)
    metrics.close()
    assert [tags for _, tags in metrics.logger.steps if "geometry/effective_rank" in tags] == []
    warning = caplog.records[-1].getMessage()
    assert warning == "geometry/effective_rank is left out: failed to converge"


@pytest.mark.parametrize(
    ("width", "options", "freq"),
    [
        # By hand: 3 * 8.7 s * (width / 4096)^3 / 0.01 steps of a second, up to a multiple of 10.
        (192, {}, 10), (640, {}, 10), (768, {}, 20), (1280, {}, 80), (3072, {}, 1110),
        (4096, {}, 2610), (4096, {"layers": [0, 2, 5]}, 5220), (4096, {"freq": 30}, 30),
    ],
)  # fmt: skip
def test_wide_models_are_measured_as_rarely_as_their_eigenvalues_ask_for(width, options, freq):
    assert GeometryConfig(**options).find_freq(10, width) == freq


@pytest.mark.parametrize("tag", [None, "mine"])
def test_tensorboard_opens_with_the_papers_figures_and_their_tags(tmp_path, tag):
    curves = CurvesLogger(tmp_path / "start", tag)
    curves.log({"nitp/skill": 0.5, "throughput(tps)": 7.0, "geometry/effective_rank": 3.0}, 1)
    curves.log({f"validation_metrics/{name}/loss": 2.0 for name in ("pile", "a.b")}, 1)
    curves.close()
    events = EventAccumulator(str(tmp_path / "start")).Reload()
    (summary,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(summary.tensor_proto.string_val[0])
    charts = {
        c.title: list(c.multiline.tag) for category in layout.category for c in category.chart
    }
    shown = {
        title: [
            tag
            for tag in sorted(events.Tags()["scalars"])
            if any(re.match(p, tag) for p in patterns)
        ]
        for title, patterns in charts.items()
    }
    prefix = "" if tag is None else "mine/"
    assert {title: tags for title, tags in shown.items() if tags} == {
        "Effective rank": [f"{prefix}geometry/effective_rank"],
        "Skill: 0 is a constant prediction, 1 is perfect": [f"{prefix}nitp/skill"],
        "Cross entropy of the held-out sets": [
            f"{prefix}validation_metrics/{name}/loss" for name in ("a.b", "pile")
        ],
        "Tokens/s per device": [f"{prefix}throughput(tps)"],
    }
