"""What measuring the geometry takes: python scripts/benchmark_geometry.py [F.toml] [--table.key V]

Trains a few steps on one device, each of them measured, and times the meter's calls by themselves.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

import nitp.metrics
from recipes.command import report_error, run_command, set_single_process_environment
from recipes.config import load_config
from recipes.config.arguments import check_arguments, parse_overrides
from recipes.machine import describe_machine

NUM_STEPS, NUM_WARM_UP_STEPS = 12, 2
OVERRIDES = [
    "--metrics.log_freq=1", "--checkpoint.enable=false", "--validation.enable=false",
    "--training.disable_cuda_graphs",
]  # fmt: skip


class Stopwatch:
    """Adds up the time of the calls that it wraps; on a GPU it waits for them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any], *, waits: bool = True) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._now(waits)
            result = call(*args, **kwargs)
            self.seconds += self._now(waits) - began
            return result

        return timed

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    @staticmethod
    def _now(waits: bool) -> float:
        if waits and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(config: Any) -> dict[str, list[float]]:
    """Seconds by what they went to, of each step after the first ones."""
    trainer = config.build()
    meter = trainer.loss_fn.meter
    sums, reading, ranks = Stopwatch(), Stopwatch(), Stopwatch()
    meter._update = sums.wrap(meter._update)
    meter.read = reading.wrap(meter.read)
    # In a thread of its own: beside the step, not in it.
    nitp.metrics._effective_ranks = ranks.wrap(nitp.metrics._effective_ranks, waits=False)
    batches = trainer.batch_generator(trainer.dataloader)
    seconds: dict[str, list[float]] = {"step": [], "sums": [], "reading": [], "eigenvalues": []}
    for step in range(1, NUM_STEPS + NUM_WARM_UP_STEPS + 1):
        trainer.step = step
        began = Stopwatch._now(True)
        trainer.train_step(batches)
        took = Stopwatch._now(True) - began
        trainer.metrics_processor.log_pending()
        if step > NUM_WARM_UP_STEPS:
            for name, value in zip(
                seconds, (took, sums.take(), reading.take(), ranks.take()), strict=True
            ):
                seconds[name].append(value)
        else:
            sums.take(), reading.take(), ranks.take()
    trainer.close()
    return seconds


def describe(seconds: dict[str, list[float]], log_freq: int) -> str:
    """The medians, and the share of the steps from one measured step to the next."""
    step_s, sums_s, reading_s, ranks_s = (statistics.median(s) for s in seconds.values())
    plain_s = step_s - sums_s - reading_s
    share = (sums_s + reading_s) / (log_freq * plain_s + sums_s + reading_s)
    return "\n".join(
        [
            "| of a measured step | ms |",
            "|---|---|",
            f"| the step without what follows | {1e3 * plain_s:.1f} |",
            f"| sums over the states | {1e3 * sums_s:.2f} |",
            f"| reading them | {1e3 * reading_s:.2f} |",
            f"| eigenvalues, in another thread | {1e3 * ranks_s:.2f} |",
            "",
            f"Measured every {log_freq} steps: {share:.2%} of the time. {describe_machine()}.",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if arguments and not arguments[0].startswith("--"):
        arguments = [f"--job.config_file={arguments[0]}", *arguments[1:]]
    try:
        check_arguments(arguments)
        names = parse_overrides(arguments).keys()
        for name in ("job.dump_folder", *parse_overrides(OVERRIDES)):
            if name in names and name != "metrics.log_freq":
                raise ValueError(f"--{name} has no effect: the benchmark sets it. Leave it out.")
        path = None if "job.config_file" in names else "train_configs/debug.toml"
        set_single_process_environment()
        with tempfile.TemporaryDirectory() as folder:
            log_freq = load_config(path, arguments).metrics.log_freq
            overrides = [*arguments, *OVERRIDES, f"--job.dump_folder={folder}"]
            print(describe(measure(load_config(path, overrides)), log_freq))
    except ValueError as error:
        return report_error(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
