"""The process behind `world.run_world`: imports once, forks the ranks of every case."""

import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from recipes.config import load_config


class Recorder:
    """Takes the place of TensorBoard."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.records.append({name: float(value) for name, value in metrics.items()})

    def close(self) -> None:
        pass


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def parameters(model_parts: list[nn.Module]) -> dict[str, nn.Parameter]:
    return {
        name.replace("_checkpoint_wrapped_module.", ""): param
        for part in model_parts
        for name, param in part.named_parameters()
    }


def run_case(case: dict[str, Any], folder: str) -> dict[str, Any]:
    overrides = [
        "--metrics.log_freq=1",
        "--metrics.enable_tensorboard=false",
        "--debug.enable_structured_logging=false",
        "--training.max_norm=1e9",  # gradients as they are
        f"--job.dump_folder={folder}",
        *case["overrides"],
    ]
    trainer = load_config(case["config"], overrides).build()
    recorder = Recorder()
    trainer.metrics_processor.logger = recorder
    trainer.checkpointer.load()
    result: dict[str, Any] = {
        "initial": {name: whole(p) for name, p in parameters(trainer.model_parts).items()},
        "batches": [],
        "grads": {},
        "validation": {},
    }
    iterator = trainer.batch_generator(trainer.dataloader)

    def drawn():
        for inputs, labels in iterator:
            if trainer.step == 1:
                result["batches"].append({**inputs, "labels": labels.clone()})
            yield inputs, labels

    batches = drawn()
    for _ in range(case["num_steps"]):
        trainer.step += 1
        trainer.train_step(batches)
        if not result["grads"]:
            result["grads"] = {
                name: whole(p.grad) for name, p in parameters(trainer.model_parts).items()
            }
    result["metrics"], recorder.records = recorder.records, []
    if case["save"]:
        trainer.checkpointer.save(trainer.step, last_step=True)
    if case["validate"]:
        trainer.validator.validate(trainer.model_parts, trainer.step)
        (result["validation"],) = recorder.records
    trainer.close()
    return result


def run_rank(case: dict[str, Any], folder: str, rank: int, world_size: int, port: int) -> None:
    """One rank, in a process of its own; its output goes to a log beside the result."""
    log = os.open(_log(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with tempfile.TemporaryDirectory() as scratch:
        result = run_case(case, scratch)
    if rank == 0:
        torch.save(result, Path(folder, f"{case['name']}-{world_size}.pt"))
    torch.distributed.destroy_process_group()


def run_world(case: dict[str, Any], folder: str, world_size: int, timeout_s: float) -> None:
    """Fork the ranks of one case. Exits naming the first rank that fails or hangs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run_rank, args=(case, folder, rank, world_size, port))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            break
        time.sleep(0.05)
    bad = [rank for rank, process in enumerate(ranks) if process.exitcode != 0]
    for process in ranks:
        process.kill()
    if bad:
        # A rank that failed by itself explains more than the ranks that waited for it.
        rank = next((r for r in bad if (ranks[r].exitcode or 0) > 0), bad[0])
        end_of_log = "\n".join(Path(_log(folder, rank)).read_text().splitlines()[-60:])
        sys.exit(f"{case['name']}: rank {rank} of {world_size} failed:\n{end_of_log}")


def _log(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rank{rank}.log")


def main() -> None:
    spec, folder, timeout_s = sys.argv[1:]
    for case, world_size in json.loads(Path(spec).read_text()):
        run_world(case, folder, world_size, float(timeout_s))


if __name__ == "__main__":
    main()
