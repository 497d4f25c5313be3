"""Prints what torch.compile made of two training steps and a validation, as JSON, for every
[config, overrides, further ones] of the argument. A process of its own: the compiler's state is
global."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import utils

from recipes.config import load_config


def count_graphs(config: str, overrides: list[str], variant: list[str]) -> dict[str, Any]:
    """`graphs`: file and function that each compiled graph begins at; `recompiled`: why a function
    was compiled again; `breaks`: why a graph broke."""
    torch._dynamo.reset()
    utils.counters.clear()
    utils.clear_compilation_metrics()
    with tempfile.TemporaryDirectory() as folder:
        trainer = load_config(config, overrides, [*variant, f"--job.dump_folder={folder}"]).build()
        trainer.checkpointer.load()
        batches = trainer.batch_generator(trainer.dataloader)
        for _ in range(2):
            trainer.step += 1
            trainer.train_step(batches)
        trainer.validator.validate(trainer.model_parts, trainer.step)
        trainer.close()
    torch.distributed.destroy_process_group()
    metrics = utils.get_compilation_metrics()
    return {
        "graphs": [f"{Path(m.co_filename).name}:{m.co_name}" for m in metrics if m.co_filename],
        "recompiled": [m.recompile_reason for m in metrics if m.recompile_reason],
        "breaks": list(utils.counters["graph_break"]),
    }


if __name__ == "__main__":
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    print(json.dumps([count_graphs(*run) for run in json.loads(sys.argv[1])]))
