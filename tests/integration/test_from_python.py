"""The README's `config_registry.py`, run by TorchTitan's own command, which adds NITP alone."""

import re

import pytest
from torchtitan.config import ConfigManager

from tests.launch import assert_equal_states
from tests.torchtitan_user import Curves, User


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
