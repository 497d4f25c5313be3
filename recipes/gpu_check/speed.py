"""What one rank does to time an arm: a case's runner, in place of the parity matrix's."""

import time
from pathlib import Path
from typing import Any

import torch

from recipes.parity.rank import Recorder, build_trainer

# isort: split

from torchtitan.tools import utils

NUM_WARM_UP_STEPS = 4
"""Compile, capture the graph (the second step), and fill the allocator's cache."""


class Clock:
    """Marks on the device's own time line, so that the host may run ahead as in training."""

    def __init__(self, device: torch.device) -> None:
        self._is_async = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._is_async:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """Seconds from each mark to the next."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._is_async:
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def run_timed(case: dict[str, Any], leg: int, folder: Path, scratch: Path) -> dict[str, Any] | None:
    """`num_steps` steps after warming up, on batches that are drawn before; on rank 0 its figures,
    as one entry of `probes`: seconds of each step, tokens a step, FLOPs a token, the device's peak
    FLOPS (not a number where unknown), peak memory, and the losses of step 1."""
    trainer = build_trainer(case, leg, scratch)
    recorder = Recorder()
    trainer.metrics_processor.logger = recorder
    trainer.checkpointer.load()
    num_steps = NUM_WARM_UP_STEPS + case["num_steps"]
    generator = trainer.batch_generator(trainer.dataloader)
    batches = [next(generator) for _ in range(num_steps * trainer.gradient_accumulation_steps)]
    drawn = iter(batches)
    clock = Clock(trainer.device)
    for index in range(num_steps):
        if index >= NUM_WARM_UP_STEPS:
            clock.mark()
        trainer.step += 1
        trainer.gc_handler.run(trainer.step)
        trainer.train_step(drawn)
    clock.mark()
    seconds = clock.read()
    monitor = trainer.metrics_processor.device_memory_monitor
    memory = monitor.get_peak_stats()
    findings = {
        "seconds": seconds,
        "tokens_per_step": trainer.config.training.seq_len * _rows_per_step(trainer),
        "flops_per_token": float(trainer.metrics_processor.num_flops_per_token),
        "peak_flops": float(utils.get_peak_flops(monitor.device_name)),
        "active_gib": memory.max_active_gib,
        "reserved_gib": memory.max_reserved_gib,
        "num_devices": torch.distributed.get_world_size(),
    }
    records = recorder.take(trainer.metrics_processor)
    trainer.close()
    if torch.distributed.get_rank() != 0:
        return None
    return {
        "metrics": records,
        "validation": {},
        "has_loss": True,
        "initial": {},
        "grads": {},
        "state": {},
        "batches": [],
        "num_accumulated": trainer.gradient_accumulation_steps,
        "probes": [findings],
    }


def _rows_per_step(trainer: Any) -> int:
    dims, local = trainer.parallel_dims, trainer.config.training.local_batch_size
    num_ranks = dims.get_mesh("batch").size() if dims.dp_enabled else 1
    return local * num_ranks * trainer.gradient_accumulation_steps
