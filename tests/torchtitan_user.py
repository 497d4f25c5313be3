"""Someone who trains by TorchTitan's own command, with a module of configurations.

Without an accelerator torchtitan must not be imported before its stand-in; there the command is
`runpy` in a process that has activated the platform.
"""

import functools
import json
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from torchtitan.config import ConfigManager

from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.platform import on_platform
from tests.launch import load_state, read_curves, run, start

ROOT = Path(__file__).parents[1]
Curves = dict[str, dict[int, float]]


def torchtitan_train(path: Path, arguments: Sequence[str]) -> int:
    """`python -m torchtitan.train ARGUMENTS`, PYTHONPATH at `path`, on this machine's platform."""
    parse = ConfigManager.parse_args
    ConfigManager.parse_args = lambda self, args=None: on_platform(parse(self, args))
    sys.path.insert(0, str(path))
    sys.argv = ["torchtitan.train", *arguments]
    runpy.run_module("torchtitan.train", run_name="__main__", alter_sys=True)
    return 0


class User:
    """Someone with a `my_run/config_registry.py`, a tokenizer and some text, and one command line.

    registry: the file's text; None: the README's.
    """

    def __init__(self, folder: Path, registry: str | None = None) -> None:
        self.folder = folder
        if registry is None:
            text = (ROOT / "README.md").read_text()
            (registry,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (folder / "my_run").mkdir()
        (folder / "my_run" / "config_registry.py").write_text(registry)
        texts = [f"row {i}: {i * i} and {i * 7919 % 1000}" for i in range(400)]
        (folder / "text").mkdir()
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "text" / "data.json").write_text("".join(lines))
        save_bpe_tokenizer(folder / "tokenizer", texts, vocab_size=512)
        self.options = [
            "--hf_assets_path", f"{folder / 'tokenizer'}",
            "--dataloader.dataset_path", f"{folder / 'text'}",
            "--validator.enable", "--validator.freq", "2", "--validator.steps", "3",
            "--validator.dataloader.dataset", "c4_test",
            "--validator.dataloader.dataset_path", f"{folder / 'text'}",
            "--training.seq_len", "64", "--training.local_batch_size", "2",
            "--training.global_batch_size", "8", "--training.steps", "3",
            "--training.mixed_precision_param", "float32", "--debug.seed", "0",
            "--debug.no-enable-structured-logging",
            "--lr_scheduler.total_steps", "3", "--metrics.enable_tensorboard",
            "--metrics.disable_color_printing", "--checkpoint.enable", "--checkpoint.interval", "1",
        ]  # fmt: skip
        self.main = functools.partial(torchtitan_train, folder)

    def arguments(self, name: str, *extra: str, config: str = "nitp") -> list[str]:
        module, function = {
            "nitp": ("my_run", "llama3_debugmodel_nitp"),
            "plain": ("llama3", "llama3_debugmodel"),
        }.get(config, ("my_run", config))
        command = ["--module", module, "--config", function, *self.options]
        return [*command, "--dump_folder", f"{self.folder / name}", *extra]

    def train(self, name: str, *extra: str, config: str = "nitp", num_ranks: int = 1) -> Curves:
        arguments = self.arguments(name, *extra, config=config)
        run(arguments, self.folder / f"{name}-log", num_ranks, main=self.main)
        curves = read_curves(self.folder / name)
        # Of the machine, not of the model.
        return {tag: c for tag, c in curves.items() if not re.search("memory|throughput", tag)}

    def refusal(self, *extra: str, config: str = "nitp") -> str:
        """The last line of a run that fails."""
        arguments = self.arguments("bad", *extra, config=config)
        (rank,) = start(arguments, self.folder / "bad-log", main=self.main)
        assert rank.wait() == 1, rank.text()[-3000:]
        return rank.text().strip().splitlines()[-1]

    def state(self, name: str, step: int) -> dict:
        return load_state(self.folder / name / "checkpoint" / f"step-{step}")
