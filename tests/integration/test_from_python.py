"""The README's `config_registry.py`, run by TorchTitan's own command: NITP is added, nothing else.

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

import pytest
from torchtitan.config import ConfigManager

from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.platform import on_platform
from tests.launch import assert_equal_states, load_state, read_curves, run, start

ROOT = Path(__file__).parents[2]
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
    """Someone with the README's file, a tokenizer and some text, and one command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        (folder / "my_run").mkdir()
        (folder / "my_run" / "config_registry.py").write_text(block)
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
        }[config]
        command = ["--module", module, "--config", function, *self.options]
        return [*command, "--dump_folder", f"{self.folder / name}", *extra]

    def train(self, name: str, *extra: str, config: str = "nitp", num_ranks: int = 1) -> Curves:
        arguments = self.arguments(name, *extra, config=config)
        run(arguments, self.folder / f"{name}-log", num_ranks, main=self.main)
        curves = read_curves(self.folder / name)
        # Of the machine, not of the model.
        return {tag: c for tag, c in curves.items() if not re.search("memory|throughput", tag)}

    def refusal(self, *extra: str) -> str:
        """The last line of a run that fails."""
        (rank,) = start(self.arguments("bad", *extra), self.folder / "bad-log", main=self.main)
        assert rank.wait() == 1, rank.text()[-3000:]
        return rank.text().strip().splitlines()[-1]

    def state(self, name: str, step: int) -> dict:
        return load_state(self.folder / name / "checkpoint" / f"step-{step}")


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> User:
    return User(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def plain(user) -> Curves:
    return user.train("plain", config="plain", num_ranks=2)


def test_options_of_the_command_line_reach_the_loss_and_what_is_logged(user):
    curves = user.train("cli", "--nitp.weight", "0.25", "--nitp.start-step", "2")
    assert curves["nitp/weight"] == {1: 0.0, 2: 0.25, 3: 0.25}
    assert sorted(curves["loss_metrics/nitp_loss"]) == [2, 3]
    for step, nitp_loss in curves["loss_metrics/nitp_loss"].items():
        total = curves["loss_metrics/ntp_loss"][step] + 0.25 * nitp_loss
        # 1e-6: float32 additions.
        assert curves["loss_metrics/global_avg_loss"][step] == pytest.approx(total, rel=1e-6)
    assert "validation_metrics/nitp_loss" in curves


def test_another_layer_is_another_target(user):
    """The target of layer 0 is the embedding: the loss of the first step differs."""
    first, other = (
        user.train(f"layer{k}", "--nitp.target-layer", k, "--training.steps", "1") for k in "01"
    )
    assert first["loss_metrics/ntp_loss"] == other["loss_metrics/ntp_loss"]
    assert first["loss_metrics/nitp_loss"] != other["loss_metrics/nitp_loss"]


@pytest.mark.parametrize("option", [["--nitp.no-enable"], ["--nitp.weight", "0"]])
def test_without_nitp_the_run_is_torchtitans_in_curves_validation_and_checkpoints(
    user, plain, option
):
    name = "off-" + option[0].lstrip("-")
    curves = user.train(name, *option, num_ranks=2)
    assert "validation_metrics/loss" in plain
    ntp_loss = {"loss_metrics/ntp_loss": plain["loss_metrics/global_avg_loss"]}
    assert curves == plain | ntp_loss
    for step in (1, 2, 3):
        assert_equal_states(user.state(name, step), user.state("plain", step))


@pytest.mark.parametrize("options", [["--nitp.no-enable"], ["--checkpoint.allow-projector-change"]])
def test_a_checkpoint_of_torchtitans_goes_on_with_its_count_of_tokens(user, plain, options):
    """On 2 ranks, each of which counts its own."""
    name = f"on{len(options[0])}"
    start = f"{user.folder / 'plain' / 'checkpoint' / 'step-2'}"
    curves = user.train(
        name, "--checkpoint.initial_load_path", start, "--checkpoint.no-initial-load-model-only",
        *options, num_ranks=2,
    )  # fmt: skip
    assert curves["n_tokens_seen"] == {3: plain["n_tokens_seen"][3]} == {3: 3 * 8 * 64}
    assert ("loss_metrics/nitp_loss" in curves) == (options != ["--nitp.no-enable"])
    if "loss_metrics/nitp_loss" in curves:
        state = user.state(name, 3)
        counts = [
            value for key, value in state.items() if re.search(r"nitp_projector.*\.step", key)
        ]
        assert counts == [1, 1, 1], "the projector starts fresh"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nitp.projector-ratio", "2"], "but with_nitp has built one of width 1024 (0: none)"),
        (["--nitp.start-step", "4"], "nitp.start_step (4) must be at most training.steps (3)"),
        (["--nitp.target-layer", "7"], "nitp.target_layer (7) must be at most the number of"),
    ],
)
def test_an_option_that_cannot_take_effect_is_refused_in_one_line(user, options, message):
    line = user.refusal(*options)
    assert line.startswith("ValueError: nitp.") and message in line


def test_the_readmes_other_configuration_is_one(user, monkeypatch):
    monkeypatch.syspath_prepend(str(user.folder))
    config = ConfigManager().parse_args(
        ["--module", "my_run", "--config", "llama3_8b_nitp", "--nitp.weight", "0.6"]
    )
    assert config.nitp.weight == 0.6 and config.nitp.target_layer == 6
