"""`python -m recipes.train`, kept from a step by a file beside the run's folder.

hold-RUN holds the number of the step; while the file is there, that step does not begin.
"""

import sys
from pathlib import Path
from typing import Any

import recipes.platform  # noqa: F401  before torchtitan
from recipes import train
from recipes.config.settings import resolve_settings
from recipes.run.trainer import RunTrainer
from tests.waiting import wait_until


def main(arguments: list[str]) -> int:
    run = Path(resolve_settings(None, arguments).values["job"]["dump_folder"])
    hold = run.with_name(f"hold-{run.name}")
    held_step = int(hold.read_text()) if hold.exists() else None
    train_step = RunTrainer.train_step

    def train_when_free(self: RunTrainer, data_iterator: Any) -> None:
        if held_step is not None and self.step >= held_step:
            wait_until(lambda: not hold.exists())
        train_step(self, data_iterator)

    RunTrainer.train_step = train_when_free  # type: ignore[method-assign]
    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
